"""The same evaluation for each site or subgroup."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")


def per_group(groups: Sequence[str], evaluate: Callable[[NDArray[np.int64]], Result]) -> dict[str, Result]:
    """Evaluate each group by itself.

    Args:
        groups: one name per image (or per volume): its site, or the value of a column such as sex.
        evaluate: from the row numbers of one group to its result; usually a lambda around
            ``evaluate_classification`` or ``evaluate_segmentation``.

    Returns:
        group -> result, groups in alphabetical order.

    >>> per_group(["b", "a", "b"], lambda rows: rows.tolist())
    {'a': [1], 'b': [0, 2]}
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {group: evaluate(np.asarray(rows[group], dtype=np.int64)) for group in sorted(rows)}
