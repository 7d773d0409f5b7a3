"""One image, however it was stored: :class:`Volume`."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ImageError

_MAX_SPATIAL = 3


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its geometry, and nothing that names a patient.

    Args:
        array: shape (channels, *spatial), two or three spatial axes, real, finite, C-contiguous.
        spacing_mm: distance between neighbours along each spatial axis, in array order; None where unknown.
        affine: shape (4, 4), float64; maps array indices (array order, missing axis = 0) to RAS+ millimetres;
            None where unknown.
        modality: DICOM modality code where known ("CT", "MR", "CR", ...), else "OT".

    Raises:
        ImageError: wrong number of axes, an empty axis, a dtype that is not real, NaN or infinite pixels,
            spacing that is not positive.

    >>> Volume(np.zeros((1, 4, 5), np.uint8)).spatial_shape
    (4, 5)
    """

    array: NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    modality: str = "OT"

    def __post_init__(self) -> None:
        array = self.array
        if array.ndim not in (_MAX_SPATIAL, _MAX_SPATIAL + 1) or array.size == 0:
            raise ImageError(
                "The image has a shape that no model here reads",
                reason="shape",
                got=array.shape,
                expected="(channels, rows, columns) or (channels, three spatial axes), none empty",
            )
        if array.dtype.kind not in "uif":
            raise ImageError(
                "The image has pixels that are not real numbers",
                reason="dtype",
                got=array.dtype,
                expected="integer or float",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise ImageError(
                "The image has NaN or infinite pixels",
                reason="non-finite",
                got=f"{count} of {array.size} pixels",
                expected="finite pixels",
                remedy="export the image again, or replace the pixels before the import",
            )
        if self.spacing_mm is not None and (
            len(self.spacing_mm) != array.ndim - 1
            or not all(np.isfinite(step) and step > 0 for step in self.spacing_mm)
        ):
            raise ImageError(
                "The pixel spacing does not fit the image",
                reason="spacing",
                got=self.spacing_mm,
                expected=f"{array.ndim - 1} positive numbers in mm",
            )

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Length of each spatial axis."""
        return tuple(self.array.shape[1:])

    @property
    def channels(self) -> int:
        """Number of channels: 1 for grey, 3 for colour."""
        return int(self.array.shape[0])

    def digest(self) -> str:
        """SHA-256 of the pixels, dtype and shape: equal for pixel-identical images, whatever file held them."""
        array = np.ascontiguousarray(self.array)
        header = f"{array.dtype.newbyteorder('<').str}{array.shape}".encode()
        return hashlib.sha256(header + array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
