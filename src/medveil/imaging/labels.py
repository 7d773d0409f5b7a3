"""Class indices from stored masks."""

import numpy as np
from numpy.typing import NDArray

from medveil.errors import LabelError

_MAX_CLASSES = 256


def class_indices(values: NDArray[np.generic], num_classes: int | None = None) -> NDArray[np.uint8]:
    """Check that ``values`` are class indices and store them as uint8.

    Args:
        values: any shape, any real dtype.
        num_classes: labels must lie below it; None allows 0 to 255.

    Returns:
        Same shape, uint8.

    Raises:
        LabelError: a label is fractional, not finite, negative or too large. Nothing is rounded or clipped.

    >>> class_indices(np.array([0.0, 2.0]), num_classes=3)
    array([0, 2], dtype=uint8)
    """
    limit = min(num_classes or _MAX_CLASSES, _MAX_CLASSES)
    if values.dtype.kind == "f" and not np.equal(values, np.floor(values)).all():
        raise LabelError(
            "A mask holds labels that are not whole numbers",
            expected="class indices",
            remedy="resample masks with nearest neighbour, never with interpolation",
        )
    low, high = values.min(), values.max()
    if low < 0 or high >= limit:
        raise LabelError(
            "A mask holds labels out of range",
            got=f"from {low} to {high}",
            expected=f"from 0 to {limit - 1}",
            remedy="number the classes from 0; where 255 means foreground, read the mask as binary",
        )
    return np.ascontiguousarray(values.astype(np.uint8))
