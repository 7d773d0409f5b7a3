"""Part a data set into training, validation and test sets, by patient.

A patient's images never stand in two splits: a model that has seen the patient is not tested on them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.data.allotment import allot_strata
from medveil.data.duplicates import DuplicateReport, count_duplicates, drop_images, image_digests
from medveil.data.subject import Dataset, Subject
from medveil.errors import SplitError
from medveil.rng import Seeds


class Splits(Config):
    """How to split.

    Attributes:
        kind: "published" keeps the publisher's splits; "random" draws new ones.
        test: share of all subjects for the test set; used by "random" only.
        validation: share of all subjects (under "published": of the training subjects, and only where the
            publisher gives no validation set) for the validation set.
        stratify: attribute whose values every split holds in equal parts; None takes the class, which for
            segmentation means no stratification.
        duplicates: "drop" takes images out of an earlier split (train, validation) that stand pixel-identical
            in a later one; "report" only counts them.
    """

    kind: Literal["published", "random"] = "published"
    test: float = Field(0.2, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    stratify: str | None = None
    duplicates: Literal["report", "drop"] = "drop"

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.kind == "random" and self.test + self.validation >= 1:
            message = "test and validation leave nothing to train on: their sum must be below 1"
            raise ValueError(message)
        return self


Part = tuple[Subject, ...]


@dataclass(frozen=True, eq=False)
class SplitSet:
    """Subjects by split, with the count of duplicates that was made on the way.

    Args:
        train: subjects to learn from.
        validation: subjects to choose settings by.
        test: subjects looked at once.
        duplicates: counts before anything was dropped, and what was dropped.

    Raises:
        SplitError: a split is empty, or a subject stands in two of them.
    """

    train: tuple[Subject, ...]
    validation: tuple[Subject, ...]
    test: tuple[Subject, ...]
    duplicates: DuplicateReport

    def __post_init__(self) -> None:
        check_disjoint(self.train, self.validation, self.test)
        _check_filled(self.train, self.validation, self.test)


def split(dataset: Dataset, config: Splits, seeds: Seeds) -> SplitSet:
    """Part the subjects of a data set.

    Args:
        dataset: in any order; the order does not change the result.
        config: how.
        seeds: the same seeds give the same splits.

    Returns:
        Splits sorted by subject id; without ``duplicates = "drop"`` they hold every subject exactly once.

    Raises:
        SplitError: published splits are asked for and missing, an attribute to stratify by is missing, or a
            split would be empty.
    """
    subjects = sorted(dataset.subjects, key=lambda subject: subject.subject_id)
    if config.kind == "published":
        train, validation, test = _published(subjects, config, seeds)
    else:
        test, rest = _carve(subjects, config.test, subjects, config, seeds.child("test"))
        validation, train = _carve(rest, config.validation, subjects, config, seeds.child("validation"))
    _check_filled(train, validation, test)
    return _drop_copies(train, validation, test, config)


def split_own(dataset: Dataset, config: Splits, seeds: Seeds, *, dealt: bool) -> tuple[Part, Part, Part]:
    """Part one site's own subjects: training, validation, test. The last two may be empty.

    Args:
        dataset: the site's.
        config: of the plan.
        seeds: the same seeds give the same splits.
        dealt: whether the subjects come with the splits of a larger data set that was dealt out, which then stay.

    Raises:
        SplitError: published splits are asked for and missing, or nothing is left to train on.
    """
    subjects = sorted(dataset.subjects, key=lambda subject: subject.subject_id)
    parts: tuple[Part, Part, Part]
    if dealt:
        parts = _assigned(subjects)
    elif config.kind == "published":
        parts = _published(subjects, config, seeds)
    else:
        test, rest = _carve(subjects, config.test, subjects, config, seeds.child("test"))
        validation, train = _carve(rest, config.validation, subjects, config, seeds.child("validation"))
        parts = train, validation, test
    check_disjoint(*parts)
    train, validation, test, _ = _without_copies(*parts, config)
    if not train:
        raise SplitError(
            "The site has nothing to train on",
            got=f"no training subject of {len(subjects)} in all",
            expected="at least one",
            remedy="bring more subjects, or lower data.splits.test and data.splits.validation",
        )
    return train, validation, test


def check_disjoint(*splits: Sequence[Subject]) -> None:
    """Refuse splits that share a subject.

    Raises:
        SplitError: with the number of shared subjects, never their ids.
    """
    ids = [{subject.subject_id for subject in part} for part in splits]
    shared = sum(len(part) for part in ids) - len(set().union(*ids))
    if shared:
        raise SplitError(
            "Patients stand in more than one split",
            got=f"{shared} patients too many",
            expected="every patient in one split",
            remedy='give every patient one split in the table, or set splits.kind = "random"',
        )


def find_duplicates(splits: SplitSet) -> DuplicateReport:
    """Count pixel-identical images in the splits as they stand now (after any drop)."""
    return count_duplicates(splits.train, splits.validation, splits.test)


def _published(subjects: list[Subject], config: Splits, seeds: Seeds) -> tuple[Part, Part, Part]:
    by_split: dict[str | None, list[Subject]] = defaultdict(list)
    for subject in subjects:
        by_split[subject.split].append(subject)
    unassigned = sum(len(part) for name, part in by_split.items() if name not in _NAMES)
    if unassigned or not by_split["test"]:
        raise SplitError(
            "The source gives no complete published splits",
            got=f"{unassigned} subjects without a split, {len(by_split['test'])} in the test set",
            expected="train, test and perhaps validation for every subject",
            remedy='set splits.kind = "random"',
        )
    train, validation = tuple(by_split["train"]), tuple(by_split["validation"])
    if not validation:
        validation, train = _carve(train, config.validation, train, config, seeds.child("validation"))
    return train, validation, tuple(by_split["test"])


_NAMES = ("train", "validation", "test")


def _carve(
    subjects: Sequence[Subject], fraction: float, whole: Sequence[Subject], config: Splits, seeds: Seeds
) -> tuple[Part, Part]:
    """Take ``fraction`` of every stratum of ``whole`` out of ``subjects``: (taken, left)."""
    strata, sizes = _strata(subjects, config), _strata(whole, config)
    names = sorted(sizes)
    counts = allot_strata([len(sizes[name]) for name in names], fraction, [len(strata.get(name, [])) for name in names])
    taken: set[str] = set()
    for name, count in zip(names, counts, strict=True):
        members = strata.get(name, [])
        order = seeds.child("stratum", name).numpy().permutation(len(members))
        taken |= {members[index].subject_id for index in order[:count]}
    return (
        tuple(subject for subject in subjects if subject.subject_id in taken),
        tuple(subject for subject in subjects if subject.subject_id not in taken),
    )


def _strata(subjects: Sequence[Subject], config: Splits) -> dict[str, list[Subject]]:
    strata: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        strata[_stratum(subject, config.stratify)].append(subject)
    return strata


def _stratum(subject: Subject, column: str | None) -> str:
    if column is None:
        return str(subject.label())
    if column not in subject.attributes:
        raise SplitError(
            "The attribute to stratify by is missing",
            got="at least one subject without it",
            expected=f"the attribute {column!r} for every subject",
            remedy="name another attribute in splits.stratify, or leave it out",
        )
    return subject.attributes[column]


def _assigned(subjects: list[Subject]) -> tuple[Part, Part, Part]:
    wrong = sum(subject.split not in _NAMES for subject in subjects)
    if wrong:
        raise SplitError("Subjects of a share have no split", got=f"{wrong} subjects", expected="one for every subject")
    train, validation, test = (tuple(one for one in subjects if one.split == name) for name in _NAMES)
    return train, validation, test


def _drop_copies(train: Part, validation: Part, test: Part, config: Splits) -> SplitSet:
    return SplitSet(*_without_copies(train, validation, test, config))


def _without_copies(
    train: Part, validation: Part, test: Part, config: Splits
) -> tuple[Part, Part, Part, DuplicateReport]:
    report = count_duplicates(train, validation, test)
    if config.duplicates == "drop" and report.across:
        in_test = frozenset(image_digests(test))
        kept_validation = drop_images(validation, in_test)
        kept_train = drop_images(train, in_test | frozenset(image_digests(kept_validation)))
        report = replace(
            report,
            dropped_from_train=len(image_digests(train)) - len(image_digests(kept_train)),
            dropped_from_validation=len(image_digests(validation)) - len(image_digests(kept_validation)),
        )
        train, validation = kept_train, kept_validation
    return train, validation, test, report


def _check_filled(train: Part, validation: Part, test: Part) -> None:
    empty = [name for name, part in zip(_NAMES, (train, validation, test), strict=True) if not part]
    if empty:
        raise SplitError(
            "A split is empty",
            got=f"no subjects for {', '.join(empty)} of {len(train) + len(validation) + len(test)} in all",
            expected="at least one subject in each of train, validation and test",
            remedy="raise the fractions or bring more subjects",
        )
