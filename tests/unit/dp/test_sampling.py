"""Which units and which examples come up: edges, and words that decide."""

import numpy as np
import pytest

from medveil.dp.sampling import PoissonSampler, choose_examples
from medveil.errors import ConfigError
from medveil.rng import SecureRandom, Seeds


class Crafted(SecureRandom):
    """Hands out the given words, whatever is asked."""

    __slots__ = ("_given",)

    def __init__(self, *given):
        super().__init__()
        self._given = np.array(given, np.uint64)

    def words(self, count):
        assert count == len(self._given)
        return self._given


def test_a_unit_joins_when_its_own_word_is_below_the_threshold():
    drawn = PoissonSampler(4, 0.25, Crafted(2**62 - 1, 2**62, 0, 2**64 - 1)).draw()
    assert drawn.tolist() == [0, 2]
    assert drawn.dtype == np.int64


def test_a_batch_may_be_empty():
    assert PoissonSampler(3, 1e-9, Crafted(2**64 - 1, 2**64 - 1, 2**64 - 1)).draw().shape == (0,)
    assert PoissonSampler(0, 0.5, SecureRandom()).draw().shape == (0,)


def test_steps_differ_and_seeded_steps_repeat():
    def steps():
        sampler = PoissonSampler(1000, 0.1, SecureRandom.seeded(Seeds(1)))
        return [sampler.draw().tolist() for _ in range(3)]

    assert steps() == steps()
    assert steps()[0] != steps()[1]


@pytest.mark.parametrize(("units", "rate"), [(-1, 0.1), (3, 0.0), (3, 1.1), (3, float("nan"))])
def test_impossible_sampling_is_refused(units, rate):
    with pytest.raises(ConfigError, match="Cannot sample"):
        PoissonSampler(units, rate, SecureRandom())


def test_the_smallest_keys_of_each_unit_win():
    owner = np.array([4, 2, 4, 4, 9, 2])
    # Keys belong to the candidates in order: examples 0, 1, 2, 3, 5.
    chosen = choose_examples(owner, np.array([2, 4]), 2, Crafted(30, 5, 10, 20, 7))
    assert chosen.tolist() == [1, 2, 3, 5]
    assert chosen.dtype == np.int64


def test_nobody_drawn_and_nothing_there():
    none = np.array([], np.int64)
    assert choose_examples(np.array([1, 1, 2]), none, 3, SecureRandom()).shape == (0,)
    assert choose_examples(none, np.array([1]), 3, SecureRandom()).shape == (0,)


@pytest.mark.parametrize(("units", "most"), [([1, 1], 2), ([-1], 2), ([1], 0)])
def test_impossible_choices_are_refused(units, most):
    with pytest.raises(ConfigError, match="Cannot choose"):
        choose_examples(np.array([0, 1]), np.array(units), most, SecureRandom())
