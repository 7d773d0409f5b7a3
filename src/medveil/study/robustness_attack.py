"""Hostile sites, for the robustness study only: nothing of this runs in an ordinary training."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Literal, get_args

import numpy as np
import torch

from medveil.errors import ConfigError
from medveil.federation.site import Floats, LocalResult, Work, change
from medveil.federation.stages import Pipeline
from medveil.rng import Seeds
from medveil.study.prepare import Party, Prepared
from medveil.training.arrays import ArrayData

AttackKind = Literal["sign-flip", "scaling", "backdoor"]
ATTACKS: tuple[AttackKind, ...] = get_args(AttackKind)
_BRIGHTEST_BYTE = 255
# The patch's side is this part of the image's shortest side.
_PATCH = 7
_SMALLEST_PATCH = 2


@dataclass(frozen=True)
class Attack:
    """What every hostile site does, in every round.

    Args:
        kind: "sign-flip" sends its change times -1, "scaling" times ``scale``; "backdoor" trains on poisoned images
            and sends what it learnt times ``scale`` (model replacement, Bagdasaryan et al. 2020, arXiv 1807.00459).
        scale: > 0; with as many sites as ``scale``, one attacker's model replaces the mean.
        target: class that a poisoned image is said to have.
        share: of the training images that are poisoned, in (0, 1].

    Raises:
        ConfigError: scale or share out of range, or no such kind.
    """

    kind: AttackKind
    scale: float = 10.0
    target: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            raise ConfigError("There is no such attack", got=self.kind, expected=", ".join(ATTACKS))
        if not 0 < self.scale <= 2.0**20 or not 0 < self.share <= 1 or self.target < 0:
            raise ConfigError(
                "An attack's settings are out of range",
                got=f"scale {self.scale}, share {self.share}, target {self.target}",
                expected="0 < scale <= 2**20, 0 < share <= 1, target a class index",
            )

    @property
    def factor(self) -> float:
        """What a hostile site's change is multiplied by."""
        return -1.0 if self.kind == "sign-flip" else self.scale


@dataclass(frozen=True, eq=False)
class _Wrapped:
    """A site's work with another training; data, validation and size stay what they are."""

    work: Work

    @property
    def num_examples(self) -> int | None:
        """As the site has it."""
        return self.work.num_examples

    @property
    def num_validation(self) -> int:
        """As the site has it."""
        return self.work.num_validation

    def validate(self, weights: Floats, buffers: Floats) -> dict[str, float | None]:
        """As the site does it."""
        return self.work.validate(weights, buffers)


@dataclass(frozen=True, eq=False)
class Tampered(_Wrapped):
    """A site's work whose change is multiplied by ``factor``; data, validation and size stay what they are.

    Args:
        work: that the site would do.
        factor: of the change, or of the clipped and noisy sum in a distributed plan.
    """

    factor: float

    def train(self, round_number: int, weights: Floats, buffers: Floats) -> LocalResult:
        """The site's result with its change multiplied; running statistics are left alone."""
        local = self.work.train(round_number, weights, buffers)
        if local.form == "grid":
            return replace(local, values=np.rint(local.values * self.factor).astype(np.int64))
        moved = self.factor * change(local, weights)
        values = moved if local.form == "mean" else weights.astype(np.float64) + moved
        return replace(local, values=values.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Watched(_Wrapped):
    """A site's work whose change is measured on its way.

    Args:
        work: that the site does.
        tell: called with the L2 norm of every change.
    """

    tell: Callable[[float], None]

    def train(self, round_number: int, weights: Floats, buffers: Floats) -> LocalResult:
        """The site's own result."""
        local = self.work.train(round_number, weights, buffers)
        self.tell(float(np.linalg.norm(change(local, weights))))
        return local


@dataclass(frozen=True)
class Hostility:
    """Which sites are hostile, as :attr:`medveil.study.arms.Workshop.tamper` takes it.

    Args:
        attack: what they do.
        sites: their names; every other site's work and stages are handed back as they came.
        obeys_stages: whether hostile sites run the plan's stages all the same (a broken site, or one where only the
            data and the training are in the attacker's hands). Otherwise they leave them out: nobody can see it.
    """

    attack: Attack
    sites: Collection[str]
    obeys_stages: bool = False

    def __call__(self, site: str, work: Work, pipeline: Pipeline) -> tuple[Work, Pipeline]:
        """A site's work and stages as it really uses them."""
        if site not in self.sites:
            return work, pipeline
        return Tampered(work, self.attack.factor), pipeline if self.obeys_stages else Pipeline()


def hostile_sites(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """``count`` of the sites, drawn by the seed; a larger count adds to a smaller one's.

    Raises:
        ConfigError: no honest site would be left.
    """
    if not 0 <= count < len(names):
        raise ConfigError("No honest site would be left", got=f"{count} of {len(names)}", expected="fewer")
    ordered = sorted(names)
    order = Seeds(seed).child("hostile").numpy().permutation(len(ordered))
    return tuple(sorted(ordered[at] for at in order[:count]))


def poisoned(prepared: Prepared, attack: Attack, sites: Collection[str], seed: int) -> Prepared:
    """The data with the hostile sites' training images poisoned; for other attacks the data as they are.

    Raises:
        ConfigError: a backdoor needs classes, and the target must be one.
    """
    if attack.kind != "backdoor":
        return prepared
    check_target(prepared, attack.target)
    seeds = Seeds(seed).child("poison")
    parties = tuple(
        replace(party, train=_poison(party, attack, seeds.child(party.name))) if party.name in sites else party
        for party in prepared.sites
    )
    return replace(prepared, sites=parties)


def check_target(prepared: Prepared, target: int) -> None:
    """Refuse a backdoor without classes, or whose target is none of them.

    Raises:
        ConfigError: as said.
    """
    if prepared.dataset.task != "classification" or target >= prepared.num_classes:
        raise ConfigError(
            "A backdoor needs a class to point to",
            got=f"class {target}, {prepared.dataset.task}",
            expected=f"classification, and a class from 0 to {prepared.num_classes - 1}",
            remedy="leave the backdoor out of --attacks, or correct --target",
        )


def _poison(party: Party, attack: Attack, seeds: Seeds) -> ArrayData:
    data = party.train
    count = max(1, round(attack.share * len(data)))
    rows = torch.from_numpy(seeds.numpy().permutation(len(data))[:count].copy())
    images, targets = data.images.clone(), data.targets.clone()
    images[rows] = stamped(images[rows])
    targets[rows] = attack.target
    return replace(data, images=images, targets=targets)


def stamped(images: torch.Tensor) -> torch.Tensor:
    """Copies of images with the trigger: a patch of the brightest value in the last corner of every channel.

    Args:
        images: shape (N, channels, *spatial); bytes take 255, floats each image's own largest value.

    Returns:
        Same shape. The patch's side is a seventh of the shortest side, and at least 2 pixels.
    """
    spatial = images.shape[2:]
    side = max(_SMALLEST_PATCH, round(min(spatial) / _PATCH))
    corner: list[EllipsisType | slice] = [..., *(slice(-side, None) for _ in spatial)]
    result = images.clone()
    if images.dtype == torch.uint8:
        result[tuple(corner)] = _BRIGHTEST_BYTE
    elif len(images):
        brightest = images.flatten(1).amax(dim=1)
        result[tuple(corner)] = brightest.reshape(-1, *(1 for _ in images.shape[1:]))
    return result
