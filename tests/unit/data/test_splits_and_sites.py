"""Splits, duplicates and sites on small sets whose answers can be counted by hand."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from medveil.data.duplicates import image_digests
from medveil.data.partition import (
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    Partition,
    QuantityPartition,
    partition,
    partition_splits,
)
from medveil.data.splits import Splits, SplitSet, check_disjoint, find_duplicates, split
from medveil.data.subject import Dataset, Example, Subject
from medveil.errors import PartitionError, SplitError
from medveil.rng import Seeds

PIXEL = np.zeros((1, 1, 1), np.uint8)


def subject(number: int, label=0, *, split=None, digests=None, **attributes) -> Subject:
    examples = tuple(
        Example(PIXEL, label, digest, volume=volume) for volume, digest in enumerate(digests or (f"d{number}",))
    )
    return Subject(f"id-{number:03}", examples, attributes, split)


def dataset(subjects, task="classification") -> Dataset:
    return Dataset("test", "phantom", task, ("a", "b"), tuple(subjects))


def ids(subjects) -> set[str]:
    return {subject.subject_id for subject in subjects}


def test_random_splits_have_the_asked_sizes() -> None:
    whole = dataset(subject(number, number % 4 == 0) for number in range(100))
    parts = split(whole, Splits(kind="random", test=0.2, validation=0.1), Seeds(1))
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [70, 10, 20]
    assert [sum(member.label() for member in part) for part in (parts.test, parts.train)] == [5, 18]
    assert ids(parts.train) | ids(parts.validation) | ids(parts.test) == ids(whole.subjects)
    another = split(whole, Splits(kind="random"), Seeds(2))
    assert ids(another.test) != ids(parts.test)


def test_published_splits_are_kept() -> None:
    names = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    whole = dataset(subject(number, split=name) for number, name in enumerate(names))
    parts = split(whole, Splits(), Seeds(0))
    assert [sorted(ids(part)) for part in (parts.validation, parts.test)] == [
        ["id-006", "id-007"],
        ["id-008", "id-009"],
    ]


def test_validation_is_carved_from_train_where_none_is_published() -> None:
    whole = dataset(subject(number, number % 2, split="test" if number < 20 else "train") for number in range(100))
    parts = split(whole, Splits(validation=0.25), Seeds(0))
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [60, 20, 20]
    assert ids(parts.test) == {f"id-{number:03}" for number in range(20)}
    assert sum(member.label() for member in parts.validation) == 10


def test_stratified_by_an_attribute() -> None:
    whole = dataset((subject(number, -1, site="ab"[number % 10 == 0]) for number in range(100)), "segmentation")
    parts = split(whole, Splits(kind="random", test=0.2, validation=0.1, stratify="site"), Seeds(0))
    assert [sum(member.attributes["site"] == "b" for member in part) for part in (parts.test, parts.validation)] == [
        2,
        1,
    ]
    with pytest.raises(SplitError, match="'sex'"):
        split(whole, Splits(kind="random", stratify="sex"), Seeds(0))


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (["train"] * 5 + [None], Splits()),
        (["train"] * 5, Splits()),
        (["test"] * 5, Splits()),
        (["train", "test"], Splits()),
        ([None] * 2, Splits(kind="random")),
        (["train", "test", "holdout"], Splits()),
    ],
)
def test_splits_that_cannot_be(names, config) -> None:
    with pytest.raises(SplitError) as caught:
        split(dataset(subject(number, split=name) for number, name in enumerate(names)), config, Seeds(0))
    assert "id-" not in str(caught.value)


def test_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValidationError, match="nothing to train on"):
        Splits(kind="random", test=0.6, validation=0.4)


def test_shared_subjects_are_found() -> None:
    with pytest.raises(SplitError, match="1 patients") as caught:
        check_disjoint([subject(1), subject(2)], [subject(2)], [subject(3)])
    assert "id-" not in str(caught.value)
    check_disjoint([subject(1)], [subject(2)])
    report = find_duplicates(SplitSet((subject(1),), (subject(2),), (subject(3),), None))
    with pytest.raises(SplitError):
        SplitSet((subject(1),), (subject(1),), (subject(3),), report)


COPIES = [
    subject(0, split="train", digests=("x", "x", "own-0")),
    subject(1, split="train", digests=("v",)),
    subject(2, split="train", digests=("t", "own-2")),
    subject(3, split="validation", digests=("v", "t2")),
    subject(4, split="validation", digests=("own-4",)),
    subject(5, split="test", digests=("t", "t2")),
]


def test_copies_are_counted() -> None:
    report = split(dataset(COPIES), Splits(duplicates="report"), Seeds(0)).duplicates
    assert (report.within_train, report.within_validation, report.within_test) == (1, 0, 0)
    assert (report.train_in_validation, report.train_in_test, report.validation_in_test) == (1, 1, 1)
    assert (report.dropped_from_train, report.dropped_from_validation, report.across) == (0, 0, 3)


def test_copies_are_dropped_from_the_earlier_split() -> None:
    parts = split(dataset(COPIES), Splits(), Seeds(0))
    assert image_digests(parts.train) == ("x", "x", "own-0", "own-2")
    assert image_digests(parts.validation) == ("v", "own-4")
    assert image_digests(parts.test) == ("t", "t2")
    assert (parts.duplicates.dropped_from_train, parts.duplicates.dropped_from_validation) == (2, 1)
    assert find_duplicates(parts).across == 0
    kept = split(dataset(COPIES), Splits(duplicates="report"), Seeds(0))
    assert find_duplicates(kept).across == 3


def test_slices_of_one_volume_are_not_copies() -> None:
    slices = tuple(Example(PIXEL, PIXEL[0], "volume", position=position) for position in range(5))
    parts = SplitSet((Subject("a", slices),), (subject(1),), (subject(2),), None)
    assert find_duplicates(parts).within_train == 0


def test_sites_by_a_column() -> None:
    members = [subject(number, site="cab"[number % 3]) for number in range(9)]
    sites = partition(members, NaturalPartition(), Seeds(0))
    assert [(site.name, len(site.subjects)) for site in sites] == [("a", 3), ("b", 3), ("c", 3)]
    with pytest.raises(PartitionError, match="'hospital'"):
        partition(members, NaturalPartition(column="hospital"), Seeds(0))
    with pytest.raises(PartitionError, match="3 subjects in the smallest"):
        partition(members, NaturalPartition(min_subjects=4), Seeds(0))


def test_explicit_fractions() -> None:
    members = [subject(number) for number in range(10)]
    sites = partition(members, QuantityPartition(fractions=(0.5, 0.3, 0.2)), Seeds(0))
    assert [len(site.subjects) for site in sites] == [5, 3, 2]
    assert [site.name for site in sites] == ["site-1", "site-2", "site-3"]


def test_alpha_tells_how_skewed_the_labels_are() -> None:
    members = [subject(number, number % 2) for number in range(400)]

    def spread(alpha: float) -> float:
        sites = partition(members, DirichletPartition(sites=4, alpha=alpha, min_subjects=2), Seeds(0))
        return float(np.std([np.mean([member.label() for member in site.subjects]) for site in sites]))

    assert spread(1000.0) < 0.05
    assert spread(0.3) > 0.2


def test_quantity_skew_keeps_the_labels() -> None:
    members = [subject(number, number % 2) for number in range(2000)]
    sites = partition(members, QuantityPartition(sites=3, alpha=0.5, min_subjects=50), Seeds(1))
    sizes = [len(site.subjects) for site in sites]
    assert max(sizes) > 2 * min(sizes)
    for site in sites:
        share = np.mean([member.label() for member in site.subjects])
        # Four standard deviations of a draw of that size.
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(site.subjects))


@pytest.mark.parametrize(
    "config",
    [
        IidPartition(sites=5),
        IidPartition(sites=2, min_subjects=3),
        DirichletPartition(sites=2, min_subjects=3),
        QuantityPartition(sites=2, alpha=1.0, min_subjects=3),
        QuantityPartition(fractions=(0.9, 0.1)),
    ],
)
def test_sites_that_would_be_too_small(config) -> None:
    with pytest.raises(PartitionError, match="fewer sites"):
        partition([subject(number, number % 2) for number in range(4)], config, Seeds(0))


def test_a_tiny_alpha_gives_a_whole_class_to_one_site() -> None:
    members = [subject(number, number % 8) for number in range(80)]
    for alpha in (1e-9, 1e-300):
        sites = partition(members, DirichletPartition(sites=2, alpha=alpha), Seeds(0))
        labels = [{member.label() for member in site.subjects} for site in sites]
        assert not labels[0] & labels[1]
        assert labels[0] | labels[1] == set(range(8))


def test_no_subjects_at_all() -> None:
    for config in (IidPartition(sites=2), NaturalPartition(), DirichletPartition(sites=2)):
        with pytest.raises(PartitionError):
            partition([], config, Seeds(0))


def test_masks_have_no_label_to_skew() -> None:
    members = [subject(number, PIXEL[0], regime="ab"[number % 2]) for number in range(60)]
    with pytest.raises(PartitionError, match="attribute to skew"):
        partition(members, DirichletPartition(sites=2), Seeds(0))
    sites = partition(members, DirichletPartition(sites=2, alpha=0.2, column="regime", min_subjects=5), Seeds(0))
    assert sum(len(site.subjects) for site in sites) == 60


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "quantity"},
        {"kind": "quantity", "alpha": 1.0},
        {"kind": "quantity", "alpha": 1.0, "fractions": [0.5, 0.5]},
        {"kind": "quantity", "fractions": [0.5, 0.6]},
        {"kind": "quantity", "fractions": [1.5, -0.5]},
        {"kind": "quantity", "fractions": [], "sites": 2},
        {"kind": "quantity", "fractions": [0.5, 0.5], "sites": 3},
        {"kind": "iid", "sites": 0},
        {"kind": "dirichlet", "sites": 2, "alpha": 0},
        {"kind": "iid", "sites": 2, "alpha": 1},
        {"kind": "magic"},
    ],
)
def test_partitions_that_make_no_sense(values) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Partition).validate_python(values)


def test_all_splits_are_dealt_by_one_rule() -> None:
    members = [subject(number, number % 2, site="ab"[number % 3 == 0]) for number in range(3000)]
    parts = split(dataset(members), Splits(kind="random", test=0.3, validation=0.1), Seeds(0))
    dealt = partition_splits(parts, DirichletPartition(sites=3, alpha=0.3, min_subjects=20), Seeds(0))
    names = [[site.name for site in part] for part in (dealt.train, dealt.validation, dealt.test)]
    assert names[0] == names[1] == names[2]
    # The shares of each class were drawn once: train and test of a site are alike.
    for train, test in zip(dealt.train, dealt.test, strict=True):
        share = [sum(member.label() for member in site.subjects) / len(site.subjects) for site in (train, test)]
        assert abs(share[0] - share[1]) < 0.05


def test_a_site_may_be_empty_in_the_test_but_not_in_training() -> None:
    train = tuple(subject(number, site="ab"[number % 2]) for number in range(6))
    validation, test = (subject(10, site="a"),), (subject(11, site="b"),)
    report = find_duplicates(SplitSet(train, validation, test, None))
    dealt = partition_splits(SplitSet(train, validation, test, report), NaturalPartition(), Seeds(0))
    assert [len(site.subjects) for site in dealt.test] == [0, 1]
    assert [len(site.subjects) for site in dealt.validation] == [1, 0]
    elsewhere = SplitSet(train, validation, (subject(11, site="c"),), report)
    with pytest.raises(PartitionError, match="0 subjects"):
        partition_splits(elsewhere, NaturalPartition(), Seeds(0))
