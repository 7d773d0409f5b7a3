"""Statistics over all sites from secure sums: exact counts of any shape, and weighted ones.

A site counts in its own data (:mod:`~medveil.federation.secure.tallies`), packs the counts and hands the vector to
:func:`~medveil.federation.secure.sums.secure_sums`; the packing decodes the sum. Counts are exact integers. Real
numbers are fixed point in a range that is public, and what lay outside is counted and summed with the rest. Mean and
variance have a packing of their own (:mod:`~medveil.federation.secure.moments`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medveil.errors import ConfigError, MessageError
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.sums import secure_sums
from medveil.federation.secure.tallies import Counts, Floats, confusion_counts
from medveil.secagg.encoding import FixedPoint, from_ring, to_ring
from medveil.secagg.ring import Bits, RingVector

# No site has more images or pixels of one kind: four million images of half a megapixel.
LARGEST_COUNT = 2**40
_BITS: Bits = 64


class CountPacking:
    """Exact counts of any shape.

    Args:
        shape: of the counts.
        sites: most sites in one sum.
        largest: no site counts more in one cell.

    Raises:
        ConfigError: the sum of all sites might wrap around.

    Guarantees:
        What is decoded is exactly the sum of the counts of the sites in it.
    """

    bits: Bits = _BITS

    def __init__(self, shape: tuple[int, ...], sites: int, largest: int = LARGEST_COUNT) -> None:
        self.shape, self.length = shape, math.prod(shape)
        self._sites, self._largest = sites, largest
        if largest < 1 or sites < 1 or sites * largest >= 2 ** (_BITS - 1):
            raise ConfigError("The counts might not fit", got=f"{sites} sites * {largest}", expected="below 2**63")

    def pack(self, counts: NDArray[np.integer]) -> RingVector:
        """A site's vector.

        Raises:
            ConfigError: another shape or no integers; a count that is negative or above ``largest``.
        """
        fits = counts.shape == self.shape and counts.dtype.kind in "iu"
        if not fits or (counts.size and not 0 <= int(counts.min()) <= int(counts.max()) <= self._largest):
            raise ConfigError(
                "These counts cannot be summed",
                got=f"{counts.dtype} {counts.shape}",
                expected=f"integers of shape {self.shape} from 0 to {self._largest}",
            )
        return to_ring(counts.ravel().astype(np.int64), _BITS)

    def unpack(self, total: RingVector, included: int) -> Counts:
        """The counts over ``included`` sites.

        Raises:
            MessageError: no sum of so many sites' counts.
        """
        counts = from_ring(total)
        if counts.size != self.length or not ((counts >= 0) & (counts <= included * self._largest)).all():
            raise MessageError("The total is no sum of counts", remedy="a site did not pack its counts as agreed")
        return counts.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """A decoded sum of real numbers.

    Args:
        values: of the packing's shape.
        clipped: how many of the sites' numbers were out of range.
        error: no value is further from the exact sum of what the sites packed (clipped where it was).
    """

    values: Floats
    clipped: int
    error: float


class WeightedPacking:
    """Weighted counts, or other real numbers, of any shape.

    Args:
        shape: of the numbers.
        sites: most sites in one sum.
        largest: no site's number is larger in magnitude; a larger one is clipped and counted.

    Raises:
        ConfigError: no encoding fits.
    """

    bits: Bits = _BITS

    def __init__(self, shape: tuple[int, ...], sites: int, largest: float) -> None:
        self.shape, self.length = shape, math.prod(shape) + 1
        self._values = FixedPoint.fitting(largest, sites, _BITS)
        self._clipped = CountPacking((1,), sites, max(1, math.prod(shape)))

    def pack(self, values: Floats) -> RingVector:
        """A site's vector: how many numbers were clipped, and the numbers.

        Raises:
            ConfigError: another shape.
            MessageError: a number is not finite.
        """
        if values.shape != self.shape:
            raise ConfigError("These numbers cannot be summed", got=values.shape, expected=self.shape)
        encoded, clipped = self._values.encode(np.asarray(values, dtype=np.float64).ravel())
        return np.concatenate([self._clipped.pack(np.array([clipped])), encoded])

    def unpack(self, total: RingVector, included: int) -> WeightedSum:
        """The numbers over ``included`` sites.

        Raises:
            MessageError: no sum of packed numbers.
        """
        values = self._values.decode(total[1:], included).reshape(self.shape)
        rounding = float(np.abs(values).max(initial=0.0)) * 2.0**-53
        clipped = int(self._clipped.unpack(total[:1], included)[0])
        return WeightedSum(values, clipped, included * self._values.resolution / 2 + rounding)


def secure_confusion(
    predictions: Mapping[str, tuple[ArrayLike, ArrayLike]],
    num_classes: int,
    settings: SecureAggregation,
    *,
    context: str,
    absent: Sequence[str] = (),
) -> Counts:
    """The confusion matrix over all sites, of which nobody sees a single site's.

    Args:
        predictions: by site, true and predicted classes.
        num_classes: K.
        settings: of the plan.
        context: what is summed and for which plan.
        absent: sites that cannot answer.

    Returns:
        Shape (K, K), int64; rows are the true class.

    Raises:
        GuaranteeError, TooFewSitesError: as for :func:`~medveil.federation.secure.sums.secure_sums`.
        LabelError, DataError: as for :func:`confusion_counts`.
    """
    packing = CountPacking((num_classes, num_classes), len(predictions))
    vectors = {
        name: packing.pack(confusion_counts(true, called, num_classes).astype(np.int64))
        for name, (true, called) in predictions.items()
    }
    opened = secure_sums(vectors, settings, context=context, absent=absent)
    return packing.unpack(opened.total, len(opened.included))
