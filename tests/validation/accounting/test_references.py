"""DP-SGD's epsilon against published values, dp-accounting called directly, and a lower bound of our own.

The lower bound shares nothing with dp-accounting: it bins the output of each step, gives every bin the smallest loss
in it, rounds that down to a grid and convolves by FFT. Dropping mass and lowering losses lowers delta at every epsilon,
so the true epsilon is above it.
"""

import math

import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

from medveil.accounting import delta_of, dp_sgd, epsilon, epsilon_of

# Values at sampling rate, noise multiplier, steps, delta. The first is also the setting in which a central-limit
# accountant reports 2.38, and the last the one in which it reports 1.93.
PUBLISHED = [
    (0.01, 1.0, 2000, 1e-5, 2.585),
    (0.02, 10.0, 100, 1e-5, 0.060),
    (0.2, 1.0, 1000, 1e-5, 61.20),
    (0.5, 1.0, 2000, 1e-6, 403.2),
    (0.0005, 0.6, 50_000, 1e-6, 2.88),
]


def log_mixture(x, centre, rate, sigma):
    """log((1 - q) N(x; 0) + q N(x; centre)) up to the constant that cancels in a loss."""
    return np.logaddexp(
        math.log1p(-rate) - x**2 / (2 * sigma**2) if rate < 1 else np.full_like(x, -np.inf),
        math.log(rate) - (x - centre) ** 2 / (2 * sigma**2),
    )


def lowest_losses(direction, rate, sigma, grid):
    """Mass of each loss, rounded down to multiples of ``grid``: (smallest multiple, masses)."""
    x = np.linspace(-10 * sigma - 1, 10 * sigma + 1, 100_001)
    plain, moved = log_mixture(x, 0.0, rate, sigma), log_mixture(x, 1.0, rate, sigma)
    loss, rates = {
        "remove": (moved - plain, (1 - rate, rate)),
        "add": (plain - moved, (1.0, 0.0)),
        "replace": (moved - log_mixture(x, -1.0, rate, sigma), (1 - rate, rate)),
    }[direction]
    cdf = rates[0] * ndtr(x / sigma) + rates[1] * ndtr((x - 1) / sigma)
    lowest = np.floor(np.minimum(loss[:-1], loss[1:]) / grid).astype(int)
    return lowest.min(), np.bincount(lowest - lowest.min(), weights=np.diff(cdf))


def lower_bound(rate, sigma, steps, delta, directions=("remove", "add")):
    """An epsilon below the true one, by trade-off composition of optimistic losses."""
    best = 0.0
    for direction in directions:
        # The bias is at most steps * grid; a coarse pass says how large epsilon is.
        rough = rough_spread(direction, rate, sigma, steps)
        best = max(best, composed_epsilon(direction, rate, sigma, steps, delta, max(8e-3 * rough / steps, 2e-6)))
    return best


def rough_spread(direction, rate, sigma, steps):
    start, mass = lowest_losses(direction, rate, sigma, 1e-3)
    values = (start + np.arange(len(mass))) * 1e-3 + 5e-4
    mean = float(values @ mass)
    return steps * abs(mean) + 4 * math.sqrt(steps * float((values - mean) ** 2 @ mass))


def composed_epsilon(direction, rate, sigma, steps, delta, grid):
    start, mass = lowest_losses(direction, rate, sigma, grid)
    values = np.arange(len(mass))
    mean = float(values @ mass)
    reach = 14 * math.sqrt(steps * float((values - mean) ** 2 @ mass)) + 2 * len(mass)
    length = next_fast_len(int(2 * reach) + len(mass), real=True)
    first = int(steps * mean - length / 2)
    total = irfft(rfft(mass, length) ** steps, length)
    total = np.roll(total, -(first % length)).clip(0.0)
    losses = (first + steps * start + np.arange(length)) * grid
    return epsilon_at(losses, total, delta + 1e-12)


def epsilon_at(losses, mass, delta):
    """Smallest grid epsilon >= 0 whose hockey-stick divergence is above delta, by tail sums from the right."""
    keep = (losses > 0) & (losses < 600)
    above = float(mass[losses >= 600].sum())
    losses, mass = losses[keep], mass[keep]
    upper = above + np.cumsum(mass[::-1])[::-1]
    lower = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    deltas = upper - np.exp(losses) * lower
    over = np.flatnonzero(deltas > delta)
    return float(losses[over[-1]]) if len(over) else 0.0


def direct(rate, sigma, steps, delta, relation=NeighboringRelation.ADD_OR_REMOVE_ONE):
    """dp-accounting as its documentation says, at a grid of the test's choosing."""
    spread = math.sqrt(min(rate**2 * math.expm1(sigma**-2), rate / sigma**2))
    accountant = PLDAccountant(relation, value_discretization_interval=max(spread / 40, 4e-5))
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps))
    return accountant.get_epsilon(delta)


def random_configuration(seed):
    """A sampling rate, noise multiplier, number of steps and delta whose epsilon lies in [0.03, 30]."""
    generator = np.random.default_rng(seed)
    while True:
        rate = float(np.exp(generator.uniform(math.log(2e-3), math.log(0.5))))
        sigma = float(np.exp(generator.uniform(math.log(0.7), math.log(12.0))))
        steps = int(np.exp(generator.uniform(0.0, math.log(3000))))
        delta = float(10 ** generator.uniform(-8, -3))
        scale = rate * math.sqrt(steps * math.expm1(sigma**-2))
        if 0.03 < scale < 4:
            return rate, sigma, steps, delta


def check_configuration(seed):
    rate, sigma, steps, delta = random_configuration(seed)
    found = epsilon(sampling_rate=rate, noise_multiplier=sigma, steps=steps, delta=delta)
    assert found == pytest.approx(direct(rate, sigma, steps, delta), rel=0.01, abs=1e-4)
    assert found >= lower_bound(rate, sigma, steps, delta)


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "expected"), PUBLISHED)
def test_reference_values(rate, sigma, steps, delta, expected):
    found = epsilon(sampling_rate=rate, noise_multiplier=sigma, steps=steps, delta=delta)
    assert found == pytest.approx(expected, rel=0.01)


def test_the_reference_value_of_replace_one():
    setting = {"sampling_rate": 0.01, "noise_multiplier": 1.0, "steps": 2000, "delta": 1e-5}
    found = epsilon(relation="replace-one", **setting)
    assert found == pytest.approx(4.19, rel=0.01)
    assert found >= lower_bound(0.01, 1.0, 2000, 1e-5, directions=("replace",)) > 4.05


@pytest.mark.parametrize("setting", [PUBLISHED[0][:4], PUBLISHED[1][:4], PUBLISHED[2][:4]])
def test_the_lower_bound_is_close_enough_to_convict(setting):
    """It lies within 3 % of the figure, so an optimistic or a central-limit accountant falls below it."""
    rate, sigma, steps, delta = setting
    found = epsilon(sampling_rate=rate, noise_multiplier=sigma, steps=steps, delta=delta)
    assert 0.97 * found <= lower_bound(*setting) <= found


def test_the_lower_bound_convicts_an_optimistic_and_a_central_limit_accountant():
    rate, sigma, steps, delta = PUBLISHED[0][:4]
    bound = lower_bound(rate, sigma, steps, delta)
    assert composed_epsilon("remove", rate, sigma, steps, delta, 1e-3) < bound
    mu = rate * math.sqrt(steps * math.expm1(sigma**-2))
    losses = np.linspace(0.0, 10.0, 100_001)
    deltas = ndtr(mu / 2 - losses / mu) - np.exp(losses) * ndtr(-mu / 2 - losses / mu)
    central_limit = losses[np.flatnonzero(deltas > delta)[-1]]
    assert central_limit == pytest.approx(2.38, abs=0.01)
    assert central_limit < bound


def test_one_step_by_quadrature():
    """Hockey-stick divergence of a single sampled step, integrated on a fine line, in both directions."""
    rate, sigma = 0.3, 0.8
    x = np.linspace(-12, 13, 2_000_001)
    plain = np.exp(-(x**2) / (2 * sigma**2)) / math.sqrt(2 * math.pi) / sigma
    moved = (1 - rate) * plain + rate * np.exp(-((x - 1) ** 2) / (2 * sigma**2)) / math.sqrt(2 * math.pi) / sigma
    event = dp_sgd(sampling_rate=rate, noise_multiplier=sigma, steps=1)
    for eps in (0.0, 0.2, 1.0):
        exact = max(
            np.trapezoid(np.maximum(one - math.exp(eps) * other, 0), x)
            for one, other in ((plain, moved), (moved, plain))
        )
        assert exact * (1 - 1e-6) - 1e-12 <= delta_of(event, epsilon=eps) <= exact * 1.005 + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_random_configurations(seed):
    check_configuration(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(9))
def test_many_random_configurations(block):
    for seed in range(20 + 20 * block, 40 + 20 * block):
        check_configuration(seed)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_replace_one_of_random_configurations(seed):
    rate, sigma, steps, delta = random_configuration(seed)
    event = dp_sgd(sampling_rate=rate, noise_multiplier=sigma, steps=steps)
    found = epsilon_of(event, delta=delta, relation="replace-one").epsilon
    assert found == pytest.approx(
        direct(rate, sigma, steps, delta, NeighboringRelation.REPLACE_ONE), rel=0.01, abs=1e-4
    )
    assert found >= lower_bound(rate, sigma, steps, delta, directions=("replace",))
