"""FedAvg's algebra: sums, means, weights, order and exactness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medveil.errors import ProtocolError
from medveil.federation.server import Averaging
from medveil.federation.site import LocalResult, change
from medveil.federation.update import Update

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
weights = st.floats(0.5, 1e4)


def _vectors(count, size):
    return st.lists(hnp.arrays(np.float32, size, elements=finite), min_size=count, max_size=count)


@st.composite
def updates(draw):
    count = draw(st.integers(1, 6))
    means = draw(_vectors(count, draw(st.integers(1, 5))))
    return means, draw(st.lists(weights, min_size=count, max_size=count))


def _total(means, counts):
    total = Update.from_mean(means[0], counts[0])
    for mean, count in zip(means[1:], counts[1:], strict=True):
        total += Update.from_mean(mean, count)
    return total


@given(updates())
def test_the_sums_mean_is_the_weighted_mean(given_updates):
    means, counts = given_updates
    wanted = np.average(np.stack(means).astype(np.float64), axis=0, weights=counts)
    np.testing.assert_allclose(_total(means, counts).mean(), wanted, rtol=1e-9, atol=1e-6)


@given(updates(), st.randoms())
def test_order_does_not_matter(given_updates, random):
    means, counts = given_updates
    order = list(range(len(means)))
    random.shuffle(order)
    shuffled = _total([means[i] for i in order], [counts[i] for i in order])
    np.testing.assert_allclose(shuffled.mean(), _total(means, counts).mean(), rtol=1e-9, atol=1e-6)


@given(updates())
def test_equal_updates_average_to_themselves(given_updates):
    means, counts = given_updates
    np.testing.assert_allclose(_total([means[0]] * len(counts), counts).mean(), means[0], rtol=1e-9, atol=1e-9)


@given(old=_vectors(1, 8), new=_vectors(1, 8))
def test_one_sites_weights_come_back_to_the_last_bit(old, new):
    before, after = old[0], new[0]
    before = np.where((after != 0) & (np.abs(before) > 2.0**28 * np.abs(after)), after, before)
    local = LocalResult("weights", after, np.zeros(0, np.float32), 0.0)
    update = Update.from_mean(change(local, before), 1.0)
    np.testing.assert_array_equal(Averaging().apply(before, update.mean(), 0.0), after)


def test_updates_of_different_models_do_not_add():
    with pytest.raises(ProtocolError, match="same shape"):
        Update.from_mean(np.zeros(2), 1.0) + Update.from_mean(np.zeros(3), 1.0)


def test_a_sum_without_weight_has_no_mean():
    with pytest.raises(ProtocolError, match="weights sum to zero"):
        Update(np.zeros(2), 0.0).mean()
