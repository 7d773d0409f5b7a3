"""Losses, by name: cross entropy for classes, MONAI's Dice + cross entropy per image for masks."""

from typing import Annotated, Literal

import torch
from monai.losses.dice import DiceLoss
from pydantic import Field
from torch.nn import functional

from medveil.configuration import Config


class CrossEntropy(Config):
    """Cross entropy over logits; for masks, averaged over pixels."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class DiceCrossEntropy(Config):
    """Dice over the foreground classes plus cross entropy; Dice is per image, never over the batch."""

    kind: Literal["dice_ce"] = "dice_ce"
    dice_weight: float = Field(1.0, ge=0)
    ce_weight: float = Field(1.0, ge=0)


Loss = Annotated[CrossEntropy | DiceCrossEntropy, Field(discriminator="kind")]


def per_example_loss(
    logits: torch.Tensor, targets: torch.Tensor, config: Loss, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of every example on its own, so that no example's loss depends on its batch.

    Args:
        logits: shape (N, K) or (N, K, *spatial).
        targets: shape (N,) or (N, *spatial), int64.
        config: which loss.
        class_weights: shape (K,), or None. A weighted example counts with its class weight; the sum is not
            divided by the weights of the batch.

    Returns:
        Shape (N,).
    """
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    if isinstance(config, DiceCrossEntropy):
        return _dice_cross_entropy(logits, targets, config, class_weights)
    losses = functional.cross_entropy(
        logits, targets, weight=class_weights, reduction="none", label_smoothing=config.label_smoothing
    )
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def _dice_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, config: DiceCrossEntropy, class_weights: torch.Tensor | None
) -> torch.Tensor:
    dice = DiceLoss(include_background=False, softmax=True, batch=False, reduction="none")
    # MONAI's own one-hot scatters in place, which vmap refuses.
    wanted = functional.one_hot(targets, logits.shape[1]).movedim(-1, 1)
    overlap: torch.Tensor = dice(logits, wanted).reshape(logits.shape[0], -1).mean(1)
    cross = functional.cross_entropy(logits, targets, weight=class_weights, reduction="none")
    return config.dice_weight * overlap + config.ce_weight * cross.flatten(1).mean(1)


def balanced_weights(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class weights N / (K * N_k), shape (K,): every class counts alike; an absent class gets 0.

    Counted on one party's own targets; nothing about them leaves it.
    """
    counts = torch.bincount(targets.flatten().long(), minlength=num_classes).double()
    weights = torch.where(counts > 0, counts.sum() / (num_classes * counts.clamp(min=1)), 0.0)
    return weights.float()
