"""The plan's secure-aggregation table: what cannot protect is refused, groups are dealt fairly, noise suffices."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medveil.errors import GuaranteeError
from medveil.federation.secure.settings import SecureAggregation
from medveil.rng import Seeds
from medveil.secagg import IdentityKey, Parameters

NAMES = tuple(f"site-{number}" for number in range(1, 12))
KEYS = {name: IdentityKey.generate().public for name in NAMES}


@pytest.mark.parametrize(
    ("settings", "sites"),
    [
        ({"threshold": 2, "colluding": 2}, 5),  # t >= T: the colluders open sums alone
        ({"threshold": 3, "colluding": 3}, 5),
        ({"threshold": 3}, 6),  # 2 T = n + t: both kinds of shares could be had
        ({"threshold": 3, "colluding": 1}, 5),
        ({"threshold": 6}, 5),  # nobody could ever open a sum
        ({"colluding": 4}, 5),  # one honest site is the sum less the rest
        ({}, 1),
        ({"threshold": 1}, 1),
        ({"groups": 2}, 5),  # a group of two: with one absent, the other stands alone
        ({"groups": 6}, 6),
        ({"groups": 7}, 6),
        ({"colluding": 2, "groups": 2}, 6),
        ({"dropouts": 3}, 5),  # T = 3 sites could not be reached
        ({"dropouts": 2, "colluding": 1}, 5),
        ({"dropouts": 1, "threshold": 5}, 5),
        ({"dropouts": 5}, 5),
        ({"threshold": 3, "groups": 2}, 11),  # enough for the group of 5, too few for that of 6
    ],
)
def test_what_cannot_protect_is_refused(settings, sites):
    chosen = SecureAggregation(**settings)
    with pytest.raises(GuaranteeError):
        chosen.smallest_group(sites)
    with pytest.raises(GuaranteeError):
        chosen.deal([f"site {number}" for number in range(sites)], Seeds(1))


@pytest.mark.parametrize(
    ("settings", "sites", "size"),
    [
        ({}, 2, 2),
        ({}, 5, 5),
        ({"colluding": 3}, 5, 5),
        ({"colluding": 1, "dropouts": 1}, 5, 5),
        ({"groups": 2}, 6, 3),
        ({"groups": 2}, 11, 5),
        ({"groups": 3, "colluding": 1, "dropouts": 0}, 10, 3),
        ({"threshold": 4, "groups": 2}, 11, 5),
    ],
)
def test_what_can_protect_is_taken(settings, sites, size):
    assert SecureAggregation(**settings).smallest_group(sites) == size


TABLES = st.builds(
    SecureAggregation,
    colluding=st.integers(0, 4),
    dropouts=st.none() | st.integers(0, 4),
    threshold=st.none() | st.integers(1, 11),
    groups=st.integers(1, 4),
)


@given(settings=TABLES, sites=st.integers(1, 11))
def test_it_takes_what_the_protocol_takes_in_every_group_and_no_more(settings, sites):
    """Oracle: the protocol's own proof obligations, written out, for every size of group that comes up."""
    sizes = {len(range(group, sites, settings.groups)) for group in range(settings.groups)}
    legal = min(sizes) >= (2 if settings.groups == 1 else 3)
    for size in sizes:
        colluding = settings.colluding
        threshold = settings.threshold or (size + colluding) // 2 + 1
        dropouts = size - threshold if settings.dropouts is None else settings.dropouts
        legal &= 2 * threshold > size + colluding and threshold <= size - max(dropouts, 0) and size - colluding >= 2
    try:
        settings.smallest_group(sites)
    except GuaranteeError:
        assert not legal
        return
    assert legal
    for members in settings.deal(NAMES[:sites], Seeds(1)):
        size = len(members)
        Parameters(  # raises where the protocol cannot protect
            context=bytes(32),
            sites=tuple((name, KEYS[name]) for name in members),
            threshold=settings.threshold_of(size),
            colluding=settings.colluding,
            min_included=size - settings.dropouts_of(size),
            chunk_bytes=settings.chunk_bytes,
        )


def test_noise_made_for_the_smallest_group_suffices_in_every_group():
    """In the smallest sum that any group opens, at least as many honest sites add noise as it was made for."""
    taken = 0
    options = itertools.product(range(1, 4), range(4), (None, 0, 1, 2), (None, *range(2, 9)), range(2, 13))
    for groups, colluding, dropouts, threshold, sites in options:
        settings = SecureAggregation(groups=groups, colluding=colluding, dropouts=dropouts, threshold=threshold)
        try:
            smallest = settings.smallest_group(sites)
        except GuaranteeError:
            continue
        taken += 1
        counted = smallest - colluding - settings.dropouts_of(smallest)
        assert counted >= 1
        for size in (smallest, math.ceil(sites / groups)):
            assert size - settings.dropouts_of(size) - colluding >= counted
    assert taken > 100


@given(
    names=st.lists(st.text(min_size=1, max_size=4), min_size=3, max_size=20, unique=True),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_dealing_is_a_fair_and_stable_partition(names, groups, seed, data):
    assume(groups == 1 or len(names) >= 3 * groups)
    settings = SecureAggregation(groups=groups)
    dealt = settings.deal(names, Seeds(seed))
    assert len(dealt) == groups
    assert sorted(itertools.chain(*dealt)) == sorted(names)
    sizes = [len(members) for members in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == math.ceil(len(names) / groups)
    assert settings.deal(data.draw(st.permutations(names)), Seeds(seed)) == dealt


def test_another_seed_deals_other_groups():
    """Else who is with whom would go by the alphabet, which whoever names sites chooses."""
    settings = SecureAggregation(groups=2)
    dealt = {tuple(settings.deal(NAMES, Seeds(seed))) for seed in range(20)}
    assert len(dealt) > 10
