"""What is known about a value of the program before any image is seen: its range and its error, number by number.

- Range: interval arithmetic over channels and positions with the weights as they are rounded, and the Cauchy-Schwarz
  bound (norm of a filter times norm of its input) where that is smaller. For every image in the declared range.
- Error: distance to the network in exact arithmetic. Certified: every rounding at its worst, added up through absolute
  weights. It grows with the product of the layers' L1 norms, so it is tight for shallow and very loose for deep
  networks.
- Variance: the same with roundings as independent random variables, added up through squared weights, with the
  activations of a few synthetic images in place of their bounds. An estimate of the mean square error, not a bound.

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

# Narrowing drops bits of both shares: below the exact quotient by less than two units, by one on average.
_NARROW_UNITS: Final = 2
_NARROW_SQUARE: Final = 7 / 6
# ReLU and rescaling drop bits of z and of its mask: at random the next integer below or above, right on average.
_DROP_UNITS: Final = 1
_DROP_SQUARE: Final = 1 / 6
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
        variance: estimate of the mean square error.
        probes: the exact values for synthetic images, shape (images, *shape).
        norm: the value's L2 norm is at most this.
    """

    low: Tensor
    high: Tensor
    error: Tensor
    variance: Tensor
    probes: Tensor
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
    return _bounded(Range(low - half, high + half, error, error.square() / 3, probes, grown))


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
    middle = layer.apply(((value.low + value.high) / 2)[None], weight)[0] + shown
    wide = torch.stack([(value.high - value.low) / 2, value.error])
    radius, error = layer.apply(wide, weight.abs())
    error = error + layer.apply((value.magnitudes + value.error)[None], off.abs())[0] + off_bias.abs()
    variance = layer.apply(value.variance[None], weight.square())[0]
    moments = value.probes.square().mean(0)[None]
    variance = variance + layer.apply(moments, off.square())[0] + off_bias.square()
    radius = radius + _FLOAT_SLACK * (middle.abs() + radius)
    reach = (layer.by_output(weight).norm(dim=1) * value.norm).reshape(columns)
    low, high = torch.maximum(middle - radius, shown - reach), torch.minimum(middle + radius, shown + reach)
    # A fully connected layer stretches no vector by more than its Frobenius norm.
    norm = math.inf if layer.kind != "linear" else (weight.norm() * value.norm + bias.norm()).item()
    return _bounded(Range(low, high, error, variance, layer.apply(value.probes, layer.weight) + exact, norm))


def narrowed(value: Range, kept: int) -> Range:
    """In the narrow ring with ``kept`` fraction bits."""
    return _rounded(value, 2.0**-kept, below=_NARROW_UNITS, above=0, square=_NARROW_SQUARE)


def rescaled(value: Range, drop: int) -> Range:
    """From the narrow ring back to 16 fraction bits."""
    units = _DROP_UNITS if drop else 0
    return _rounded(value, 2.0**-FRACTION_BITS, below=units, above=units, square=_DROP_SQUARE if drop else 0)


def rectified(value: Range, limit: float | None) -> Range:
    """After ReLU, with 16 fraction bits.

    Args:
        value: of the narrow ring.
        limit: larger values are noticed, or None.
    """
    high = value.high if limit is None else value.high.clamp(max=limit)
    alive = (value.probes > 0).double().mean(0)
    cut = replace(
        value,
        low=value.low.clamp(min=0),
        high=high.clamp(min=0),
        variance=value.variance * alive,
        probes=value.probes.relu(),
    )
    # The sign of a value of one narrow unit may be misread, which is at most one unit of the result.
    return _rounded(cut, 2.0**-FRACTION_BITS, below=_DROP_UNITS, above=_DROP_UNITS, square=_DROP_SQUARE)


def maximum(value: Range, kernel: Shape, stride: Shape, padding: Shape, scale: int) -> Range:
    """After maximum pooling at ``scale`` fraction bits; each comparison may misread a difference of one unit."""
    pool = _POOLS[len(kernel)]
    low, high, error, variance = (
        pool(each[None], kernel, stride, padding)[0] for each in (value.low, value.high, value.error, value.variance)
    )
    overlap = math.prod(math.ceil(side / step) for side, step in zip(kernel, stride, strict=True))
    pooled = Range(
        low, high, error, variance, pool(value.probes, kernel, stride, padding), value.norm * math.sqrt(overlap)
    )
    return _rounded(pooled, 2.0**-scale, below=sum(kernel) - len(kernel), above=0, square=0)


def summed(value: Range, kernel: Shape, shift: int) -> Range:
    """After the sum over windows, divided by 2**shift."""
    factor = math.prod(kernel) / 2.0**shift

    def pool(each: Tensor, by: float) -> Tensor:
        return _MEANS[len(kernel)](each, kernel) * by

    low, high, error = (pool(each[None], factor)[0] for each in (value.low, value.high, value.error))
    variance = pool(value.variance[None], factor / 2.0**shift)[0]
    grown = value.norm * math.sqrt(math.prod(kernel)) / 2.0**shift
    return _bounded(Range(low, high, error, variance, pool(value.probes, factor), grown))


def added(values: Sequence[Range], factors: Sequence[float]) -> Range:
    """The sum of the values, each times its factor > 0."""

    def total(parts: Sequence[Tensor], power: int = 1) -> Tensor:
        return torch.stack([part * factor**power for part, factor in zip(parts, factors, strict=True)]).sum(0)

    return _bounded(
        Range(
            total([each.low for each in values]),
            total([each.high for each in values]),
            total([each.error for each in values]),
            total([each.variance for each in values], 2),
            total([each.probes for each in values]),
            sum(each.norm * factor for each, factor in zip(values, factors, strict=True)),
        )
    )


def joined(values: Sequence[Range], factors: Sequence[float]) -> Range:
    """The values behind each other along the channels, each times its factor > 0."""

    def behind(parts: Sequence[Tensor], axis: int = 0, power: int = 1) -> Tensor:
        return torch.cat([part * factor**power for part, factor in zip(parts, factors, strict=True)], axis)

    return _bounded(
        Range(
            behind([each.low for each in values]),
            behind([each.high for each in values]),
            behind([each.error for each in values]),
            behind([each.variance for each in values], power=2),
            behind([each.probes for each in values], axis=1),
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
        spread(value.variance),
        spread(value.probes),
        value.norm * math.sqrt(math.prod(factors)),
    )


def reshaped(value: Range, shape: Shape) -> Range:
    """The same numbers in another shape."""
    low, high, error, variance = (each.reshape(shape) for each in (value.low, value.high, value.error, value.variance))
    return Range(low, high, error, variance, value.probes.reshape(len(value.probes), *shape), value.norm)


def _rounded(value: Range, unit: float, *, below: int, above: int, square: float) -> Range:
    worst = max(below, above) * unit
    return _bounded(
        Range(
            value.low - below * unit,
            value.high + above * unit,
            value.error + worst,
            value.variance + square * unit**2,
            value.probes,
            value.norm + worst * math.sqrt(value.low.numel()),
        )
    )


def _bounded(value: Range) -> Range:
    """Both bounds on the range sharpen each other."""
    norm = min(value.norm, value.magnitudes.norm().item() * (1 + _FLOAT_SLACK))
    return replace(value, low=value.low.clamp(min=-norm), high=value.high.clamp(max=norm), norm=norm)
