"""Signs of secret numbers: right everywhere but next to zero, and nothing opened that is not masked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.encrypted.program import NARROW_LIMIT
from medveil.encrypted.protocol.activation import Party, larger, relu, rescale, signs
from medveil.encrypted.protocol.compare import PRODUCTS, TERMS, VARIABLES
from medveil.encrypted.protocol.correlations import (
    Dealt,
    Gate,
    Lift,
    NarrowGate,
    Signs,
    deal_gate,
    deal_lift,
    deal_narrow_gate,
    deal_signs,
)
from medveil.encrypted.protocol.ring import Stream, pack, signed, unpack, wide_bytes, wide_from, words
from medveil.errors import ConfigError

EDGES = [0, 1, 2, 3, 31, 32, 33, 2**15, 2**29, NARROW_LIMIT - 2, NARROW_LIMIT - 1]
EDGES += [-edge for edge in EDGES[1:]]


def halves(values, rng):
    first = rng.integers(0, 2**32, len(values), dtype=np.uint32)
    return first, np.asarray(values, np.int64).astype(np.uint32) - first


class Bytes:
    def __init__(self, parts):
        self._data, self._at = b"".join(parts), 0

    def __call__(self, size):
        self._at += size
        assert self._at <= len(self._data)
        return self._data[self._at - size : self._at]

    @property
    def used_up(self):
        return self._at == len(self._data)


def evaluate(values, seeds, run_both, *, deal, take, act):
    """``act`` by both parties on halves of the values; the halves of what comes out."""
    values = np.asarray(values)
    one, two = halves(values, np.random.default_rng(7))
    streams = [Stream(seed, "test") for seed in seeds]
    parts = Bytes(deal(*streams, len(values)))
    own = [Stream(seed, "test") for seed in seeds]
    for_hospital = take(own[0], own[0], len(values))
    for_vendor = take(own[1], Dealt(parts), len(values))
    assert parts.used_up
    return run_both(
        lambda link: act(Party(link, first=True), one, for_hospital),
        lambda link: act(Party(link, first=False), two, for_vendor),
    )


def _relu_parts(drop, limited):
    def deal(hospital, vendor, count):
        parts, secret, coin = deal_signs(hospital, vendor, count, limited=limited)
        return parts + deal_gate(secret, coin, hospital, drop)

    def take(own, dealt, count):
        return Signs.take(own, dealt, count, limited=limited), Gate.take(dealt, count)

    return deal, take


VALUES = st.lists(st.sampled_from(EDGES) | st.integers(1 - NARROW_LIMIT, NARROW_LIMIT - 1), min_size=1, max_size=200)


@settings(max_examples=40, deadline=None)
@given(values=VALUES, drop=st.integers(0, 4), seed=st.binary(min_size=64, max_size=64))
def test_relu_is_right_to_one_unit(run_both, values, drop, seed):
    deal, take = _relu_parts(drop, limited=False)
    one, two, _ = evaluate(
        values,
        (seed[:32], seed[32:]),
        run_both,
        deal=deal,
        take=take,
        act=lambda party, half, dealt: relu(party, half, dealt, drop, None),
    )
    got, wanted = signed(one + two), np.maximum(np.array(values), 0) >> drop
    assert np.abs(got - wanted).max() <= 1 + (drop == 0)
    positive = np.array(values) > 1
    assert (np.abs(got - wanted)[positive] <= (1 if drop else 0)).all()
    assert (got[np.array(values) < -1] == 0).all()


@settings(max_examples=20, deadline=None)
@given(values=VALUES, drop=st.integers(0, 4))
def test_rescaling_is_right_to_one_unit(run_both, values, drop):
    one, two, _ = evaluate(
        values,
        (b"a" * 32, b"b" * 32),
        run_both,
        deal=lambda hospital, vendor, count: deal_lift(hospital, vendor, count, drop),
        take=Lift.take,
        act=lambda party, half, dealt: rescale(party, half, dealt, drop),
    )
    difference = signed(one + two) - (np.array(values) >> drop)
    assert set(difference.tolist()) <= ({0, 1} if drop else {0})


@settings(max_examples=20, deadline=None)
@given(values=VALUES, shift=st.integers(-(2**29), 2**29))
def test_the_larger_of_two(run_both, values, shift):
    """Both below 2**29 in size, so that their difference stays narrow; equal ones and neighbours included."""
    mine = np.array(values) // 2
    other = np.clip(mine // 2 + shift // 2, -(2**28), 2**28)
    rng = np.random.default_rng(3)
    others = halves(other, rng)

    def deal(hospital, vendor, count):
        parts, secret, coin = deal_signs(hospital, vendor, count, limited=False)
        return parts + deal_narrow_gate(secret, coin, hospital)

    def take(own, dealt, count):
        return Signs.take(own, dealt, count, limited=False), NarrowGate.take(dealt, count)

    one, two, _ = evaluate(
        mine,
        (b"c" * 32, b"d" * 32),
        run_both,
        deal=deal,
        take=take,
        act=lambda party, half, dealt: larger(party, half, others[0 if party.first else 1], dealt),
    )
    got = (one + two).view(np.int32)
    assert np.abs(got - np.maximum(mine, other)).max() <= 1


@pytest.mark.parametrize("limit", [1, 5, 2**20])
def test_values_at_the_limit_are_flagged_and_no_others(run_both, seeds, limit):
    values = [limit - 3, limit + 2, -limit, NARROW_LIMIT - 1, 1 - NARROW_LIMIT, limit + 2**19]
    deal, take = _relu_parts(2, limited=True)

    def act(party, half, dealt):
        relu(party, half, dealt, 2, limit)
        return party.flags

    one, two, _ = evaluate(values, seeds, run_both, deal=deal, take=take, act=act)
    ((first, count),), ((second, _),) = one, two
    assert unpack(first ^ second, count).astype(bool).tolist() == [value >= limit for value in values]


def test_what_is_opened_looks_uniform_and_without_one_mask_it_does_not(run_both, seeds, monkeypatch):
    """Bytes of z, of the masked bits and of the masked sign, of zeros: chi-square over 256 values, 255 degrees."""
    count = 64 * 2000
    deal, take = _relu_parts(0, limited=False)

    def sent():
        act = lambda party, half, dealt: signs(party, half, dealt[0], None)  # noqa: E731
        _, _, ends = evaluate(np.zeros(count, np.int64), seeds, run_both, deal=deal, take=take, act=act)
        each = [[np.frombuffer(data, np.uint8) for data in end.sent] for end in ends]
        opened = [one ^ other for one, other in zip(*each, strict=True)][1:]
        return [*each[0], *each[1], *opened]

    def chi_square(data):
        expected = data.size / 256
        return float(((np.bincount(data, minlength=256) - expected) ** 2 / expected).sum())

    assert all(chi_square(data) < 400 for data in sent())  # 255 + 6 standard deviations
    from medveil.encrypted.protocol.compare import Tree

    monkeypatch.setattr(Tree, "hide", lambda _self, found: np.stack([found[name] for name in VARIABLES]))
    opened = sent()[-2]
    assert chi_square(opened) > 10_000


def test_every_product_that_a_term_needs_is_dealt():
    assert len(PRODUCTS) == 83
    assert all(len(chosen) > 1 and any(set(chosen) <= set(term) for term in TERMS) for chosen in PRODUCTS)


@given(st.lists(st.integers(0, 2**48 - 1), max_size=70))
def test_wide_words_travel_in_six_bytes(values):
    wide = np.array(values, np.uint64)
    data = wide_bytes(wide)
    assert len(data) == 6 * wide.size
    assert wide_from(data, wide.size).tolist() == values
    assert signed(wide).tolist() == [value - 2**48 if value >= 2**47 else value for value in values]


@given(st.lists(st.integers(0, 1), max_size=200))
def test_bits_are_packed_and_unpacked(bits):
    packed = pack(np.array(bits, np.uint8))
    assert packed.size == words(len(bits))
    assert unpack(packed, len(bits)).tolist() == bits


def test_a_seed_has_32_bytes_and_purposes_differ():
    with pytest.raises(ConfigError, match="31 bytes"):
        Stream(bytes(31), "test")
    assert Stream(bytes(32), "a").wide(2).tolist() != Stream(bytes(32), "b").wide(2).tolist()
