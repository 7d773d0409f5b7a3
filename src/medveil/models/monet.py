"""MoNet: a small U-Net-like net whose blocks repeat dilated convolutions with falling dilation.

Reference: Knolle, Kaissis et al. 2021, https://doi.org/10.1371/journal.pone.0255397; used for private federated
segmentation by Ziller et al. 2021, https://arxiv.org/abs/2107.02586.
"""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medveil.models.layers import Family, FamilyConfig, family_of
from medveil.models.unet import UNet, require_divisible


class MonetConfig(FamilyConfig):
    """MoNet over two or three spatial axes.

    The plan of layers, channels, kernels and dilations is the published one. What differs: no batch
    normalisation (``norm``), no dropout, plain logits without normalisation, and ReLU instead of ELU unless
    ``activation = "elu"`` asks for it.

    Args:
        kind: "monet".
        depth: number of halvings; every spatial axis must be divisible by 2**depth.
        width: channels at full resolution; they double at every halving.
    """

    kind: Literal["monet"] = "monet"
    depth: int = Field(2, ge=1, le=5)
    width: int = Field(16, ge=2, le=256)


class DilatedBlock(nn.Module):
    """Four 3x3 convolutions with dilation 4, 3, 2, 1; a sum precedes the second and the fourth.

    Args:
        family: of the convolutions.
        channels: of input and output.

    Guarantees:
        (N, channels, *spatial) -> the same shape.
    """

    def __init__(self, family: Family, channels: int) -> None:
        super().__init__()
        # Two of the four read the sum of two activations, whose variance is twice as large.
        summed = family.gain / math.sqrt(2)
        self.conv1, self.act1 = family.conv(channels, channels, dilation=4), family.act()
        self.conv2, self.act2 = family.conv(channels, channels, dilation=3, scale=summed), family.act()
        self.conv3, self.act3 = family.conv(channels, channels, dilation=2), family.act()
        self.conv4, self.act4 = family.conv(channels, channels, dilation=1, scale=summed), family.act()

    def forward(self, images: Tensor) -> Tensor:
        """Features over a neighbourhood of 21 positions along every axis."""
        first: Tensor = self.act1(self.conv1(images))
        second: Tensor = self.act2(self.conv2(images + first))
        third: Tensor = self.act3(self.conv3(second))
        fourth: Tensor = self.act4(self.conv4(second + third))
        return fourth


def build_monet(config: MonetConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; weights come from torch's global generator (see :func:`medveil.models.registry.build`).

    Args:
        config: of the net.
        input_shape: (channels, *spatial).
        num_classes: logits at every position, background included.

    Returns:
        A module (N, channels, *spatial) -> (N, num_classes, *spatial).

    Raises:
        ModelError: an axis that 2**depth does not divide.
    """
    require_divisible(input_shape[1:], 2**config.depth)
    family = family_of(config, input_shape[1:])
    widths = [config.width * 2**level for level in range(config.depth + 1)]
    inputs = [input_shape[0], *widths]
    upwards = list(reversed(range(config.depth)))
    return UNet(
        encoder=[_stage(family, inputs[level], widths[level], first=level == 0) for level in range(config.depth)],
        downs=[
            nn.Sequential(family.conv(widths[level], widths[level], 4, stride=2), family.act())
            for level in range(config.depth)
        ],
        bottom=_stage(family, widths[-2], widths[-1], first=False),
        ups=[
            nn.Sequential(family.conv_transpose(widths[level + 1], widths[level + 1], 4), family.act())
            for level in upwards
        ],
        decoder=[_stage(family, widths[level] + widths[level + 1], widths[level], first=False) for level in upwards],
        head=family.head_conv(widths[0], num_classes),
    )


def _stage(family: Family, in_channels: int, out_channels: int, *, first: bool) -> nn.Module:
    entry = family.conv(in_channels, out_channels, scale=1.0 if first else None)
    return nn.Sequential(entry, family.act(), DilatedBlock(family, out_channels))
