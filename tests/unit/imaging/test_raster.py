"""PNG and JPEG files written by Pillow, and bytes that are none."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medveil.errors import ImageError, LabelError, MissingDataError
from medveil.imaging.raster import read_raster, read_raster_mask

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RGB = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(content, **options):
    with pytest.raises(ImageError) as caught:
        read_raster(content, **options)
    return caught.value.reason


def png(width, height, depth, colour, data):
    """A PNG from its parts, for what Pillow does not write."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_grey_8_and_16_bits_and_bilevel():
    assert read_raster(saved(GREY)).array.tolist() == [GREY.tolist()]
    deep = GREY.astype(np.uint16) * 257
    volume = read_raster(saved(deep))
    assert volume.array.dtype == np.uint16
    assert volume.array.tolist() == [deep.tolist()]
    assert read_raster(saved(GREY > 100)).array.tolist() == [((GREY > 100) * 255).tolist()]


def test_colour_is_channels_first_without_geometry():
    volume = read_raster(saved(RGB))
    assert np.array_equal(np.moveaxis(volume.array, 0, -1), RGB)
    assert volume.spacing_mm is None
    assert volume.affine is None


def test_palette_becomes_rgb():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_raster(saved(image)).array[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]


def test_transparency_shows_the_background():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert read_raster(saved(rgba)).array[:, 0].T.tolist() == [[200, 100, 0], [0, 0, 0], [40, 20, 0]]
    shown = read_raster(saved(rgba), background=250).array[:, 0].T.tolist()
    assert shown[:2] == [[200, 100, 0], [250, 250, 250]]
    la = np.array([[[200, 255], [200, 0]]], np.uint8)
    assert read_raster(saved(la), background=9).array.tolist() == [[[200, 9]]]
    keyed = saved(np.array([[5, 6]], np.uint8), transparency=5)
    assert read_raster(keyed, background=77).array.tolist() == [[[77, 6]]]


def test_exif_orientation_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side: turn clockwise by a quarter
    upright = read_raster(saved(GREY, exif=exif)).array[0]
    assert np.array_equal(upright, np.rot90(GREY, -1))
    assert np.array_equal(read_raster_mask(saved(GREY, exif=exif)), np.rot90(GREY, -1))


def test_jpeg_within_its_loss():
    smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 3
    array = read_raster(saved(smooth, "JPEG", quality=95)).array
    assert array.shape == (1, 32, 40)
    assert np.abs(array[0].astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello world, not an image", "not-raster"),
        (saved(RGB, "GIF"), "not-raster"),
        (saved(RGB, "TIFF"), "not-raster"),
        (saved(Image.new("CMYK", (4, 4)), "JPEG"), "pixel-format"),
        (png(1, 1, 16, 2, b"\0" + bytes(6)), "pixel-format"),
        (saved(np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))[:2000], "truncated"),
        (saved(np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8), "JPEG")[:2000], "truncated"),
        (png(60000, 60000, 8, 0, b""), "too-large"),
        (png(20000, 10000, 1, 0, b""), "too-large"),
    ],
)
def test_what_is_refused(content, reason):
    assert reason_of(content) == reason


def test_animated_png_is_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert reason_of(saved(frames[0], save_all=True, append_images=frames[1:])) == "animated"


def test_the_limit_is_an_argument_and_missing_files_are_not_named(tmp_path):
    assert reason_of(saved(GREY), max_pixels=11) == "too-large"
    assert read_raster(saved(GREY), max_pixels=12).spatial_shape == (3, 4)
    with pytest.raises(MissingDataError) as caught:
        read_raster(tmp_path / "Ferrand.png")
    assert "Ferrand" not in str(caught.value)


def test_masks():
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    assert np.array_equal(read_raster_mask(saved(labels), 4), labels)
    indexed = Image.fromarray(labels).convert("P")
    indexed.putpalette([9] * 768)
    assert np.array_equal(read_raster_mask(saved(indexed)), labels)
    assert read_raster_mask(saved(labels > 0), 2).tolist() == [[0, 1], [1, 1]]
    instances = np.array([[0, 300, 65535]], np.uint16)
    assert read_raster_mask(saved(instances), 2, meaning="binary").tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "content",
    [
        saved(RGB),
        saved(GREY, "JPEG"),
        saved(np.array([[0, 255]], np.uint8)),
        saved(np.array([[0, 300]], np.uint16)),
    ],
)
def test_wrong_masks_are_refused(content):
    with pytest.raises(LabelError):
        read_raster_mask(content, 2)
