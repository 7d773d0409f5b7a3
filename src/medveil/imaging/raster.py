"""PNG and JPEG files as volumes and masks."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medveil.errors import ImageError, LabelError
from medveil.imaging.labels import class_indices
from medveil.imaging.source import MAX_FILE_BYTES, read_source
from medveil.imaging.volume import Volume

MAX_PIXELS = 1 << 27
"""Default limit of rows times columns (134 million; the largest mammograms have about 30 million)."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_GREY_TYPES = (0,)
_DEEP = 16
_GREY16 = ("I", "I;16", "I;16B", "I;16L")  # "I": as older Pillows open a 16-bit grey PNG

# What Pillow raises on damaged bytes, listed so that a fault of ours still surfaces.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@contextmanager
def _raster_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes (checked here) and damaged metadata (not used here).
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError:
        raise _too_many("more than 178 million") from None
    except UnidentifiedImageError:
        raise ImageError("The file is neither PNG nor JPEG", reason="not-raster", remedy="convert it to PNG") from None
    except _DAMAGE as error:
        truncated = "truncated" in str(error)
        raise ImageError(
            "The image file ends early" if truncated else "The image file is damaged",
            reason="truncated" if truncated else "decode",
            got=type(error).__name__,
            remedy="copy the file again",
        ) from None


def _too_many(count: int | str, limit: int | None = None) -> ImageError:
    return ImageError(
        "The image has more pixels than the limit",
        reason="too-large",
        got=f"{count} pixels",
        expected=None if limit is None else f"at most {limit}",
        remedy="check that the file is what it claims to be, or raise the limit",
    )


def read_raster(
    source: Path | bytes,
    *,
    background: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_FILE_BYTES,
) -> Volume:
    """Read one PNG or JPEG file.

    Args:
        source: a path, or the file's content.
        background: grey level, 0 to 255, that shows through transparent pixels.
        max_pixels: larger images are refused before they are decoded (Pillow itself stops at 178 million).
        max_bytes: limit of the file.

    Returns:
        Grey: channels = 1, uint8 (bilevel: 0 and 255) or, for 16-bit PNG, uint16. Colour and palette:
        channels = 3, RGB, uint8. Turned upright as EXIF says. Spacing and affine None: a raster's dots per inch say
        nothing about the patient. Of a file with several pictures (MPO), the first. A transparent colour of 1-
        and 16-bit grey is not applied.

    Raises:
        MissingDataError: there is no such file.
        ImageError: ``empty``, ``too-large``, ``not-raster``, ``truncated``, ``decode``, ``pixel-format``
            (CMYK, 16-bit colour: converting them needs a choice), ``animated``.
    """
    with _raster_errors():
        content = read_source(source, max_bytes=max_bytes)
        image = _open(content, max_pixels)
        array = _to_array(image, background)
    return Volume(np.ascontiguousarray(array))


def _open(content: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    if image.width * image.height > max_pixels:
        raise _too_many(image.width * image.height, max_pixels)
    if getattr(image, "is_animated", False) and image.format == "PNG":
        raise ImageError("The PNG file is animated", reason="animated", remedy="export its frames as images")
    # Pillow would cut 16-bit colour to 8 bits without a word.
    if content.startswith(_PNG) and content[24] == _DEEP and content[25] not in _PNG_GREY_TYPES:
        raise _unsupported("16-bit colour PNG")
    image.load()
    return ImageOps.exif_transpose(image)


def _unsupported(got: str) -> ImageError:
    return ImageError(
        "The image stores its pixels in a way that is not read",
        reason="pixel-format",
        got=got,
        expected="grey (1, 8 or 16 bits), RGB, RGBA or palette",
        remedy="convert it to 8-bit RGB or 16-bit grey PNG",
    )


def _to_array(image: Image.Image, background: int) -> NDArray[np.generic]:
    if image.mode in _GREY16:
        return np.asarray(image).astype(np.uint16)[None]
    if image.mode == "1":
        return np.asarray(image.convert("L"))[None]
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode not in ("L", "1") else "LA")
    if image.mode in ("RGBA", "LA"):
        base = Image.new(image.mode, image.size, (background,) * (len(image.mode) - 1) + (255,))
        image = Image.alpha_composite(base.convert("RGBA"), image.convert("RGBA")).convert(image.mode[:-1])
    if image.mode == "L":
        return np.asarray(image)[None]
    if image.mode == "RGB":
        return np.moveaxis(np.asarray(image), -1, 0)
    raise _unsupported(image.mode)


def read_raster_mask(
    source: Path | bytes,
    num_classes: int | None = None,
    *,
    meaning: Literal["index", "binary"] = "index",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_FILE_BYTES,
) -> NDArray[np.uint8]:
    """Read a mask from PNG (JPEG blurs labels and is refused).

    Args:
        source: a path, or the file's content.
        num_classes: labels must lie below it; None allows 0 to 255.
        meaning: ``"index"``: stored values (of a palette image its indices) are class indices. ``"binary"``:
            every value above 0 is class 1, for masks of 0 and 255 and for instance labels.
        max_pixels: as in :func:`read_raster`.
        max_bytes: as in :func:`read_raster`.

    Returns:
        Shape (rows, columns), uint8, turned as EXIF says. A bilevel PNG holds 0 and 1.

    Raises:
        MissingDataError: there is no such file.
        ImageError: as :func:`read_raster`.
        LabelError: colour, transparency, JPEG, or a label out of range.
    """
    with _raster_errors():
        content = read_source(source, max_bytes=max_bytes)
        image = _open(content, max_pixels)
        if image.mode not in ("1", "L", "P", *_GREY16) or not content.startswith(_PNG):
            raise LabelError(
                "A mask is not a grey or palette PNG",
                got=image.mode,
                expected="one value a pixel, stored without loss",
                remedy="save the mask as 8-bit grey PNG",
            )
        values = np.asarray(image)
    if meaning == "binary":
        values = values > 0
    return class_indices(values.astype(np.uint8) if values.dtype == np.bool_ else values, num_classes)
