"""Exact gradients of single examples for convolutions, plain and standardised."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from medveil.models.standardised import ScaledStdConv, ScaledStdConvTranspose

_BLOCK_BYTES: Final = 2**21
"""Gradients of one call: what a core's cache about holds. Larger calls were up to 2.5 times slower an example."""
_FEW_POSITIONS: Final = 16
_MANY_WEIGHTS: Final = 2**18
"""Fewer positions and more weights than these: a product of matrices an example is faster than a grouped call."""
_VARIANCE_FLOOR: Final = 1e-4
"""As in :mod:`medveil.models.standardised`."""


@dataclass(frozen=True)
class Wanted:
    """What a layer's backward pass shall give besides the gradients of its parameters.

    Attributes:
        inputs: whether the gradient at the inputs is asked for.
        room: memory for the gradients of a parameter, shape (N, *parameter.shape), with any content.
    """

    inputs: bool
    room: Callable[[Tensor], Tensor]


PlainConv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input; one entry an axis.

    Attributes:
        stride: step of the filter.
        padding: zeros on both sides.
        dilation: distance between the filter's entries.
        output_padding: of a transposed convolution.
        groups: blocks of channels that do not see each other.
        transposed: whether the convolution is a transposed one.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool

    def run(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; (N, C, *spatial) -> (N, O, *spatial')."""
        return torch.convolution(
            inputs,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def backward(
        self, inputs: Tensor, weight: Tensor, upstream: Tensor, groups: int, which: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients at the inputs and at the weight, as ``which`` asks for."""
        found = torch.ops.aten.convolution_backward(
            upstream,
            inputs,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            groups,
            (*which, False),
        )
        return found[0], found[1]


def weight_gradients(
    geometry: Geometry, inputs: Tensor, upstream: Tensor, weight: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Gradient of each example with respect to a filter bank that all examples share, some examples at a time.

    Args:
        geometry: of the convolution.
        inputs: shape (N, C, *spatial).
        upstream: gradient at the output, shape (N, O, *spatial').
        weight: shape (O, C / groups, *kernel), or (C, O / groups, *kernel) when transposed; only its shape matters.

    Yields:
        Which examples, and their gradients, shape (examples, *weight.shape), which the receiver may overwrite.
    """
    positions = math.prod((inputs if geometry.transposed else upstream).shape[2:])
    few = positions <= _FEW_POSITIONS and weight.numel() > _MANY_WEIGHTS
    size = max(1, _BLOCK_BYTES // (weight.numel() * weight.element_size()))
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        method = _by_patches if few else _by_grouping
        yield part, method(geometry, inputs[part], upstream[part], weight)


def _by_grouping(geometry: Geometry, inputs: Tensor, upstream: Tensor, weight: Tensor) -> Tensor:
    # Examples side by side as channels, with one group of filters each: one call, nothing is unfolded.
    # Reference: Rochette et al. 2019, https://arxiv.org/abs/1912.06015.
    count = len(inputs)
    rows = weight.new_empty((count * weight.shape[0], *weight.shape[1:]))  # convolution_backward reads its shape only
    _, found = geometry.backward(
        inputs.reshape(1, -1, *inputs.shape[2:]),
        rows,
        upstream.reshape(1, -1, *upstream.shape[2:]),
        count * geometry.groups,
        (False, True),
    )
    assert found is not None
    return found.view(count, *weight.shape)


def _by_patches(geometry: Geometry, inputs: Tensor, upstream: Tensor, weight: Tensor) -> Tensor:
    # Where few positions meet the filter, the patches that it meets are small: one product of matrices an example.
    small, large = (inputs, upstream) if geometry.transposed else (upstream, inputs)
    kernel, groups = weight.shape[2:], geometry.groups
    patches = _patches(geometry, large, small.shape[2:], kernel)
    count, positions = len(small), math.prod(small.shape[2:])
    rows = small.reshape(count * groups, -1, positions)
    if groups == 1:
        return torch.bmm(rows, patches.reshape(count, positions, -1)).view(count, *weight.shape)
    columns = patches.reshape(count, positions, groups, -1).transpose(1, 2)
    return torch.bmm(rows, columns.reshape(count * groups, positions, -1)).view(count, *weight.shape)


def _patches(geometry: Geometry, large: Tensor, positions: torch.Size, kernel: torch.Size) -> Tensor:
    """What the filter meets at each position: a view of shape (N, *positions, channels, *kernel)."""
    pads = [side for length in reversed(geometry.padding) for side in (length, length)]
    padded = functional.pad(large, pads).movedim(1, -1).contiguous()
    count, *strides, _ = padded.stride()
    along = [stride * step for stride, step in zip(strides, geometry.stride, strict=True)]
    inside = [stride * step for stride, step in zip(strides, geometry.dilation, strict=True)]
    return padded.as_strided((len(large), *positions, large.shape[1], *kernel), (count, *along, 1, *inside))


class ConvRule:
    """A plain convolution, transposed or not, over one to three axes.

    Args:
        module: with zero padding given as numbers.
    """

    def __init__(self, module: PlainConv) -> None:
        self._module = module
        self._geometry = Geometry(
            stride=module.stride,
            padding=tuple(int(length) for length in module.padding),
            dilation=module.dilation,
            output_padding=module.output_padding,
            groups=module.groups,
            transposed=module.transposed,
        )

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's answer and what :meth:`backward` needs."""
        return self._geometry.run(inputs, self._module.weight, self._module.bias), (inputs,)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradient at the inputs if asked for, and one an example for each trainable parameter."""
        module, geometry = self._module, self._geometry
        (images,) = saved
        upstream = upstream.contiguous()
        before, _ = geometry.backward(images, module.weight, upstream, module.groups, (wanted.inputs, False))
        found: dict[str, Tensor] = {}
        if module.weight.requires_grad:
            found["weight"] = wanted.room(module.weight)
            for part, rows in weight_gradients(geometry, images, upstream, module.weight):
                found["weight"][part] = rows
        if module.bias is not None and module.bias.requires_grad:
            found["bias"] = upstream.flatten(2).sum(2)
        return before, found


class StandardisedRule:
    """A convolution with standardised filters: the standardisation is undone once, on the gradients of the filters.

    Args:
        module: of the zoo.
    """

    def __init__(self, module: ScaledStdConv | ScaledStdConvTranspose) -> None:
        self._module = module
        axes = module.spatial_dims
        dilation = module.dilation if isinstance(module, ScaledStdConv) else 1
        self._geometry = Geometry(
            stride=(module.stride,) * axes,
            padding=(module.padding,) * axes,
            dilation=(dilation,) * axes,
            output_padding=(0,) * axes,
            groups=1,
            transposed=isinstance(module, ScaledStdConvTranspose),
        )

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's answer and what :meth:`backward` needs."""
        unit, inverse = self._standardise()
        weight = self._filters(unit)
        return self._geometry.run(inputs, weight, self._module.bias), (inputs, weight, unit, inverse)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradient at the inputs if asked for, and one an example for each trainable parameter."""
        module, geometry = self._module, self._geometry
        images, weight, unit, inverse = saved
        upstream = upstream.contiguous()
        before, _ = geometry.backward(images, weight, upstream, 1, (wanted.inputs, False))
        found: dict[str, Tensor] = {}
        if module.weight.requires_grad or module.gain.requires_grad:
            found |= self._pulled_back(images, upstream, unit, inverse, wanted.room(module.weight))
        if module.bias.requires_grad:
            found["bias"] = upstream.flatten(2).sum(2)
        return before, {name: rows for name, rows in found.items() if getattr(module, name).requires_grad}

    def _standardise(self) -> tuple[Tensor, Tensor]:
        """Filters of mean 0 and variance about 1, shape (out, F), and 1 / (their standard deviation), (out, 1)."""
        weight = self._module.weight
        rows = (weight.transpose(0, 1) if self._geometry.transposed else weight).flatten(1)
        fan_in = rows.shape[1]
        unit, _, inverse = torch.native_layer_norm(rows, (fan_in,), None, None, _VARIANCE_FLOOR / fan_in)
        return unit, inverse

    def _filters(self, unit: Tensor) -> Tensor:
        """As in :func:`medveil.models.standardised.standardise`, in the shape of the weight."""
        module, shape = self._module, self._module.weight.shape
        rows = unit * (module.gain * (module.scale / math.sqrt(unit.shape[1])))
        if not self._geometry.transposed:
            return rows.view(shape)
        return rows.view(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()

    def _pulled_back(
        self, images: Tensor, upstream: Tensor, unit: Tensor, inverse: Tensor, found: Tensor
    ) -> dict[str, Tensor]:
        """Gradients at weight (in ``found``) and gain, from those at the standardised filters."""
        module, transposed = self._module, self._geometry.transposed
        factor = module.scale / math.sqrt(unit.shape[1])
        gain = images.new_empty((len(images), *module.gain.shape))
        by_output = found.transpose(1, 2) if transposed else found
        for part, rows in weight_gradients(self._geometry, images, upstream, module.weight):
            filters = rows.transpose(1, 2) if transposed else rows
            along = pull_back(filters.flatten(2), unit, module.gain * inverse * factor, out=by_output[part])
            gain[part] = along * factor
        return {"weight": found, "gain": gain}


def pull_back(filters: Tensor, unit: Tensor, factor: Tensor, *, out: Tensor) -> Tensor:
    """Gradients of each example before a standardisation, from those after it.

    With u = (w - mean) / s and G the gradient at c * u, the gradient at w is c / s * (G - mean(G) - u * mean(G * u)).

    Args:
        filters: G, shape (N, out, F); overwritten.
        unit: u, shape (out, F).
        factor: c / s, shape (out, 1).
        out: takes the gradients at w, shape (N, out, ...) with F values a filter.

    Returns:
        The sums of G * u, shape (N, out, 1).
    """
    # In place until the last line: a block of gradients stays in the core's cache, ``out`` does not.
    # Not einsum: it multiplies by matrices of one column, which is slower.
    along: Tensor = torch.linalg.vecdot(filters, unit)[..., None]
    filters.sub_(filters.mean(2, keepdim=True)).addcmul_(unit, along / unit.shape[1], value=-1)
    torch.mul(filters.view(out.shape), factor.view(-1, *(1,) * (out.dim() - 2)), out=out)
    return along
