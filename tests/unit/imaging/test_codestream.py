"""Declared sizes against streams that Pillow wrote."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from medveil.imaging.codestream import codestream_size


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(40)}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
    ],
)
def test_size_of_written_streams(kind, options):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((37, 91), np.uint8)).save(buffer, kind, **options)
    assert codestream_size(buffer.getvalue()) == (37, 91)


def test_a_jpeg_2000_image_may_begin_off_its_reference_grid():
    # T.800 A.5.1: Xsiz 100, Ysiz 50, XOsiz 9, YOsiz 13.
    siz = struct.pack(">HHLLLL", 41, 0, 100, 50, 9, 13)
    assert codestream_size(b"\xff\x4f\xff\x51" + siz) == (37, 91)


def test_streams_without_a_header_declare_nothing():
    assert codestream_size(b"") is None
    assert codestream_size(b"\xff\xd8\xff\xe0\x00\x04") is None
    assert codestream_size(b"\xff\x4f\xff\x51\x00") is None
    assert codestream_size(b"\xff\xd8" + b"\xff" * 40) is None
    assert codestream_size(bytes(100)) is None
