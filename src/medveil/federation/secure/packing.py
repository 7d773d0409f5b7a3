"""What sites add up in secret, as vectors over a ring: updates, noisy steps, validation scores.

Every number that a site contributes (its weight and its loss too) is a coordinate of one vector, so that the server
sees none of them but the sums.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medveil.dp.noise import COARSEST_GRID_BITS, GRID_BITS, NoiseMechanism
from medveil.dp.plan import Shares
from medveil.errors import ConfigError, ProtocolError
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.update import Contribution, Update
from medveil.secagg.encoding import Capacity, FixedPoint, capacity, from_ring, to_ring
from medveil.secagg.ring import Bits, RingVector

# Losses beyond this are clipped (and counted): 64 nats is a probability of 10^-28.
LOSS_RANGE = 64.0
# A capacity failure would garble one step; so rare, it never happens.
CAPACITY_FAILURE = 2.0**-60
# "auto" accepts 32 bits for noisy sums while rounding to the grid costs at most this much more noise; 32, this much.
_AUTO_LOSS = 0.001
_MOST_LOSS = 0.01
# "auto" accepts 32 bits while a site of weight one is represented to this part of the value range.
_RELATIVE_ERROR = 2.0**-16
_MOST_VALIDATION = 2**24
# Weight, weight of the told loss, clipped count; loss.
_HEADER = 4


@dataclass(frozen=True, eq=False)
class Unpacked:
    """A decoded sum.

    Args:
        update: of all included sites together.
        loss: weighted mean, or None where a site told none.
        clipped: coordinates that were out of range at their sites; None where telling would leak.
    """

    update: Update
    loss: float | None
    clipped: int | None


class Packing(Protocol):
    """From contributions to ring vectors and back from their sum.

    ``start`` is where the model's coordinates begin; ``length`` counts all.
    """

    bits: Bits
    start: int
    length: int

    def describe(self) -> dict[str, float | int | None]:
        """Bits, resolution and range, for the record."""
        ...

    def pack(self, contribution: Contribution) -> RingVector:
        """A site's vector.

        Raises:
            ProtocolError: a contribution of the other kind.
        """
        ...

    def unpack(self, total: RingVector, included: int) -> Unpacked:
        """Decode a sum over ``included`` sites."""
        ...


class PlainPacking:
    """Fixed-point updates without noise.

    Args:
        dimension: of the model.
        buffers: running statistics.
        sites: most sites in one sum.
        settings: value range, largest site, modulus.
        weighted: whether weights are numbers of examples (else all are 1).
        silent: tell neither losses nor how often a value was clipped: a privacy claim covers them.

    Raises:
        ConfigError: the modulus is too small for the range and the number of sites.
    """

    def __init__(
        self, *, dimension: int, buffers: int, sites: int, settings: SecureAggregation, weighted: bool, silent: bool
    ) -> None:
        self._dimension, self._silent = dimension, silent
        self._cap = float(settings.largest_site) if weighted else 1.0
        self.bits: Bits = self._bits(settings, sites)
        self._length = dimension + buffers
        self._values = FixedPoint.fitting(settings.value_range, sites, self.bits)
        self._loss = FixedPoint.fitting(LOSS_RANGE, sites, self.bits)
        # More clipped coordinates than the sum has room for are not told apart.
        self._most_clipped = min(self._length, ((1 << self.bits - 1) - 1) // sites)
        self.start, self.length = _HEADER, _HEADER + self._length
        self._counts = FixedPoint(max(self._cap, float(self._most_clipped)), sites, self.bits, 0)

    def _bits(self, settings: SecureAggregation, sites: int) -> Bits:
        if settings.modulus_bits != "auto":
            return settings.modulus_bits
        resolution = FixedPoint.fitting(settings.value_range, sites, 32).resolution
        return 32 if resolution * self._cap <= _RELATIVE_ERROR * settings.value_range else 64

    def describe(self) -> dict[str, float | int | None]:
        """Bits, resolution (of a mean change counted with the largest weight) and range."""
        return {
            "modulus_bits": self.bits,
            "resolution": self._values.resolution,
            "value_range": self._values.value_range,
        }

    def pack(self, contribution: Contribution) -> RingVector:
        """A site's vector: weight, weight of the told loss, clipped count, loss, values.

        Raises:
            MessageError: a value is not finite.
            ProtocolError: a noisy sum.
            ConfigError: the site has more examples than ``largest_site`` says.
        """
        update, loss = contribution.content, contribution.loss
        if not isinstance(update, Update):
            raise _other_kind("a noisy sum")
        if update.weight > self._cap:
            raise ConfigError(
                "The site has more training examples than the plan says that any site has",
                expected=f"at most privacy.secure_aggregation.largest_site = {self._cap:g}",
                remedy='raise it, or set federation.weighting = "equal"',
            )
        weighted = np.concatenate([np.asarray(update.vector, dtype=np.float64), update.buffers])
        values, clipped = self._encoded(self._values, weighted, update.weight)
        told = 0.0 if loss is None or self._silent else update.weight
        lost, beyond = self._encoded(self._loss, np.array([(loss or 0.0) * told]), told)
        counted = 0 if self._silent else min(clipped + beyond, self._most_clipped)
        counts, _ = self._counts.encode(np.array([update.weight, told, counted], dtype=np.float64))
        return np.concatenate([counts, lost, values])

    def _encoded(self, encoding: FixedPoint, weighted: NDArray[np.float64], weight: float) -> tuple[RingVector, int]:
        """Weighted numbers, and how many were out of range: the range is that of the mean, however small the site."""
        limit = encoding.value_range * weight
        outside = int(np.count_nonzero(np.abs(weighted) > limit))
        if outside and np.isfinite(weighted).all():
            weighted = np.clip(weighted, -limit, limit)
        vector, _ = encoding.encode(weighted / self._cap)  # refuses what is not finite
        return vector, outside

    def unpack(self, total: RingVector, included: int) -> Unpacked:
        """Decode a sum over ``included`` sites."""
        weight, told, clipped = self._counts.decode(total[:3], included).tolist()
        loss = float(self._loss.decode(total[3:_HEADER], included)[0]) * self._cap
        values = self._values.decode(total[_HEADER:], included) * self._cap
        update = Update(values[: self._dimension], weight, values[self._dimension :])
        known = told > 0 and told == weight
        return Unpacked(update, loss / weight if known else None, None if self._silent else round(clipped))


class NoisyPacking:
    """Steps of distributed differential privacy: integers on the noise's grid, whose sum alone has the whole noise.

    Args:
        noise: of one site.
        divisor: public number that the noisy sum is divided by.
        bits: of the modulus, from :func:`fitting_grid`.

    Guarantees:
        Reduction modulo 2**bits is post-processing: a sum that wraps around costs accuracy, never privacy.
    """

    def __init__(self, noise: NoiseMechanism, divisor: float, bits: Bits) -> None:
        self.bits: Bits = bits
        self.start, self.length = 0, noise.dimension
        self._noise, self._divisor = noise, divisor

    def describe(self) -> dict[str, float | int | None]:
        """Bits and grid; the range is the modulus itself."""
        return {"modulus_bits": self.bits, "resolution": self._noise.grid, "value_range": None}

    def pack(self, contribution: Contribution) -> RingVector:
        """A site's clipped sum with its share of the noise.

        Raises:
            ProtocolError: a change without noise.
        """
        if isinstance(contribution.content, Update):
            raise _other_kind("a change without noise")
        return to_ring(contribution.content, self.bits)

    def unpack(self, total: RingVector, included: int) -> Unpacked:
        """Decode a sum; the number of included sites changes its noise, not its scale."""
        del included
        return Unpacked(Update(self._noise.decode(from_ring(total)), self._divisor), None, None)


def _other_kind(got: str) -> ProtocolError:
    return ProtocolError("A site's contribution is not of the kind that the plan's sums take", got=got)


def fitting_grid(
    *,
    noise_multiplier: float,
    shares: Shares,
    sites: int,
    dimension: int,
    expected_units: float,
    modulus_bits: Literal[32, 64, "auto"],
) -> tuple[int, Bits]:
    """Grid bits and modulus of noisy sums: the finest grid whose sums are sure to fit the narrowest modulus.

    A coordinate of the sum is at most the number of drawn units times the clip norm, plus noise.

    Args:
        noise_multiplier: of the plan.
        shares: how the noise is shared out.
        sites: in the largest sum.
        dimension: of the model.
        expected_units: drawn in a step, by the plan's public numbers.
        modulus_bits: 32 or 64; "auto" takes 32 where rounding costs at most a thousandth more noise.

    Returns:
        (grid bits, modulus bits).

    Raises:
        ConfigError: the modulus asked for is too small.
    """
    units = math.ceil(expected_units + 12 * math.sqrt(expected_units) + 12)
    loss = _AUTO_LOSS if modulus_bits == "auto" else _MOST_LOSS
    if modulus_bits != 64:  # noqa: PLR2004 - a modulus
        for grid_bits in range(GRID_BITS, COARSEST_GRID_BITS - 1, -1):
            if math.sqrt(dimension) > loss * 2.0**grid_bits:
                break
            if _noisy_capacity(noise_multiplier, shares, sites, dimension, units << grid_bits, grid_bits, 32).fits:
                return grid_bits, 32
        if modulus_bits != "auto":
            raise ConfigError(
                "The modulus is too small for the noisy sum",
                got=str(_noisy_capacity(noise_multiplier, shares, sites, dimension, units << GRID_BITS, GRID_BITS, 32)),
                expected=f"a sum that fits on a grid where rounding costs at most {_MOST_LOSS:.0%} more noise",
                remedy='set privacy.secure_aggregation.modulus_bits to 64 or "auto"',
            )
    wide = _noisy_capacity(noise_multiplier, shares, sites, dimension, units << GRID_BITS, GRID_BITS, 64)
    if not wide.fits:
        raise ConfigError("The noisy sum does not fit 64 bits", got=str(wide), remedy="use less noise or fewer units")
    return GRID_BITS, 64


def _noisy_capacity(
    multiplier: float, shares: Shares, sites: int, dimension: int, largest: int, grid_bits: int, bits: int
) -> Capacity:
    honest = shares.sites - shares.tolerated - shares.absent
    std = multiplier * (2.0**grid_bits + math.sqrt(dimension)) * math.sqrt(sites / honest)
    counted = capacity(0, sites, std, dimension, bits, CAPACITY_FAILURE)
    return Capacity(bits, largest, counted.noise_tail)


class ScorePacking:
    """Validation scores, each weighted by a site's number of validation examples.

    Args:
        names: of the scores.
        sites: most sites in one sum.
    """

    bits: Bits = 64

    def __init__(self, names: Sequence[str], sites: int) -> None:
        self._names = tuple(names)
        self.length = 2 * len(self._names)
        self._scores = FixedPoint.fitting(LOSS_RANGE * _MOST_VALIDATION, sites, 64)
        self._counts = FixedPoint(float(_MOST_VALIDATION), sites, 64, 0)

    def pack(self, scores: Mapping[str, float | None], examples: int) -> RingVector:
        """A site's vector: for each score the examples that define it, and their weighted score.

        Raises:
            ConfigError: more validation examples than the encoding has room for.
        """
        if examples > _MOST_VALIDATION:
            raise ConfigError("A site has too many validation examples", expected=f"at most {_MOST_VALIDATION}")
        told = np.array([0 if scores.get(name) is None else examples for name in self._names], dtype=np.float64)
        values = np.array([scores.get(name) or 0.0 for name in self._names], dtype=np.float64)
        counts, _ = self._counts.encode(told)
        weighted, _ = self._scores.encode(np.clip(values, -LOSS_RANGE, LOSS_RANGE) * told)
        return np.concatenate([counts, weighted])

    def unpack(self, total: RingVector, included: int) -> dict[str, tuple[float, float]]:
        """For each score: examples of the sites that could compute it, and its sum over them."""
        count = len(self._names)
        told = self._counts.decode(total[:count], included).tolist()
        sums = self._scores.decode(total[count:], included).tolist()
        return dict(zip(self._names, zip(told, sums, strict=True), strict=True))
