"""Bounds from guesses, against hand-computed values, brute force and a linear program."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from medveil.accounting.events import Gaussian
from medveil.accounting.meaning import trade_off
from medveil.audit.curves import GaussianCurve, SupportedCurve, curve_of, gaussian_equivalent
from medveil.audit.guesses import (
    best_share,
    epsilon_from_guesses,
    excludes,
    noise_from_guesses,
    noise_from_trials,
    p_value,
)
from medveil.errors import ConfigError


def test_all_right_by_hand():
    """With ln 3 a guess is right with probability 3/4 at most: 0.75^20."""
    assert p_value(20, 20, 20, epsilon=math.log(3)) == pytest.approx(0.75**20)
    assert p_value(1000, 20, 20, epsilon=math.log(3)) == pytest.approx(0.75**20)
    # 0.05 = q^100 has q = 0.970487..., whose logit is 3.4928...
    assert epsilon_from_guesses(100, 100, 100, delta=0.0, alpha=0.05) == pytest.approx(
        math.log(0.05**0.01 / (1 - 0.05**0.01)), abs=1e-9
    )


def test_delta_by_hand():
    """Two guesses of three canaries, both right, at epsilon 0: P[W = 2] = 1/4; P[W = 1] = 1/2, P[W >= 0 below] = 3/4.

    The steepest mean is max(1/2, (1/2 + 1/4) / 2) = 1/2, so 1/4 + 2 * 3 * 0.01 * 1/2 = 0.28.
    """
    assert p_value(3, 2, 2, epsilon=0.0, delta=0.01) == pytest.approx(0.28)


@settings(deadline=None)
@given(
    guesses=st.integers(1, 40),
    more=st.integers(0, 40),
    share=st.floats(0, 1),
    epsilon=st.floats(0, 5),
    delta=st.floats(0, 0.1),
)
def test_p_value_is_the_formula_term_by_term(guesses, more, share, epsilon, delta):
    correct, canaries = round(share * guesses), guesses + more
    right = 1 / (1 + math.exp(-epsilon))
    law = [math.comb(guesses, count) * right**count * (1 - right) ** (guesses - count) for count in range(guesses + 1)]
    tail = sum(law[correct:])
    means = [sum(law[correct - length : correct]) / length for length in range(1, correct + 1)]
    expected = min(1.0, tail + 2 * canaries * delta * max(means, default=0.0))
    assert p_value(canaries, guesses, correct, epsilon=epsilon, delta=delta) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(correct=st.integers(0, 30), delta=st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_exclude_more(correct, delta):
    first, second = (epsilon_from_guesses(60, 31, count, delta=delta, alpha=0.05) for count in (correct, correct + 1))
    assert first <= second


def _largest_tail(curve, canaries, guesses, correct):
    """The most probability of ``correct`` and more under all of f-DP's inequalities, by linear programming."""
    counts = np.arange(guesses + 1)
    rows, bounds = [], []
    for start in range(1, guesses + 1):
        right = np.where(counts >= start, counts / canaries, 0)
        wrong = np.where(counts >= start - 1, (guesses - counts) / canaries, 0)
        for epsilon, delta in zip(curve.epsilons, curve.deltas, strict=True):
            rows += [right - math.exp(epsilon) * wrong, right - math.exp(-epsilon) * wrong]
            bounds += [delta, 1 - (1 - delta) * math.exp(-epsilon)]
    solved = linprog(
        -(counts >= correct).astype(float),
        A_ub=np.array(rows),
        b_ub=bounds,
        A_eq=np.ones((1, guesses + 1)),
        b_eq=[1],
        bounds=(0, 1),
    )
    return -solved.fun


@pytest.mark.parametrize(
    ("epsilons", "deltas"),
    [([1.0], [0.0]), ([1.0], [0.01]), ([0.0, 0.5, 1.0, 2.0], [0.3, 0.2, 0.08, 0.01]), ([2.0], [1e-3])],
)
@pytest.mark.parametrize(("canaries", "guesses"), [(20, 20), (20, 8), (60, 20)])
def test_the_recursion_finds_the_optimum_of_the_linear_program(epsilons, deltas, canaries, guesses):
    curve = SupportedCurve(np.array(epsilons), np.array(deltas))
    tested = 0
    for correct in (guesses - 2, guesses):
        most = _largest_tail(curve, canaries, guesses, correct)
        if most < 0.999:
            assert excludes(curve, canaries, guesses, correct, alpha=most * 1.001)
            assert not excludes(curve, canaries, guesses, correct, alpha=most * 0.999)
            tested += 1
    assert tested


def test_a_mechanism_that_seldom_publishes_everything():
    """It is (0, delta)-DP, and with probability delta all guesses are right: that must exclude nothing."""
    delta = 0.02
    curve = SupportedCurve(np.array([0.0]), np.array([delta]))
    assert not excludes(curve, 200, 200, 200, alpha=delta)
    # Were canaries independent, such a success would be impossible: that bound needs what it says.
    most = noise_from_trials(lambda _: curve, (0.5, 2.0), (0, 100, 0, 100), alpha=0.02)
    assert most == 0.5


def test_gaussian_curve_is_the_normal_laws():
    curve = GaussianCurve(1.3)
    for alarms in (0.0, 1e-4, 0.2, 0.9, 1.0):
        assert curve(alarms) == pytest.approx(norm.cdf(norm.isf(alarms) - 1.3), abs=1e-12)


def test_supported_curve_of_an_event():
    event = Gaussian(noise_multiplier=0.8)
    curve, exact = curve_of(event), GaussianCurve(1 / 0.8)
    for alarms in (1e-4, 0.01, 0.1, 0.4, 0.8):
        assert curve(alarms) <= exact(alarms) + 1e-9
        assert curve(alarms) == pytest.approx(exact(alarms), abs=2e-3)
        assert curve(alarms) == pytest.approx(float(trade_off(event, [alarms])[0]), abs=1e-3)
        # Symmetric: f is its own inverse.
        assert curve(curve(alarms)) == pytest.approx(alarms, abs=5e-3)
    assert gaussian_equivalent(event) == pytest.approx(1 / 0.8, rel=1e-3)


def test_independent_trials_by_hand():
    """No error in 1,000 trials of each kind: both rates are at most 1 - 0.005^(1/1000), so mu is at least 2 z."""
    most = 1 - 0.005 ** (1 / 1000)
    noise = noise_from_trials(lambda one: GaussianCurve(1 / one), (1e-3, 1e3), (0, 1000, 0, 1000), alpha=0.01)
    assert 1 / noise == pytest.approx(2 * norm.isf(most), rel=2e-3)


def test_nothing_is_excluded_by_a_coin():
    def family(noise):
        return GaussianCurve(1 / noise)

    assert noise_from_trials(family, (0.1, 100.0), (50, 100, 50, 100), alpha=0.05) == math.inf
    assert noise_from_trials(family, (0.1, 100.0), (0, 0, 50, 100), alpha=0.05) == math.inf
    assert noise_from_guesses(family, (0.1, 100.0), (200, 40, 20), alpha=0.05) == math.inf
    assert noise_from_guesses(family, (0.1, 100.0), (2000, 2000, 2000), alpha=0.05) < 0.5
    assert epsilon_from_guesses(100, 100, 50, delta=1e-5, alpha=0.05) == 0.0


def test_the_share_is_never_chosen_from_what_was_seen():
    assert best_share(500, 1.5, alpha=0.05) == best_share(500, 1.5, alpha=0.05) < 1.0


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 0, 0), (10, 5, -1)])
def test_counts_that_are_none(counts):
    with pytest.raises(ConfigError):
        p_value(*counts, epsilon=1.0)
    with pytest.raises(ConfigError):
        excludes(GaussianCurve(1.0), *counts, alpha=0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_alphas_that_are_none(alpha):
    with pytest.raises(ConfigError):
        epsilon_from_guesses(10, 10, 10, delta=0.0, alpha=alpha)
    with pytest.raises(ConfigError):
        excludes(GaussianCurve(1.0), 10, 10, 10, alpha=alpha)


@pytest.mark.parametrize("guarantee", [{"epsilon": -1.0}, {"epsilon": math.nan}, {"epsilon": 1.0, "delta": 1.5}])
def test_guarantees_that_are_none(guarantee):
    with pytest.raises(ConfigError):
        p_value(10, 10, 10, **guarantee)
