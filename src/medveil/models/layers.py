"""The zoo's building blocks: standardised weights or normalised activations, behind one interface.

A :class:`Family` says how many spatial axes a net has, how it is normalised and which activation it uses.
Nets ask it for their layers, so one description of a net serves both families. Nothing here looks at other
examples of a batch, and nothing keeps a buffer.

The gain that keeps the variance through an activation is a constant on the weights that read the activation,
not a layer of its own: activations stay the plain ones, whichever function they are, and folding is exact.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from medveil.errors import ModelError
from medveil.models.standardised import (
    PLAIN_CONV,
    PLAIN_CONV_TRANSPOSE,
    ScaledStdConv,
    ScaledStdConvTranspose,
    doubling_padding,
    fold,
)

__all__ = [
    "GAIN",
    "Activation",
    "Downsampling",
    "Family",
    "FamilyConfig",
    "Norm",
    "ScaledStdConv",
    "ScaledStdConvTranspose",
    "family_of",
    "fold",
    "group_norm",
]

Norm = Literal["ws", "group", "instance"]
Activation = Literal["relu", "silu", "elu"]
Downsampling = Literal["stride", "average", "max"]

GAIN: Final[dict[Activation, float]] = {
    "relu": math.sqrt(2 / (1 - 1 / math.pi)),
    "silu": 1.7871872221,
    "elu": 1.2708434178,
}
"""Per activation, 1 / (standard deviation of activation(z)) for z ~ N(0, 1).

Brock et al. 2021, https://arxiv.org/abs/2101.08692, section 3. "silu" and "elu" by quadrature.
"""

_ACTIVATIONS: Final[dict[Activation, type[nn.Module]]] = {"relu": nn.ReLU, "silu": nn.SiLU, "elu": nn.ELU}
_POOL: Final[dict[tuple[str, int], type[nn.Module]]] = {
    ("max", 2): nn.MaxPool2d,
    ("max", 3): nn.MaxPool3d,
    ("average", 2): nn.AvgPool2d,
    ("average", 3): nn.AvgPool3d,
}
_GLOBAL_POOL: Final[dict[int, type[nn.Module]]] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_INSTANCE_NORM: Final[dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
_GROUP_CHANNELS: Final = 8


class FamilyConfig(BaseModel):
    """Fields that every net of the zoo shares.

    Args:
        norm: "ws" (scaled weight standardisation: folds away after training), "group" (group normalisation,
            8 channels a group) or "instance" (one channel a group; slower). Measured on small nets, groups
            of 8 learn segmentation much more slowly than the other two.
        activation: "relu" is the one that encrypted evaluation computes exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: Norm = "ws"
    activation: Activation = "relu"


@dataclass(frozen=True)
class Family:
    """How the layers of one net are made.

    Args:
        spatial_dims: 2 or 3.
        norm: by name.
        activation: by name.
    """

    spatial_dims: int
    norm: Norm
    activation: Activation

    @property
    def gain(self) -> float:
        """Factor that gives the activation of a standard normal variable unit variance."""
        return GAIN[self.activation]

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        scale: float | None = None,
    ) -> nn.Module:
        """Convolution with its normalisation; an axis of length L becomes L / stride where that is whole.

        Args:
            in_channels: of the input.
            out_channels: of the output.
            kernel_size: odd, or 4 with stride 2.
            stride: equal on all axes.
            dilation: equal on all axes.
            scale: constant on the standardised weights; None means that the input is an activation whose
                pre-activation has unit variance. Where activations are normalised it has no use.
        """
        padding = dilation * (kernel_size - 1) // 2
        if self.norm == "ws":
            return ScaledStdConv(
                self.spatial_dims,
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                scale=self.gain if scale is None else scale,
            )
        conv = PLAIN_CONV[self.spatial_dims](
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=False,
        )
        nn.init.kaiming_normal_(conv.weight)
        return nn.Sequential(conv, self._normalisation(out_channels))

    def conv_transpose(self, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
        """Transposed convolution, with its normalisation, that doubles every axis of an activation."""
        if self.norm == "ws":
            return ScaledStdConvTranspose(self.spatial_dims, in_channels, out_channels, kernel_size, scale=self.gain)
        conv = PLAIN_CONV_TRANSPOSE[self.spatial_dims](
            in_channels,
            out_channels,
            kernel_size,
            stride=2,
            padding=doubling_padding(kernel_size),
            bias=False,
        )
        return nn.Sequential(conv, self._normalisation(out_channels))

    def halving_conv(
        self, in_channels: int, out_channels: int, down: Downsampling, *, scale: float | None = None
    ) -> nn.Sequential:
        """3x3 convolution and activation that halve every axis, by stride or by pooling afterwards.

        Signals keep their variance through a stride. A mean over a window lowers it, by 2**spatial_dims for white
        features; a maximum raises it.
        """
        stride = 2 if down == "stride" else 1
        layers = [self.conv(in_channels, out_channels, stride=stride, scale=scale), self.act()]
        if down != "stride":
            layers.append(_POOL[down, self.spatial_dims](2))
        return nn.Sequential(*layers)

    def _normalisation(self, channels: int) -> nn.Module:
        if self.norm == "group":
            return group_norm(channels)
        return _INSTANCE_NORM[self.spatial_dims](channels, affine=True)

    def act(self) -> nn.Module:
        """A fresh activation module."""
        return _ACTIVATIONS[self.activation]()

    def max_pool(self) -> nn.Module:
        """Maximum over windows of 2 along every axis."""
        return _POOL["max", self.spatial_dims](2)

    def global_pool(self) -> nn.Sequential:
        """Mean over all spatial axes, (N, C, *spatial) -> (N, C)."""
        return nn.Sequential(_GLOBAL_POOL[self.spatial_dims](1), nn.Flatten())

    def average_pool(self, side: int) -> nn.Module:
        """Mean over blocks of ``side`` positions an axis; what does not fill a block is left out."""
        return _POOL["average", self.spatial_dims](side)

    def head_conv(self, in_channels: int, num_classes: int) -> nn.Module:
        """Plain 1x1 convolution to one logit a class and position."""
        return PLAIN_CONV[self.spatial_dims](in_channels, num_classes, 1)


def family_of(config: FamilyConfig, spatial: tuple[int, ...]) -> Family:
    """The family that ``config`` asks for, over the spatial axes of the images.

    Raises:
        ModelError: neither two nor three spatial axes.
    """
    if len(spatial) not in PLAIN_CONV:
        raise ModelError(
            "The networks here read images with two or three spatial axes",
            got=f"{len(spatial)} spatial axes",
            expected="(rows, columns) or (slices, rows, columns)",
        )
    return Family(len(spatial), config.norm, config.activation)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with groups of 8 channels, or of the nearest smaller number that divides them.

    >>> group_norm(16).num_groups, group_norm(12).num_groups, group_norm(4).num_groups
    (2, 2, 1)
    """
    size = max(divisor for divisor in range(1, _GROUP_CHANNELS + 1) if channels % divisor == 0)
    return nn.GroupNorm(channels // size, channels)
