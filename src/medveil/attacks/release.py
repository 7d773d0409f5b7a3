"""What a step shows: clipped and noisy sums, by the code that trainings use."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medveil.dp.clipping import Clipping, clip_and_sum
from medveil.dp.noise import NoiseMechanism
from medveil.rng import SecureRandom, Seeds


def protected_sum(
    gradients: Sequence[Sequence[Tensor]], clipping: Clipping, noise_multiplier: float, seeds: Seeds
) -> NDArray[np.float64]:
    """The sum of units' clipped gradients with its noise.

    Args:
        gradients: of every unit, one tensor a parameter.
        clipping: of a unit.
        noise_multiplier: noise over clip norm.
        seeds: of the noise: an experiment repeats. Training draws its noise from the operating system.

    Returns:
        Shape (parameters,), float64.
    """
    rows = [torch.stack([unit[place].detach() for unit in gradients]) for place in range(len(gradients[0]))]
    total = torch.zeros(sum(row[0].numel() for row in rows), dtype=torch.float64)
    clip_and_sum(clipping, rows, total)
    return noisy_sum(total, clipping, noise_multiplier, seeds)


def noisy_sum(total: Tensor, clipping: Clipping, noise_multiplier: float, seeds: Seeds) -> NDArray[np.float64]:
    """The noise on a sum of units that :func:`~medveil.dp.clipping.clip_and_sum` clipped; as :func:`protected_sum`.

    Args:
        total: shape (parameters,), float64.
        clipping: that was done.
        noise_multiplier: noise over clip norm.
        seeds: of the noise.
    """
    mechanism = NoiseMechanism(
        l2_clip_norm=clipping.l2_clip_norm, noise_multiplier=noise_multiplier, dimension=total.numel()
    )
    return mechanism.release(total.numpy(), SecureRandom.seeded(seeds))


def as_tensors(vector: NDArray[np.float64], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A flat vector as tensors of the shapes of ``like``, float32."""
    parts = torch.split(torch.from_numpy(vector.astype(np.float32)), [each.numel() for each in like])
    return tuple(part.reshape(each.shape) for part, each in zip(parts, like, strict=True))
