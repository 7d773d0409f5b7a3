"""For any examples and any draw: right owners, right numbers, nothing twice."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medveil.dp.sampling import PoissonSampler, choose_examples
from medveil.rng import SecureRandom, Seeds


@given(
    owners=st.lists(st.integers(0, 6), max_size=30),
    units=st.sets(st.integers(0, 8)),
    most=st.integers(1, 5),
    seed=st.integers(0, 2**20),
)
def test_each_drawn_unit_gives_the_smaller_of_what_it_has_and_what_is_asked(owners, units, most, seed):
    random = SecureRandom.seeded(Seeds(seed))
    chosen = choose_examples(np.array(owners, np.int64), np.array(list(units), np.int64), most, random).tolist()
    assert chosen == sorted(set(chosen))
    held = Counter(owners)
    expected = {unit: min(held[unit], most) for unit in units if held[unit]}
    assert Counter(owners[index] for index in chosen) == expected


@given(units=st.integers(0, 50), rate=st.floats(0, 1, exclude_min=True), seed=st.integers(0, 2**20))
def test_a_draw_is_a_set_of_units(units, rate, seed):
    drawn = PoissonSampler(units, rate, SecureRandom.seeded(Seeds(seed))).draw().tolist()
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(units))
    if rate == 1:
        assert len(drawn) == units


@given(count=st.integers(0, 40), data=st.data())
def test_choosing_and_permuting(count, data):
    random = SecureRandom.seeded(Seeds(count))
    wanted = data.draw(st.integers(0, count))
    chosen = random.choose(count, wanted).tolist()
    assert len(chosen) == wanted
    assert chosen == sorted(set(chosen))
    assert sorted(random.permutation(count).tolist()) == list(range(count))


@given(limit=st.integers(1, 2**63), seed=st.integers(0, 2**20))
def test_draws_stay_below_the_limit(limit, seed):
    drawn = SecureRandom.seeded(Seeds(seed)).below(limit, 20)
    assert drawn.dtype == np.int64
    assert all(0 <= value < limit for value in drawn.tolist())
