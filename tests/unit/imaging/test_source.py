"""Bytes of a file within their limits."""

import tracemalloc
import zlib

import pytest

from medveil.errors import ImageError, MissingDataError
from medveil.imaging.source import inflate, read_source


def test_a_path_and_bytes_give_the_same(tmp_path):
    (tmp_path / "a").write_bytes(b"image")
    assert read_source(tmp_path / "a") == read_source(b"image") == b"image"


def test_the_limit_holds_for_both(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    for source in (tmp_path / "a", b"12345"):
        assert read_source(source, max_bytes=5) == b"12345"
        with pytest.raises(ImageError) as caught:
            read_source(source, max_bytes=4)
        assert caught.value.reason == "too-large"


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    tracemalloc.start()
    read_source(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_folders_are_missing_files(tmp_path):
    with pytest.raises(MissingDataError):
        read_source(tmp_path)


def test_inflate_counts_real_bytes():
    packed = zlib.compress(bytes(1_000_000))
    assert len(inflate(packed, wbits=15, max_bytes=1_000_000)) == 1_000_000
    for content, reason in ((packed, "too-large"), (packed[:-3], "truncated"), (b"junk" + packed, "decode")):
        limit = 999_999 if reason == "too-large" else 2_000_000
        with pytest.raises(ImageError) as caught:
            inflate(content, wbits=15, max_bytes=limit)
        assert caught.value.reason == reason
