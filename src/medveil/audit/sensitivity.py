"""How far one unit moves the sum, and whether anything else moves with it: paired runs with the same coins."""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.audit.probes import Probe, adversarial, arrays, not_a_number, ordinary
from medveil.audit.rig import AuditedStep, norm, release, sensitivity_of, with_step
from medveil.audit.verdict import Component
from medveil.dp.clipping import PerLayerClipping, layer_bounds
from medveil.errors import PrivacyError
from medveil.rng import Seeds
from medveil.training.settings import Training
from medveil.training.vectors import trainable

_BYSTANDERS: Final = 2
_COIN_FLIPS: Final = 8
_LOUD: Final = 1e6
_SHARE: Final = 0.1
_NEAR: Final = 0.9
_SHRUNK: Final = 1e-3
_TRIALS: Final = 80


@dataclass
class Reach:
    """The farthest that any unit moved the sum, and how much of it lay in each parameter tensor."""

    shares: NDArray[np.float64]
    moved: float = 0.0
    by: str = "none"
    allowed: float = 0.0
    units: int = 0
    over: list[str] = field(default_factory=list)

    def add(self, name: str, moved: float, allowed: float, shares: NDArray[np.float64]) -> None:
        """One unit's contribution; ``shares`` of its norm by tensor, each against the most it can have."""
        self.units += 1
        if moved >= self.moved:
            self.moved, self.by, self.allowed = moved, name, allowed
        # Written so that NaN fails.
        if not moved <= allowed:
            self.over.append(name)
        np.maximum(self.shares, shares, out=self.shares)


def check_sensitivity(audited: AuditedStep, seeds: Seeds) -> tuple[Component, tuple[str, ...]]:
    """Every unit moves the sum by at most the clipping bound, however large its gradient.

    Args:
        audited: settled.
        seeds: coins and images.

    Returns:
        The component, its figures in clipping bounds, and the parameter tensors in which no unit's contribution could
        be made large: an error in clipping these alone would go unnoticed.
    """
    reach = Reach(np.zeros(len(audited.tensors)))
    try:
        for name, moved, allowed in _contributions(audited, seeds):
            reach.add(name, norm(moved), allowed, _shares(audited, moved))
    except PrivacyError as error:
        return _refused("sensitivity", error), ()
    bound = audited.step.clipping.l2_clip_norm
    hidden = tuple(name for (name, _), share in zip(audited.tensors, reach.shares, strict=True) if share < _SHARE)
    loud = reach.moved >= _NEAR * bound
    said = f"{reach.units} units, most by {reach.by}"
    if reach.over:
        said = f"{len(reach.over)} of {reach.units} units move the sum by more than the bound, most {reach.by}"
    elif not loud:
        said = "no unit reached its bound, so a missing clip would not have been noticed"
    return (
        Component("sensitivity", loud and not reach.over, 1.0, reach.moved / bound, 0.0, reach.allowed / bound, said),
        hidden,
    )


def check_divisor(audited: AuditedStep, seeds: Seeds) -> Component:
    """Whoever is not drawn, or adds nothing, changes nothing: the divisor and the noise do not depend on the data."""
    audited = audited.plainly()
    often = with_step(audited, rate=0.5)
    others = ordinary(audited, _BYSTANDERS, seeds.child("others"))
    newcomer = replace(ordinary(audited, 1, seeds.child("newcomer"))[0], name="newcomer")
    wrong = moved_by_nobody = 0.0
    drawn = 0
    try:
        alone = _moved(with_step(audited, rate=1.0), others, newcomer, seeds.child("alone"))
        for flip in range(_COIN_FLIPS):
            coins = seeds.child("flip", flip)
            moved, error = _moved(often, others, newcomer, coins)
            room = error + alone[1] + 2 * _rounding(audited)
            present = norm(moved) > norm(moved - alone[0])
            drawn += present
            wrong = max(wrong, norm(moved - alone[0] * present) / room)
        for sampled in (often, with_step(audited, rate=1.0)):
            moved, error = _moved(sampled, others, not_a_number(audited), seeds.child("nobody"))
            moved_by_nobody = max(moved_by_nobody, norm(moved) / (error + _rounding(audited)))
    except PrivacyError as error:
        return _refused("divisor", error)
    worst = max(wrong, moved_by_nobody)
    said = f"one more unit, drawn in {drawn} of {_COIN_FLIPS} steps, changes its own contribution and nothing else"
    if not worst <= 1.0:
        said = "a unit that is not drawn, or adds nothing, changes what the others' sum is divided by, or the noise"
    return Component("divisor", worst <= 1.0, 0.0, worst, 0.0, 1.0, said)


def _contributions(audited: AuditedStep, seeds: Seeds) -> Iterator[tuple[str, NDArray[np.float64], float]]:
    """What each unit adds to the sum, and the most that it may."""
    quiet = with_step(audited, rate=1.0, quiet=True)
    amplified = replace(quiet.plainly(), training=_amplified(quiet))
    most = sensitivity_of(audited.step)
    reached = np.zeros(len(audited.tensors))
    others = ordinary(audited, _BYSTANDERS, seeds.child("others"))
    for strength, each in (("", quiet), (", amplified", amplified)):
        for number, probe in enumerate(adversarial(audited, seeds.child("images"))):
            moved, error = _moved(each, others, probe, seeds.child("coins", number))
            np.maximum(reached, _shares(audited, moved), out=reached)
            yield probe.name + strength, moved, most + error
    trials = chain.from_iterable(
        _favouring(amplified, int(index), seeds.child("lopsided"), most) for index in np.flatnonzero(reached < _SHARE)
    )
    yield from islice(trials, _TRIALS)


def _favouring(
    audited: AuditedStep, index: int, seeds: Seeds, most: float
) -> Iterator[tuple[str, NDArray[np.float64], float]]:
    """Contributions under weights that push the gradient into one tensor, until one lies there."""
    noise = ordinary(audited, 1, seeds)[0]
    black = replace(noise, image=torch.zeros_like(noise.image))
    # What nobody adds does not depend on the weights.
    absent = release(audited, arrays(audited, [not_a_number(audited)]), seeds)
    for lopsided in _lopsided(audited, index):
        for probe in (noise, black):
            present = release(lopsided, arrays(lopsided, [not_a_number(lopsided), probe]), seeds)
            with np.errstate(invalid="ignore"):
                moved = present.total - absent.total
            yield f"weights that favour {audited.tensors[index][0]}", moved, most + present.error + absent.error
            if _shares(audited, moved)[index] >= _SHARE:
                return


def _moved(
    audited: AuditedStep, others: Sequence[Probe], unit: Probe, coins: Seeds
) -> tuple[NDArray[np.float64], float]:
    """The difference that ``unit`` makes, and how far float32 may have misread it."""
    present = release(audited, arrays(audited, [*others, unit]), coins)
    absent = release(audited, arrays(audited, others), coins)
    with np.errstate(invalid="ignore"):
        return present.total - absent.total, present.error + absent.error


def _rounding(audited: AuditedStep) -> float:
    """The most that rounding two sums to the grid changes their difference, in L2."""
    return float(np.sqrt(audited.step.noise.dimension)) * audited.step.noise.grid


def _amplified(audited: AuditedStep) -> Training:
    """Class weights that make every gradient far larger than the bound: only a clip can hold it."""
    step = audited.step
    stability = getattr(step.clipping, "stability", 0.0)
    weight = _LOUD * max(1.0, step.clipping.l2_clip_norm, stability)
    training: Training = audited.training.model_copy(update={"class_weights": (weight,) * audited.num_classes})
    return training


def _lopsided(audited: AuditedStep, index: int) -> Iterator[AuditedStep]:
    """Weights with which much of the gradient may lie in one tensor.

    Shrinking a layer weakens what passes it; growing the weights of a normalised one shrinks their gradient.
    """
    tensors = audited.tensors
    owner = tensors[index][0].rpartition(".")[0]
    siblings = {place for place, (name, _) in enumerate(tensors) if name.rpartition(".")[0] == owner}
    before, after = set(range(index)), set(range(index + 1, len(tensors)))
    larger = {place for place, (_, size) in enumerate(tensors) if size > tensors[index][1]}
    for shrunk, grown in (
        ({index}, set()),
        (set(), larger),
        (before | siblings, set()),
        (before, set()),
        (set(), after),
    ):
        if shrunk or grown:
            yield replace(audited, model=_scaled(audited.model, shrunk, grown))


def _scaled(model: torch.nn.Module, shrunk: Collection[int], grown: Collection[int]) -> torch.nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for index, tensor in enumerate(trainable(twin)):
            tensor.mul_(_SHRUNK if index in shrunk else 1.0).mul_(1 / _SHRUNK if index in grown else 1.0)
    return twin


def _shares(audited: AuditedStep, moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norm of each tensor's part, over the bound: of the whole, or under per-layer clipping of that tensor."""
    sizes = [size for _, size in audited.tensors]
    clipping = audited.step.clipping
    bounds = np.full(len(sizes), clipping.l2_clip_norm)
    if isinstance(clipping, PerLayerClipping):
        bounds = np.array(layer_bounds(clipping, sizes))
    parts = np.split(np.nan_to_num(moved), np.cumsum(sizes)[:-1])
    shares: NDArray[np.float64] = np.array([norm(part) for part in parts]) / bounds
    return shares


def _refused(name: str, error: PrivacyError) -> Component:
    said = f"the step refused its own sum: {error.what}"
    return Component(name, passed=False, claimed=None, measured=None, low=None, high=None, finding=said)
