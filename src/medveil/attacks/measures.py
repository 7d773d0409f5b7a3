"""How much of an image came back: PSNR, SSIM, re-identification among other patients' images, and intervals."""

from collections.abc import Callable

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray
from torch import Tensor

from medveil.attacks.attack import Figure
from medveil.rng import Seeds

_CONFIDENCE = 0.95
_RESAMPLES = 2000
_WINDOW = 7


def psnr_db(found: Tensor, true: Tensor, *, span: float = 1.0) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every image, in decibel; shape (N,). Exact copies give 200.

    Args:
        found: shape (N, channels, *spatial).
        true: likewise.
        span: of pixel values; 1 for images in 0..1.
    """
    errors = (found.double() - true.double()).square().flatten(1).mean(1).clamp(min=span**2 * 1e-20)
    decibels: NDArray[np.float64] = (10 * torch.log10(span**2 / errors)).numpy()
    return decibels


def ssim(found: Tensor, true: Tensor, *, span: float = 1.0) -> NDArray[np.float64]:
    """Structural similarity of every image, by MONAI, uniform window of 7; shape (N,).

    Reference:
        Wang et al. 2004, IEEE Transactions on Image Processing 13.
    """
    axes = found.ndim - 2
    window = (_WINDOW,) * axes
    whole, _ = compute_ssim_and_cs(
        found.float(), true.float(), axes, window, (1.5,) * axes, data_range=span, kernel_type="uniform"
    )
    means: NDArray[np.float64] = whole.flatten(1).mean(1).double().numpy()
    return means


def rank(found: Tensor, true: Tensor, distractors: Tensor) -> NDArray[np.int64]:
    """Place of the true image among itself and the distractors, by mean squared distance to what was found; 1 is best.

    Ties count against the attacker.

    Args:
        found: shape (N, ...).
        true: shape (N, ...).
        distractors: other patients' images, shape (M, ...).

    Returns:
        Shape (N,), from 1 to M + 1.
    """
    flat, others = found.double().flatten(1), distractors.double().flatten(1)
    own = (flat - true.double().flatten(1)).square().sum(1)
    distance = flat.square().sum(1)[:, None] + others.square().sum(1) - 2 * flat @ others.T
    places: NDArray[np.int64] = (1 + (distance <= own[:, None] + 1e-9).sum(1)).numpy()
    return places


def rate(hits: int, trials: int, confidence: float = _CONFIDENCE) -> Figure:
    """A share with its Clopper-Pearson interval.

    Reference:
        Clopper & Pearson 1934, Biometrika 26.

    >>> rate(0, 10).low, round(rate(0, 10).high, 3)
    (0.0, 0.308)
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.isf(tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return Figure(hits / trials, low, high, confidence)


def spread(
    values: NDArray[np.float64],
    seeds: Seeds,
    *,
    statistic: Callable[..., NDArray[np.float64]] = np.median,
    confidence: float = _CONFIDENCE,
) -> Figure:
    """A statistic of independent values (their median, by default) with its percentile bootstrap interval.

    Args:
        values: shape (N,).
        seeds: of the resampling.
        statistic: takes ``axis``.
        confidence: of the interval.
    """
    draws = seeds.numpy().integers(0, len(values), (_RESAMPLES, len(values)))
    found = statistic(values[draws], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Figure(float(statistic(values, axis=0)), float(low), float(high), confidence)


def mean_image(public: Tensor) -> Tensor:
    """The mean of public images, shape (1, channels, *spatial): what an attacker has who sees nothing."""
    return public.float().mean(0, keepdim=True)


def nearest(true: Tensor, public: Tensor) -> Tensor:
    """Of every image the nearest public one, shape of ``true``: what mere likeness gives, in hindsight."""
    distance = torch.cdist(true.float().flatten(1), public.float().flatten(1))
    return public[distance.argmin(1)].float()
