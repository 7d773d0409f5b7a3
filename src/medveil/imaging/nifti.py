"""NIfTI files as volumes and masks, and masks as NIfTI files."""

import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medveil.errors import ImageError, LabelError
from medveil.imaging.geometry import same_geometry
from medveil.imaging.labels import class_indices
from medveil.imaging.source import MAX_FILE_BYTES, gunzip, gzip_bytes, read_source, too_large
from medveil.imaging.volume import Volume

__all__ = ["mask_labels", "read_nifti", "read_nifti_mask", "same_geometry", "write_nifti_mask"]

_MAX_CHANNELS = 8
_PLANE, _BLOCK = 2, 3
_MM_PER_UNIT = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}
_SCANNER = 1  # NIfTI code: the affine leads to scanner coordinates

# What nibabel raises on damaged bytes, listed so that a fault of ours still surfaces.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    HeaderDataError,
    ImageFileError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def _nifti_errors() -> Iterator[None]:
    """Turn nibabel's errors into an :class:`ImageError`; keep its log lines and warnings in."""
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # about header extensions, which are not used here
            yield
    except _DAMAGE as error:
        raise ImageError(
            "The NIfTI header is damaged",
            reason="bad-header",
            got=type(error).__name__,
            remedy="export the image again",
        ) from None
    finally:
        logger.setLevel(level)


def read_nifti(source: Path | bytes, *, max_bytes: int = MAX_FILE_BYTES) -> Volume:
    """Read one NIfTI-1 or NIfTI-2 file (.nii or .nii.gz).

    Args:
        source: a path, or the file's content.
        max_bytes: limit of the file, of what it inflates to, and of the decoded image.

    Returns:
        Array (1, i, j, k) in the stored orientation (nothing is flipped), native byte order; the stored dtype,
        or float32 where the header scales the values. A last axis of length 1 beyond the third is dropped;
        a fourth axis of up to eight becomes the channels. ``affine`` is the header's (sform before qform), or
        None where neither is set. Modality "OT": NIfTI does not say.

    Raises:
        MissingDataError: there is no such file.
        ImageError: ``empty``, ``too-large``, ``truncated``, ``decode`` (damaged gzip), ``not-nifti``,
            ``bad-header``, ``dtype``, ``shape``, ``spacing``, ``non-finite``.
    """
    content = gunzip(read_source(source, max_bytes=max_bytes), max_bytes=max_bytes)
    with _nifti_errors():
        image = _image_class(content).from_bytes(content)
        header = image.header
        shape = tuple(int(length) for length in image.shape)
        dtype = np.dtype(header.get_data_dtype())
        scaled = _is_scaled(image)
        _check_size(content, shape, dtype, int(image.dataobj.offset), max_bytes)
        array = np.asanyarray(image.dataobj)
        if scaled:
            array = array.astype(np.float32)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        array = _channels_first(array)
        spacing = _spacing(header, array.ndim - 1)
        affine = _affine(image)
    return Volume(np.ascontiguousarray(array), spacing, affine)


def _image_class(content: bytes) -> type[Nifti1Image]:
    if content[344:348] == b"n+1\0":
        return Nifti1Image  # type: ignore[no-any-return] # nibabel is seen untyped
    if content[4:8] == b"n+2\0":
        return Nifti2Image  # type: ignore[no-any-return] # as above
    raise ImageError(
        "The file is not a NIfTI image in one file",
        reason="not-nifti",
        expected="NIfTI-1 or NIfTI-2, .nii or .nii.gz",
        remedy="convert pairs of .hdr and .img to .nii.gz",
    )


def _is_scaled(image: Nifti1Image) -> bool:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise ImageError("The scaling of the values is not finite", reason="bad-header")
    return (float(slope), float(intercept)) != (1.0, 0.0)


def _check_size(
    content: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic], offset: int, max_bytes: int
) -> None:
    if dtype.kind not in "uif" or dtype.itemsize > 8:  # noqa: PLR2004 - bytes of float64
        raise ImageError(
            "The NIfTI file holds values that are not plain numbers",
            reason="dtype",
            got=dtype.kind,
            expected="integers, float32 or float64",
            remedy="convert the image",
        )
    count = math.prod(shape)
    size = count * dtype.itemsize
    if count * max(4, dtype.itemsize) > max_bytes:
        raise too_large(size, max_bytes)
    if min(shape, default=0) < 1:
        raise ImageError("The NIfTI image has an empty axis", reason="shape", got=shape)
    if len(content) < offset + size:
        raise ImageError(
            "The NIfTI file ends before its last voxel",
            reason="truncated",
            got=f"{len(content)} bytes",
            expected=f"{offset + size} bytes",
            remedy="copy the file again",
        )


def _channels_first(array: NDArray[np.generic]) -> NDArray[np.generic]:
    while array.ndim > _BLOCK and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim in (_PLANE, _BLOCK):
        return array[None]
    if array.ndim == _BLOCK + 1 and array.shape[-1] <= _MAX_CHANNELS:
        return np.moveaxis(array, -1, 0)
    raise ImageError(
        "The NIfTI image has axes that no model here reads",
        reason="shape",
        got=array.shape,
        expected=f"two or three spatial axes, and at most {_MAX_CHANNELS} channels",
        remedy="split a time series into volumes",
    )


def _spacing(header: Any, axes: int) -> tuple[float, ...]:
    zooms = header.get_zooms()
    factor = _MM_PER_UNIT[header.get_xyzt_units()[0]]
    return tuple(float(zoom) * factor for zoom in zooms[:axes])


def _affine(image: Nifti1Image) -> NDArray[np.float64] | None:
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        return None
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT[header.get_xyzt_units()[0]]
    if not np.isfinite(affine).all():
        raise ImageError("The affine is not finite", reason="bad-header", remedy="export the image again")
    return affine


def read_nifti_mask(
    source: Path | bytes, num_classes: int | None = None, *, max_bytes: int = MAX_FILE_BYTES
) -> NDArray[np.uint8]:
    """Read a mask; labels stored as floats are accepted where they are whole numbers.

    Args:
        source: a path, or the file's content.
        num_classes: labels must lie below it; None allows 0 to 255.
        max_bytes: as in :func:`read_nifti`.

    Returns:
        Shape (i, j, k), uint8, class indices, in the stored orientation. To check that it lies on its image's
        grid, read it as a volume: ``same_geometry(image, mask)`` and then :func:`mask_labels`.

    Raises:
        MissingDataError: there is no such file.
        ImageError: as :func:`read_nifti`.
        LabelError: a label is fractional, negative or too large, or there are several channels.
    """
    return mask_labels(read_nifti(source, max_bytes=max_bytes), num_classes)


def mask_labels(volume: Volume, num_classes: int | None = None) -> NDArray[np.uint8]:
    """Class indices from a mask that was read as a volume.

    Returns:
        Shape (*spatial), uint8.

    Raises:
        LabelError: as :func:`read_nifti_mask`.
    """
    if volume.channels != 1:
        raise LabelError(
            "A mask has several channels",
            got=volume.channels,
            expected=1,
            remedy="merge the channels into one label image",
        )
    return class_indices(volume.array[0], num_classes)


def write_nifti_mask(mask: NDArray[np.uint8], affine: NDArray[np.float64] | None, path: Path) -> None:
    """Write a mask as NIfTI-1; equal masks give equal bytes.

    Args:
        mask: shape (i, j, k), uint8.
        affine: shape (4, 4), array indices to RAS+ mm, of the image that the mask belongs to; None leaves both
            of the header's codes unset.
        path: ends in .nii.gz (compressed) or .nii.

    Raises:
        LabelError: not a 3D uint8 array.
        OSError: the file cannot be written.
    """
    if mask.dtype != np.uint8 or mask.ndim != _BLOCK or mask.size == 0:
        raise LabelError(
            "Only a 3D mask of class indices can be written",
            got=f"{mask.dtype} {mask.shape}",
            expected="uint8, three axes",
        )
    image = Nifti1Image(mask, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    code = 0 if affine is None else _SCANNER
    image.set_sform(image.affine, code=code)
    # A qform cannot hold shear; readers then take the sform alone.
    image.set_qform(image.affine, code=code if _is_rigid(image.affine) else 0)
    content = image.to_bytes()
    path.write_bytes(gzip_bytes(content) if path.suffix == ".gz" else content)


def _is_rigid(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.min() == 0:
        return False
    unit = axes / lengths
    return bool(np.allclose(unit.T @ unit, np.eye(3), atol=1e-6))
