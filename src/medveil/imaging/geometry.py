"""Where pixels lie in the patient: planes, stacks of planes, and whether two images share a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ImageError
from medveil.imaging.volume import Volume

Vector = NDArray[np.float64]

# DICOM's x and y grow to the patient's left and back; RAS+ has them grow to the right and front.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_UNIT_TOLERANCE = 5e-3  # headers round direction cosines to as few as three decimals


@dataclass(frozen=True, eq=False)
class Plane:
    """One image plane in DICOM's patient coordinates (LPS, mm).

    Args:
        position: shape (3,), centre of the first pixel.
        along_row: shape (3,), unit vector in which the column index grows.
        along_column: shape (3,), unit vector in which the row index grows.
        spacing_mm: (between rows, between columns).

    Raises:
        ImageError: ``"geometry"`` when the two directions are not orthogonal unit vectors.
    """

    position: Vector
    along_row: Vector
    along_column: Vector
    spacing_mm: tuple[float, float]

    def __post_init__(self) -> None:
        numbers = np.concatenate([self.position, self.along_row, self.along_column])
        lengths = np.array([np.linalg.norm(self.along_row), np.linalg.norm(self.along_column)])
        skew = abs(float(self.along_row @ self.along_column))
        if not np.isfinite(numbers).all() or np.abs(lengths - 1).max() > _UNIT_TOLERANCE or skew > _UNIT_TOLERANCE:
            raise ImageError(
                "The image orientation is not a pair of orthogonal unit vectors",
                reason="geometry",
                got=f"lengths {lengths.round(3).tolist()}, cosine {skew:.3f}",
                remedy="correct the orientation, or export the image again",
            )

    @property
    def normal(self) -> Vector:
        """Shape (3,), unit vector across the plane."""
        return np.cross(self.along_row, self.along_column)


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes in order.

    Args:
        order: index of the plane that comes first, second, ... along the normal.
        affine: shape (4, 4), array indices (slice, row, column) to RAS+ mm.
        spacing_mm: (between slices, between rows, between columns).
    """

    order: tuple[int, ...]
    affine: Vector
    spacing_mm: tuple[float, float, float]


def plane_affine(plane: Plane) -> Vector:
    """Map (row, column, 0) to RAS+ mm; the third axis is the unit normal.

    Returns:
        Shape (4, 4), float64.
    """
    return _affine(
        plane.along_column * plane.spacing_mm[0],
        plane.along_row * plane.spacing_mm[1],
        plane.normal,
        plane.position,
    )


def _affine(first: Vector, second: Vector, third: Vector, origin: Vector) -> Vector:
    affine = np.eye(4)
    affine[:3] = _LPS_TO_RAS @ np.stack([first, second, third, origin], axis=1)
    return affine


def stack_planes(planes: Sequence[Plane], *, tolerance_mm: float = 0.1) -> Stack:
    """Order parallel planes by position along their normal, never by instance number.

    Args:
        planes: at least two.
        tolerance_mm: planes nearer than this count as one position; positions may leave the regular grid by
            at most this much.

    Returns:
        The order, and the geometry of the stacked array. A gantry tilt (planes shifted sideways by equal
        steps) stays in the affine; the slice spacing is then the length of one step.

    Raises:
        ImageError: ``"geometry"`` (orientation or spacing differ), ``"duplicate-position"`` or ``"gap"``.
    """
    first = planes[0]
    _check_parallel(planes)
    depths = np.array([plane.position @ first.normal for plane in planes])
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order])
    if steps.min() <= tolerance_mm:
        raise ImageError(
            "Two slices lie at the same position",
            reason="duplicate-position",
            got=f"{int((steps <= tolerance_mm).sum())} repeated positions among {len(planes)} slices",
            expected="one slice per position",
            remedy="export one time point, echo or contrast phase per series",
        )
    positions = np.stack([planes[index].position for index in order])
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    regular = positions[0] + np.arange(len(planes))[:, None] * step
    deviation = float(np.linalg.norm(positions - regular, axis=1).max())
    if deviation > tolerance_mm:
        raise ImageError(
            "The slices are not evenly spaced: one is missing or out of line",
            reason="gap",
            got=f"steps from {steps.min():.2f} to {steps.max():.2f} mm over {len(planes)} slices",
            expected=f"equal steps within {tolerance_mm} mm",
            remedy="add the missing slices, or leave the series out",
        )
    rows, columns = first.spacing_mm
    affine = _affine(step, first.along_column * rows, first.along_row * columns, positions[0])
    spacing = (float(np.linalg.norm(step)), rows, columns)
    return Stack(tuple(int(index) for index in order), affine, spacing)


def _check_parallel(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        turned = max(
            float(np.abs(plane.along_row - first.along_row).max()),
            float(np.abs(plane.along_column - first.along_column).max()),
        )
        if turned > _UNIT_TOLERANCE or not np.allclose(plane.spacing_mm, first.spacing_mm, rtol=1e-3, atol=0):
            raise ImageError(
                "Slices that belong together differ in orientation or pixel spacing",
                reason="geometry",
                expected="parallel slices with one pixel spacing",
                remedy="take scout views out of the series",
            )


def index_to_world(affine: Vector, index: Sequence[float]) -> Vector:
    """World position in RAS+ mm of an array index (a missing third index is 0).

    >>> index_to_world(np.diag([2.0, 3.0, 4.0, 1.0]), (1, 1)).tolist()
    [2.0, 3.0, 0.0]
    """
    padded = np.zeros(4)
    padded[: len(index)] = index
    padded[3] = 1.0
    return np.asarray(affine @ padded)[:3]


def same_geometry(a: Volume, b: Volume, tolerance_mm: float = 0.1) -> bool:
    """Whether two images (or an image and its mask) lie on one grid.

    Args:
        a: any volume.
        b: any volume.
        tolerance_mm: how far corresponding corners may lie apart.

    Returns:
        True when the spatial shapes are equal and nothing that both headers state contradicts: the corners'
        positions where both have an affine, else the extents where both have a spacing. What one header does
        not state contradicts nothing.
    """
    if a.spatial_shape != b.spatial_shape:
        return False
    if a.affine is not None and b.affine is not None:
        corners = product(*((0, length - 1) for length in a.spatial_shape))
        return all(
            float(np.linalg.norm(index_to_world(a.affine, corner) - index_to_world(b.affine, corner))) <= tolerance_mm
            for corner in corners
        )
    if a.spacing_mm is None or b.spacing_mm is None:
        return True
    return all(
        abs(one - other) * length <= tolerance_mm
        for one, other, length in zip(a.spacing_mm, b.spacing_mm, a.spatial_shape, strict=True)
    )
