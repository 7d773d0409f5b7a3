"""Algebra of splits and partitions, for any set of subjects."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medveil.data.allotment import allot, allot_strata
from medveil.data.partition import (
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    QuantityPartition,
    partition,
    partition_splits,
)
from medveil.data.splits import Splits, split
from medveil.data.subject import Dataset, Example, Subject
from medveil.errors import PartitionError, SplitError
from medveil.rng import Seeds

PIXEL = np.zeros((1, 1, 1), np.uint8)


def subject(number: int, label: int, site: str) -> Subject:
    return Subject(f"s{number:04}", (Example(PIXEL, label, f"d{number}"),), {"site": site})


@st.composite
def cohorts(draw) -> list[Subject]:
    labels = draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc")), min_size=12, max_size=60))
    return [subject(number, label, site) for number, (label, site) in enumerate(labels)]


partitions = st.one_of(
    st.builds(NaturalPartition),
    st.builds(IidPartition, sites=st.integers(1, 6)),
    st.builds(DirichletPartition, sites=st.integers(1, 4), alpha=st.floats(0.05, 100)),
    st.builds(QuantityPartition, sites=st.integers(1, 4), alpha=st.floats(0.05, 100)),
    st.builds(QuantityPartition, fractions=st.sampled_from([(0.5, 0.5), (0.7, 0.2, 0.1), (1.0,)])),
)
splittings = st.builds(
    Splits,
    kind=st.just("random"),
    test=st.floats(0.1, 0.5),
    validation=st.floats(0.1, 0.4),
    stratify=st.sampled_from([None, "site"]),
)


def names(subjects) -> list[str]:
    return [member.subject_id for member in subjects]


@given(cohorts(), partitions, st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_partition_is_a_partition(cohort, config, seed, random) -> None:
    try:
        sites = partition(cohort, config, Seeds(seed))
    except PartitionError:
        return
    dealt = [name for site in sites for name in names(site.subjects)]
    assert sorted(dealt) == names(cohort)
    assert all(len(site.subjects) >= config.min_subjects for site in sites)
    assert len({site.name for site in sites}) == len(sites)
    shuffled = random.sample(cohort, len(cohort))
    again = partition(shuffled, config, Seeds(seed))
    assert [(site.name, names(site.subjects)) for site in again] == [
        (site.name, names(site.subjects)) for site in sites
    ]


@given(cohorts(), st.integers(1, 6), st.integers(0, 9))
def test_iid_sites_differ_by_one_subject_at_most(cohort, count, seed) -> None:
    sizes = [len(site.subjects) for site in partition(cohort, IidPartition(sites=count), Seeds(seed))]
    assert max(sizes) - min(sizes) <= 1


@given(cohorts(), splittings, st.integers(0, 9), st.randoms(use_true_random=False))
def test_splits_are_disjoint_complete_and_stratified(cohort, config, seed, random) -> None:
    whole = Dataset("x", "phantom", "classification", ("a", "b", "c"), tuple(cohort))
    try:
        parts = split(whole, config, Seeds(seed))
    except SplitError:
        return
    assert sorted(names(parts.train) + names(parts.validation) + names(parts.test)) == names(cohort)
    for stratum in {stratum_of(member, config) for member in cohort}:
        size = sum(stratum_of(member, config) == stratum for member in cohort)
        for part, fraction in ((parts.test, config.test), (parts.validation, config.validation)):
            taken = sum(stratum_of(member, config) == stratum for member in part)
            assert abs(taken - fraction * size) < 1 + 1e-6
    shuffled = Dataset("x", "phantom", "classification", ("a", "b", "c"), tuple(random.sample(cohort, len(cohort))))
    again = split(shuffled, config, Seeds(seed))
    assert names(again.train) == names(parts.train)
    assert names(again.test) == names(parts.test)


def stratum_of(member: Subject, config: Splits) -> str:
    return member.attributes["site"] if config.stratify else str(member.label())


@given(cohorts(), partitions, st.integers(0, 9))
def test_dealt_splits_keep_every_subject_in_its_split(cohort, config, seed) -> None:
    whole = Dataset("x", "phantom", "classification", ("a", "b", "c"), tuple(cohort))
    parts = split(whole, Splits(kind="random", test=0.3, validation=0.2), Seeds(seed))
    try:
        dealt = partition_splits(parts, config, Seeds(seed))
    except PartitionError:
        return
    for sites, part in ((dealt.train, parts.train), (dealt.validation, parts.validation), (dealt.test, parts.test)):
        assert sorted(name for site in sites for name in names(site.subjects)) == names(part)
    train = partition(parts.train, config, Seeds(seed))
    if not isinstance(config, NaturalPartition):
        assert [names(site.subjects) for site in train] == [names(site.subjects) for site in dealt.train]


@given(st.integers(0, 500), st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_allotments_add_up_and_stay_near_the_share(total, weights) -> None:
    shares = np.array(weights) / sum(weights)
    counts = allot(total, shares)
    assert sum(counts) == total
    assert all(abs(count - share * total) < 1 + 1e-6 for count, share in zip(counts, shares, strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0, 1))
def test_strata_give_their_share(sizes, fraction) -> None:
    counts = allot_strata(sizes, fraction, sizes)
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(abs(count - fraction * size) < 1 for count, size in zip(counts, sizes, strict=True))
    assert abs(sum(counts) - fraction * sum(sizes)) <= 0.5 + 1e-6 or math.isclose(fraction, 1)
