"""Algebra of events, and orders that every accountant must keep."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.accounting import (
    Composed,
    Gaussian,
    Laplace,
    PoissonGaussian,
    RepeatAndSelect,
    Repeated,
    Stated,
    calibrate_noise,
    compose,
    delta_of,
    dp_sgd,
    epsilon,
    epsilon_of,
    parse_event,
)
from medveil.accounting.events import flatten
from medveil.accounting.meaning import membership_advantage, trade_off

noises = st.floats(0.5, 50.0)
rates = st.floats(1e-3, 1.0)
simple = st.one_of(
    st.builds(Gaussian, noise_multiplier=noises),
    st.builds(PoissonGaussian, sampling_rate=rates, noise_multiplier=noises),
    st.builds(Laplace, noise_multiplier=noises),
    st.builds(Stated, epsilon=st.floats(0.0, 5.0), delta=st.floats(0.0, 1e-7)),
)
events = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(Repeated, event=inner, count=st.integers(1, 50)),
        st.builds(Composed, events=st.lists(inner, max_size=4).map(tuple)),
        st.builds(RepeatAndSelect, event=inner, mean_trials=st.floats(1.5, 20.0), shape=st.sampled_from([0.0, 1.0])),
    ),
    max_leaves=6,
)
accountable = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(Repeated, event=inner, count=st.integers(1, 9)),
        st.builds(Composed, events=st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=4,
)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def tally(event):
    counts = {}
    for part, count in flatten(event):
        counts[part] = counts.get(part, 0) + count
    return counts


@given(events)
def test_storage_is_lossless(event):
    assert parse_event(json.loads(json.dumps(event.model_dump(mode="json")))) == event


@given(st.lists(events, max_size=4), st.integers(1, 3))
def test_composing_counts_every_mechanism_once(parts, split):
    expected = {}
    for part in parts:
        for mechanism, count in tally(part).items():
            expected[mechanism] = expected.get(mechanism, 0) + count
    whole = compose(parts)
    assert tally(whole) == expected
    assert compose([whole]) == whole
    assert tally(compose([compose(parts[:split]), compose(parts[split:])])) == expected


@quick
@given(accountable, st.sampled_from([1e-3, 1e-5]))
def test_delta_at_epsilon_is_at_most_delta(event, delta):
    spent = epsilon_of(event, delta=delta)
    assert delta_of(event, epsilon=spent.epsilon) <= delta * (1 + 1e-6)
    assert spent.epsilon_rdp is None or spent.epsilon <= spent.epsilon_rdp * 1.005 + 1e-3


@quick
@given(accountable, accountable)
def test_more_events_and_a_stricter_relation_cost_more(event, other):
    alone = epsilon_of(event, delta=1e-3).epsilon
    assert epsilon_of(Composed(events=(event, other)), delta=1e-3).epsilon >= alone * (1 - 2e-3) - 1e-6
    assert epsilon_of(event, delta=1e-3, relation="replace-one").epsilon >= alone * (1 - 2e-3) - 1e-6


@quick
@given(rates, noises, st.integers(1, 500))
def test_epsilon_falls_with_noise_and_delta_and_rises_with_steps(rate, noise, steps):
    setting = {"sampling_rate": rate, "noise_multiplier": noise, "steps": steps, "delta": 1e-5}
    cost = epsilon(**setting)
    slack = 1e-3 * cost + 1e-6
    assert epsilon(**(setting | {"noise_multiplier": 1.5 * noise})) <= cost + slack
    assert epsilon(**(setting | {"delta": 1e-4})) <= cost + slack
    assert epsilon(**(setting | {"steps": 2 * steps})) >= cost - slack
    assert epsilon(**(setting | {"sampling_rate": rate / 2})) <= cost + slack


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.floats(0.05, 20.0),
    st.floats(2e-3, 1.0),
    st.integers(1, 3000),
    st.floats(-8, -3),
    st.sampled_from(["add-remove", "replace-one"]),
)
def test_calibrated_noise_reproduces_its_target(target, rate, steps, log_delta, relation):
    setting = {"sampling_rate": rate, "steps": steps, "delta": 10**log_delta, "relation": relation}
    noise = calibrate_noise(epsilon=target, **setting)
    assert 0.999 * target <= epsilon(noise_multiplier=noise, **setting) <= target


@quick
@given(accountable)
def test_a_trade_off_curve_falls_convexly_below_chance(event):
    grid = [step / 20 for step in range(21)]
    curve = trade_off(event, grid)
    assert all(0 <= miss <= 1 - rate + 1e-9 for rate, miss in zip(grid, curve, strict=True))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve))
    slopes = [later - earlier for earlier, later in pairwise(curve)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(slopes))
    best = max(1 - rate - miss for rate, miss in zip(grid, curve, strict=True))
    assert best <= membership_advantage(event) + 1e-9


def test_order_and_grouping_do_not_change_the_cost():
    one, two = PoissonGaussian(sampling_rate=0.05, noise_multiplier=1.0), Gaussian(noise_multiplier=8.0)
    ways = [
        compose([one] * 100 + [two] * 2),
        Composed(events=(Repeated(event=two, count=2), Repeated(event=one, count=100))),
        Repeated(event=Composed(events=(dp_sgd(sampling_rate=0.05, noise_multiplier=1.0, steps=50), two)), count=2),
    ]
    costs = [epsilon_of(way, delta=1e-5).epsilon for way in ways]
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-9)
