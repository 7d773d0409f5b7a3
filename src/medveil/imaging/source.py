"""The bytes of one image file, bounded before they are read or inflated."""

import gzip
import zlib
from pathlib import Path

from medveil.errors import ImageError, MissingDataError

MAX_FILE_BYTES = 2 << 30
"""Default limit of one image file, and of what it may inflate to (2 GiB)."""

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


def read_source(source: Path | bytes, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read the whole of ``source``, or take the bytes as they are.

    Args:
        source: a path, or the file's content.
        max_bytes: larger sources are refused before they are read.

    Returns:
        At least one byte.

    Raises:
        MissingDataError: there is no readable file (the message does not name it: names may carry identities).
        ImageError: empty (``"empty"``) or larger than ``max_bytes`` (``"too-large"``).
    """
    content = source if isinstance(source, bytes) else _read_path(source, max_bytes)
    if len(content) > max_bytes:
        raise too_large(len(content), max_bytes)
    if not content:
        raise ImageError("The file is empty", reason="empty", got="0 bytes", remedy="copy the file again")
    return content


def _read_path(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise MissingDataError("There is no file where an image was expected", remedy="check the path")
        # Python reserves as many bytes as it is asked for: ask for the file's size. One more than allowed tells
        # a file that is too large from one that just fits.
        with path.open("rb") as file:
            return file.read(min(path.stat().st_size, max_bytes) + 1)
    except OSError as error:
        # The system's message holds the file name; its error number does not.
        raise MissingDataError(
            "An image file cannot be read", got=f"system error {error.errno}", remedy="check its permissions"
        ) from None


def too_large(size: int | str, limit: int) -> ImageError:
    """The error for a file, an image or an inflated stream above its limit."""
    return ImageError(
        "The image is larger than the limit",
        reason="too-large",
        got=f"{size} bytes",
        expected=f"at most {limit} bytes",
        remedy="check that the file is what it claims to be, or raise the limit",
    )


def inflate(content: bytes, *, wbits: int, max_bytes: int) -> bytes:
    """Inflate one complete zlib stream, counting real bytes.

    Args:
        content: the compressed stream; what follows its end is ignored.
        wbits: as in :func:`zlib.decompressobj` (31 for gzip, -15 for raw deflate).
        max_bytes: more than this is refused while inflating, so memory stays bounded.

    Returns:
        The inflated bytes.

    Raises:
        ImageError: ``"truncated"``, ``"decode"`` or ``"too-large"``.
    """
    stream = zlib.decompressobj(wbits)
    parts: list[bytes] = []
    total = 0
    pending = content
    try:
        while not stream.eof:
            part = stream.decompress(pending, _CHUNK)
            pending = stream.unconsumed_tail
            total += len(part)
            if total > max_bytes:
                raise too_large(f"more than {max_bytes}", max_bytes)
            parts.append(part)
            if not part and not pending and not stream.eof:
                raise ImageError("The compressed data end early", reason="truncated", remedy="copy the file again")
    except zlib.error:
        raise ImageError("The compressed data are damaged", reason="decode", remedy="copy the file again") from None
    return b"".join(parts)


def gunzip(content: bytes, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Inflate ``content`` where it is gzip, else return it as it is.

    >>> gunzip(gzip.compress(b"image")), gunzip(b"image")
    (b'image', b'image')

    Raises:
        ImageError: as :func:`inflate`.
    """
    if not content.startswith(_GZIP_MAGIC):
        return content
    return inflate(content, wbits=31, max_bytes=max_bytes)


def gzip_bytes(content: bytes) -> bytes:
    """Compress without time or file name, so equal content gives equal bytes."""
    return gzip.compress(content, mtime=0)
