"""A traced network as plain steps in exact arithmetic.

What :mod:`trace` reads, :mod:`fold` simplifies and :mod:`lower` turns into a program. Shapes leave out the batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from medveil.encrypted.program import LinearKind, Shape

_CONVOLVE: Final[dict[LinearKind, Callable[..., Tensor]]] = {
    "conv2d": functional.conv2d,
    "conv3d": functional.conv3d,
}
_CONVOLVE_TRANSPOSED: Final[dict[LinearKind, Callable[..., Tensor]]] = {
    "conv_transpose2d": functional.conv_transpose2d,
    "conv_transpose3d": functional.conv_transpose3d,
}
# By the number of axes with the channels': which convolution mixes them.
_CONV_BY_RANK: Final[dict[int, LinearKind]] = {3: "conv2d", 4: "conv3d"}


@dataclass(frozen=True)
class Image:
    """The input."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear layer.

    Args:
        kind: which one; the geometry below is as in :class:`medveil.encrypted.program.Linear`.
        weight: float64, as torch has it.
        bias: float64, shape (output channels,).
        stride: one number an axis.
        padding: likewise.
        dilation: likewise.
        output_padding: likewise.
        groups: of channels.
    """

    kind: LinearKind
    weight: Tensor
    bias: Tensor
    stride: Shape = ()
    padding: Shape = ()
    dilation: Shape = ()
    output_padding: Shape = ()
    groups: int = 1

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weights start with the input's channels."""
        return self.kind in _CONVOLVE_TRANSPOSED

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The layer without bias on a batch of inputs, with ``weight`` in place of its own."""
        if self.kind == "linear":
            return functional.linear(values, weight)
        if self.transposed:
            return _CONVOLVE_TRANSPOSED[self.kind](
                values, weight, None, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        return _CONVOLVE[self.kind](values, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def by_output(self, weight: Tensor) -> Tensor:
        """Weights as (output channels, everything that an output channel reads)."""
        if not self.transposed:
            return weight.flatten(1)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.reshape(len(self.bias), -1)


@dataclass(frozen=True, eq=False)
class PerChannel:
    """A factor and a shift, one number of each a channel (batch normalisation after training).

    Args:
        scale: float64, shape (channels,).
        shift: likewise.
    """

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Scale:
    """A product with one number.

    Args:
        value: the factor.
        public: whether it belongs to the structure (a number in the code) or to the weights (a parameter).
    """

    value: float
    public: bool


@dataclass(frozen=True)
class Rectify:
    """max(0, values)."""


@dataclass(frozen=True)
class Maximum:
    """Maximum over windows; one number an axis.

    Args:
        kernel: sides.
        stride: steps.
        padding: on both sides.
    """

    kernel: Shape
    stride: Shape
    padding: Shape


@dataclass(frozen=True)
class Mean:
    """Mean over windows that do not overlap.

    Args:
        kernel: sides, one number an axis.
    """

    kernel: Shape


@dataclass(frozen=True)
class Sum:
    """Sum of all inputs."""


@dataclass(frozen=True)
class Join:
    """Inputs one behind the other along the channels."""


@dataclass(frozen=True)
class Repeat:
    """Nearest upsampling.

    Args:
        factors: one number an axis.
    """

    factors: Shape


@dataclass(frozen=True)
class Rearrange:
    """The same numbers in the same order, in another shape."""


@dataclass(frozen=True)
class Same:
    """Nothing: dropout and identity."""


What = Image | Affine | PerChannel | Scale | Rectify | Maximum | Mean | Sum | Join | Repeat | Rearrange | Same


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a network.

    Args:
        name: of its result.
        layer: dotted path and type, for messages.
        what: it does.
        inputs: names of results.
        shape: of its result.
    """

    name: str
    layer: str
    what: What
    inputs: tuple[str, ...]
    shape: Shape


def count_uses(steps: Iterable[Step]) -> Counter[str]:
    """How often each result is read."""
    return Counter(name for step in steps for name in step.inputs)


def narrowed(steps: Iterable[Step]) -> frozenset[str]:
    """The results that nothing but ReLUs, maxima and linear layers read, which narrow them first."""
    given = list(steps)
    others = {
        name
        for step in given
        if not isinstance(step.what, Rectify | Maximum | Affine | Repeat | Rearrange | Scale)
        for name in step.inputs
    }
    for step in reversed(given):
        if isinstance(step.what, Repeat | Rearrange | Scale) and step.name in others:
            others.update(step.inputs)
    return frozenset(step.name for step in given) - others


def reachable(steps: dict[str, Step], output: str) -> dict[str, Step]:
    """The steps that ``output`` depends on, in their order; the first, the image, always."""
    needed = {output, next(iter(steps))}
    for name in reversed(steps):
        if name in needed:
            needed |= set(steps[name].inputs)
    return {name: step for name, step in steps.items() if name in needed}


def channelwise(scale: Tensor, shift: Tensor, shape: Shape) -> Affine | None:
    """A factor and a shift as a linear layer of its own.

    Args:
        scale: float64, shape (channels,).
        shift: likewise.
        shape: of the values.

    Returns:
        A 1 x 1 convolution with one group a channel, or a diagonal matrix for values without positions; None for
        other shapes.
    """
    if len(shape) == 1:
        return Affine("linear", torch.diag(scale), shift)
    if len(shape) not in _CONV_BY_RANK:
        return None
    axes = len(shape) - 1
    weight = scale.reshape(-1, 1, *(1,) * axes)
    ones, zeros = (1,) * axes, (0,) * axes
    return Affine(_CONV_BY_RANK[len(shape)], weight, shift, ones, zeros, ones, zeros, len(scale))


def windowed(weight: float, channels: int, kernel: Shape, stride: Shape) -> Affine:
    """Every channel's windows summed with equal weights, as a linear layer (means over overlapping windows)."""
    axes = len(kernel)
    filters = torch.full((channels, 1, *kernel), weight, dtype=torch.float64)
    bias = torch.zeros(channels, dtype=torch.float64)
    kind = _CONV_BY_RANK[axes + 1]
    return Affine(kind, filters, bias, stride, (0,) * axes, (1,) * axes, (0,) * axes, channels)
