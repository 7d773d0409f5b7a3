"""From a plan's ``[data]`` table to tensors: sites, pool, test set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medveil.data.duplicates import DuplicateReport, count_duplicates
from medveil.data.partition import Site, SiteSplits, partition_splits
from medveil.data.sources import AnySource, load
from medveil.data.sources.share import ShareSource
from medveil.data.splits import split, split_own
from medveil.data.subject import Dataset, Subject
from medveil.errors import ConfigError, PartitionError
from medveil.imaging.preprocess import Preprocess
from medveil.rng import Seeds
from medveil.study.plan import Plan
from medveil.training.arrays import ArrayData, InputScale, to_arrays

_LONGEST_NAME = 100


@dataclass(frozen=True, eq=False)
class Party:
    """Whoever trains: a site, or the pool of all.

    Args:
        name: of the site, or "pool".
        train: its training examples.
        validation: its validation examples, or None.
    """

    name: str
    train: ArrayData
    validation: ArrayData | None


@dataclass(frozen=True, eq=False)
class TestSet:
    """Examples to evaluate on, with whose they are.

    Args:
        data: the examples.
        subjects: their owners; ``data.subject`` indexes them.
        site_of_subject: site name per subject, or "" where unknown.
    """

    data: ArrayData
    subjects: tuple[Subject, ...]
    site_of_subject: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that training and evaluation read.

    Args:
        dataset: as loaded; its subjects are dropped after the split to free memory.
        duplicates: pixel-identical images found across and within splits.
        sites: in name order.
        test: all sites' test subjects together.
        split_subjects: number of subjects per split.
        site_labels: per site, training images per class.
        seen: digests of all training and validation images.
        fingerprint: SHA-256 over every image, its target, split and site: two runs trained on the same when equal.
    """

    dataset: Dataset
    duplicates: DuplicateReport
    sites: tuple[Party, ...]
    test: TestSet
    split_subjects: dict[str, int]
    site_labels: dict[str, dict[str, int]]
    seen: frozenset[str]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.dataset.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (channels, *spatial)."""
        return tuple(self.test.data.images.shape[1:])

    def pool(self) -> Party:
        """All sites' data together, in site order: the reference that a trusted centre would train on."""
        validations = [site.validation for site in self.sites if site.validation is not None]
        return Party(
            "pool",
            concatenate([site.train for site in self.sites]),
            concatenate(validations) if validations else None,
        )


def input_scale(preprocess: Preprocess) -> InputScale:
    """Public constants that centre the network's input: identity for z-scored images, else 0..1 to -2..2."""
    return InputScale(0.0, 1.0) if preprocess.intensity == "zscore" else InputScale(0.5, 0.25)


def prepare(plan: Plan) -> Prepared:
    """Read, split and deal out the data of ``plan``.

    Raises:
        DataError: as the sources, splits and partitions raise it.
        ConfigError: the plan's task is not the data's.
    """
    seeds = Seeds(plan.seed)
    dataset = load(plan.data.source, plan.data.preprocess, root=plan.data_root)
    check_task(plan, dataset)
    splits = split(dataset, plan.data.splits, seeds.child("split"))
    dealt = partition_splits(splits, plan.data.partition, seeds.child("partition"))
    check_site_names([site.name for site in dealt.train])
    num_classes = len(dataset.class_names)

    def arrays(subjects: Sequence[Subject]) -> ArrayData:
        return to_arrays(subjects, task=plan.task, num_classes=num_classes)

    sites = tuple(
        Party(train.name, arrays(train.subjects), arrays(valid.subjects) if valid.subjects else None)
        for train, valid in zip(dealt.train, dealt.validation, strict=True)
    )
    owners = tuple(subject for site in dealt.test for subject in site.subjects)
    return Prepared(
        dataset=dataset,
        duplicates=splits.duplicates,
        sites=sites,
        test=TestSet(arrays(owners), owners, tuple(site.name for site in dealt.test for _ in site.subjects)),
        split_subjects={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        site_labels={site.name: _label_counts(site, dataset.class_names) for site in dealt.train},
        seen=frozenset(
            example.digest for subject in (*splits.train, *splits.validation) for example in subject.examples
        ),
        fingerprint=_fingerprint(dealt),
    )


def prepare_own(plan: Plan, source: AnySource, root: Path, name: str) -> Prepared:
    """Read and split one site's own data under a plan that other sites follow too.

    Args:
        plan: of the run; its own ``data.source`` and ``data.partition`` are not looked at.
        source: where the site's images are.
        root: folder that the source's relative paths start from.
        name: of the site.

    Returns:
        One site; its test set may be empty.

    Raises:
        DataError: as the sources and splits raise it.
        ConfigError: the plan's task is not the data's.
    """
    dataset = load(source, plan.data.preprocess, root=root)
    check_task(plan, dataset)
    dealt = isinstance(source, ShareSource)
    parts = split_own(dataset, plan.data.splits, Seeds(plan.seed).child("split"), dealt=dealt)
    num_classes = len(dataset.class_names)
    train = to_arrays(parts[0], task=plan.task, num_classes=num_classes)
    held = [to_arrays(part, task=plan.task, num_classes=num_classes) if part else None for part in parts[1:]]
    sites = [(Site(name, part),) for part in parts]
    return Prepared(
        dataset=dataset,
        duplicates=count_duplicates(*parts),
        sites=(Party(name, train, held[0]),),
        test=TestSet(held[1] or _none_of(train), parts[2], (name,) * len(parts[2])),
        split_subjects=dict(zip(("train", "validation", "test"), map(len, parts), strict=True)),
        site_labels={name: _label_counts(sites[0][0], dataset.class_names)},
        seen=frozenset(example.digest for part in parts[:2] for subject in part for example in subject.examples),
        fingerprint=_fingerprint(SiteSplits(*sites)),
    )


def _none_of(data: ArrayData) -> ArrayData:
    """No examples, of the same shape."""
    return ArrayData(
        images=data.images[:0],
        targets=data.targets[:0],
        subject=data.subject[:0],
        volume=data.volume[:0],
        position=data.position[:0],
        spacing_mm=(),
        num_subjects=0,
    )


def check_task(plan: Plan, dataset: Dataset) -> None:
    """Refuse data of another task than the plan's.

    Raises:
        ConfigError: they differ.
    """
    if dataset.task != plan.task:
        raise ConfigError(
            "The plan's task is not the task of its data",
            got=f'task = "{plan.task}"',
            expected=f'"{dataset.task}", as the data set {dataset.name} has it',
            remedy="correct task, or choose other data",
        )


def check_site_names(names: Sequence[str]) -> None:
    """Refuse site names that no message or file can carry.

    Raises:
        PartitionError: empty, longer than 100 characters, or with characters that do not print.
    """
    for number, name in enumerate(names):
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise PartitionError(
                "A site has a name that cannot be used",
                got=f"site {number + 1}: {len(name)} characters",
                expected=f"1 to {_LONGEST_NAME} printable characters",
                remedy="correct the column that names the sites",
            )


def _fingerprint(dealt: SiteSplits) -> str:
    total = hashlib.sha256()
    for split_name, sites in (("train", dealt.train), ("validation", dealt.validation), ("test", dealt.test)):
        for site in sites:
            total.update(f"{split_name}:{len(site.name)}:{site.name}:".encode())
            for example in (example for subject in site.subjects for example in subject.examples):
                target = example.target
                total.update(example.digest.encode())
                total.update(str(target).encode() if isinstance(target, int) else target.tobytes())
    return total.hexdigest()


def concatenate(parts: Sequence[ArrayData]) -> ArrayData:
    """Several parties' examples one after the other; subjects are numbered on."""
    offsets = np.cumsum([0, *(part.num_subjects for part in parts)])
    return ArrayData(
        images=torch.cat([part.images for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        subject=np.concatenate([part.subject + offset for part, offset in zip(parts, offsets, strict=False)]),
        volume=np.concatenate([part.volume for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        spacing_mm=tuple(spacing for part in parts for spacing in part.spacing_mm),
        num_subjects=int(offsets[-1]),
    )


def _label_counts(site: Site, class_names: tuple[str, ...]) -> dict[str, int]:
    """Images per class; for masks, images that hold the class."""
    counts = dict.fromkeys(class_names, 0)
    for subject in site.subjects:
        for example in subject.examples:
            present = [example.target] if isinstance(example.target, int) else np.unique(example.target).tolist()
            for label in present:
                counts[class_names[label]] += 1
    return counts
