"""A word is told to be zero or not, and nothing else."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medveil.encrypted.protocol.ring import Stream
from medveil.encrypted.protocol.zero_test import ZeroTest, deal_zero_test, from_bytes, multiply

WORDS = st.integers(0, 2**64 - 1)


class Fixed:
    def __init__(self, data):
        self._data = data

    def bits(self, count):
        assert count == 64
        return np.frombuffer(self._data, "<u8")


def parties():
    seeds = os.urandom(32), os.urandom(32)
    dealt = deal_zero_test(*(Stream(seed, "test") for seed in seeds))
    ours, theirs = (Stream(seed, "test") for seed in seeds)
    return ZeroTest.take(ours, ours), ZeroTest.take(theirs, Fixed(dealt))


def told(word, half):
    one, other = parties()
    opened = one.hide(half) ^ other.hide(word ^ half)
    return one.blur(opened) ^ other.blur(opened)


@given(half=WORDS)
def test_zero_is_told(half):
    assert told(0, half) == 0


@given(word=WORDS.filter(bool), half=WORDS)
def test_anything_else_is_told_to_be_something_else_each_time(word, half):
    found = {told(word, half) for _ in range(3)}
    assert len(found) == 3
    assert 0 not in found


@given(WORDS, WORDS, WORDS)
def test_the_product_is_that_of_a_field(one, other, third):
    assert multiply(one, other) == multiply(other, one)
    assert multiply(one, other ^ third) == multiply(one, other) ^ multiply(one, third)
    assert multiply(multiply(one, other), third) == multiply(one, multiply(other, third))
    assert multiply(one, 1) == one


def test_no_two_elements_but_zero_have_the_product_zero():
    """x has order 2**64 - 1 divided by nothing small: the polynomial is the usual irreducible one."""
    power, seen = 1, set()
    for _ in range(1000):
        assert power not in seen
        seen.add(power)
        power = multiply(power, 2)
    assert from_bytes(bytes(8)) == 0


@pytest.mark.parametrize("bit", [0, 1, 63])
def test_what_is_opened_does_not_name_the_flag(bit):
    """A single parity that is set is blurred over all 64 bits."""
    found = [told(1 << bit, 0) for _ in range(64)]
    assert 20 < sum(word.bit_count() for word in found) / 64 < 44
