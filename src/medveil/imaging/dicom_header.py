"""Open a DICOM file's header, quietly and with typed errors; decide what kind of object it is."""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medveil.errors import ImageError
from medveil.imaging.source import MAX_FILE_BYTES, inflate, read_source

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DICOMDIR = "1.2.840.10008.1.3.10"
_PREFIX_END = 132
_EARLY_END = ("Unexpected end of file", "End of file reached")  # how pydicom's warnings of it begin
_META = 2  # group number of the file meta information

# What pydicom and its decoders raise on damaged bytes, listed so that a fault of ours still surfaces.
# AttributeError and TypeError: values that are missing or of another kind than the attribute's type.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_LOGGERS = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg")


@contextmanager
def dicom_errors(what: str, reason: str) -> Iterator[None]:
    """Turn what pydicom raises inside the block into an :class:`ImageError`, and keep it quiet.

    pydicom's warnings, log lines and messages quote header values, which may be a patient's; none of them
    leaves this block.

    Args:
        what: first sentence of the error.
        reason: its stable word.

    Raises:
        ImageError: the block failed on damaged data.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(what, reason=reason, got=type(error).__name__, remedy="export the image again") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def open_dicom(source: Path | bytes, *, header_only: bool = False, max_bytes: int = MAX_FILE_BYTES) -> Dataset:
    """Parse one DICOM part 10 file.

    Args:
        source: a path, or the file's content.
        header_only: stop before the pixels.
        max_bytes: limit of the file, and of what a deflated one inflates to.

    Returns:
        A pydicom data set with file meta information. Its elements are converted when they are first used:
        use it inside :func:`dicom_errors`.

    Raises:
        MissingDataError: there is no such file.
        ImageError: ``"not-dicom"`` (no part 10 header: a bare data set's encoding could only be guessed),
            ``"truncated"``, ``"bad-header"``, ``"too-large"`` or ``"empty"``.
    """
    content = read_source(source, max_bytes=max_bytes)
    if content[_PREFIX_END - 4 : _PREFIX_END] != b"DICM":
        raise ImageError(
            "The file has no DICOM part 10 header",
            reason="not-dicom",
            expected="the letters DICM after 128 bytes",
            remedy="export the image as a DICOM file",
        )
    with dicom_errors("The DICOM header cannot be read", "bad-header"):
        _check_deflated(content, max_bytes)
        # pydicom swallows an early end of the file, and tells it by a warning alone.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = dcmread(io.BytesIO(content), stop_before_pixels=header_only)
    if any(str(warning.message).startswith(_EARLY_END) for warning in caught):
        raise ImageError("The DICOM file ends early", reason="truncated", remedy="copy the file again")
    return dataset


def _check_deflated(content: bytes, max_bytes: int) -> None:
    """Refuse a deflated file that inflates beyond the limit: pydicom itself would not stop."""
    buffer = io.BytesIO(content)
    read_preamble(buffer, force=False)
    meta = read_dataset(
        buffer, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != _META
    )
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflate(content[buffer.tell() :], wbits=-zlib.MAX_WBITS, max_bytes=max_bytes)


def check_is_image(dataset: Dataset) -> None:
    """Refuse DICOM objects that are not images, by their SOP class.

    Raises:
        ImageError: ``"segmentation-object"``; ``"unsupported-object"`` (dose grids, plans, structure sets,
            reports, waveforms, parametric maps, tiled slides, DICOMDIR); ``"no-pixels"``.
    """
    with dicom_errors("The DICOM header cannot be read", "bad-header"):
        meta_class = dataset.file_meta.get("MediaStorageSOPClassUID", "")
        uid = UID(str(dataset.get("SOPClassUID", meta_class) or ""))
        if uid == _SEGMENTATION:
            raise ImageError(
                "The file is a segmentation object, not an image",
                reason="segmentation-object",
                remedy="convert it to NIfTI and give it as the mask of its image",
            )
        known = uid.name != str(uid)
        if uid in (_DICOMDIR, _WHOLE_SLIDE) or (known and "Image Storage" not in uid.name):
            raise ImageError(
                "The file is a DICOM object that is not read as an image",
                reason="unsupported-object",
                got=uid.name,
                expected="an image, such as CT, MR, CR, DX, MG, US or secondary capture",
                remedy="leave it out",
            )
        if "PixelData" not in dataset:
            raise ImageError("The DICOM file has no pixels", reason="no-pixels", remedy="leave it out")


def numbers(item: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Read ``count`` finite numbers, or None where the attribute is missing or empty.

    Raises:
        ImageError: ``"bad-header"``: another count, or not finite numbers.
    """
    value = item.get(keyword)
    if value is None or value == "":
        return None
    values = [value] if isinstance(value, (str, int, float)) else list(value)
    if not values:
        return None
    found = tuple(float(part) for part in values)
    if len(found) != count or not all(math.isfinite(part) for part in found):
        raise ImageError(
            f"The header's {keyword} is wrong",
            reason="bad-header",
            got=f"{len(found)} values",
            expected=f"{count} finite numbers",
            remedy="correct the header, or leave the file out",
        )
    return found


def frame_item(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """The item of a functional group for one frame: its own, else the shared one, else None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([per_frame[frame]] if frame < len(per_frame) else [], list(shared[:1])):
        for group in groups:
            items = group.get(keyword)
            if items:
                return items[0]
    return None
