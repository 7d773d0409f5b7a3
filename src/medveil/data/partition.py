"""Deal subjects out to sites: by a column that names real ones, or by an artificial rule.

Artificial sites simulate a federation inside one data set; a record says which rule was used.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.data.allotment import allot
from medveil.data.splits import SplitSet
from medveil.data.subject import Subject
from medveil.errors import PartitionError
from medveil.rng import Seeds

_ATTEMPTS = 200
_ROUNDING = 1e-6

Shares = Mapping[str, NDArray[np.float64]]


class _Partition(Config):
    """What every rule has.

    Attributes:
        min_subjects: fewest training subjects a site may hold.
    """

    min_subjects: int = Field(1, ge=1)


class NaturalPartition(_Partition):
    """Sites as a column of the source names them: hospitals, scanners, laboratories.

    Attributes:
        column: attribute of the subjects.
    """

    kind: Literal["natural"] = "natural"
    column: str = "site"


class IidPartition(_Partition):
    """Equal sites, dealt at random.

    Attributes:
        sites: how many.
    """

    kind: Literal["iid"] = "iid"
    sites: int = Field(ge=1)

    @property
    def count(self) -> int:
        """Number of sites."""
        return self.sites

    def draws(self, names: Sequence[str], seeds: Seeds) -> Iterator[Shares]:  # noqa: ARG002 - nothing is random
        """The one set of shares: equal."""
        yield dict.fromkeys(names, np.full(self.sites, 1 / self.sites))


class DirichletPartition(_Partition):
    """Label skew: every class is shared out over the sites by its own Dirichlet draw.

    Attributes:
        sites: how many.
        alpha: > 0; small means that sites see few classes, large approaches "iid".
        column: skew this attribute in place of the class; needed for segmentation.

    Reference:
        Hsu, Qi and Brown 2019, https://arxiv.org/abs/1909.06335; drawn anew while a site is too small, as in
        Li et al. 2022, https://arxiv.org/abs/2102.02079
    """

    kind: Literal["dirichlet"] = "dirichlet"
    sites: int = Field(ge=1)
    alpha: float = Field(0.5, gt=0)
    column: str | None = None

    @property
    def count(self) -> int:
        """Number of sites."""
        return self.sites

    def draws(self, names: Sequence[str], seeds: Seeds) -> Iterator[Shares]:
        """Draws of the shares, one vector for each class."""
        for attempt in range(_ATTEMPTS):
            node = seeds.child(attempt)
            yield {name: _dirichlet(self.alpha, self.sites, node.child(name)) for name in names}


class QuantityPartition(_Partition):
    """Quantity skew: sites of unequal size, equal in everything else.

    Attributes:
        sites: how many; may be left out where ``fractions`` is given.
        alpha: > 0, of the Dirichlet draw of the sizes; small means very unequal.
        fractions: explicit shares in place of a draw, positive, adding up to 1.
    """

    kind: Literal["quantity"] = "quantity"
    sites: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0)
    fractions: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _sizes_are_given_once(self) -> Self:
        if (self.fractions is None) == (self.alpha is None):
            message = "give either alpha or fractions"
            raise ValueError(message)
        if self.fractions is None and self.sites is None:
            message = "alpha needs the number of sites"
            raise ValueError(message)
        if self.fractions is not None:
            _check_fractions(self.fractions, self.sites)
        return self

    @property
    def count(self) -> int:
        """Number of sites."""
        return len(self.fractions) if self.fractions is not None else self.sites or 0

    def draws(self, names: Sequence[str], seeds: Seeds) -> Iterator[Shares]:
        """The given fractions, or draws of them."""
        if self.fractions is not None:
            yield dict.fromkeys(names, np.asarray(self.fractions) / sum(self.fractions))
        elif self.alpha is not None:
            for attempt in range(_ATTEMPTS):
                yield dict.fromkeys(names, _dirichlet(self.alpha, self.count, seeds.child(attempt)))


def _check_fractions(fractions: tuple[float, ...], sites: int | None) -> None:
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > _ROUNDING:
        message = "fractions must be positive and add up to 1"
        raise ValueError(message)
    if sites not in {None, len(fractions)}:
        message = "sites and fractions disagree about the number of sites"
        raise ValueError(message)


def _dirichlet(alpha: float, sites: int, seeds: Seeds) -> NDArray[np.float64]:
    shares = seeds.numpy().dirichlet(np.full(sites, alpha))
    # A tiny alpha underflows to nothing at all: then one site takes everything.
    if not np.isfinite(shares).all() or shares.sum() == 0:
        shares = np.eye(sites)[seeds.child("one").numpy().integers(sites)]
    return np.asarray(shares / shares.sum(), np.float64)


ArtificialPartition = IidPartition | DirichletPartition | QuantityPartition
Partition = Annotated[NaturalPartition | ArtificialPartition, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Site:
    """A hospital of the federation and the subjects it holds.

    Args:
        name: unique among the sites.
        subjects: sorted by id; may be empty in a validation or test set only.
    """

    name: str
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, eq=False)
class SiteSplits:
    """The sites of every split: the same names in the same order in all three.

    Args:
        train: every site holds at least ``min_subjects``.
        validation: a site may be empty here.
        test: a site may be empty here.
    """

    train: tuple[Site, ...]
    validation: tuple[Site, ...]
    test: tuple[Site, ...]


def partition(subjects: Sequence[Subject], config: Partition, seeds: Seeds) -> tuple[Site, ...]:
    """Deal subjects out to sites.

    Args:
        subjects: in any order; the order does not change the result.
        config: the rule.
        seeds: the same seeds give the same sites.

    Returns:
        Sites whose subjects are exactly ``subjects``, each in one site, at least ``min_subjects`` in each.

    Raises:
        PartitionError: a site would be too small, or the column is missing.
    """
    return _partition([subjects], config, seeds)[0]


def partition_splits(splits: SplitSet, config: Partition, seeds: Seeds) -> SiteSplits:
    """Deal out all three splits by one rule, so that every site has its own validation and test subjects.

    A random rule is drawn once: a site that is rich in a class in training is so in the test.

    Raises:
        PartitionError: a site would hold fewer than ``min_subjects`` training subjects, or the column is
            missing.
    """
    return SiteSplits(*_partition([splits.train, splits.validation, splits.test], config, seeds))


Deal = tuple[Site, ...]
Strata = dict[str, list[Subject]]


def _partition(parts: Sequence[Sequence[Subject]], config: Partition, seeds: Seeds) -> list[Deal]:
    """Deal out several sets by one rule; the first is held to ``min_subjects``."""
    parts = [sorted(part, key=lambda subject: subject.subject_id) for part in parts]
    if isinstance(config, NaturalPartition):
        deals = _natural(parts, config.column)
    else:
        deals = _artificial([_strata(part, config) for part in parts], config, seeds)
    smallest = min((len(site.subjects) for site in deals[0]), default=0)
    if smallest < config.min_subjects:
        raise PartitionError(
            "A site would hold too few training subjects",
            got=f"{smallest} subjects in the smallest of {len(deals[0])} sites",
            expected=f"at least {config.min_subjects}",
            remedy="take fewer sites, a larger alpha, a lower min_subjects, or more subjects",
        )
    return deals


def _natural(parts: Sequence[Sequence[Subject]], column: str) -> list[Deal]:
    grouped = [_by_column(part, column) for part in parts]
    names = sorted(set().union(*grouped))
    return [tuple(Site(name, tuple(group.get(name, ()))) for name in names) for group in grouped]


def _artificial(strata: Sequence[Strata], config: ArtificialPartition, seeds: Seeds) -> list[Deal]:
    """Draw until every site is large enough; the last draw where none is."""
    names = sorted(set().union(*strata))
    first: Deal = ()
    for shares in config.draws(names, seeds.child("shares")):
        first = _deal(strata[0], shares, config.count, seeds)
        if min(len(site.subjects) for site in first) >= config.min_subjects:
            return [first, *(_deal(part, shares, config.count, seeds) for part in strata[1:])]
    return [first]


def _deal(strata: Strata, shares: Shares, count: int, seeds: Seeds) -> Deal:
    sites: list[list[Subject]] = [[] for _ in range(count)]
    for name, members in sorted(strata.items()):
        order = seeds.child("order", name).numpy().permutation(len(members))
        bounds = np.cumsum(allot(len(members), shares[name]))[:-1]
        for site, chosen in zip(sites, np.split(order, bounds), strict=True):
            site.extend(members[index] for index in chosen)
    width = len(str(count))
    return tuple(
        Site(f"site-{number:0{width}}", tuple(sorted(site, key=lambda subject: subject.subject_id)))
        for number, site in enumerate(sites, start=1)
    )


def _strata(subjects: Sequence[Subject], config: ArtificialPartition) -> Strata:
    if not isinstance(config, DirichletPartition):
        return {"all": list(subjects)}
    if config.column is not None:
        return _by_column(subjects, config.column)
    strata: Strata = defaultdict(list)
    for subject in subjects:
        strata[str(subject.label())].append(subject)
    if "-1" in strata:
        raise PartitionError(
            "Label skew needs one class for each subject, and masks have none",
            got="dirichlet for a segmentation task",
            expected="an attribute to skew",
            remedy='set partition.column to an attribute, or use kind = "quantity", "iid" or "natural"',
        )
    return strata


def _by_column(subjects: Sequence[Subject], column: str) -> Strata:
    missing = sum(column not in subject.attributes for subject in subjects)
    if missing:
        raise PartitionError(
            "The column that names sites or groups is missing",
            got=f"{missing} subjects without the attribute {column!r}",
            expected="a value for every subject",
            remedy='name another column in partition.column, or use kind = "iid"',
        )
    groups: Strata = defaultdict(list)
    for subject in subjects:
        groups[subject.attributes[column]].append(subject)
    return groups
