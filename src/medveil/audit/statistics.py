"""Tests and intervals that hold at any alpha, however small: no normal approximation of a tail."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: end.
        measured: estimate.
        high: end.
    """

    low: float
    measured: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies inside."""
        return self.low <= value <= self.high


def std_interval(values: NDArray[np.float64], alpha: float) -> Interval:
    """Standard deviation of independent normal numbers with mean 0, from the chi-square law of their squares' sum.

    >>> interval = std_interval(np.full(100, 2.0), 1e-6)
    >>> interval.measured, interval.low < 2.0 < interval.high
    (2.0, True)
    """
    from scipy.stats import chi2

    squares, count = float(np.dot(values, values)), values.size
    if not math.isfinite(squares):
        return Interval(math.inf, math.inf, math.inf)
    upper = float(chi2.ppf(alpha / 2, count))
    return Interval(
        math.sqrt(squares / float(chi2.isf(alpha / 2, count))),
        math.sqrt(squares / count),
        math.sqrt(squares / upper) if upper > 0 else math.inf,
    )


def rate_interval(hits: int, trials: int, alpha: float) -> Interval:
    """Clopper-Pearson interval of a probability.

    Reference:
        Clopper & Pearson 1934, Biometrika 26.

    >>> rate_interval(0, 10, 0.05).low, round(rate_interval(0, 10, 0.05).high, 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    low = float(beta.ppf(alpha / 2, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.isf(alpha / 2, hits + 1, trials - hits)) if hits < trials else 1.0
    return Interval(low, hits / trials, high)


def binomial_p(hits: int, trials: int, rate: float) -> float:
    """Twice the smaller tail of the binomial law at ``hits``, at most 1.

    >>> binomial_p(0, 10, 0.5) == 2 * 0.5**10, binomial_p(10, 10, 1.0)
    (True, 1.0)
    """
    from scipy.stats import binom

    return min(1.0, 2 * min(float(binom.cdf(hits, trials, rate)), float(binom.sf(hits - 1, trials, rate))))


def normal_distance(values: NDArray[np.float64]) -> float:
    """Largest distance between the distribution of ``values`` and the standard normal one (Kolmogorov's)."""
    from scipy.special import ndtr

    ordered = ndtr(np.sort(values))
    ranks = np.arange(values.size + 1) / values.size
    return float(max(np.max(ranks[1:] - ordered), np.max(ordered - ranks[:-1])))


def largest_distance(count: int, alpha: float) -> float:
    """What :func:`normal_distance` of ``count`` standard normal numbers exceeds with probability at most ``alpha``.

    Reference:
        Massart 1990, Annals of Probability 18 (the Dvoretzky-Kiefer-Wolfowitz inequality with its constant).
    """
    return math.sqrt(math.log(2 / alpha) / (2 * count))


def largest_echo(values: NDArray[np.float64]) -> tuple[float, int]:
    """The largest circular autocorrelation, per value, and its lag: near 1 where numbers come again.

    >>> tone = np.random.default_rng(0).normal(size=500)
    >>> largest_echo(np.concatenate([tone, tone]))[1]
    500
    """
    spectrum = np.fft.rfft(values)
    echoes = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, n=values.size)[1 : values.size // 2 + 1] / values.size
    lag = int(np.argmax(np.abs(echoes)))
    return float(abs(echoes[lag])), lag + 1


def loudest_echo(count: int, alpha: float) -> float:
    """What :func:`largest_echo` of ``count`` standard normal numbers exceeds with probability at most ``alpha``.

    At any lag the sum of products is a quadratic form whose eigenvalues, cosines, are at most 1 and have squares that
    add up to at most the number of values (half of it, but for the lag of one half).

    Reference:
        Laurent & Massart 2000, Annals of Statistics 28, Lemma 1, for each sign and lag.
    """
    rarity = math.log(2 * max(count // 2, 1) / alpha)
    return 2 * math.sqrt(rarity / count) + 2 * rarity / count
