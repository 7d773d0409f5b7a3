"""Synthetic images: whether a network was read right, and how far its program is off."""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from medveil.encrypted.compiler import bounds
from medveil.encrypted.compiler.fronts import feature_range
from medveil.encrypted.compiler.trace import Traced
from medveil.encrypted.program import Shape
from medveil.errors import ModelError

_TOLERANCE: Final = 1e-6
_COARSE: Final = 4
_BRIGHT: Final = 0.75
_INTERPOLATIONS: Final = {2: "bilinear", 3: "trilinear"}


def of_images(traced: Traced, input_shape: Shape, input_range: tuple[float, float], probes: Tensor) -> bounds.Range:
    """What is known of what the program reads: images, or fixed features of them.

    Raises:
        ModelError: features that leave their range.
    """
    low, high = input_range
    if traced.front_path is None:
        return _box(low, high, input_shape, probes)
    front = traced.plain.get_submodule(traced.front_path)
    features = front(probes)
    lows, highs, _ = feature_range(front, input_shape, low, high)
    if bool((features < lows).any()) or bool((features > highs).any()):
        raise ModelError(
            "Fixed features leave the range that was worked out for them",
            got=type(front).__name__,
            expected="features as the zoo computes them",
            remedy="report it, with the configuration of the network",
        )
    return _box(lows.min().item(), highs.max().item(), tuple(lows.shape), features)


def _box(low: float, high: float, shape: Shape, probes: Tensor) -> bounds.Range:
    """All numbers of the input between two: what the hospital can check before it sends anything."""
    ones = torch.ones(shape, dtype=torch.float64)
    norm = max(abs(low), abs(high)) * math.sqrt(ones.numel())
    return bounds.of_input(low * ones, high * ones, norm, probes)


def synthetic(shape: Shape, input_range: tuple[float, float]) -> Tensor:
    """Synthetic images in the range: rough, black and white areas, bright areas; shape (3, *shape), float64."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(shape, generator=generator, dtype=torch.float64)
    smooth = torch.rand(shape, generator=generator, dtype=torch.float64)
    axes = len(shape) - 1
    if axes in _INTERPOLATIONS:
        coarse = torch.rand((1, shape[0], *(_COARSE,) * axes), generator=generator, dtype=torch.float64)
        smooth = functional.interpolate(coarse, shape[1:], mode=_INTERPOLATIONS[axes], align_corners=True)[0]
    low, high = input_range
    return low + (high - low) * torch.stack([rough, smooth.round(), smooth * (smooth > _BRIGHT)])


def check_answers(
    traced: Traced, probes: Tensor, answers: Tensor, end: Callable[[Tensor], Tensor] = lambda logits: logits
) -> None:
    """What was read must compute what the module computes.

    Args:
        traced: with the module.
        probes: from :func:`synthetic`.
        answers: what the steps made of them.
        end: of the module's logits, what the steps answer.

    Raises:
        ModelError: it does not.
    """
    found = answers if traced.back is None else traced.back(answers)
    expected = end(traced.plain(probes.clone()))
    allowed = _TOLERANCE * (1 + expected.abs().max())
    if found.shape != expected.shape or not bool(((found - expected).abs() <= allowed).all()):
        raise ModelError(
            "The network computes something other than its traced layers",
            got="different answers to the same synthetic images",
            expected="a forward pass that consists of layers and does the same for every image",
            remedy="write it without state, randomness or branches",
        )


def mean_square(held: bounds.Range) -> float:
    """The mean square error of the synthetic image for which it is largest."""
    return (held.trials - held.probes).square().flatten(1).mean(1).max().item()
