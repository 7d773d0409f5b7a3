"""Curves behind the figures: ROC, calibration, and the threshold chosen on validation images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from medveil.errors import DataError
from medveil.evaluation.weighted import bin_index, grouped_sums


@dataclass(frozen=True)
class Threshold:
    """Where the line between negative and positive is drawn, and how it was chosen.

    Args:
        value: an image is called class 1 when its probability is at least this.
        source: a few words on how it was chosen; they stand in the record and the report.
    """

    value: float
    source: str


FIXED_HALF = Threshold(0.5, "fixed at 0.5 beforehand")


@dataclass(frozen=True)
class CalibrationCurve:
    """Stated confidence against what happened, one entry per bin that holds images.

    Args:
        confidence: mean probability in the bin.
        accuracy: share of the bin's images for which the event happened.
        count: images in the bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class RocCurve:
    """Corners of the ROC curve, from (0, 0) to (1, 1).

    Args:
        fpr: false-positive rates, rising.
        tpr: true-positive rates, rising.
    """

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


def choose_threshold(scores: ArrayLike, labels: ArrayLike) -> Threshold:
    """The threshold with the largest Youden's J (sensitivity + specificity - 1).

    Use validation images only: a threshold chosen on the test images flatters the test figures.

    Args:
        scores: shape (N,), probability of class 1.
        labels: shape (N,), 0 or 1.

    Returns:
        The threshold; among equals the highest. If the images hold one class only, J does not exist: 0.5
        then, and ``source`` says so.

    Raises:
        DataError: shapes that do not fit, or no images.

    Reference:
        Youden 1950, https://doi.org/10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3

    >>> choose_threshold([0.1, 0.4, 0.7, 0.9], [0, 0, 1, 1]).value
    0.7
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape or s.size == 0:
        raise DataError(
            "A threshold cannot be chosen from these scores",
            got=f"scores of shape {s.shape}, labels of shape {y.shape}",
            expected="one probability of class 1 and one label per validation image",
        )
    if np.unique(y).size == 1:
        return Threshold(0.5, "0.5, because the validation images hold one class only")
    fpr, tpr, cuts = roc_curve(y, s, drop_intermediate=False)
    best = int(np.argmax((tpr - fpr)[1:])) + 1  # the first cut is infinite: it would call nothing positive
    return Threshold(float(cuts[best]), "largest Youden's J on the validation images")


def roc_points(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> RocCurve | None:
    """Corners of the ROC curve.

    Args:
        scores: shape (N,).
        positive: shape (N,).

    Returns:
        The curve, or None where positives or negatives are missing.
    """
    if positive.all() or not positive.any():
        return None
    fpr, tpr, _ = roc_curve(positive, scores)
    return RocCurve(tuple(map(float, fpr)), tuple(map(float, tpr)))


def calibration_curve(confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int) -> CalibrationCurve:
    """Reliability curve over equally wide bins; empty bins are left out.

    Args:
        confidence: shape (N,), in [0, 1].
        correct: shape (N,), 1 where the event happened, else 0.
        bins: number of bins.

    Returns:
        The curve, bins in rising order.
    """
    rows = np.stack([np.ones_like(confidence), confidence, correct])
    count, stated, happened = grouped_sums(rows, bin_index(confidence, bins), bins)
    filled = count > 0
    return CalibrationCurve(
        confidence=tuple(map(float, stated[filled] / count[filled])),
        accuracy=tuple(map(float, happened[filled] / count[filled])),
        count=tuple(map(int, count[filled])),
    )
