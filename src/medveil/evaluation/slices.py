"""From two-dimensional predictions back to volumes, because volumes are what is evaluated."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medveil.errors import DataError
from medveil.evaluation.segmentation import VolumeMasks


def stack_slices(slices: Sequence[NDArray[np.integer]], positions: Sequence[int]) -> NDArray[np.integer]:
    """Rebuild one volume from its slices.

    Args:
        slices: each of shape (rows, columns), in any order.
        positions: slice numbers, one per slice.

    Returns:
        Shape (slices, rows, columns), by rising position.

    Raises:
        DataError: no slices, a number of positions that does not fit, slices of different shapes, two slices
            at one position, or gaps between positions (distances across a gap would be wrong).

    >>> stack_slices([np.array([[2]]), np.array([[1]])], [8, 7]).ravel().tolist()
    [1, 2]
    """
    shapes = {piece.shape for piece in slices}
    if len(slices) != len(positions) or len(shapes) != 1:
        raise DataError(
            "Slices cannot be stacked into a volume",
            got=f"{len(slices)} slices of {len(shapes)} shapes, {len(positions)} positions",
            expected="one position per slice, and equal shapes",
        )
    order = np.argsort(positions, kind="stable")
    steps = np.unique(np.diff(np.asarray(positions)[order]))
    if steps.size > 1 or (steps.size == 1 and steps[0] < 1):
        raise DataError(
            "Slices cannot be stacked into a volume",
            got=f"distances between neighbouring positions: {steps.tolist()}",
            expected="equal distances, no position twice",
            remedy="keep every slice of the test volumes, empty ones included",
        )
    return np.stack([slices[index] for index in order])


def group_volumes(
    predicted: Sequence[NDArray[np.integer]],
    reference: Sequence[NDArray[np.integer]],
    *,
    subjects: Sequence[int],
    volumes: Sequence[int],
    positions: Sequence[int],
    spacing_mm: Sequence[tuple[float, float, float] | None],
) -> tuple[VolumeMasks, ...]:
    """Rebuild every volume of every patient.

    Args:
        predicted: one mask of shape (rows, columns) per slice.
        reference: one mask per slice.
        subjects: the patient of each slice.
        volumes: which of the patient's volumes each slice belongs to.
        positions: slice numbers inside the volume.
        spacing_mm: between the slices as given, rows and columns, repeated for each slice of a volume; None
            where unknown.

    Returns:
        One :class:`VolumeMasks` per (subject, volume), in rising order.

    Raises:
        DataError: lists of different lengths, or as in :func:`stack_slices`.
    """
    columns = (predicted, reference, subjects, volumes, positions, spacing_mm)
    if len({len(column) for column in columns}) != 1:
        raise DataError(
            "Slices and what is known about them do not fit together",
            got=f"lists of lengths {[len(column) for column in columns]}",
            expected="equal lengths",
        )
    rows: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(subjects, volumes, strict=True)):
        rows.setdefault(key, []).append(row)

    def stacked(masks: Sequence[NDArray[np.integer]], members: list[int]) -> NDArray[np.integer]:
        return stack_slices([masks[row] for row in members], [positions[row] for row in members])

    return tuple(
        VolumeMasks(
            predicted=stacked(predicted, members),
            reference=stacked(reference, members),
            subject=subject,
            spacing_mm=spacing_mm[members[0]],
        )
        for (subject, _), members in sorted(rows.items())
    )
