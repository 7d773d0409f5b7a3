"""Numbers as integers modulo 2**32 or 2**64, and whether a sum of them is sure not to wrap around."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, MessageError
from medveil.secagg.ring import Bits, RingVector, word

_MOST_FRACTION_BITS = 1000
_LARGEST_RANGE = 2.0**900
# Numbers at a time: what stays in cache takes half the time.
_BLOCK = 12_288


def to_ring(values: NDArray[np.int64], bits: int) -> RingVector:
    """Signed integers modulo 2**bits, in two's complement: a new array, uint32 or uint64, of the same shape.

    Values that do not fit are reduced, which is right as long as the total fits (:func:`capacity`).

    Raises:
        ConfigError: another dtype, or another size of words.

    >>> to_ring(np.array([-1, 2]), 32)
    array([4294967295,          2], dtype=uint32)
    """
    if values.dtype != np.int64:
        raise ConfigError("Only int64 values enter the ring", got=values.dtype, expected="int64")
    return cast("RingVector", values.astype(word(bits)))


def from_ring(vector: RingVector) -> NDArray[np.int64]:
    """The signed integers nearest to 0 that the words stand for: a new int64 array of the same shape.

    Raises:
        ConfigError: neither uint32 nor uint64.
    """
    if vector.dtype not in {np.dtype(np.uint32), np.dtype(np.uint64)}:
        raise ConfigError("This is not a vector of a ring", got=vector.dtype, expected="uint32 or uint64")
    signed: NDArray[np.int64] = vector.view(f"i{vector.itemsize}").astype(np.int64)
    return signed


@dataclass(frozen=True)
class Capacity:
    """Whether the total of all sites, noise included, is sure to stay inside the ring.

    Args:
        bits: of a word.
        largest_sum: bound on the sites' total without noise, in integers.
        noise_tail: what no coordinate's total noise exceeds, except with the probability that was asked for.
    """

    bits: int
    largest_sum: int
    noise_tail: int

    @property
    def limit(self) -> int:
        """Totals must stay below this: 2**(bits - 1)."""
        return 1 << self.bits - 1

    @property
    def fits(self) -> bool:
        """Whether largest_sum + noise_tail < limit."""
        return self.largest_sum + self.noise_tail < self.limit

    def __str__(self) -> str:
        sign = "<" if self.fits else ">="
        return f"values {self.largest_sum} + noise {self.noise_tail} {sign} {self.limit} = 2**{self.bits - 1}"


def capacity(largest: int, sites: int, noise_std: float, dimension: int, bits: int, failure: float) -> Capacity:
    """Compare the largest total that can come up with half of the ring.

    Args:
        largest: >= 0, bound on the magnitude of one site's integers without noise.
        sites: >= 1, sites whose vectors are summed.
        noise_std: >= 0, standard deviation of the SUM of the sites' Gaussian noises in one coordinate, in integers; 0
            for no noise. Each site may have rounded its own.
        dimension: >= 1, coordinates.
        bits: 32 or 64.
        failure: in (0, 1), probability with which some coordinate's noise in one total may exceed the tail; a run of
            several totals has their sum.

    Returns:
        The numbers; ``fits`` decides.

    Raises:
        ConfigError: an argument out of range.

    Guarantees:
        When it fits, one total decodes without wrapping around in every coordinate: always without noise, else except
        with probability ``failure``. The tail of a standard normal Z is P(|Z| > z) <= exp(-z^2 / 2); over all
        coordinates that is at most ``failure`` at z = sqrt(2 ln(dimension / failure)). Rounding adds at most half an
        integer a site.

    >>> str(capacity(2**20, sites=10, noise_std=2.0**20, dimension=270_000, bits=32, failure=1e-12))
    'values 10485760 + noise 9394825 < 2147483648 = 2**31'
    """
    word(bits)
    if largest < 0 or min(sites, dimension) < 1 or not 0.0 <= noise_std < math.inf or not 0.0 < failure < 1.0:
        raise ConfigError(
            "No capacity for such sums",
            got=f"largest {largest}, sites {sites}, noise_std {noise_std}, dimension {dimension}, failure {failure}",
            expected="largest >= 0, sites and dimension >= 1, noise_std finite and >= 0, failure between 0 and 1",
        )
    return Capacity(bits, sites * largest, _tail(noise_std, dimension, failure, sites))


def _tail(noise_std: float, dimension: int, failure: float, sites: int) -> int:
    if noise_std == 0.0:
        return 0
    # Two logarithms, because the quotient might overflow; the factor covers their rounding.
    deviations = math.sqrt(2.0 * (math.log(dimension) - math.log(failure))) * (1.0 + 2.0**-40)
    return math.ceil(deviations * noise_std) + (sites + 1) // 2


def choose_bits(largest: int, sites: int, noise_std: float, dimension: int, failure: float) -> Bits:
    """32 if the total is sure to fit, else 64; arguments as for :func:`capacity`.

    Raises:
        ConfigError: it does not fit 64 bits either, or an argument is out of range.
    """
    if capacity(largest, sites, noise_std, dimension, 32, failure).fits:
        return 32
    wide = capacity(largest, sites, noise_std, dimension, 64, failure)
    if not wide.fits:
        raise ConfigError(
            "The sum of all sites does not fit 64 bits",
            got=str(wide),
            expected=f"at most {wide.limit - 1}",
            remedy="use a smaller clipping bound, less noise or a coarser grid",
        )
    return 64


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers as multiples of 2**-fraction_bits, for sums without differential-privacy noise.

    Args:
        value_range: in [2**-900, 2**900]; a site's values lie between minus this and this, others are clipped.
        sites: >= 1, the most vectors that are summed.
        bits: 32 or 64.
        fraction_bits: in [-1000, 1000], bits after the binary point; negative for steps above 1.

    Raises:
        ConfigError: an argument out of range; the sum of all sites might wrap around
            (sites * largest >= 2**(bits - 1)); a range below half a step, which would encode everything as 0.

    Guarantees:
        Every sum of at most ``sites`` encoded vectors decodes to exactly the sum of the rounded values. Each value that
        was not clipped is off by at most ``resolution / 2``. Decoding rounds to float64.

    >>> point = FixedPoint(value_range=1.0, sites=2, bits=32, fraction_bits=20)
    >>> vector, clipped = point.encode(np.array([0.5, -3.0]))
    >>> point.decode(vector, sites_included=1), clipped
    (array([ 0.5, -1. ]), 1)
    """

    value_range: float
    sites: int
    bits: int
    fraction_bits: int

    def __post_init__(self) -> None:
        word(self.bits)
        _check_range(self.value_range, self.sites, self.fraction_bits)
        if self.largest < 1:
            raise ConfigError(
                "The range is below half a step: every value would be encoded as 0",
                got=f"value_range {self.value_range}, fraction_bits {self.fraction_bits}",
                expected=f"value_range above {self.resolution / 2}",
                remedy="use more fraction bits",
            )
        if self.sites * self.largest >= 1 << self.bits - 1:
            raise ConfigError(
                "The sum of all sites might not fit the ring",
                got=f"{self.sites} sites * {self.largest} = {self.sites * self.largest} "
                f"(value_range {self.value_range}, {self.fraction_bits} fraction bits)",
                expected=f"below 2**{self.bits - 1} = {1 << self.bits - 1}",
                remedy="use fewer fraction bits, a smaller range or 64 bits",
            )

    @classmethod
    def fitting(cls, value_range: float, sites: int, bits: int) -> "FixedPoint":
        """The encoding with the most fraction bits whose sums are sure to fit.

        Raises:
            ConfigError: an argument out of range, or no number of fraction bits fits.
        """
        word(bits)
        _check_range(value_range, sites)
        # One value of that many fraction bits already reaches 2**bits: too many for every number of sites.
        most = bits + 1 - math.frexp(value_range)[1]
        for fraction_bits in range(most, most - bits - 2, -1):
            if 1 <= sites * _largest(value_range, fraction_bits) < 1 << bits - 1:
                return cls(value_range, sites, bits, fraction_bits)
        raise ConfigError(
            "No encoding fits so many sites", got=f"{sites} sites, {bits} bits", expected=f"below {1 << bits - 1}"
        )

    @property
    def resolution(self) -> float:
        """Distance between neighbouring values: 2**-fraction_bits."""
        return math.ldexp(1.0, -self.fraction_bits)

    @property
    def largest(self) -> int:
        """The largest integer that one site's value becomes: value_range / resolution, rounded."""
        return _largest(self.value_range, self.fraction_bits)

    def encode(self, values: NDArray[np.float64]) -> tuple[RingVector, int]:
        """One site's values as words of the ring, and how many of them had to be clipped.

        Args:
            values: shape (length,), float64.

        Returns:
            Shape (length,), uint32 or uint64, a new array; the number of values outside the range.

        Raises:
            ConfigError: another dtype or shape.
            MessageError: a value that is not finite.
        """
        if values.dtype != np.float64 or values.ndim != 1:
            raise ConfigError(
                "Only vectors of float64 are encoded",
                got=f"{values.dtype} {values.shape}",
                expected="float64 (length,)",
            )
        clipped = self._outside(values)
        vector: RingVector = np.empty(values.size, word(self.bits))
        # A power of two: the product is exact, or so small that it is rounded to 0 anyway.
        scale = math.ldexp(1.0, self.fraction_bits)
        for start in range(0, values.size, _BLOCK):
            steps = np.clip(values[start : start + _BLOCK], -self.value_range, self.value_range)
            steps *= scale
            vector[start : start + _BLOCK] = to_ring(np.rint(steps, out=steps).astype(np.int64), self.bits)
        return vector, clipped

    def _outside(self, values: NDArray[np.float64]) -> int:
        """How many values lie outside the range; refuses what is not finite."""
        lowest, highest = values.min(initial=0.0), values.max(initial=0.0)
        # Written so that NaN fails.
        if not (lowest > -math.inf and highest < math.inf):
            raise MessageError(
                "A value to be summed is not finite",
                got=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values are NaN or infinite",
                expected="finite values",
                remedy="the site's training diverged: lower the learning rate",
            )
        if -self.value_range <= lowest and highest <= self.value_range:
            return 0
        return int(np.count_nonzero(np.abs(values) > self.value_range))

    def decode(self, total: RingVector, sites_included: int) -> NDArray[np.float64]:
        """The sum of the included sites' values: shape (length,), float64.

        Args:
            total: the sum of ``sites_included`` encoded vectors.
            sites_included: in [1, sites].

        Raises:
            ConfigError: a vector of the other ring, or a number of sites out of range.
            MessageError: a total that so many encoded vectors cannot give.
        """
        if total.dtype != word(self.bits) or not 1 <= sites_included <= self.sites:
            raise ConfigError(
                "This total does not belong to the encoding",
                got=f"{total.dtype}, {sites_included} sites",
                expected=f"uint{self.bits}, 1 to {self.sites} sites",
            )
        signed = from_ring(total)
        bound = sites_included * self.largest
        beyond = np.count_nonzero((signed > bound) | (signed < -bound))
        if beyond:
            raise MessageError(
                "The total is no sum of encoded values",
                got=f"{beyond} of {total.size} coordinates beyond {bound}",
                expected=f"at most {sites_included} sites * {self.largest}",
                remedy="a site did not encode its values, or a mask was not removed",
            )
        return signed.astype(np.float64) * self.resolution


def _largest(value_range: float, fraction_bits: int) -> int:
    # Exact, and half to even as NumPy rounds; a float might overflow.
    return round(Fraction(value_range) * Fraction(2) ** fraction_bits)


def _check_range(value_range: float, sites: int, fraction_bits: int = 0) -> None:
    # Written so that NaN fails.
    in_range = 1 / _LARGEST_RANGE <= value_range <= _LARGEST_RANGE
    if not in_range or sites < 1 or abs(fraction_bits) > _MOST_FRACTION_BITS:
        raise ConfigError(
            "No encoding for such values",
            got=f"value_range {value_range}, sites {sites}, fraction_bits {fraction_bits}",
            expected="value_range from 2**-900 to 2**900, sites at least 1, fraction_bits from -1000 to 1000",
        )
