"""What is known about a value of the program before any image is seen: its range and its error, number by number.

- Range: interval arithmetic over channels and positions with the weights as they are rounded, and the Cauchy-Schwarz
  bound (norm of a filter times norm of its input) where that is smaller. For every image in the declared range.
- Error: distance to the network in exact arithmetic. Certified: every rounding at its worst, added up through absolute
  weights. It grows with the product of the layers' L1 norms, so it is tight for shallow and very loose for deep
  networks.
- Trials: what a few synthetic images become with rounded weights and with roundings drawn at random, beside their exact
  values. The difference estimates what real images' errors are like; it is no bound.

All numbers are in units of the integer divided by 2**scale.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from medveil.encrypted.compiler.graph import Affine
from medveil.encrypted.program import FRACTION_BITS, Shape

# Narrowing drops bits of both shares, ReLU and rescaling of z and of its mask, one rounded up and one down: at random
# the next integer below or above, right on average.
_DROP_UNITS: Final = 1
# Interval ends are computed in float64.
_FLOAT_SLACK: Final = 1e-9
_POOLS: Final[dict[int, Callable[..., Tensor]]] = {2: functional.max_pool2d, 3: functional.max_pool3d}
_MEANS: Final[dict[int, Callable[..., Tensor]]] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True, eq=False)
class Range:
    """What is known about a value; tensors are float64 of the value's shape.

    Args:
        low: no integer is smaller.
        high: no integer is larger.
        error: certified absolute error.
        probes: the exact values for synthetic images, shape (images, *shape).
        trials: the values with roundings as they may fall, likewise. Both may be of no image.
        norm: the value's L2 norm is at most this.
    """

    low: Tensor
    high: Tensor
    error: Tensor
    probes: Tensor
    trials: Tensor
    norm: float

    @property
    def magnitudes(self) -> Tensor:
        """Largest absolute values."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def bound(self) -> float:
        """Largest absolute value of all."""
        return self.magnitudes.max().item() * (1 + _FLOAT_SLACK)


def of_input(low: Tensor, high: Tensor, norm: float, probes: Tensor) -> Range:
    """An image (or fixed features), rounded to 16 fraction bits."""
    half = 2.0 ** -(FRACTION_BITS + 1)
    error = torch.full_like(low, half)
    grown = norm + half * math.sqrt(low.numel())
    trials = (probes * 2.0**FRACTION_BITS).round() / 2.0**FRACTION_BITS
    return _bounded(Range(low - half, high + half, error, probes, trials, grown))


def linear(value: Range, layer: Affine, weight: Tensor, bias: Tensor) -> Range:
    """A linear layer.

    Args:
        value: read by it.
        layer: in exact arithmetic.
        weight: as it is rounded, float64.
        bias: likewise.
    """
    columns = (-1, *(1,) * (weight.ndim - 2))
    shown, exact = bias.reshape(columns), layer.bias.reshape(columns)
    off, off_bias = weight - layer.weight, shown - exact
    error = layer.apply(value.error[None], weight.abs())[0]
    error = error + layer.apply((value.magnitudes + value.error)[None], off.abs())[0] + off_bias.abs()
    low, high = _ends(value, layer, weight, shown)
    # A fully connected layer stretches no vector by more than its Frobenius norm.
    norm = math.inf if layer.kind != "linear" else (weight.norm() * value.norm + bias.norm()).item()
    probes, trials = layer.apply(value.probes, layer.weight) + exact, layer.apply(value.trials, weight) + shown
    return _bounded(Range(low, high, error, probes, trials, norm))


def reach(value: Range, layer: Affine) -> float:
    """Largest absolute value after a linear layer in exact arithmetic."""
    low, high = _ends(value, layer, layer.weight, layer.bias.reshape(-1, *(1,) * (layer.weight.ndim - 2)))
    return torch.maximum(low.abs(), high.abs()).max().item()


def _ends(value: Range, layer: Affine, weight: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest values after a layer with these weights and this bias, reshaped for its result."""
    middle = layer.apply(((value.low + value.high) / 2)[None], weight)[0] + shown
    radius = layer.apply(((value.high - value.low) / 2)[None], weight.abs())[0]
    radius = radius + _FLOAT_SLACK * (middle.abs() + radius)
    longest = (layer.by_output(weight).norm(dim=1) * value.norm).reshape(shown.shape)
    return torch.maximum(middle - radius, shown - longest), torch.minimum(middle + radius, shown + longest)


def dropped(value: Range, drop: int, scale: int) -> Range:
    """After the last ``drop`` bits were dropped, with ``scale`` fraction bits left: narrowing and rescaling."""
    units = _DROP_UNITS if drop else 0
    return _rounded(_tried(value, drop, scale), 2.0**-scale, below=units, above=units)


def rectified(value: Range, limit: float | None, drop: int, scale: int) -> Range:
    """After ReLU.

    Args:
        value: of the narrow ring.
        limit: larger values are noticed, or None.
        drop: bits that it drops.
        scale: fraction bits that are left.
    """
    high = value.high if limit is None else value.high.clamp(max=limit)
    cut = replace(
        _tried(value, drop, scale),
        low=value.low.clamp(min=0),
        high=high.clamp(min=0),
        probes=value.probes.relu(),
    )
    cut = replace(cut, trials=torch.where(value.trials > 0, cut.trials, 0.0))
    # The sign of a value of one narrow unit may be misread, which is at most one unit of the result.
    return _rounded(cut, 2.0**-scale, below=_DROP_UNITS, above=_DROP_UNITS)


def maximum(value: Range, kernel: Shape, stride: Shape, padding: Shape, scale: int) -> Range:
    """After maximum pooling at ``scale`` fraction bits; each comparison may misread a difference of one unit."""
    pool = _POOLS[len(kernel)]
    low, high, error = (pool(each[None], kernel, stride, padding)[0] for each in (value.low, value.high, value.error))
    probes, trials = (pool(each, kernel, stride, padding) for each in (value.probes, value.trials))
    overlap = math.prod(math.ceil(side / step) for side, step in zip(kernel, stride, strict=True))
    pooled = Range(low, high, error, probes, trials, value.norm * math.sqrt(overlap))
    return _rounded(pooled, 2.0**-scale, below=sum(kernel) - len(kernel), above=0)


def summed(value: Range, kernel: Shape, shift: int) -> Range:
    """After the sum over windows, divided by 2**shift."""
    factor = math.prod(kernel) / 2.0**shift

    def pool(each: Tensor, by: float) -> Tensor:
        return _MEANS[len(kernel)](each, kernel) * by

    low, high, error = (pool(each[None], factor)[0] for each in (value.low, value.high, value.error))
    grown = value.norm * math.sqrt(math.prod(kernel)) / 2.0**shift
    return _bounded(Range(low, high, error, pool(value.probes, factor), pool(value.trials, factor), grown))


def added(values: Sequence[Range], factors: Sequence[float]) -> Range:
    """The sum of the values, each times its factor > 0."""

    def total(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part * factor for part, factor in zip(parts, factors, strict=True)]).sum(0)

    return _bounded(
        Range(
            total([each.low for each in values]),
            total([each.high for each in values]),
            total([each.error for each in values]),
            total([each.probes for each in values]),
            total([each.trials for each in values]),
            sum(each.norm * factor for each, factor in zip(values, factors, strict=True)),
        )
    )


def joined(values: Sequence[Range], factors: Sequence[float]) -> Range:
    """The values behind each other along the channels, each times its factor > 0."""

    def behind(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)], axis)

    return _bounded(
        Range(
            behind([each.low for each in values]),
            behind([each.high for each in values]),
            behind([each.error for each in values]),
            behind([each.probes for each in values], axis=1),
            behind([each.trials for each in values], axis=1),
            math.hypot(*(each.norm * factor for each, factor in zip(values, factors, strict=True))),
        )
    )


def repeated(value: Range, factors: Shape) -> Range:
    """After nearest upsampling."""

    def spread(each: Tensor) -> Tensor:
        for axis, by in zip(range(-len(factors), 0), factors, strict=True):
            each = each.repeat_interleave(by, dim=axis)
        return each

    return Range(
        spread(value.low),
        spread(value.high),
        spread(value.error),
        spread(value.probes),
        spread(value.trials),
        value.norm * math.sqrt(math.prod(factors)),
    )


def reshaped(value: Range, shape: Shape) -> Range:
    """The same numbers in another shape."""
    low, high, error = (each.reshape(shape) for each in (value.low, value.high, value.error))
    probes, trials = (each.reshape(len(each), *shape) for each in (value.probes, value.trials))
    return Range(low, high, error, probes, trials, value.norm)


def _tried(value: Range, drop: int, scale: int) -> Range:
    """Trials without their last ``drop`` bits: what is rounded up and what is rounded down is drawn at random."""
    if not drop:
        return value
    generator = torch.Generator().manual_seed(value.trials.numel())
    carried = torch.rand(value.trials.shape, generator=generator, dtype=torch.float64)
    return replace(value, trials=(value.trials * 2.0**scale + carried).floor() / 2.0**scale)


def _rounded(value: Range, unit: float, *, below: int, above: int) -> Range:
    worst = max(below, above) * unit
    return _bounded(
        Range(
            value.low - below * unit,
            value.high + above * unit,
            value.error + worst,
            value.probes,
            value.trials,
            value.norm + worst * math.sqrt(value.low.numel()),
        )
    )


def _bounded(value: Range) -> Range:
    """Both bounds on the range sharpen each other."""
    norm = min(value.norm, value.magnitudes.norm().item() * (1 + _FLOAT_SLACK))
    return replace(value, low=value.low.clamp(min=-norm), high=value.high.clamp(max=norm), norm=norm)
