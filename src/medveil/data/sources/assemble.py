"""From files to a data set: read, preprocess, count what fails, and give every patient their images."""

import hashlib
import hmac
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medveil.data.sources.prepare import prepare
from medveil.data.subject import DataKind, Dataset, Example, Subject, Task, rejections
from medveil.errors import (
    ArchiveError,
    DataError,
    ImageError,
    LabelError,
    MissingDataError,
    PartitionError,
    SplitError,
)
from medveil.imaging.preprocess import Preprocess
from medveil.imaging.volume import Volume

DEFAULT_THREADS = min(8, os.cpu_count() or 1)

Refusal = tuple[str, str]
"""(reason, detail) of one file that was not used; never a name."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One image with its target, before preprocessing.

    Args:
        volume: the image.
        target: class index, or a mask of the volume's spatial shape.
        attributes: what only the pixels tell (a domain, an intensity range).
    """

    volume: Volume
    target: int | NDArray[np.uint8]
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Record:
    """What a source knows of one image before it reads it.

    Args:
        patient: key of the patient as the source has it; kept out of ``repr``, pseudonymised before it leaves.
        read: gives the images (one, or those of a DICOM series) and refusals of single files.
        attributes: columns of the source's table.
        split: the publisher's, or None.
        files: how many files ``read`` opens, for counting when it fails as a whole.
    """

    patient: str = field(repr=False)
    read: Callable[[], Iterable[Reading | Refusal]] = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    split: str | None = None
    files: int = 1


@dataclass(frozen=True)
class Description:
    """What a data set is, besides its images; fields as in :class:`~medveil.data.subject.Dataset`."""

    name: str
    task: Task
    class_names: tuple[str, ...]
    kind: DataKind = "real"
    citation: str = ""
    licence: str = ""


@dataclass(frozen=True, eq=False)
class _Image:
    """One image's examples (several when it was cut into slices)."""

    examples: tuple[Example, ...]
    attributes: Mapping[str, str]


def assemble(
    records: Sequence[Record],
    description: Description,
    preprocess: Preprocess,
    *,
    resize: tuple[int, ...] | None = None,
    refused: Sequence[Refusal] = (),
    threads: int = DEFAULT_THREADS,
) -> Dataset:
    """Read every record and build the data set.

    Args:
        records: in an order that only depends on the files.
        description: name, task, classes.
        preprocess: applied to every image.
        resize: stretch to this size before.
        refused: files that the source already refused.
        threads: how many read at once; 1 where a reader changes the state of a library's logger.

    Returns:
        One subject for each patient that has a readable image, in the order of first appearance.

    Raises:
        MissingDataError: there is nothing to read.
        SplitError: a patient has images in two published splits.
        PartitionError: a patient has images at two sites.
        DataError: nothing could be read.
        ImageError: images differ in shape after preprocessing (``"channels"``, ``"shape"``).

    Guarantees:
        Subject ids are HMAC-SHA-256 pseudonyms whose key is a hash over all the images: who does not hold the
        images cannot find a patient by trying numbers.
    """
    if not records and not refused:
        raise MissingDataError("The source holds no image", expected="at least one")
    _check_one_value(records, lambda record: record.split or "", SplitError, "published splits", "split")
    _check_one_value(records, lambda record: record.attributes.get("site", ""), PartitionError, "sites", "site")
    images, refusals = _read_all(records, lambda record: _read(record, description, preprocess, resize), threads)
    refusals = [*refused, *refusals]
    if not images:
        raise _nothing_left(refusals)
    _check_shapes([example for _, image in images for example in image.examples])
    images = _one_dtype(images)
    return Dataset(
        name=description.name,
        kind=description.kind,
        task=description.task,
        class_names=description.class_names,
        subjects=_subjects(images),
        rejected=rejections(refusals),
        citation=description.citation,
        licence=description.licence,
    )


def _read_all(
    records: Sequence[Record], read: Callable[[Record], list[_Image | Refusal]], threads: int
) -> tuple[list[tuple[Record, _Image]], list[Refusal]]:
    images: list[tuple[Record, _Image]] = []
    refusals: list[Refusal] = []
    # Readers silence Pillow's warnings one image at a time, which threads would undo for each other.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=threads) as pool:
        warnings.simplefilter("ignore")
        for record, results in zip(records, pool.map(read, records), strict=True):
            for result in results:
                if isinstance(result, _Image):
                    images.append((record, result))
                else:
                    refusals.append(result)
    return images, refusals


def _read(
    record: Record, description: Description, preprocess: Preprocess, resize: tuple[int, ...] | None
) -> list[_Image | Refusal]:
    results: list[_Image | Refusal] = []
    try:
        for reading in record.read():
            if isinstance(reading, tuple):
                results.append(reading)
                continue
            classes = len(description.class_names)
            examples = prepare(reading.volume, reading.target, classes, preprocess, resize)
            results.append(_Image(examples, {**record.attributes, **reading.attributes}))
    except (ImageError, LabelError, ArchiveError, MissingDataError) as error:
        return [_refusal(error)] * record.files
    return results


def _one_dtype(images: list[tuple[Record, _Image]]) -> list[tuple[Record, _Image]]:
    """Where some images are uint8 (0..255) and some float32 (0..1), make all float32 (0..1)."""
    if len({example.image.dtype for _, image in images for example in image.examples}) == 1:
        return images
    return [
        (record, replace(image, examples=tuple(_as_float(example) for example in image.examples)))
        for record, image in images
    ]


def _as_float(example: Example) -> Example:
    if example.image.dtype != np.uint8:
        return example
    return replace(example, image=(example.image / np.float32(255)).astype(np.float32))


def _refusal(error: ImageError | LabelError | ArchiveError | MissingDataError) -> Refusal:
    if isinstance(error, ImageError):
        return error.reason, error.what
    reasons = {LabelError: "label", ArchiveError: "archive", MissingDataError: "missing"}
    return reasons[type(error)], error.what


def _subjects(images: Sequence[tuple[Record, _Image]]) -> tuple[Subject, ...]:
    owned: dict[str, list[tuple[Record, _Image]]] = defaultdict(list)
    for record, image in images:
        owned[record.patient].append((record, image))
    key = _pixel_key([image for _, image in images])
    return tuple(
        Subject(
            subject_id=pseudonym(patient, key),
            examples=_numbered([image for _, image in theirs]),
            attributes=_merged([image.attributes for _, image in theirs]),
            split=theirs[0][0].split,
        )
        for patient, theirs in owned.items()
    )


def pseudonym(patient: str, key: bytes) -> str:
    """A patient's pseudonym: 16 hex digits of HMAC-SHA-256.

    >>> pseudonym("a", b"key") == pseudonym("a", b"key") != pseudonym("a", b"another key")
    True
    """
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16]


def _pixel_key(images: Iterable[_Image]) -> bytes:
    digests = sorted({example.digest for image in images for example in image.examples})
    return hashlib.sha256("".join(digests).encode()).digest()


def _numbered(images: Sequence[_Image]) -> tuple[Example, ...]:
    return tuple(replace(example, volume=volume) for volume, image in enumerate(images) for example in image.examples)


def _merged(rows: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """One value a column; "mixed" where a patient's images differ."""
    merged: dict[str, str] = {}
    for column in dict.fromkeys(name for row in rows for name in row):
        values = {row.get(column, "") for row in rows}
        merged[column] = values.pop() if len(values) == 1 else "mixed"
    return merged


def _check_one_value(
    records: Sequence[Record],
    value: Callable[[Record], str],
    error: type[SplitError | PartitionError],
    what: str,
    column: str,
) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        found[record.patient].add(value(record))
    several = sum(len(values) > 1 for values in found.values())
    if several:
        raise error(
            f"Patients have images in two {what}",
            got=f"{several} of {len(found)} patients",
            expected=f"one {column} for each patient",
            remedy=f"correct the table, or leave the {column} column out of the source",
        )


def _check_shapes(examples: Sequence[Example]) -> None:
    shapes = Counter(tuple(example.image.shape) for example in examples)
    channels = sorted({shape[0] for shape in shapes})
    if len(channels) > 1:
        raise ImageError(
            "Grey and colour images are mixed",
            reason="channels",
            got=f"images with {' and '.join(map(str, channels))} channels",
            expected="one number of channels",
            remedy='set preprocess.channels to "grey" or "rgb"',
        )
    if len(shapes) > 1:
        raise ImageError(
            "Images differ in size after preprocessing",
            reason="shape",
            got=f"{len(shapes)} shapes, most often {shapes.most_common(1)[0][0]}",
            expected="one shape for all",
            remedy="set preprocess.size (and preprocess.fit), or resize in the source",
        )


def _nothing_left(refusals: Sequence[Refusal]) -> DataError:
    reasons = Counter(reason for reason, _ in refusals)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return DataError(
        "No image of the source could be used",
        got=f"{len(refusals)} files: {counts}",
        expected="at least one readable image",
        remedy="export the files again, and check that the source's kind fits them",
    )
