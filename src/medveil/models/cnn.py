"""A small convolutional classifier, fast enough for a laptop without an accelerator."""

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from medveil.errors import ModelError
from medveil.models.layers import Downsampling, FamilyConfig, family_of


class CnnConfig(FamilyConfig):
    """A stack of 3x3 convolutions and one linear layer.

    The defaults have 60,530 parameters for one channel and two classes.

    Args:
        kind: "cnn".
        channels: of each convolution.
        strides: of each convolution, 1 or 2.
        down: how a stride of 2 is made: by the convolution, or by pooling after its activation.
        coarsen: side of the blocks that are averaged before the first convolution; for images whose finest detail
            says more about the scanner than about the patient.
        head: "global" (mean over all positions: any image size) or "flat" (one weight for every position:
            one image size, and gradients that reveal more of an image).
    """

    kind: Literal["cnn"] = "cnn"
    channels: tuple[int, ...] = Field((16, 32, 64, 64), min_length=1, max_length=16)
    strides: tuple[Literal[1, 2], ...] = (2, 1, 2, 1)
    down: Downsampling = "stride"
    coarsen: int = Field(1, ge=1, le=32)
    head: Literal["global", "flat"] = "global"

    @model_validator(mode="after")
    def _check(self) -> "CnnConfig":
        if len(self.channels) != len(self.strides):
            raise ValueError("channels and strides must have equally many entries")
        if min(self.channels) < 1:
            raise ValueError("every convolution needs at least one channel")
        return self


def build_cnn(config: CnnConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; weights come from torch's global generator (see :func:`medveil.models.registry.build`).

    Args:
        config: of the net.
        input_shape: (channels, *spatial).
        num_classes: logits.

    Returns:
        A module (N, channels, *spatial) -> (N, num_classes).

    Raises:
        ModelError: images that shrink to nothing.
    """
    family = family_of(config, input_shape[1:])
    lengths = _final_lengths(config, input_shape[1:])
    layers: list[nn.Module] = [] if config.coarsen == 1 else [family.average_pool(config.coarsen)]
    incoming = input_shape[0]
    for index, (channels, stride) in enumerate(zip(config.channels, config.strides, strict=True)):
        scale = 1.0 if index == 0 else None
        if stride == 1:
            block = nn.Sequential(family.conv(incoming, channels, scale=scale), family.act())
        else:
            block = family.halving_conv(incoming, channels, config.down, scale=scale)
        layers.append(block)
        incoming = channels
    if config.head == "flat":
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(incoming * math.prod(lengths), num_classes))
    return nn.Sequential(*layers, family.global_pool(), nn.Linear(incoming, num_classes))


def _final_lengths(config: CnnConfig, spatial: tuple[int, ...]) -> tuple[int, ...]:
    rounding = 1 if config.down == "stride" else 0
    spatial = tuple(length // config.coarsen for length in spatial)
    for stride in config.strides:
        if stride != 1:
            spatial = tuple((length + rounding) // 2 for length in spatial)
    if min(spatial) < 1:
        raise ModelError(
            "The image is too small for this network",
            got=f"{config.strides.count(2)} halvings (and coarsen = {config.coarsen}) that leave an axis empty",
            expected="at least one position on every axis",
            remedy="use fewer strides of 2, a smaller coarsen, or larger images",
        )
    return spatial
