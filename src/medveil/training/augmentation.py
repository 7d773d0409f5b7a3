"""Random views of a batch; images and masks move together.

Whole batches are warped at once in torch: MONAI's transforms work image by image, which on 28x28 images costs
more than the training step (docs/decisions/0004-batched-augmentation.md has the figures).
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional

from medveil.configuration import Config

_PLANE = 2


class Augmentation(Config):
    """How training images are varied; zeros leave them as they are.

    Attributes:
        flip: spatial axes (0 = first) that are mirrored with probability one half.
        rotate_degrees: largest rotation (in 3D about each axis).
        scale: largest relative change of size.
        stretch: largest relative change of each axis on its own, for images whose aspect ratio means nothing.
        shift: largest translation, as a fraction of the axis.
        gain: largest relative change of contrast about mid-grey.
        offset: largest change of brightness, in units of the scaled input.
        noise: standard deviation of added Gaussian noise, in units of the scaled input.
    """

    flip: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    rotate_degrees: float = Field(0.0, ge=0, le=180)
    scale: float = Field(0.0, ge=0, lt=1)
    stretch: float = Field(0.0, ge=0, lt=1)
    shift: float = Field(0.0, ge=0, lt=1)
    gain: float = Field(0.0, ge=0, lt=1)
    offset: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)

    @property
    def moves(self) -> bool:
        """Whether pixels change place."""
        return bool(self.flip) or max(self.rotate_degrees, self.scale, self.stretch, self.shift) > 0


def augment(
    images: torch.Tensor, masks: torch.Tensor | None, config: Augmentation, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A random view of every example.

    Args:
        images: shape (N, channels, *spatial), float32, two or three spatial axes.
        masks: shape (N, *spatial), integer, or None.
        config: what varies.
        generator: a CPU generator; the draws do not depend on the device.

    Returns:
        Images and masks of the same shapes and dtypes. A mask goes through the same warp as its image, by
        nearest neighbour; outside the frame both repeat the border.
    """
    if config.moves:
        grid = _warp(images.shape, config, generator).to(images.device)
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if masks is not None:
            moved = functional.grid_sample(
                masks[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
            )
            masks = moved[:, 0].to(masks.dtype)
    return _tint(images, config, generator), masks


def _uniform(count: int, width: int, largest: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(count, width, generator=generator) * 2 - 1) * largest


def _warp(shape: Sequence[int], config: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Sampling grid, shape (N, *spatial, axes), of one random affine map per example."""
    count, spatial = shape[0], shape[2:]
    axes = len(spatial)
    planes = 1 if axes == _PLANE else axes
    angles = _uniform(count, planes, math.radians(config.rotate_degrees), generator)
    matrix = _rotation(angles, axes)
    # affine_grid works in a frame where every axis spans -1..1: undo the aspect ratio around the rotation.
    lengths = torch.tensor([float(size) for size in reversed(spatial)])
    matrix = matrix * (lengths[None, None, :] / lengths[None, :, None])
    matrix = matrix * (1 + _uniform(count, 1, config.scale, generator))[:, :, None]
    matrix = matrix * (1 + _uniform(count, axes, config.stretch, generator))[:, None, :]
    mirrored = torch.rand(count, axes, generator=generator) < 1 / 2
    allowed = torch.tensor([axis in config.flip for axis in reversed(range(axes))])
    signs = torch.where(mirrored & allowed, -1.0, 1.0)
    matrix = matrix * signs[:, None, :]
    shift = _uniform(count, axes, 2 * config.shift, generator)
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)
    return functional.affine_grid(theta, [count, 1, *spatial], align_corners=False)


def _rotation(angles: torch.Tensor, axes: int) -> torch.Tensor:
    """Rotation matrices, shape (N, axes, axes), from one angle (2D) or one per axis (3D)."""
    matrix = torch.eye(axes).repeat(angles.shape[0], 1, 1)
    pairs = [(0, 1)] if axes == _PLANE else [(1, 2), (0, 2), (0, 1)]
    for column, (first, second) in enumerate(pairs):
        cosine, sine = angles[:, column].cos(), angles[:, column].sin()
        turn = torch.eye(axes).repeat(angles.shape[0], 1, 1)
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        matrix = matrix @ turn
    return matrix


def _tint(images: torch.Tensor, config: Augmentation, generator: torch.Generator) -> torch.Tensor:
    count = images.shape[0]
    ones = (count,) + (1,) * (images.dim() - 1)
    if config.gain:
        images = images * (1 + _uniform(count, 1, config.gain, generator)).reshape(ones).to(images.device)
    if config.offset:
        images = images + _uniform(count, 1, config.offset, generator).reshape(ones).to(images.device)
    if config.noise:
        images = images + torch.randn(images.shape, generator=generator).to(images.device) * config.noise
    return images
