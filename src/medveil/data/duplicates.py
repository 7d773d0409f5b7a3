"""Find pixel-identical images inside and across splits: a copy in the training set makes a test dishonest."""

from collections import Counter
from dataclasses import dataclass, replace

from medveil.data.subject import Example, Subject


@dataclass(frozen=True)
class DuplicateReport:
    """How many pixel-identical images stand where; an image is a file or volume, not a slice of it.

    Args:
        within_train: images of the training set beyond the first of each kind.
        within_validation: likewise in the validation set.
        within_test: likewise in the test set.
        train_in_validation: training images that also stand in the validation set.
        train_in_test: training images that also stand in the test set.
        validation_in_test: validation images that also stand in the test set.
        dropped_from_train: images taken out of the training set, as ``duplicates = "drop"`` asks.
        dropped_from_validation: images taken out of the validation set likewise.
    """

    within_train: int
    within_validation: int
    within_test: int
    train_in_validation: int
    train_in_test: int
    validation_in_test: int
    dropped_from_train: int = 0
    dropped_from_validation: int = 0

    @property
    def across(self) -> int:
        """Images that stand in an earlier split and again in a later one, summed over the pairs of splits."""
        return self.train_in_validation + self.train_in_test + self.validation_in_test


Split = tuple[Subject, ...]


def count_duplicates(train: Split, validation: Split, test: Split) -> DuplicateReport:
    """Count pixel-identical images within each split and across each pair."""
    first, second, third = (image_digests(part) for part in (train, validation, test))
    return DuplicateReport(
        within_train=len(first) - len(set(first)),
        within_validation=len(second) - len(set(second)),
        within_test=len(third) - len(set(third)),
        train_in_validation=_shared(first, second),
        train_in_test=_shared(first, third),
        validation_in_test=_shared(second, third),
    )


def drop_images(subjects: Split, digests: frozenset[str]) -> Split:
    """Subjects without the images whose digest is listed; a subject left with none goes too."""
    kept = (replace(subject, examples=_without(subject.examples, digests)) for subject in subjects)
    return tuple(subject for subject in kept if subject.examples)


def image_digests(subjects: Split) -> tuple[str, ...]:
    """One digest for each image or volume, in order; slices of one volume share theirs and count once."""
    seen: Counter[tuple[int, int, str]] = Counter()
    for number, subject in enumerate(subjects):
        seen.update((number, example.volume, example.digest) for example in subject.examples)
    return tuple(digest for _, _, digest in seen)


def _without(examples: tuple[Example, ...], digests: frozenset[str]) -> tuple[Example, ...]:
    return tuple(example for example in examples if example.digest not in digests)


def _shared(earlier: tuple[str, ...], later: tuple[str, ...]) -> int:
    known = frozenset(later)
    return sum(digest in known for digest in earlier)
