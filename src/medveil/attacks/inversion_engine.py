"""Gradient inversion by optimisation: look for the images whose update points where the observed one points.

Many victims and settings are worked on side by side: what one of them does depends on no other.

References:
    Geiping et al. 2020, arXiv 2003.14053 (cosine distance, total variation, the sign of the gradient in Adam).
    Zhu et al. 2019, arXiv 1906.08935 (targets as unknowns beside the images).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Distance = Literal["global", "layer"]
Simulate = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(network inputs (C, n, channels, *spatial), targets (C, n, ...)) -> an update a candidate, (C, *shape) a parameter.

Differentiable by both.
"""

_BETAS = (0.9, 0.999)
_TINY = 1e-12
_ROUGH_TO_FINE = 100.0
"""How much more the total variation weighs at the start than at the end: found the same images in half the steps."""


@dataclass(frozen=True)
class Recipe:
    """How one search goes.

    Args:
        distance: between updates: "global" compares directions of the whole, "layer" of every parameter tensor on its
            own, which saturated and normalised nets need.
        steps: of the optimiser.
        step_size: of the first steps, in units of the network's input.
    """

    distance: Distance
    steps: int
    step_size: float


def search(
    simulate: Simulate,
    observed: Sequence[Tensor],
    start: Tensor,
    targets: Tensor,
    smoothness: Tensor,
    recipe: Recipe,
    *,
    limits: tuple[float, float],
    soft_targets: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The images (and masks) whose update comes nearest to the observed one.

    Args:
        simulate: what a victim would have sent.
        observed: one tensor a parameter, (C, *shape): every candidate has its own victim.
        start: network inputs to begin with, (C, n, channels, *spatial).
        targets: (C, n) or (C, n, *spatial), int64; with ``soft_targets`` logits (C, n, classes, *spatial) to begin
            with.
        smoothness: weight of the total variation at the end, (C,).
        recipe: of the search.
        limits: least and largest network input.
        soft_targets: whether the targets are unknown too.

    Returns:
        Network inputs (C, n, channels, *spatial); targets, the logits where they were unknown; and the distance of
        every candidate, (C,).
    """
    directions = [_direction(each) for each in observed] if recipe.distance == "layer" else _directions(observed)
    images = start.clone().requires_grad_(True)
    unknown = [images]
    if soft_targets:
        targets = targets.clone().requires_grad_(True)
        unknown.append(targets)
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in unknown]
    distance = torch.full((len(start),), math.inf)
    for step in range(recipe.steps):
        aims = targets.softmax(2) if soft_targets else targets
        distance = _distance(simulate(images, aims), directions, recipe.distance)
        weight = smoothness * _ROUGH_TO_FINE ** (1 - step / recipe.steps)
        loss = distance + weight * total_variation(images)
        found = torch.autograd.grad(loss.sum(), unknown)
        rate = recipe.step_size * _decay(step / recipe.steps)
        with torch.no_grad():
            for variable, gradient, moment in zip(unknown, found, moments, strict=True):
                # Masks' logits live on a larger scale than images.
                reach = rate if variable is images else 4 * rate
                variable.sub_(reach * _adam(torch.nan_to_num(gradient).sign(), moment, step + 1))
            images.clamp_(*limits)
    return images.detach(), targets.detach(), distance.detach()


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, (C, n, channels, *spatial) -> (C,)."""
    parts = [images.diff(dim=axis).abs().flatten(1).mean(1) for axis in range(3, images.ndim)]
    return torch.stack(parts).sum(0)


def _decay(progress: float) -> float:
    """One, then by a cosine down to a hundredth."""
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress))


def _adam(gradient: Tensor, moment: tuple[Tensor, Tensor], step: int) -> Tensor:
    first, second = moment
    first.lerp_(gradient, 1 - _BETAS[0])
    second.lerp_(gradient.square(), 1 - _BETAS[1])
    root = (second / (1 - _BETAS[1] ** step)).sqrt()
    return (first / (1 - _BETAS[0] ** step)) / (root + 1e-8)


def _direction(update: Tensor) -> Tensor:
    flat = update.flatten(1)
    return functional.normalize(flat, dim=1, eps=_TINY)


def _directions(updates: Sequence[Tensor]) -> list[Tensor]:
    return [functional.normalize(torch.cat([each.flatten(1) for each in updates], 1), dim=1, eps=_TINY)]


def _distance(updates: Sequence[Tensor], directions: Sequence[Tensor], kind: Distance) -> Tensor:
    """Half the squared distance of unit vectors: one minus the cosine, without its cancellation; shape (C,)."""
    own = [_direction(each) for each in updates] if kind == "layer" else _directions(updates)
    halves = [(mine - wanted).square().sum(1) / 2 for mine, wanted in zip(own, directions, strict=True)]
    return torch.stack(halves).mean(0)
