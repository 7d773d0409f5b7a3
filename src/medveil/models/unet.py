"""U-Net for segmentation, over two or three spatial axes."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medveil.errors import ModelError
from medveil.models.layers import Downsampling, Family, FamilyConfig, family_of


class UnetConfig(FamilyConfig):
    """Encoder and decoder with a skip connection at every resolution.

    Args:
        kind: "unet".
        depth: number of halvings; every spatial axis must be divisible by 2**depth.
        width: channels at full resolution; they double at every halving.
        convs: 3x3 convolutions at every resolution.
        down: halve by the stride of a convolution, or by pooling after it.
        up: "transposed" (kernel 2, stride 2) or "nearest" (repeat, then a 3x3 convolution).

    Reference:
        Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597.
    """

    kind: Literal["unet"] = "unet"
    depth: int = Field(3, ge=1, le=6)
    width: int = Field(16, ge=2, le=256)
    convs: int = Field(2, ge=1, le=4)
    down: Downsampling = "stride"
    up: Literal["transposed", "nearest"] = "transposed"


class UNet(nn.Module):
    """The assembled net, (N, channels, *spatial) -> (N, num_classes, *spatial).

    Args:
        encoder: one stage a resolution, full resolution first, without the lowest.
        downs: from each encoder stage to the next resolution.
        bottom: the stage of the lowest resolution.
        ups: back to each resolution, lowest first.
        decoder: one stage a resolution, lowest first; each reads (skip, up-sampled) side by side.
        head: to logits.
    """

    def __init__(
        self,
        encoder: list[nn.Module],
        downs: list[nn.Module],
        bottom: nn.Module,
        ups: list[nn.Module],
        decoder: list[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.encoder, self.downs = nn.ModuleList(encoder), nn.ModuleList(downs)
        self.bottom = bottom
        self.ups, self.decoder = nn.ModuleList(ups), nn.ModuleList(decoder)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits at every position."""
        features, skips = images, []
        for stage, down in zip(self.encoder, self.downs, strict=True):
            features = stage(features)
            skips.append(features)
            features = down(features)
        features = self.bottom(features)
        for up, stage, skip in zip(self.ups, self.decoder, reversed(skips), strict=True):
            features = stage(torch.cat((skip, up(features)), dim=1))
        logits: Tensor = self.head(features)
        return logits


def build_unet(config: UnetConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; weights come from torch's global generator (see :func:`medveil.models.registry.build`).

    Args:
        config: of the net.
        input_shape: (channels, *spatial).
        num_classes: logits at every position, background included.

    Raises:
        ModelError: an axis that 2**depth does not divide.
    """
    require_divisible(input_shape[1:], 2**config.depth)
    family = family_of(config, input_shape[1:])
    widths = [config.width * 2**level for level in range(config.depth + 1)]
    inputs = [input_shape[0], *widths[1:]]
    upwards = list(reversed(range(config.depth)))
    return UNet(
        encoder=[
            _stage(family, inputs[level], widths[level], config.convs, first=level == 0)
            for level in range(config.depth)
        ],
        downs=[family.halving_conv(widths[level], widths[level + 1], config.down) for level in range(config.depth)],
        bottom=_stage(family, widths[-1], widths[-1], config.convs, first=False),
        ups=[_up(family, widths[level + 1], widths[level], config.up) for level in upwards],
        decoder=[_stage(family, 2 * widths[level], widths[level], config.convs, first=False) for level in upwards],
        head=family.head_conv(widths[0], num_classes),
    )


def require_divisible(spatial: tuple[int, ...], divisor: int) -> None:
    """Refuse images whose axes would not come back at their size after halving and doubling.

    Raises:
        ModelError: an axis that ``divisor`` does not divide.

    >>> require_divisible((48, 32), 8)
    """
    if any(length % divisor or length < divisor for length in spatial):
        fitting = tuple(max(1, math.ceil(length / divisor)) * divisor for length in spatial)
        raise ModelError(
            "The image does not fit the number of halvings in this network",
            got=spatial,
            expected=f"every spatial axis divisible by {divisor}",
            remedy=f"pad or resize to {fitting} in the preprocessing, or choose a smaller depth",
        )


def _stage(family: Family, in_channels: int, out_channels: int, convs: int, *, first: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for index in range(convs):
        incoming = in_channels if index == 0 else out_channels
        scale = 1.0 if first and index == 0 else None
        layers += [family.conv(incoming, out_channels, scale=scale), family.act()]
    return nn.Sequential(*layers)


def _up(family: Family, in_channels: int, out_channels: int, kind: str) -> nn.Module:
    if kind == "transposed":
        return nn.Sequential(family.conv_transpose(in_channels, out_channels, 2), family.act())
    doubling = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(doubling, family.conv(in_channels, out_channels), family.act())
