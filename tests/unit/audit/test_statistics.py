"""The audit's tests and intervals against independent oracles."""

import numpy as np
import pytest
from scipy import stats

from medveil.audit.statistics import (
    binomial_p,
    largest_distance,
    largest_echo,
    loudest_echo,
    normal_distance,
    rate_interval,
    std_interval,
)


@pytest.mark.parametrize(("hits", "trials"), [(0, 12), (1, 12), (7, 40), (40, 40)])
def test_clopper_pearson_is_scipys(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(1 - 1e-4, method="exact")
    found = rate_interval(hits, trials, 1e-4)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_std_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = sum(std_interval(rng.normal(scale=3.0, size=30), 0.1).holds(3.0) for _ in range(2000))
    assert stats.binomtest(held, 2000, 0.9).pvalue > 1e-6


def test_std_interval_of_nothing_and_of_what_is_not_finite():
    assert std_interval(np.zeros(5), 1e-6).high == 0.0
    assert not std_interval(np.array([1.0, np.nan]), 1e-6).holds(1.0)


def test_binomial_tails_by_hand():
    assert binomial_p(2, 2, 0.1) == pytest.approx(2 * 0.1**2)
    assert binomial_p(0, 50, 0.5) == pytest.approx(2 * 0.5**50)
    assert binomial_p(50, 50, 1.0) == 1.0
    assert binomial_p(49, 50, 1.0) == 0.0


def test_normal_distance_is_scipys():
    values = np.random.default_rng(2).normal(size=500)
    assert normal_distance(values) == pytest.approx(stats.kstest(values, "norm").statistic, abs=1e-12)


def test_distance_accepts_normal_numbers_and_rejects_others():
    rng = np.random.default_rng(3)
    most = largest_distance(20_000, 1e-6)
    assert normal_distance(rng.normal(size=20_000)) < most
    assert normal_distance(rng.laplace(scale=0.5**0.5, size=20_000)) > most


def test_echo_by_brute_force():
    values = np.random.default_rng(4).normal(size=101)
    products = [abs(float(np.dot(values, np.roll(values, lag)))) / 101 for lag in range(1, 51)]
    echo, lag = largest_echo(values)
    assert echo == pytest.approx(max(products))
    assert lag == 1 + int(np.argmax(products))


def test_echo_accepts_fresh_numbers_and_rejects_a_tenth_that_comes_again():
    rng = np.random.default_rng(5)
    values = rng.normal(size=20_000)
    most = loudest_echo(values.size, 1e-6)
    assert largest_echo(values)[0] < most
    values[5000:7000] = values[:2000]
    echo, lag = largest_echo(values)
    assert echo > most
    assert lag == 5000


def test_echo_bound_holds_for_few_numbers():
    """Few numbers have heavy tails: at alpha 0.2 the bound must still be exceeded in at most a fifth of the cases."""
    rng = np.random.default_rng(6)
    exceeded = sum(largest_echo(rng.normal(size=16))[0] > loudest_echo(16, 0.2) for _ in range(2000))
    assert exceeded <= 0.2 * 2000
