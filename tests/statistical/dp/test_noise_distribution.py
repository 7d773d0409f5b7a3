"""The noise has its distribution, at its scale, and the same tests notice another scale. Alpha 1e-3, fixed seeds."""

import numpy as np
import pytest
from scipy import stats

from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.rng import SecureRandom, Seeds

pytestmark = pytest.mark.statistical
_ALPHA = 1e-3
_COUNT = 200_000


def _kolmogorov(values, std):
    return stats.kstest(values / std, "norm").pvalue


def _chi_square(values, std, span=8):
    """Exact cell probabilities from the normal distribution function; the outer cells take the tails."""
    edges = np.concatenate([[-np.inf], np.arange(-span, span) + 0.5, [np.inf]])
    observed = np.histogram(values, edges)[0]
    return stats.chisquare(observed, np.diff(stats.norm.cdf(edges / std)) * values.size).pvalue


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (2 / 3, False), (3 / 2, False), (1.02, False)])
def test_large_noise(seed, factor, right):
    std = 2.0**20 + 519.6
    values = rounded_gaussian(std, _COUNT, SecureRandom.seeded(Seeds(seed)))
    assert (_kolmogorov(values, std * factor) > _ALPHA) == right


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (2 / 3, False), (3 / 2, False), (1.02, False)])
def test_small_noise_cell_by_cell(seed, factor, right):
    values = rounded_gaussian(2.5, _COUNT, SecureRandom.seeded(Seeds(seed)))
    assert (_chi_square(values, 2.5 * factor) > _ALPHA) == right


def test_noise_from_the_operating_system():
    """Not seedable: alpha 1e-9."""
    values = rounded_gaussian(2.0**20, _COUNT, SecureRandom())
    assert _kolmogorov(values, 2.0**20) > 1e-9
    assert _kolmogorov(values, 2.0**20 * 3 / 2) < 1e-9
    assert _kolmogorov(values, 2.0**20 * 2 / 3) < 1e-9


def test_neighbouring_numbers_are_independent():
    values = rounded_gaussian(2.0**20, _COUNT, SecureRandom.seeded(Seeds(3))).astype(float)
    for lag in (1, 2, 7, 64):
        # Under independence the correlation is about normal with standard deviation 1 / sqrt(n).
        z = np.corrcoef(values[:-lag], values[lag:])[0, 1] * np.sqrt(values.size - lag)
        assert abs(z) < stats.norm.isf(_ALPHA / 8)
    low_bits = (values.astype(np.int64) & 15).astype(int)
    assert stats.chisquare(np.bincount(low_bits, minlength=16)).pvalue > _ALPHA


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_a_release_is_off_by_noise_multiplier_times_the_bound(factor, right):
    mechanism = NoiseMechanism(l2_clip_norm=0.7, noise_multiplier=1.3, dimension=_COUNT)
    total = np.random.default_rng(0).normal(size=_COUNT)
    error = mechanism.release(total, SecureRandom.seeded(Seeds(4))) - total
    # The grid's share, sqrt(d) / 2**20, is 0.04 per cent: this test cannot see it.
    assert (_kolmogorov(error, 0.7 * 1.3 * factor) > _ALPHA) == right
