"""Gaussian noise on an integer grid: rounding a continuous Gaussian is post-processing, so only how it is drawn costs.

docs/explanation/noise-and-sampling.md derives what is stated here.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, GuaranteeError, PrivacyError
from medveil.rng import SecureRandom

GRID_BITS = 20
"""The grid is the clipping bound times 2**-20, unless a sum over few bits asks for a coarser one."""
COARSEST_GRID_BITS = 10

_LARGEST_STD = 2.0**32
_LARGEST_TOTAL = 2.0**52
_SMALLEST_CLIP = 2.0**-900

# A float64 quantile, times the standard deviation, is off by less than std * 2**-42 when the word is at least 2**40;
# closer to a half integer than that, and for smaller words, the exact comparison decides.
_QUANTILE_ERROR = 2.0**-42
_SMALLEST_SURE_WORD = 2**40
_EXTRA_BYTES = 24
# Numbers at a time: what stays in cache takes half the time.
_BLOCK = 12_288
_WORD_BITS = 64 + 8 * _EXTRA_BYTES
_DIGITS = 120
_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651328"
    "23066470938446095505822317"
)


def rounded_gaussian(std: float, count: int, random: SecureRandom) -> NDArray[np.int64]:
    """Integers round(std * Z) with Z standard normal, each independent.

    A 64-bit word gives a sign and a tail probability, which the inverse of the normal tail turns into a magnitude in
    float64 (SciPy's ``ndtri``, never asked near probability 1). Where float64 or 64 bits cannot tell which integer is
    right (about one number in 2**41 / std), 192 more bits are drawn and 120-digit arithmetic decides.

    Args:
        std: in [1, 2**32], in integers.
        count: >= 0.
        random: cryptographic source.

    Returns:
        Shape (count,), int64; no magnitude exceeds 18.7 standard deviations, and 9.1 are exceeded as often as they
        should be.

    Raises:
        ConfigError: std out of range.

    Guarantees:
        Within total variation (std + 1) * 2**-250 a number of the exact law, if ``ndtri`` is right to a relative
        2**-47 (measured: 2**-50.4).

    References:
        Mironov 2012, CCS, on what naive float64 noise gives away; Canonne, Kamath & Steinke 2020, arXiv 2004.00010,
        on exact sampling.

    >>> rounded_gaussian(1000.0, 4, SecureRandom()).dtype
    dtype('int64')
    """
    if not 1.0 <= std <= _LARGEST_STD or count < 0:
        raise ConfigError(
            "No exact noise of that size",
            got=f"std {std}, count {count}",
            expected="1 <= std <= 2**32, in grid units, and count >= 0",
        )
    drawn = np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        drawn[start : start + _BLOCK] = _block(std, min(_BLOCK, count - start), random)
    return drawn


def _block(std: float, count: int, random: SecureRandom) -> NDArray[np.int64]:
    words = random.words(count)
    tails = (words >> np.uint64(1)).view(np.int64)
    probabilities = tails.astype(np.float64)
    probabilities += 0.5
    probabilities *= 2.0**-64
    scaled = _magnitudes(probabilities, std)
    rounded = np.rint(scaled)
    magnitudes = rounded.astype(np.int64)
    unsure = np.abs(np.subtract(scaled, rounded, out=scaled), out=scaled) > 0.5 - std * _QUANTILE_ERROR
    unsure |= tails < _SMALLEST_SURE_WORD
    for index in np.flatnonzero(unsure):
        magnitudes[index] = _decided(int(tails[index]), std, random)
    return _signed(magnitudes, words)


def _magnitudes(tails: NDArray[np.float64], std: float) -> NDArray[np.float64]:
    from scipy.special import ndtri

    quantiles: NDArray[np.float64] = ndtri(tails, out=tails)
    return np.multiply(quantiles, -std, out=quantiles)


def _signed(magnitudes: NDArray[np.int64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Negated where the word's last bit is set: -x is ~x + 1, without a branch."""
    flips = -(words & np.uint64(1)).view(np.int64)
    return (magnitudes ^ flips) - flips


def _decided(tail: int, std: float, random: SecureRandom) -> int:
    """The magnitude that a 63-bit tail, continued by fresh bits, stands for."""
    longer = tail << 8 * _EXTRA_BYTES | int.from_bytes(random.bytes(_EXTRA_BYTES), "big")
    # Probability 2**-255 for the one word that has no quantile.
    longer = max(longer, 1)
    scaled = _magnitudes(np.array([math.ldexp(longer, -_WORD_BITS)]), std)
    below = math.floor(float(scaled[0]))
    # Nearer than half an integer, only this one boundary can be in doubt.
    return below + 1 if Decimal(longer) < _tail_count(below, std) else below


def _tail_count(below: int, std: float) -> Decimal:
    """The probability beyond (below + 1/2) / std, in units of the longest word, to 40 digits.

    The central probability is a series of positive terms: phi(t) (t + t^3/3 + t^5/15 + ...), Abramowitz & Stegun
    26.2.11.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        point = (below + Decimal("0.5")) / Decimal(std)
        square, term, odd = point * point, point, 1
        central = term
        while term > central.scaleb(-_DIGITS):
            odd += 2
            term = term * square / odd
            central += term
        density = (-square / 2).exp() / (2 * _PI).sqrt()
        return (Decimal("0.5") - density * central) * Decimal(2**_WORD_BITS)


def total_variation(dimension: int, steps: int, std: float, honest: int = 1) -> float:
    """How far the noise of a whole run is at most from post-processing of the Gaussian mechanism.

    Two parts, both for one coordinate of one step and then multiplied: the finite words, honest * (std + 1) * 2**-250;
    and, when ``honest`` sites add their rounded noise, the distance between the sum of rounded Gaussians and the
    rounding of their sum plus independent uniform numbers (Poisson summation), of the order exp(-pi^2 std^2).

    Args:
        dimension: >= 1, coordinates.
        steps: >= 1, releases.
        std: >= 1, of one site's noise, in grid units.
        honest: >= 1, sites whose noise the adversary does not know.

    Returns:
        A bound in [0, 1] that holds whatever the data are and however steps depend on earlier ones.

    Raises:
        ConfigError: an argument out of range.
    """
    if min(dimension, steps, honest) < 1 or not 1.0 <= std <= _LARGEST_STD:
        raise ConfigError(
            "No bound for such noise",
            got=f"dimension {dimension}, steps {steps}, std {std}, honest {honest}",
            expected="dimension, steps and honest at least 1, and 1 <= std <= 2**32",
        )
    words = honest * (std + 1) * 2.0**-250
    return min(1.0, dimension * steps * (words + _aliasing(std, honest)))


def _aliasing(std: float, honest: int) -> float:
    """Total variation between a sum of rounded Gaussians and the rounded sum plus honest - 1 uniforms."""
    if honest == 1:
        return 0.0
    # Cells within five times honest * std^2 are compared one by one; what lies beyond is bounded by the tails.
    span = 5 * honest * std * std + honest + 2
    logarithm = math.log(2.05 * span * honest * honest) + honest * math.log(1.015) - (math.pi * std) ** 2
    return math.exp(min(0.0, logarithm)) + 2 * math.exp(-12.5 * honest * std * std)


def delta_slack(dimension: int, steps: int, std: float, *, epsilon: float, honest: int = 1) -> float:
    """What must be added to delta because noise is drawn by a computer: (1 + e^epsilon) times the total variation.

    Args:
        dimension: as in :func:`total_variation`.
        steps: as in :func:`total_variation`.
        std: as in :func:`total_variation`.
        epsilon: >= 0, at which delta was computed for the continuous mechanism.
        honest: as in :func:`total_variation`.

    Raises:
        ConfigError: an argument out of range.

    Reference:
        Kairouz, Liu & Steinke 2021, arXiv 2102.06387, for the same exchange with discrete Gaussians.

    >>> delta_slack(270_000, 2000, 2.0**20, epsilon=8.0) < 1e-50
    True
    """
    if not epsilon >= 0:
        raise ConfigError("Epsilon is not negative", got=epsilon, expected="at least 0")
    distance = total_variation(dimension, steps, std, honest)
    # Beyond 700 e^epsilon overflows, and such an epsilon promises nothing.
    return min(1.0, distance * (1.0 + math.exp(min(epsilon, 700.0))))


@dataclass(frozen=True)
class NoiseMechanism:
    """The Gaussian mechanism on a grid: what is clipped to, how much noise, over how many coordinates.

    The default is one trusted curator. With several sites each adds its share, such that every coalition of at most
    ``tolerated`` sites still faces the full multiplier when up to ``absent`` others drop out.

    Args:
        l2_clip_norm: > 0, bound on one unit's contribution to the sum; floating-point error included
            (:mod:`medveil.dp.clipping` sees to it).
        noise_multiplier: > 0, noise over sensitivity, the sigma of accountants.
        dimension: >= 1, coordinates.
        sites: >= 1, sites that add noise.
        tolerated: in [0, sites), sites that may pool what they know with whoever sees the sum.
        absent: >= 0, sites that may drop out; sites - tolerated - absent >= 1.
        grid_bits: in [10, 20], bits of the clip norm on the grid; fewer make rounding cost more noise.

    Raises:
        ConfigError: an argument out of range.
        GuaranteeError: nobody's noise would be left.

    Guarantees:
        For a total of clipped units, ``release`` is the Gaussian mechanism with ``noise_multiplier`` followed by
        post-processing, up to :func:`delta_slack`. Add/remove one unit.

    >>> NoiseMechanism(l2_clip_norm=1.0, noise_multiplier=2.0, dimension=4).std_grid
    2097156.0
    """

    l2_clip_norm: float
    noise_multiplier: float
    dimension: int
    sites: int = 1
    tolerated: int = 0
    absent: int = 0
    grid_bits: int = GRID_BITS

    def __post_init__(self) -> None:
        if not COARSEST_GRID_BITS <= self.grid_bits <= GRID_BITS:
            raise ConfigError(
                "The noise has no such grid",
                got=f"grid_bits {self.grid_bits}",
                expected=f"{COARSEST_GRID_BITS} to {GRID_BITS}",
            )
        if not _SMALLEST_CLIP <= self.l2_clip_norm < math.inf or self.dimension < 1 or not self.noise_multiplier > 0:
            raise ConfigError(
                "This is not a noise mechanism",
                got=f"l2_clip_norm {self.l2_clip_norm}, noise_multiplier {self.noise_multiplier}, "
                f"dimension {self.dimension}",
                expected="positive finite numbers",
            )
        if min(self.sites - 1, self.tolerated, self.absent) < 0 or self.honest < 1:
            raise GuaranteeError(
                "No site's noise would be left unknown to the coalition",
                got=f"sites {self.sites}, tolerated {self.tolerated}, absent {self.absent}",
                expected="sites - tolerated - absent >= 1, none negative",
                remedy="tolerate fewer colluding or absent sites, or let more sites take part",
            )
        if not 1.0 <= self.std_grid <= _LARGEST_STD:
            raise ConfigError(
                "The noise does not fit the grid",
                got=self.noise_multiplier,
                expected="a noise_multiplier between about 1e-6 and 4000 times the square root of the honest sites",
            )

    @property
    def honest(self) -> int:
        """Sites whose noise is counted on."""
        return self.sites - self.tolerated - self.absent

    @property
    def grid(self) -> float:
        """Distance between neighbouring values, in parameter units: exactly ``l2_clip_norm * 2**-grid_bits``."""
        return math.ldexp(self.l2_clip_norm, -self.grid_bits)

    @property
    def sensitivity_grid(self) -> float:
        """L2 sensitivity of one site's rounded total, in grid units: 2**grid_bits + sqrt(dimension)."""
        return 2.0**self.grid_bits + math.sqrt(self.dimension)

    @property
    def std_grid(self) -> float:
        """Standard deviation of one site's noise, in grid units."""
        return self.noise_multiplier * self.sensitivity_grid / math.sqrt(self.honest)

    def multiplier_against(self, colluding: int) -> float:
        """The noise multiplier that a coalition with ``colluding`` sites faces, ``absent`` sites missing.

        Raises:
            GuaranteeError: more sites than are tolerated.
        """
        if not 0 <= colluding <= self.tolerated:
            raise GuaranteeError("The noise was not made for that coalition", got=colluding, expected=self.tolerated)
        return self.noise_multiplier * math.sqrt((self.sites - self.absent - colluding) / self.honest)

    def encode(self, total: NDArray[np.float64], random: SecureRandom) -> NDArray[np.int64]:
        """A site's total, rounded to the grid, plus its noise: shape (dimension,), integers in grid units.

        Raises:
            ConfigError: wrong shape or dtype.
            PrivacyError: a total that clipped units cannot give (not finite, or 2**32 clipping bounds and more).
        """
        rounded = self._rounded(total)
        rounded += rounded_gaussian(self.std_grid, self.dimension, random)
        return rounded

    def decode(self, encoded: NDArray[np.int64]) -> NDArray[np.float64]:
        """Grid units back to parameter units, shape (dimension,)."""
        return encoded.astype(np.float64) * self.grid

    def release(self, total: NDArray[np.float64], random: SecureRandom) -> NDArray[np.float64]:
        """The noisy total, shape (dimension,), float64; every value lies on the grid.

        Raises:
            ConfigError: as in :meth:`encode`.
            PrivacyError: as in :meth:`encode`.
        """
        return self.decode(self.encode(total, random))

    def _rounded(self, total: NDArray[np.float64]) -> NDArray[np.int64]:
        if total.shape != (self.dimension,) or total.dtype != np.float64:
            raise ConfigError(
                "The total does not fit the mechanism",
                got=f"{total.dtype} {total.shape}",
                expected=f"float64 ({self.dimension},)",
            )
        scaled = total / self.grid
        # Written so that NaN fails.
        if not (np.max(scaled) < _LARGEST_TOTAL and np.min(scaled) > -_LARGEST_TOTAL):
            raise PrivacyError(
                "The total is not a sum of clipped units",
                expected="finite values below 2**32 clipping bounds",
                remedy="clip with medveil.dp.clipping before adding noise",
            )
        return np.rint(scaled, out=scaled).astype(np.int64)
