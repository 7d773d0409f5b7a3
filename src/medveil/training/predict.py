"""What a trained model says: probabilities for classes, masks for segmentation."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.training.arrays import ArrayData, InputScale
from medveil.training.loop import diverged


def predict_probabilities(
    model: nn.Module, data: ArrayData, *, scale: InputScale, batch_size: int, device: torch.device
) -> NDArray[np.float64]:
    """Class probabilities, shape (N, K), float64, rows sum to one. The model is left in evaluation mode.

    Raises:
        DivergedError: the model's answers are not finite.
    """
    parts = [logits.double().softmax(1).cpu() for logits in _logits(model, data, scale, batch_size, device)]
    return torch.cat(parts).numpy()


def predict_masks(
    model: nn.Module, data: ArrayData, *, scale: InputScale, batch_size: int, device: torch.device
) -> NDArray[np.uint8]:
    """Most likely class of every pixel, shape (N, *spatial). The model is left in evaluation mode.

    Raises:
        DivergedError: the model's answers are not finite.
    """
    parts = [logits.argmax(1).to(torch.uint8).cpu() for logits in _logits(model, data, scale, batch_size, device)]
    return torch.cat(parts).numpy()


@torch.no_grad()
def _logits(
    model: nn.Module, data: ArrayData, scale: InputScale, batch_size: int, device: torch.device
) -> list[torch.Tensor]:
    model.eval()
    answers = [
        model(scale(data.images[start : start + batch_size].to(device))) for start in range(0, len(data), batch_size)
    ]
    if not all(bool(torch.isfinite(logits).all()) for logits in answers):
        raise diverged("answer")  # weights can be finite and yet too large to compute with
    return answers
