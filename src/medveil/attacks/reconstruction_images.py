"""Which images are attacked, and how they are shown."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def pixel_span(public: Tensor) -> tuple[float, float]:
    """Lowest and highest pixel: 0 and 1, or those of public images where they go beyond."""
    low, high = float(public.min()), float(public.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def one_a_subject(subject: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of every subject's first image, ascending."""
    _, first = np.unique(subject, return_index=True)
    return np.sort(first)


def picture(images: Tensor, span: tuple[float, float]) -> NDArray[np.float32]:
    """First channel in 0..1, shape (N, *spatial)."""
    shown = (images[:, 0].float() - span[0]) / (span[1] - span[0])
    values: NDArray[np.float32] = shown.clamp(0, 1).numpy()
    return values
