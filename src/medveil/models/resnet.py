"""Residual classifiers without batch statistics: ResNet-9, ResNet-18 and ResNet-20.

With ``norm = "ws"`` they are normaliser-free: every block reads its input divided by that input's expected
standard deviation and adds ``alpha`` times a branch of unit variance. Both factors live in the scale of the
convolutions. The learnable gain of a branch's last convolution has the role of SkipInit.

Reference: Brock et al. 2021, https://arxiv.org/abs/2101.08692.
"""

import math
from typing import Final, Literal

from pydantic import Field
from torch import Tensor, nn

from medveil.models.layers import Family, FamilyConfig, family_of

_Stage = tuple[int, int, int]  # (blocks, channels in widths, stride)
_RESNET18: Final[tuple[_Stage, ...]] = ((2, 1, 1), (2, 2, 2), (2, 4, 2), (2, 8, 2))
_RESNET20: Final[tuple[_Stage, ...]] = ((3, 1, 1), (3, 2, 2), (3, 4, 2))


class Resnet9Config(FamilyConfig):
    """Eight convolutions and a linear layer, with two residual blocks.

    Args:
        kind: "resnet9".
        width: channels of the first convolution; the last has eight times as many. The common net has 64;
            16 suits small data and processors without accelerator.
        down: halve by the stride of a convolution, or by maximum pooling after it.
        alpha: weight of a residual branch at the start ("ws" only).
    """

    kind: Literal["resnet9"] = "resnet9"
    width: int = Field(16, ge=2, le=512)
    down: Literal["stride", "max"] = "stride"
    alpha: float = Field(0.2, gt=0, le=1)


class Resnet18Config(FamilyConfig):
    """Four stages of two blocks; the last has eight times ``width`` channels.

    Args:
        kind: "resnet18".
        width: channels of the first stage; the common net has 64.
        stem: "small" keeps the resolution; "large" halves it twice, for images of 128 pixels and more.
        alpha: weight of a residual branch at the start ("ws" only).
    """

    kind: Literal["resnet18"] = "resnet18"
    width: int = Field(64, ge=2, le=512)
    stem: Literal["small", "large"] = "small"
    alpha: float = Field(0.2, gt=0, le=1)


class Resnet20Config(FamilyConfig):
    """Three stages of three blocks; the last has four times ``width`` channels.

    Args:
        kind: "resnet20".
        width: channels of the first stage.
        stem: "small" keeps the resolution; "large" halves it twice, for images of 128 pixels and more.
        alpha: weight of a residual branch at the start ("ws" only).

    Reference:
        He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2 (the net for small images).
    """

    kind: Literal["resnet20"] = "resnet20"
    width: int = Field(16, ge=2, le=512)
    stem: Literal["small", "large"] = "small"
    alpha: float = Field(0.2, gt=0, le=1)


class ResidualBlock(nn.Module):
    """Activation first, two 3x3 convolutions, and a sum with the input.

    Args:
        family: of the convolutions.
        in_channels: of the input.
        out_channels: of the output.
        stride: 1 or 2.
        beta: 1 / expected standard deviation of the input.
        alpha: weight of the branch.

    Guarantees:
        (N, in_channels, *spatial) -> (N, out_channels, *ceil(spatial / stride)).
    """

    def __init__(
        self, family: Family, in_channels: int, out_channels: int, *, stride: int, beta: float, alpha: float
    ) -> None:
        super().__init__()
        scale = family.gain * beta
        self.act1, self.act2 = family.act(), family.act()
        self.conv1 = family.conv(in_channels, out_channels, stride=stride, scale=scale)
        self.conv2 = family.conv(out_channels, out_channels, scale=family.gain * alpha)
        self.shortcut = (
            family.conv(in_channels, out_channels, 1, stride=stride, scale=scale)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, images: Tensor) -> Tensor:
        """Sum of the shortcut and the branch."""
        active = self.act1(images)
        branch: Tensor = self.conv2(self.act2(self.conv1(active)))
        return branch + (images if self.shortcut is None else self.shortcut(active))


def build_resnet9(config: Resnet9Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make a ResNet-9, (N, channels, *spatial) -> (N, num_classes)."""
    family = family_of(config, input_shape[1:])
    width, alpha = config.width, config.alpha
    after_block = 1 / math.sqrt(1 + alpha**2)
    return nn.Sequential(
        family.conv(input_shape[0], width, scale=1.0),
        _transition(family, width, 2 * width, config.down, 1.0),
        ResidualBlock(family, 2 * width, 2 * width, stride=1, beta=1.0, alpha=alpha),
        _transition(family, 2 * width, 4 * width, config.down, after_block),
        _transition(family, 4 * width, 8 * width, config.down, 1.0),
        ResidualBlock(family, 8 * width, 8 * width, stride=1, beta=1.0, alpha=alpha),
        family.act(),
        family.global_pool(),
        nn.Linear(8 * width, num_classes),
    )


def build_resnet18(config: Resnet18Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make a ResNet-18, (N, channels, *spatial) -> (N, num_classes)."""
    return _build_stages(config, _RESNET18, input_shape, num_classes)


def build_resnet20(config: Resnet20Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make a ResNet-20, (N, channels, *spatial) -> (N, num_classes)."""
    return _build_stages(config, _RESNET20, input_shape, num_classes)


def _build_stages(
    config: Resnet18Config | Resnet20Config, stages: tuple[_Stage, ...], input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    family = family_of(config, input_shape[1:])
    layers = _stem(family, config, input_shape[0])
    incoming, variance = config.width, 1.0
    for blocks, widths, first_stride in stages:
        outgoing = widths * config.width
        for index in range(blocks):
            stride = first_stride if index == 0 else 1
            beta = 1 / math.sqrt(variance)
            layers.append(ResidualBlock(family, incoming, outgoing, stride=stride, beta=beta, alpha=config.alpha))
            # A projected shortcut has unit variance again; an identity keeps what has piled up.
            variance = (1.0 if stride != 1 or incoming != outgoing else variance) + config.alpha**2
            incoming = outgoing
    return nn.Sequential(*layers, family.act(), family.global_pool(), nn.Linear(incoming, num_classes))


def _stem(family: Family, config: Resnet18Config | Resnet20Config, in_channels: int) -> list[nn.Module]:
    if config.stem == "small":
        return [family.conv(in_channels, config.width, scale=1.0)]
    return [
        family.conv(in_channels, config.width, 7, stride=2, scale=1.0),
        family.act(),
        family.conv(config.width, config.width, stride=2),
    ]


def _transition(family: Family, in_channels: int, out_channels: int, down: str, beta: float) -> nn.Module:
    stride = 2 if down == "stride" else 1
    layers = [family.act(), family.conv(in_channels, out_channels, stride=stride, scale=family.gain * beta)]
    return nn.Sequential(*layers, *([family.max_pool()] if down == "max" else []))
