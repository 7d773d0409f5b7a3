"""Whose the images are: a :class:`Subject` (patient) owns examples, a :class:`Dataset` owns subjects."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medveil.errors import SplitError

Task = Literal["classification", "segmentation"]
DataKind = Literal["real", "phantom"]


@dataclass(frozen=True, eq=False)
class Example:
    """One preprocessed image and its target.

    Args:
        image: shape (channels, *spatial), uint8 (0..255 stands for 0..1) or float32.
        target: a class index, or for segmentation a mask of shape (*spatial), uint8, class indices.
        digest: SHA-256 of the pixels as stored at the source (:meth:`Volume.digest`), before preprocessing.
        spacing_mm: of ``image``'s spatial axes, or None where unknown.
        volume: which of the subject's volumes this is; slices of one volume share it.
        position: slice number inside the volume (0 for whole images).
        slice_gap_mm: distance between neighbouring slices of the volume; None for whole images or where unknown.
    """

    image: NDArray[np.uint8] | NDArray[np.float32]
    target: int | NDArray[np.uint8]
    digest: str
    spacing_mm: tuple[float, ...] | None = None
    volume: int = 0
    position: int = 0
    slice_gap_mm: float | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A patient and what is theirs.

    Args:
        subject_id: a pseudonym, unique in its data set; never a name, and never printed in messages.
        examples: at least one.
        attributes: columns of the source's index (site, scanner, subtype, sex, ...), as text.
        split: the split that the publisher assigned ("train", "validation", "test"), or None.
    """

    subject_id: str
    examples: tuple[Example, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None

    def label(self) -> int:
        """The class that stratification uses: the most frequent (ties: the largest); -1 for masks."""
        labels = Counter(example.target for example in self.examples if isinstance(example.target, int))
        return max(labels, key=lambda label: (labels[label], label)) if labels else -1


@dataclass(frozen=True)
class Rejection:
    """Files that were not used, and why: counted, never skipped silently, never named.

    Args:
        reason: the short stable word of the error (:attr:`ImageError.reason`).
        detail: one sentence without patient data.
        count: number of files.
    """

    reason: str
    detail: str
    count: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Subjects with one task and one list of classes.

    Args:
        name: of the source.
        kind: "real" or "phantom" (made by the built-in generator).
        task: "classification" or "segmentation".
        class_names: index -> name; for segmentation index 0 is the background.
        subjects: unique ``subject_id``.
        rejected: what could not be read.
        citation: how to cite the source, or "".
        licence: of the images, or "".

    Raises:
        SplitError: two subjects share an id.
    """

    name: str
    kind: DataKind
    task: Task
    class_names: tuple[str, ...]
    subjects: tuple[Subject, ...]
    rejected: tuple[Rejection, ...] = ()
    citation: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        ids = Counter(subject.subject_id for subject in self.subjects)
        repeated = sum(1 for count in ids.values() if count > 1)
        if repeated:
            raise SplitError(
                "Two subjects of the data set share an id",
                got=f"{repeated} ids that stand more than once",
                expected="one subject per patient",
                remedy="merge a patient's images into one subject, or correct the patient column",
            )

    @property
    def num_examples(self) -> int:
        """Images (or slices) over all subjects."""
        return sum(len(subject.examples) for subject in self.subjects)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of the first image, (channels, *spatial); readers guarantee that all are equal."""
        return tuple(self.subjects[0].examples[0].image.shape)


def rejections(errors: list[tuple[str, str]]) -> tuple[Rejection, ...]:
    """Count (reason, detail) pairs into :class:`Rejection` rows, most frequent first.

    >>> rejections([("truncated", "Data end early"), ("truncated", "Data end early")])
    (Rejection(reason='truncated', detail='Data end early', count=2),)
    """
    counts = Counter(errors)
    return tuple(
        Rejection(reason, detail, count)
        for (reason, detail), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
