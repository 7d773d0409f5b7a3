"""What one site counts in its own data before anything is summed: classes, decisions, scores, intensities."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medveil.errors import ConfigError, DataError, LabelError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
_BLOCK = 1 << 20  # numbers that are converted to float64 at a time


def class_counts(labels: ArrayLike, num_classes: int, weights: ArrayLike | None = None) -> Counts | Floats:
    """How many labels there are of each class.

    Args:
        labels: integers in [0, num_classes).
        num_classes: K.
        weights: one per label, >= 0; None counts each once.

    Returns:
        Shape (K,): int64, or with weights float64.

    Raises:
        LabelError: a label outside the classes.

    >>> class_counts([0, 2, 2], 3)
    array([1, 0, 2])
    """
    return _tally(_indices(labels, num_classes), num_classes, weights)


def confusion_counts(
    labels: ArrayLike, predicted: ArrayLike, num_classes: int, weights: ArrayLike | None = None
) -> Counts | Floats:
    """One site's confusion matrix.

    Returns:
        Shape (K, K), rows are the true class: int64, or with weights float64.

    Raises:
        LabelError: a class outside [0, num_classes).
        DataError: not one prediction a label.
    """
    true, called = _indices(labels, num_classes), _indices(predicted, num_classes)
    if true.shape != called.shape:
        raise DataError("Labels and predictions do not fit together", got=f"{true.size} and {called.size}")
    return _tally(true * num_classes + called, num_classes**2, weights).reshape(num_classes, num_classes)


def score_counts(
    scores: ArrayLike, labels: ArrayLike, bins: int, num_classes: int = 2, weights: ArrayLike | None = None
) -> Counts | Floats:
    """Histograms of scores by true class, over equally wide bins of [0, 1]; a score of 1 falls into the last.

    Args:
        scores: shape (N,), in [0, 1].
        labels: shape (N,), true classes.
        bins: a power of two, so that ``score >= k / bins`` is exactly ``bin >= k``.
        num_classes: K.
        weights: shape (N,), >= 0; None counts each once.

    Returns:
        Shape (K, bins): int64, or with weights float64.

    Raises:
        ConfigError: bins is not a power of two.
        DataError: a score outside [0, 1], or not one score a label.
        LabelError: a label outside the classes.
    """
    if bins < 1 or bins & (bins - 1):
        raise ConfigError("Scores are counted in a power of two of bins", got=bins, expected="for example 4096")
    values, true = np.asarray(scores, dtype=np.float64).ravel(), _indices(labels, num_classes)
    if values.shape != true.shape or not ((values >= 0) & (values <= 1)).all():  # written so that NaN fails
        raise DataError("These scores cannot be counted", expected="one score in [0, 1] for every label")
    cells = np.minimum((values * bins).astype(np.int64), bins - 1)
    return _tally(true * bins + cells, num_classes * bins, weights).reshape(num_classes, bins)


def histogram_counts(
    images: NDArray[np.generic], edges: Sequence[float], *, unit: float = 1.0, weights: ArrayLike | None = None
) -> tuple[Counts | Floats, int]:
    """One site's histogram of intensities over fixed public bins.

    Args:
        images: shape (N, channels, *spatial); all channels are counted together.
        edges: rising; a bin holds its lower edge, the last one its upper edge too.
        unit: every number is divided by it first (255 for bytes that stand for 0..1).
        weights: shape (N,), >= 0: of each image's pixels; None counts each once.

    Returns:
        Shape (bins,), int64 or with weights float64; and how many numbers lay outside. They are in the outermost bins.

    Raises:
        ConfigError: edges that do not rise.
        DataError: a number that is not finite, or not one weight an image.
    """
    borders = np.asarray(edges, dtype=np.float64)
    if borders.ndim != 1 or borders.size < 2 or not (np.diff(borders) > 0).all():  # noqa: PLR2004 - one bin
        raise ConfigError("These are no bins", got=f"{borders.size} edges", expected="at least two, rising")
    bins, outside, parts = borders.size - 1, 0, []
    for start, block in blocks(images, unit):
        cells = np.clip(np.searchsorted(borders, block, side="right") - 1, 0, bins - 1).ravel()
        outside += int(np.count_nonzero((block < borders[0]) | (block > borders[-1])))
        each = None if weights is None else spread(weights, images, start, block)
        parts.append(_tally(cells, bins, each))
    kind: type = np.int64 if weights is None else np.float64
    return np.sum(parts, axis=0, dtype=kind) if parts else np.zeros(bins, kind), outside


def blocks(images: NDArray[np.generic], unit: float) -> Iterator[tuple[int, Floats]]:
    """Some images at a time in float64, divided by ``unit``, with the number of the first.

    Raises:
        DataError: a number that is not finite.
    """
    each = max(1, images[:1].size)
    count = max(1, _BLOCK // each)
    for start in range(0, len(images), count):
        block = images[start : start + count].astype(np.float64) / unit
        if not np.isfinite(block).all():
            raise DataError("An intensity is not finite", expected="finite numbers")
        yield start, block


def spread(weights: ArrayLike, images: NDArray[np.generic], start: int, block: Floats) -> Floats:
    """An image's weight for each number of ``block``, whose first image has the number ``start``.

    Raises:
        DataError: not one finite weight >= 0 an image.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != images.shape[:1] or not ((given >= 0) & np.isfinite(given)).all():
        raise DataError("These weights cannot be used", expected="one finite number >= 0 for every image")
    return np.repeat(given[start : start + len(block)], block[:1].size)


def _indices(labels: ArrayLike, num_classes: int) -> Counts:
    given = np.asarray(labels).ravel()
    if given.size and (given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= num_classes):
        raise LabelError("A label is not one of the classes", expected=f"whole numbers from 0 to {num_classes - 1}")
    return given.astype(np.int64)


def _tally(cells: Counts, number: int, weights: ArrayLike | None) -> Counts | Floats:
    if weights is None:
        return np.bincount(cells, minlength=number).astype(np.int64)
    given = np.asarray(weights, dtype=np.float64).ravel()
    if given.shape != cells.shape or not ((given >= 0) & np.isfinite(given)).all():
        raise DataError("These weights cannot be used", expected="one finite number >= 0 for every image")
    return np.bincount(cells, given, minlength=number)
