"""Poisson batches pass, shuffled ones fail. Alpha 1e-3, fixed seeds."""

import numpy as np
import pytest
from scipy import stats

from medveil.dp.sampling import PoissonSampler, choose_examples
from medveil.rng import SecureRandom, Seeds

pytestmark = pytest.mark.statistical
_ALPHA = 1e-3
_UNITS, _RATE, _STEPS = 200, 0.1, 3000


@pytest.fixture(scope="module")
def poisson():
    """Who joined which step, shape (steps, units)."""
    sampler = PoissonSampler(_UNITS, _RATE, SecureRandom.seeded(Seeds(1)))
    joined = np.zeros((_STEPS, _UNITS), bool)
    for step in joined:
        step[sampler.draw()] = True
    return joined


@pytest.fixture(scope="module")
def shuffled():
    """Epochs of a shuffled list, cut into batches of units * rate: what accounting must not take for sampling."""
    generator = np.random.default_rng(1)
    joined = np.zeros((_STEPS, _UNITS), bool)
    batches = int(1 / _RATE)
    for step in range(_STEPS):
        if step % batches == 0:
            order = generator.permutation(_UNITS).reshape(batches, -1)
        joined[step, order[step % batches]] = True
    return joined


def _sizes(joined):
    edges = np.array([-1, 12, 14, 16, 18, 20, 22, 24, 26, 28, _UNITS])
    observed = np.histogram(joined.sum(1), edges + 0.5)[0]
    expected = np.diff(stats.binom.cdf(edges, _UNITS, _RATE)) * _STEPS
    return stats.chisquare(observed, expected).pvalue


def _pairs(first, second):
    """Correlation of two columns of 0 and 1, as a p-value over all pairs: sum of squared z-scores."""
    z = (first - _RATE) * (second - _RATE) / (_RATE * (1 - _RATE))
    scores = z.sum(0) / np.sqrt(len(z))
    return stats.chi2.sf((scores**2).sum(), scores.size)


def test_sizes_are_binomial(poisson):
    assert _sizes(poisson) > _ALPHA


def test_fixed_sizes_are_noticed(shuffled):
    assert _sizes(shuffled) < 1e-9


def test_every_unit_joins_at_the_rate(poisson):
    assert (
        stats.chi2.sf(((poisson.sum(0) - _STEPS * _RATE) ** 2).sum() / (_STEPS * _RATE * (1 - _RATE)), _UNITS) > _ALPHA
    )


def test_units_are_independent_of_each_other(poisson, shuffled):
    assert _pairs(poisson[:, ::2], poisson[:, 1::2]) > _ALPHA
    assert abs(stats.zscore(poisson.sum(1)).std() - 1) < 1e-9
    # The variance of the sum sees all pairs at once: a fixed size has none.
    ratio = poisson.sum(1).var(ddof=1) / (_UNITS * _RATE * (1 - _RATE)) * (_STEPS - 1)
    assert _ALPHA < stats.chi2.cdf(ratio, _STEPS - 1) < 1 - _ALPHA
    assert shuffled.sum(1).var() == 0


def test_steps_are_independent_of_each_other(poisson, shuffled):
    assert _pairs(poisson[:-1], poisson[1:]) > _ALPHA
    assert _pairs(shuffled[:-1], shuffled[1:]) < 1e-6


def test_a_wrong_rate_is_noticed():
    sampler = PoissonSampler(_UNITS, _RATE * 1.1, SecureRandom.seeded(Seeds(1)))
    joined = np.zeros((_STEPS, _UNITS), bool)
    for step in joined:
        step[sampler.draw()] = True
    assert _sizes(joined) < 1e-9


@pytest.mark.parametrize(("biased", "right"), [(False, True), (True, False)])
def test_every_subset_of_a_unit_is_as_likely(biased, right):
    random, generator = SecureRandom.seeded(Seeds(2)), np.random.default_rng(2)
    owner, seen = np.array([0, 1, 0, 1, 0, 1, 0]), []
    for _ in range(3000):
        chosen = choose_examples(owner, np.array([0]), 2, random)
        if biased and generator.random() < 0.1:
            chosen = np.array([0, 2])
        seen.append(tuple(chosen.tolist()))
    counts = [seen.count(pair) for pair in [(0, 2), (0, 4), (0, 6), (2, 4), (2, 6), (4, 6)]]
    assert sum(counts) == 3000
    assert (stats.chisquare(counts).pvalue > _ALPHA) == right


def test_permutations_and_bounded_numbers_are_uniform():
    random = SecureRandom.seeded(Seeds(3))
    orders = [tuple(random.permutation(3).tolist()) for _ in range(3000)]
    assert stats.chisquare([orders.count(order) for order in set(orders)]).pvalue > _ALPHA
    assert len(set(orders)) == 6
    assert stats.chisquare(np.bincount(random.below(7, 20_000), minlength=7)).pvalue > _ALPHA
    # A third of 2**64: without redrawing, the lowest quarter would come up twice as often.
    limit = 3 * 2**61
    shares = np.bincount((random.below(limit, 20_000) // (limit // 4)).astype(int), minlength=4)
    assert stats.chisquare(shares).pvalue > _ALPHA
    biased = (random.words(20_000) % np.uint64(limit)).astype(np.int64)
    assert stats.chisquare(np.bincount((biased // (limit // 4)).astype(int), minlength=4)).pvalue < 1e-9
