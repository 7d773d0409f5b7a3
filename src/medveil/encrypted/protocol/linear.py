"""Linear layers on shares, exact modulo 2**64: the hospital holds masked weights, the vendor the true ones.

For one image the hospital and the dealer draw r (like the input) and s (like the result) from a common seed, once a
model the vendor and the dealer R (like the weights). Ahead of time the hospital gets W - R, the vendor L(r, R) - s.
Then the hospital sends x_H - r; the vendor computes L(x_H - r + x_V, W) + b + (L(r, R) - s), the hospital has had
L(r, W - R) + s all the time; together L(x_H + x_V, W) + b.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medveil.encrypted.program import Linear
from medveil.encrypted.protocol.ring import Wide

_CONVOLUTIONS = {"conv2d": functional.conv2d, "conv3d": functional.conv3d}
_TRANSPOSED = {"conv_transpose2d": functional.conv_transpose2d, "conv_transpose3d": functional.conv_transpose3d}


def apply(layer: Linear, values: Wide, weight: NDArray[np.uint64] | NDArray[np.int64]) -> Wide:
    """L(values, weight), modulo 2**64, without bias.

    Args:
        layer: what it does.
        values: shape (N, *input).
        weight: shape ``layer.weight_shape``.

    Returns:
        Shape (N, *layer.shape).
    """
    return cast("Wide", convolved(layer, _tensor(values), _tensor(weight)).numpy().view(np.uint64))


def convolved(layer: Linear, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's map of tensors of integers, without bias."""
    if layer.kind == "linear":
        return values @ weight.t()
    if layer.kind in _CONVOLUTIONS:
        convolve = _CONVOLUTIONS[layer.kind]
        return convolve(values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    transpose = _TRANSPOSED[layer.kind]
    return transpose(
        values, weight, None, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    )


def spread(bias: NDArray[np.int64], layer: Linear) -> Wide:
    """The bias in a shape that can be added to the layer's result."""
    return bias.view(np.uint64).reshape(-1, *(1 for _ in layer.shape[1:]))


def _tensor(values: NDArray[np.uint64] | NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).view(np.int64))
