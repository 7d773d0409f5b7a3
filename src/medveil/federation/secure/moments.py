"""Mean and variance over all sites from one secure sum."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medveil.errors import ConfigError, DataError
from medveil.federation.secure.statistics import LARGEST_COUNT, CountPacking
from medveil.federation.secure.tallies import Floats, blocks, spread
from medveil.secagg.encoding import FixedPoint
from medveil.secagg.ring import Bits, RingVector

_BITS: Bits = 64
# Rounding of float64; see MomentsPacking.
_MEAN_ROUNDING, _VARIANCE_ROUNDING = 2.0**-46, 2.0**-44


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance per channel over all sites.

    Args:
        weight: pixels of one channel, or their total weight.
        mean: shape (channels,).
        variance: shape (channels,), of the population (not divided by one less); of what was clipped, as clipped.
        clipped: numbers that lay outside the range, all channels together.
        mean_error: no mean is further from the exact one of the clipped numbers.
        variance_error: the same for the variance.
    """

    weight: float
    mean: Floats
    variance: Floats
    clipped: int
    mean_error: float
    variance_error: float


class MomentsPacking:
    """Mean and variance per channel.

    A site sums its pixels and their squares, less the public middle of the range, so that nothing large cancels.

    Args:
        channels: of the images.
        low: end of the public range; what lies outside is clipped and counted.
        high: other end.
        sites: most sites in one sum.
        largest: no site has more pixels in a channel, or more weight.
        weighted: whether images have weights.

    Raises:
        ConfigError: a range that is empty, or no encoding fits.

    Guarantees:
        With m sites, R half the range, W the weight and r1, r2, r0 the resolutions of the sums of pixels, squares and
        weights (r0 = 0 without weights), the mean is off by at most (m r1 / 2 + R m r0 / 2) / W + 2**-46 (R + |middle|)
        and the variance by at most (m r2 / 2 + R^2 m r0 / 2) / W + 2 R e + e^2 + 2**-44 R^2, where e is the first bound
        without |middle|. The last terms are float64: NumPy adds in pairs, which for a block of at most 2**32 numbers is
        off by less than 48 * 2**-53 of the sum of magnitudes, and the blocks are added exactly.

    Reference:
        Chan, Golub and LeVeque 1983 (shifted data), https://doi.org/10.1080/00031305.1983.10483115
    """

    bits: Bits = _BITS

    def __init__(
        self,
        channels: int,
        low: float,
        high: float,
        sites: int,
        *,
        largest: int = LARGEST_COUNT,
        weighted: bool = False,
    ) -> None:
        if not -math.inf < low < high < math.inf:
            raise ConfigError("The range of intensities is empty", got=f"{low} to {high}", expected="low < high")
        self.channels, self.length = channels, 2 + 2 * channels
        self._low, self._high = low, high
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._largest, self._weighted = largest, weighted
        self._weight = (
            FixedPoint.fitting(float(largest), sites, _BITS) if weighted else FixedPoint(largest, sites, _BITS, 0)
        )
        self._clipped = CountPacking((1,), sites, channels * LARGEST_COUNT)
        self._first = FixedPoint.fitting(largest * self._half, sites, _BITS)
        self._second = FixedPoint.fitting(largest * self._half**2, sites, _BITS)

    def pack(self, images: NDArray[np.generic], *, unit: float = 1.0, weights: ArrayLike | None = None) -> RingVector:
        """A site's vector: weight, clipped numbers, sums, sums of squares.

        Args:
            images: shape (N, channels, *spatial).
            unit: every number is divided by it first.
            weights: shape (N,), >= 0, exactly where the packing is weighted.

        Raises:
            ConfigError: other channels, weights given or missing, or more pixels than ``largest``.
            DataError: a number that is not finite, or not one weight an image.
        """
        if images.shape[1:2] != (self.channels,) or (weights is not None) != self._weighted:
            raise ConfigError(
                "These images cannot be summed",
                got=f"shape {images.shape}, {'no ' if weights is None else ''}weights",
                expected=f"{self.channels} channels, {'' if self._weighted else 'no '}weights",
            )
        totals: list[list[float]] = [[] for _ in range(2 * self.channels)]
        masses, clipped = [], 0
        for start, block in blocks(images, unit):
            clipped += int(np.count_nonzero((block < self._low) | (block > self._high)))
            # (channels, pixels), one channel's numbers side by side: NumPy adds in pairs along the last axis only.
            shifted = np.ascontiguousarray(np.clip(block, self._low, self._high).swapaxes(0, 1)) - self._middle
            shifted = shifted.reshape(self.channels, -1)
            mass = np.ones(shifted.shape[1])
            if weights is not None:
                mass = spread(weights, images, start, block[:, :1])
            masses.append(float(mass.sum()))
            for channel, row in enumerate(shifted):
                totals[channel].append(float((row * mass).sum()))
                totals[self.channels + channel].append(float((row * row * mass).sum()))
        weight, sums = math.fsum(masses), np.array([math.fsum(parts) for parts in totals])
        if weight > self._largest:
            raise ConfigError("A site has more pixels than the sum has room for", expected=f"at most {self._largest}")
        first, _ = self._first.encode(sums[: self.channels])
        second, _ = self._second.encode(sums[self.channels :])
        mass_word, _ = self._weight.encode(np.array([weight]))
        return np.concatenate([mass_word, self._clipped.pack(np.array([clipped])), first, second])

    def unpack(self, total: RingVector, included: int) -> Moments:
        """Mean and variance over ``included`` sites.

        Raises:
            MessageError: no sum of packed images.
            DataError: no pixels at all.
        """
        weight = float(self._weight.decode(total[:1], included)[0])
        if weight <= 0:
            raise DataError("No site has an image that counts", expected="at least one")
        middle = 2 + self.channels
        first = self._first.decode(total[2:middle], included) / weight
        second = self._second.decode(total[middle:], included) / weight
        mean_error, variance_error = self._errors(weight, included)
        return Moments(
            weight=weight,
            mean=self._middle + first,
            variance=np.maximum(second - first**2, 0.0),
            clipped=int(self._clipped.unpack(total[1:2], included)[0]),
            mean_error=mean_error,
            variance_error=variance_error,
        )

    def _errors(self, weight: float, included: int) -> tuple[float, float]:
        steps, half = included / 2 / weight, self._half
        uncertain = self._weight.resolution if self._weighted else 0.0
        shifted = steps * (self._first.resolution + half * uncertain) + _MEAN_ROUNDING * half
        squares = steps * (self._second.resolution + half**2 * uncertain)
        variance = squares + 2 * half * shifted + shifted**2 + _VARIANCE_ROUNDING * half**2
        return shifted + _MEAN_ROUNDING * abs(self._middle), variance
