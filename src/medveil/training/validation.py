"""Quick scores on one party's validation data, for early stopping and progress (not for the report)."""

import math

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from medveil.data.subject import Task
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.loop import diverged
from medveil.training.objectives import Loss, per_example_loss

_BINARY = 2
Scores = dict[str, float | None]


@torch.no_grad()
def validation_scores(
    model: nn.Module,
    data: ArrayData,
    *,
    task: Task,
    scale: InputScale,
    loss: Loss,
    batch_size: int,
    device: torch.device,
) -> Scores:
    """Mean loss, and AUC (classes) or Dice over all pixels (masks).

    Returns:
        ``{"loss": ..., "auc": ...}`` or ``{"loss": ..., "dice": ...}``; a score that the data cannot define
        (one class only, no foreground) is None.

    Raises:
        DivergedError: the loss is not finite.
    """
    model.eval()
    losses, collected = [], []
    for start in range(0, len(data), batch_size):
        logits = model(scale(data.images[start : start + batch_size].to(device))).float()
        targets = data.targets[start : start + batch_size].to(device).long()
        losses.append(per_example_loss(logits, targets, loss).double().cpu())
        collected.append(logits.softmax(1).double().cpu() if task == "classification" else _overlap(logits, targets))
    mean = float(torch.cat(losses).mean())
    if not math.isfinite(mean):
        raise diverged("validation loss")
    if task == "classification":
        return {"loss": mean, "auc": _auc(data.targets.numpy(), torch.cat(collected).numpy())}
    return {"loss": mean, "dice": _dice(torch.stack(collected).sum(0))}


def _auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    if len(np.unique(labels)) != probabilities.shape[1]:
        return None
    if probabilities.shape[1] == _BINARY:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr"))


def _overlap(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Per class: pixels in both, predicted, true; shape (3, K), float64."""
    classes = logits.shape[1]
    predicted = logits.argmax(1).flatten()
    wanted = targets.flatten()
    both = torch.bincount(wanted[predicted == wanted], minlength=classes)
    return (
        torch.stack([both, torch.bincount(predicted, minlength=classes), torch.bincount(wanted, minlength=classes)])
        .double()
        .cpu()
    )


def _dice(overlap: torch.Tensor) -> float | None:
    both, predicted, wanted = overlap[:, 1:]
    present = (predicted + wanted) > 0
    if not bool(present.any()):
        return None
    return float((2 * both[present] / (predicted + wanted)[present]).mean())
