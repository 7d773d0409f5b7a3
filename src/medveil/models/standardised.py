"""Scaled weight standardisation: convolutions that need no statistics of their inputs.

Filters are standardised, not activations: nothing here looks at the other examples of a batch, nothing keeps
a buffer, and after training :func:`fold` leaves plain convolutions.
"""

import copy
import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from medveil.errors import ModelError

PLAIN_CONV: Final[dict[int, type[nn.Conv2d | nn.Conv3d]]] = {2: nn.Conv2d, 3: nn.Conv3d}
PLAIN_CONV_TRANSPOSE: Final[dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_CONV: Final = {2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: Final = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_VARIANCE_FLOOR: Final = 1e-4


def standardise(weight: Tensor, gain: Tensor, scale: float) -> Tensor:
    """Give every output filter mean 0 and squared norm ``(gain * scale)**2``.

    Args:
        weight: shape (out, fan_in), any float dtype.
        gain: shape (out, 1).
        scale: a constant factor.

    Returns:
        Shape (out, fan_in): ``gain * scale * (w - mean) / sqrt(fan_in * var + 1e-4)``, biased variance.

    Reference:
        Brock et al. 2021, https://arxiv.org/abs/2101.08692, equation 1. The authors take
        max(fan_in * var, 1e-4); adding instead is smooth and lets one fused kernel do the work.
    """
    fan_in = weight.shape[1]
    unit = functional.layer_norm(weight, (fan_in,), eps=_VARIANCE_FLOOR / fan_in)
    return unit * (gain * (scale / math.sqrt(fan_in)))


class ScaledStdConv(nn.Module):
    """Convolution whose filters are standardised before use, with a learnable gain per output channel.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd or even, equal on all axes.
        stride: equal on all axes.
        padding: zeros on both sides of every axis.
        dilation: equal on all axes.
        scale: constant factor on the weights; carries the activation's gain and the residual branch's weight,
            so that folding needs no further layer.

    Raises:
        ModelError: a filter with one weight, which standardisation would set to zero.

    Guarantees:
        Input (N, in_channels, *spatial) -> (N, out_channels, *spatial'); no buffer, no batch statistics.

    Reference:
        Brock et al. 2021, https://arxiv.org/abs/2101.08692.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.kernel_size = spatial_dims, kernel_size
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.scale = scale
        fan_in = _fan_in(in_channels, kernel_size**spatial_dims)
        shape = (out_channels, in_channels, *(kernel_size,) * spatial_dims)
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))
        self.gain = nn.Parameter(torch.ones(out_channels, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def effective_weight(self) -> Tensor:
        """The standardised weights, shape (out_channels, in_channels, *kernel)."""
        return standardise(self.weight.flatten(1), self.gain, self.scale).view(self.weight.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve; (N, in_channels, *spatial) -> (N, out_channels, *spatial')."""
        convolve = _CONV[self.spatial_dims]
        weight = self.effective_weight()
        return convolve(images, weight, self.bias, self.stride, self.padding, self.dilation)

    def plain(self) -> nn.Module:
        """The equal ``nn.Conv2d`` or ``nn.Conv3d``."""
        conv = PLAIN_CONV[self.spatial_dims](
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return _with_weights(conv, self.effective_weight(), self.bias).train(self.training)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(model)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, scale={self.scale:.4g}"
        )


class ScaledStdConvTranspose(nn.Module):
    """Transposed convolution that doubles every axis, standardised like :class:`ScaledStdConv`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: 2 or 4, equal on all axes; the stride is 2.
        scale: constant factor on the weights.

    Raises:
        ModelError: a filter of which one weight meets each output, or a kernel that does not double axes.

    Guarantees:
        Input (N, in_channels, *spatial) -> (N, out_channels, *2 * spatial); no buffer, no batch statistics.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.spatial_dims, self.kernel_size = spatial_dims, kernel_size
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding = 2, doubling_padding(kernel_size)
        # Each output pixel meets every stride-th weight of each axis only: the fan-in is that much smaller.
        fan_in = _fan_in(in_channels, (kernel_size // self.stride) ** spatial_dims)
        self.scale = scale * float(self.stride) ** (spatial_dims / 2)
        shape = (in_channels, out_channels, *(kernel_size,) * spatial_dims)
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))
        self.gain = nn.Parameter(torch.ones(out_channels, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def effective_weight(self) -> Tensor:
        """The standardised weights, shape (in_channels, out_channels, *kernel)."""
        by_output = self.weight.transpose(0, 1)
        unit = standardise(by_output.flatten(1), self.gain, self.scale)
        return unit.view(by_output.shape).transpose(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve; (N, in_channels, *spatial) -> (N, out_channels, *2 * spatial)."""
        convolve = _CONV_TRANSPOSE[self.spatial_dims]
        return convolve(images, self.effective_weight(), self.bias, self.stride, self.padding)

    def plain(self) -> nn.Module:
        """The equal ``nn.ConvTranspose2d`` or ``nn.ConvTranspose3d``."""
        conv = PLAIN_CONV_TRANSPOSE[self.spatial_dims](
            self.in_channels, self.out_channels, self.kernel_size, stride=self.stride, padding=self.padding
        )
        return _with_weights(conv, self.effective_weight(), self.bias).train(self.training)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(model)``."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, scale={self.scale:.4g}"


def fold(model: nn.Module) -> nn.Module:
    """An equal network in which every standardised convolution is a plain one.

    Args:
        model: any module; it is left as it is.

    Returns:
        A copy on the same device, in the same dtype and mode. Normalisation of activations depends on the
        image, so it stays as it is.

    Guarantees:
        Same outputs as ``model``; no :class:`ScaledStdConv` and no :class:`ScaledStdConvTranspose`.

    >>> fold(ScaledStdConv(2, 3, 8, 3))
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    plain = copy.deepcopy(model)
    folded: dict[int, nn.Module] = {}
    if isinstance(plain, ScaledStdConv | ScaledStdConvTranspose):
        return plain.plain()
    for parent in list(plain.modules()):
        for name, child in parent._modules.items():  # noqa: SLF001 - named_children drops a module's second place
            if isinstance(child, ScaledStdConv | ScaledStdConvTranspose):
                parent._modules[name] = folded.setdefault(id(child), child.plain())  # noqa: SLF001 - as above
    return plain


def _fan_in(in_channels: int, taps: int) -> int:
    fan_in = in_channels * taps
    if fan_in < 2:  # noqa: PLR2004 - one weight has no spread to standardise
        raise ModelError(
            "A filter with a single weight cannot be standardised",
            got="fan-in 1",
            expected="at least 2 weights a filter",
            remedy='use norm = "group" or a larger kernel',
        )
    return fan_in


def doubling_padding(kernel_size: int) -> int:
    """Padding with which a transposed convolution of stride 2 doubles every axis.

    Raises:
        ModelError: a kernel other than 2 or 4.

    >>> doubling_padding(2), doubling_padding(4)
    (0, 1)
    """
    if kernel_size not in (2, 4):
        raise ModelError("A transposed convolution must double every axis", got=kernel_size, expected="kernel 2 or 4")
    return (kernel_size - 2) // 2


def _with_weights(
    module: nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d, weight: Tensor, bias: Tensor
) -> nn.Module:
    module.weight = nn.Parameter(weight.detach().clone())
    module.bias = nn.Parameter(bias.detach().clone())
    return module
