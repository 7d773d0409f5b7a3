"""Downloads with a server of our own making; nothing here touches a network."""

import gzip
import hashlib
import io
import tarfile
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from medveil.data import catalogue
from medveil.data.catalogue import CATALOGUE, Origin, cache_folder, locate
from medveil.data.download import download, fetch_https
from medveil.errors import ArchiveError, ChecksumError, ConfigError, MissingDataError

TREE = "f6947121e193deca21ffd6d46362b90f2a9f5342"  # git's own id, see test_git_tree.py
FILES = {
    "a.txt": (b"hello\n", 0o644),
    "dir/run.sh": (b"#!/bin/sh\n", 0o755),
    "dir-b": (b"", 0o644),
    "dir.txt": (b"x", 0o644),
    "dir0": (b"y", 0o664),
}


def tarball(files: dict[str, tuple[bytes, int]], top: str, *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(f"{top}/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return buffer.getvalue()


def serve(content: bytes):
    def fetch(address: str, target: Path, max_bytes: int, progress) -> None:
        assert address.startswith("https://")
        target.write_bytes(content)
        if progress is not None:
            progress(len(content))

    return fetch


def refuse(address, target, max_bytes, progress) -> None:
    pytest.fail("fetched again")


@pytest.fixture
def known(monkeypatch):
    def change(name: str, **origin) -> None:
        entry = CATALOGUE[name]
        monkeypatch.setitem(catalogue.CATALOGUE, name, replace(entry, origin=replace(entry.origin, **origin)))

    return change


def test_one_file_with_its_published_md5(tmp_path, known) -> None:
    known("pneumonia-28", md5=hashlib.md5(b"content").hexdigest())
    seen = []
    folder = download("pneumonia-28", into=tmp_path, fetch=serve(b"content"), progress=seen.append)
    assert folder == tmp_path / "pneumoniamnist_28"
    assert (folder / "pneumoniamnist.npz").read_bytes() == b"content"
    assert seen == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["pneumoniamnist_28"]
    assert download("pneumonia-28", into=tmp_path, fetch=refuse) == folder


def test_another_file_is_refused_and_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ChecksumError, match="28209eda62fecd6e6a2d98b1501bb15f"):
        download("pneumonia-28", into=tmp_path, fetch=serve(b"something else"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_repository_by_its_tree(tmp_path, known) -> None:
    known("retina", trees={"CHASEDB1": TREE})
    files = {f"CHASEDB1/{name}": entry for name, entry in FILES.items()}
    content = tarball({**files, "README": (b"not wanted", 0o644)}, "data-92b9449")
    folder = download("retina", into=tmp_path, fetch=serve(content))
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        name: entry[0] for name, entry in FILES.items()
    }


@pytest.mark.parametrize("fault", ["changed", "missing", "added", "mode", "nothing"])
def test_a_changed_folder_is_refused(tmp_path, known, fault) -> None:
    known("retina", trees={"CHASEDB1": TREE})
    files = {f"CHASEDB1/{name}": entry for name, entry in FILES.items()}
    if fault == "changed":
        files["CHASEDB1/a.txt"] = (b"hello!", 0o644)
    elif fault == "missing":
        del files["CHASEDB1/dir0"]
    elif fault == "added":
        files["CHASEDB1/new"] = (b"", 0o644)
    elif fault == "mode":
        files["CHASEDB1/a.txt"] = (b"hello\n", 0o755)
    else:
        files = {"README": (b"", 0o644)}
    with pytest.raises(ChecksumError, match=TREE):
        download("retina", into=tmp_path, fetch=serve(tarball(files, "data-92b9449")))
    assert list(tmp_path.iterdir()) == []


def test_a_tar_with_an_md5_is_unpacked(tmp_path, known) -> None:
    content = tarball({"imagesTr/x.nii.gz": (b"1", 0o644)}, "Task04_Hippocampus")
    known("hippocampus", md5=hashlib.md5(content).hexdigest())
    folder = download("hippocampus", into=tmp_path, fetch=serve(content))
    assert (folder / "imagesTr/x.nii.gz").read_bytes() == b"1"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no archive", id="no archive"),
        pytest.param(tarball(FILES, "t")[:60], id="truncated"),
        pytest.param(gzip.compress(gzip.decompress(tarball(FILES, "t"))[:700]), id="truncated inside"),
        pytest.param(tarball({}, "t", link="/etc/passwd"), id="link"),
        pytest.param(tarball({"../../out": (b"", 0o644)}, "t"), id="leads out"),
        pytest.param(tarball(FILES, "/t"), id="absolute"),
        pytest.param(tarball({"big": (b"0" * 5000, 0o644)}, "t"), id="too large inside"),
        pytest.param(b"0" * 5000, id="too large"),
        pytest.param(tarball({"a": (b"", 0o644), "./a": (b"", 0o644)}, "t"), id="twice"),
    ],
)
def test_a_damaged_or_hostile_archive(tmp_path, known, content) -> None:
    known("hippocampus", md5=hashlib.md5(content).hexdigest(), max_bytes=4000)
    with pytest.raises(ArchiveError):
        download("hippocampus", into=tmp_path / "cache", fetch=serve(content))
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_unknown_set(tmp_path) -> None:
    with pytest.raises(ConfigError, match="pneumonia-28"):
        download("faces", into=tmp_path, fetch=refuse)


def test_a_fetch_that_writes_nothing(tmp_path) -> None:
    with pytest.raises(MissingDataError):
        download("pneumonia-28", into=tmp_path, fetch=lambda *_: None)


def test_only_https(tmp_path) -> None:
    for address in ("http://example.org/x", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(ConfigError, match="https"):
            fetch_https(address, tmp_path / "x", 100)
        assert not (tmp_path / "x").exists()


class Answer(io.BytesIO):
    pass


class Opener:
    def __init__(self, content: bytes | Exception) -> None:
        self.content = content

    def open(self, request, timeout):
        if isinstance(self.content, Exception):
            raise self.content
        return Answer(self.content)


def test_fetch_counts_and_stops(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Opener(b"x" * 100))
    seen = []
    fetch_https("https://example.org/x", tmp_path / "x", 100, seen.append)
    assert (tmp_path / "x").read_bytes() == b"x" * 100
    assert seen == [100]
    with pytest.raises(ArchiveError):
        fetch_https("https://example.org/x", tmp_path / "y", 99)


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), urllib.error.URLError("no route")])
def test_a_server_that_does_not_answer(tmp_path, monkeypatch, error) -> None:
    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Opener(error))
    with pytest.raises(MissingDataError, match="MEDVEIL_DATA"):
        fetch_https("https://example.org/x", tmp_path / "x", 100)


def test_a_redirect_away_from_https_is_refused(monkeypatch) -> None:
    from medveil.data.download import _HttpsOnly

    handler = _HttpsOnly()
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(ConfigError, match="https"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/x")
    followed = handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/y")
    assert followed.full_url == "https://example.org/y"


@pytest.mark.parametrize("name", CATALOGUE)
def test_entries_are_complete(name) -> None:
    entry = CATALOGUE[name]
    assert urlsplit(entry.origin.address).scheme == "https"
    assert entry.licence
    assert entry.citation
    assert entry.subject_rule
    hashes = [entry.origin.md5] if entry.origin.md5 else list((entry.origin.trees or {}).values())
    assert hashes
    assert all(len(value) in {32, 40} for value in hashes)
    assert isinstance(entry.origin, Origin)


def test_places_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDVEIL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEDVEIL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingDataError, match="medveil data download retina") as caught:
        locate("retina")
    assert "MEDVEIL_DATA" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "cache/retina_chase_db1").mkdir(parents=True)
    assert locate("retina") == tmp_path / "cache/retina_chase_db1"
    (tmp_path / "data/retina_chase_db1").mkdir(parents=True)
    assert locate("retina") == tmp_path / "data/retina_chase_db1"


def test_default_cache(monkeypatch) -> None:
    monkeypatch.delenv("MEDVEIL_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache/medveil"
