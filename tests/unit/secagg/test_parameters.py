"""Parameters that would protect nobody are refused, with the numbers; a digest stands for all of them."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_driver import identity, names

from medveil.errors import ConfigError, GuaranteeError
from medveil.secagg import Parameters, least_threshold

SITES = tuple((name, identity(name).public) for name in names(5))


def of(**changes):
    return Parameters(**{"context": bytes(32), "sites": SITES, "threshold": 3} | changes)


def test_indices_follow_the_names_whatever_the_order():
    mixed = of(sites=(SITES[3], SITES[0], SITES[4], SITES[2], SITES[1]))
    assert mixed == of()
    assert mixed.digest() == of().digest()
    assert mixed.indices == {f"site-00{k}": k for k in range(1, 6)}
    assert [mixed.name(k) for k in range(1, 6)] == list(mixed.names)
    assert mixed.key(2) == identity("site-002").public
    assert of().min_included == 3


@given(st.integers(2, 200), st.integers(0, 198))
def test_the_least_threshold_is_the_least_that_the_theorem_allows(n, t):
    least = least_threshold(n, t)
    assert 2 * least > n + t
    assert not 2 * (least - 1) > n + t
    # One honest site more than collude, at least: T <= n whenever n - t >= 2.
    assert n - t < 2 or t < least <= n


@pytest.mark.parametrize("n", range(1, 8))
def test_exactly_the_thresholds_that_protect_are_taken(n):
    for colluding in range(-1, n + 1):
        for threshold in range(n + 2):
            right = 2 * threshold > n + colluding and threshold <= n and n - colluding >= 2 and colluding >= 0
            if right:
                of(sites=SITES[:n] if n <= 5 else sites(n), threshold=threshold, colluding=colluding)
            else:
                with pytest.raises(GuaranteeError) as error:
                    of(sites=sites(n), threshold=threshold, colluding=colluding)
                assert str(n) in str(error.value.got)
                assert error.value.expected
                assert error.value.remedy


def sites(n):
    return tuple((name, identity(name).public) for name in names(n))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": SITES[:1], "threshold": 1}, "two honest sites"),
        ({"colluding": 4}, "two honest sites"),
        ({"colluding": 3, "threshold": 3}, "does not protect"),
        ({"threshold": 2}, "does not protect"),
        ({"threshold": 6}, "More sites"),
        ({"sites": (*SITES, ("site-001", bytes(32)))}, "share a name or a key"),
        ({"sites": (*SITES, ("other", SITES[0][1]))}, "share a name or a key"),
        ({"min_included": 2}, "out of range"),
        ({"min_included": 6}, "out of range"),
    ],
)
def test_hollow_guarantees(changes, words):
    with pytest.raises(GuaranteeError, match=words) as error:
        of(**changes)
    assert error.value.got is not None
    assert error.value.expected


@pytest.mark.parametrize(
    "changes",
    [
        {"context": bytes(31)},
        {"sites": (*SITES, ("", bytes(32)))},
        {"sites": (*SITES, ("x" * 101, bytes(32)))},
        {"sites": (*SITES, ("short key", bytes(31)))},
        {"chunk_bytes": 0},
        {"chunk_bytes": 12},
        {"chunk_bytes": 1 << 31},
    ],
)
def test_malformed_parameters(changes):
    with pytest.raises(ConfigError):
        of(**changes)


def test_the_digest_changes_with_everything():
    other = identity("other").public
    variants = [
        of(),
        of(context=bytes(31) + b"\1"),
        of(sites=SITES[:4]),
        of(sites=(*SITES[:4], ("site-005", other))),
        of(sites=(*SITES[:4], ("site-006", SITES[4][1]))),
        of(threshold=4),
        of(threshold=4, colluding=1),
        of(min_included=4),
        of(chunk_bytes=1 << 19),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)


def test_the_digest_is_what_its_description_says():
    text = b"medveil secagg 1 parameters" + bytes(32) + struct.pack("<H", 5)
    for name, key in SITES:
        text += struct.pack("<H", len(name)) + name.encode() + key
    text += struct.pack("<HHHI", 4, 1, 5, 64)
    chosen = of(threshold=4, colluding=1, min_included=5, chunk_bytes=64)
    assert chosen.digest() == hashlib.sha256(text).digest()
