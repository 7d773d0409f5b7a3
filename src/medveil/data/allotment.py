"""Share a whole number out in proportion: the rounding behind splits and sites."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# 0.3 * 10 is 2.999...96: a quota that is whole but for rounding counts as whole.
_ROUNDING = 1e-9


def allot(total: int, shares: Sequence[float] | NDArray[np.float64]) -> tuple[int, ...]:
    """Whole numbers that add up to ``total`` and lie within 1 of ``share * total``.

    Args:
        total: >= 0.
        shares: >= 0, adding up to 1.

    Returns:
        One count for each share; ties go to the earlier share.
    Reference:
        Hamilton's method of largest remainders.

    >>> allot(10, [0.5, 0.25, 0.25])
    (5, 3, 2)
    """
    quotas = np.asarray(shares, np.float64) * total
    counts = np.floor(quotas + _ROUNDING).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return tuple(int(count) for count in counts)


def allot_strata(sizes: Sequence[int], fraction: float, free: Sequence[int]) -> tuple[int, ...]:
    """How many to take from each stratum so that all together are ``fraction`` of the whole.

    Args:
        sizes: members of each stratum.
        fraction: of every stratum, in [0, 1].
        free: members of each stratum that may still be taken, >= floor(fraction * size).

    Returns:
        Counts within 1 of ``fraction * size``, none above ``free``, adding up to the rounded
        ``fraction * sum(sizes)`` as far as ``free`` allows.

    >>> allot_strata([10, 3, 3], 0.25, [10, 3, 3])
    (2, 1, 1)
    """
    quotas = np.asarray(sizes, np.float64) * fraction
    counts = np.minimum(np.floor(quotas + _ROUNDING).astype(np.int64), free)
    missing = round(float(quotas.sum())) - int(counts.sum())
    for stratum in np.argsort(counts - quotas, kind="stable"):
        if missing > 0 and counts[stratum] < free[stratum] and quotas[stratum] - counts[stratum] > _ROUNDING:
            counts[stratum] += 1
            missing -= 1
    return tuple(int(count) for count in counts)
