"""Enough shares give the secret, fewer fit every secret, and damaged ones are refused or give another secret."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medveil.errors import ConfigError, GuaranteeError, MessageError, TooFewSitesError
from medveil.rng import SecureRandom, Seeds
from medveil.secagg.shamir import PRIME, combine, combine_many, split, split_many

_SECRETS = st.binary(min_size=32, max_size=32)


def _value_at(points, values, place):
    """The polynomial through the points, at ``place``: Lagrange's formula with Python's integers."""
    total = 0
    for x, value in zip(points, values, strict=True):
        term = value
        for other in points:
            if other != x:
                term = term * (place - other) * pow(x - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def _limbs_by_hand(secret):
    bits = format(int.from_bytes(secret, "little"), "0270b")
    return [int(bits[270 - 30 * (place + 1) : 270 - 30 * place], 2) for place in range(9)]


@st.composite
def _sharings(draw):
    count = draw(st.integers(2, 12))
    xs = draw(st.lists(st.integers(1, PRIME - 1), min_size=count, max_size=count, unique=True))
    threshold = draw(st.integers(2, count))
    return xs, threshold, SecureRandom.seeded(Seeds(draw(st.integers(0, 2**32))))


class _Constant:
    """Every coefficient is 1: NOT RANDOM, so that shares can be written down by hand."""

    def below(self, limit, count):
        assert limit == PRIME
        return np.ones(count, np.int64)


@given(secret=_SECRETS, sharing=_sharings(), data=st.data())
def test_any_set_of_enough_shares_gives_the_secret(secret, sharing, data):
    xs, threshold, random = sharing
    shares = split(secret, threshold, xs, random)
    chosen = data.draw(st.permutations(xs))[: data.draw(st.integers(threshold, len(xs)))]
    assert combine({x: shares[x] for x in chosen}, threshold) == secret
    with pytest.raises(TooFewSitesError, match=f"{threshold - 1} shares"):
        combine({x: shares[x] for x in chosen[: threshold - 1]}, threshold)


@given(secret=_SECRETS, sharing=_sharings())
def test_shares_lie_on_polynomials_of_the_right_degree_through_the_secret(secret, sharing):
    xs, threshold, random = sharing
    shares = split(secret, threshold, xs, random)
    rows = {x: struct.unpack("<9I", share) for x, share in shares.items()}
    chosen = xs[:threshold]
    for limb, expected in enumerate(_limbs_by_hand(secret)):
        values = [rows[x][limb] for x in chosen]
        assert _value_at(chosen, values, 0) == expected
        for x in xs:
            assert _value_at(chosen, values, x) == rows[x][limb]


@given(secret=_SECRETS, claimed=_SECRETS, sharing=_sharings())
def test_one_share_too_few_fits_every_secret(secret, claimed, sharing):
    """For every secret there is a last share that leads to it: what is known so far says nothing."""
    xs, threshold, random = sharing
    shares = split(secret, threshold, xs, random)
    known = {x: shares[x] for x in xs[: threshold - 1]}
    missing = xs[threshold - 1]
    rows = [struct.unpack("<9I", share) for share in known.values()]
    forged = [
        _value_at([0, *known], [limb, *(row[place] for row in rows)], missing)
        for place, limb in enumerate(_limbs_by_hand(claimed))
    ]
    assert combine(known | {missing: struct.pack("<9I", *forged)}, threshold) == claimed


def test_every_sharing_has_its_own_coefficients():
    secret, random = bytes(32), SecureRandom()
    first, second = split_many([secret, secret], 2, [1, 2], random)
    third = split(secret, 2, [1, 2], random)
    limbs = [limb for shares in (first, second, third) for limb in struct.unpack("<9I", shares[1])]
    # Alpha 2e-7: 27 limbs over a field of 2**31 elements.
    assert len(set(limbs)) == len(limbs)


@pytest.mark.parametrize(
    ("secret", "threshold", "x", "limbs"),
    [
        (bytes(32), 2, 7, [7] * 9),
        (bytes(32), 3, 2, [6] * 9),
        ((1 << 30 | 5).to_bytes(32, "little"), 2, 4, [9, 5, 4, 4, 4, 4, 4, 4, 4]),
        (b"\xff" * 32, 2, 3, [2**30 + 2] * 8 + [2**16 + 2]),
        (b"\xff" * 32, 2, PRIME - 1, [2**30 - 2] * 8 + [2**16 - 2]),
    ],
)
def test_shares_written_down_by_hand(secret, threshold, x, limbs):
    xs = [x, *(other for other in (1, 5, 11) if other != x)]
    assert split(secret, threshold, xs, _Constant())[x] == struct.pack("<9I", *limbs)


@given(secrets=st.lists(_SECRETS, max_size=5), sharing=_sharings())
def test_a_batch_is_the_secrets_one_by_one(secrets, sharing):
    xs, threshold, random = sharing
    batch = split_many(secrets, threshold, xs, random)
    assert combine_many(batch, threshold) == secrets == [combine(shares, threshold) for shares in batch]


def test_a_batch_may_hold_shares_of_different_holders():
    first, second = split_many([b"a" * 32, b"b" * 32], 2, range(1, 5), SecureRandom())
    assert combine_many([{1: first[1], 2: first[2]}, {3: second[3], 4: second[4]}], 2) == [b"a" * 32, b"b" * 32]


@given(secret=_SECRETS, sharing=_sharings(), limb=st.integers(0, 8), change=st.integers(1, PRIME - 1), data=st.data())
def test_a_changed_share_never_gives_the_secret(secret, sharing, limb, change, data):
    xs, threshold, random = sharing
    shares = split(secret, threshold, xs, random)
    used = sorted(xs)[:threshold]
    x = data.draw(st.sampled_from(used))
    row = list(struct.unpack("<9I", shares[x]))
    row[limb] = (row[limb] + change) % PRIME
    shares[x] = struct.pack("<9I", *row)
    try:
        assert combine(shares, threshold) != secret
    except MessageError as error:
        assert "fit no secret" in str(error)  # noqa: PT017 - either outcome is right


def test_shares_beyond_the_threshold_are_not_looked_at():
    shares = split(b"s" * 32, 2, [1, 2, 3], SecureRandom())
    assert combine(shares | {3: b"broken"}, 2) == b"s" * 32
    with pytest.raises(MessageError):
        combine({2: shares[2], 3: b"broken"}, 2)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (b"", "0 bytes"),
        (bytes(35), "35 bytes"),
        (bytes(37), "37 bytes"),
        (struct.pack("<9I", *[0] * 8, PRIME), "outside the field"),
        (b"\xff" * 36, "outside the field"),
    ],
)
def test_malformed_shares_are_refused(share, message):
    with pytest.raises(MessageError, match=message):
        combine({1: bytes(36), 2: share}, 2)


@pytest.mark.parametrize("limbs", [[2**30] + [0] * 8, [0] * 7 + [PRIME - 1, 0], [0] * 8 + [2**16]])
def test_shares_of_what_is_no_secret_are_refused(limbs):
    share = struct.pack("<9I", *limbs)
    with pytest.raises(MessageError, match="fit no secret of 32 bytes"):
        combine({1: share, 2: share}, 2)


def test_the_largest_limbs_are_accepted():
    share = struct.pack("<9I", *[2**30 - 1] * 8, 2**16 - 1)
    assert combine({1: share, 2: share}, 2) == b"\xff" * 32


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_secrets_of_another_length_are_refused(secret):
    with pytest.raises(ConfigError, match=f"{len(secret)} bytes"):
        split(secret, 2, [1, 2], SecureRandom())


@pytest.mark.parametrize(
    ("threshold", "xs"),
    [(3, [1, 2]), (2, [1, 1, 2]), (2, [0, 1]), (2, [1, PRIME]), (2, [-1, 1]), (2, [])],
)
def test_points_that_cannot_be_used_are_refused(threshold, xs):
    with pytest.raises(ConfigError, match="cannot be shared among these points"):
        split(bytes(32), threshold, xs, SecureRandom())


@pytest.mark.parametrize("threshold", [1, 0, -1])
def test_a_threshold_that_hides_nothing_is_refused(threshold):
    with pytest.raises(GuaranteeError):
        split(bytes(32), threshold, [1, 2, 3], SecureRandom())
    with pytest.raises(GuaranteeError):
        combine({1: bytes(36), 2: bytes(36)}, threshold)


@pytest.mark.parametrize("x", [0, PRIME, PRIME + 1])
def test_points_out_of_range_are_not_combined(x):
    """The share at 0 would be the secret; points beyond the field repeat those within."""
    with pytest.raises(ConfigError):
        combine({1: bytes(36), x: bytes(36)}, 2)
