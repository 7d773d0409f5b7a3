"""Classification metrics under many weightings at once: what makes a thousand resamples cheap.

Weights have shape (B, N): one row per resample, one column per image. Every function returns shape (B,) and
NaN where a row does not define the metric. scikit-learn gives the same figures one weighting at a time; the
tests hold both together.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def grouped_sums(weights: Floats, groups: NDArray[np.integer], num_groups: int) -> Floats:
    """Sum the columns of each group.

    Args:
        weights: shape (B, N).
        groups: shape (N,), each in [0, num_groups).
        num_groups: number of groups; one without columns sums to 0.

    Returns:
        Shape (B, num_groups).

    >>> grouped_sums(np.array([[1.0, 2.0, 4.0]]), np.array([0, 2, 0]), 3)
    array([[5., 0., 2.]])
    """
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((weights.shape[0], num_groups))
    if present.size:
        sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve by weighted ranks; ties count one half.

    Args:
        scores: shape (N,), higher means more likely positive.
        positive: shape (N,).
        weights: shape (B, N), >= 0.

    Returns:
        Shape (B,), in [0, 1]; NaN where a row lacks positives or negatives.

    Reference:
        Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747
    """
    hits, misses = _tied_sums(scores, positive, weights)
    below = np.cumsum(misses, axis=1) - misses
    won = (hits * (below + misses / 2)).sum(axis=1)
    return _ratio(won, hits.sum(axis=1) * misses.sum(axis=1))


def average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision: precision at every distinct score, weighted by the recall it adds.

    Args:
        scores: shape (N,), higher means more likely positive.
        positive: shape (N,).
        weights: shape (B, N), >= 0.

    Returns:
        Shape (B,), in [0, 1]; NaN where a row lacks positives or negatives (a value there says nothing).
    """
    hits, misses = (part[:, ::-1] for part in _tied_sums(scores, positive, weights))
    found = np.cumsum(hits, axis=1)
    called = found + np.cumsum(misses, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    value = _ratio((hits * precision).sum(axis=1), hits.sum(axis=1))
    value[misses.sum(axis=1) == 0] = np.nan
    return value


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, weights: Floats) -> Floats:
    """Confusion matrices.

    Args:
        labels: shape (N,), each in [0, num_classes).
        predicted: shape (N,), each in [0, num_classes).
        num_classes: K.
        weights: shape (B, N).

    Returns:
        Shape (B, K, K): rows are the true class, columns the predicted one.
    """
    cells = labels.astype(np.int64) * num_classes + predicted
    return grouped_sums(weights, cells, num_classes**2).reshape(-1, num_classes, num_classes)


def recalls(matrix: Floats) -> Floats:
    """Share of each class that is found: shape (B, K) from (B, K, K); NaN for a class without images."""
    return _ratio(np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2))


def specificities(matrix: Floats) -> Floats:
    """Share of the others that is not called each class: (B, K) from (B, K, K); NaN without others."""
    others = matrix.sum(axis=(1, 2))[:, None] - matrix.sum(axis=2)
    wrongly = matrix.sum(axis=1) - np.diagonal(matrix, axis1=1, axis2=2)
    return _ratio(others - wrongly, others)


def matthews(matrix: Floats) -> Floats:
    """Matthews correlation coefficient of K classes.

    Args:
        matrix: shape (B, K, K), rows are the true class.

    Returns:
        Shape (B,), in [-1, 1]. 0 where only one class is predicted (the usual convention: no information);
        NaN where the data hold only one class.

    Reference:
        Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006
    """
    true, called = matrix.sum(axis=2), matrix.sum(axis=1)
    total = matrix.sum(axis=(1, 2))
    agreement = np.trace(matrix, axis1=1, axis2=2) * total - (true * called).sum(axis=1)
    spread_true = total**2 - (true**2).sum(axis=1)
    spread_called = total**2 - (called**2).sum(axis=1)
    value = _ratio(agreement, np.sqrt(spread_true * spread_called))
    value[(spread_called == 0) & (spread_true > 0)] = 0
    return value


def calibration_error(confidence: Floats, correct: Floats, bins: int, weights: Floats) -> Floats:
    """Expected calibration error over equally wide bins.

    Args:
        confidence: shape (N,), in [0, 1].
        correct: shape (N,), 1 where the event of that confidence happened, else 0.
        bins: number of bins.
        weights: shape (B, N).

    Returns:
        Shape (B,), in [0, 1].

    Reference:
        Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602
    """
    index = bin_index(confidence, bins)
    gap = grouped_sums(weights * (confidence - correct), index, bins)
    return _ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def bin_index(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Which of ``bins`` equally wide bins of [0, 1] each confidence falls into; 1 falls into the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def _tied_sums(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, in rising order."""
    distinct, tie = np.unique(scores, return_inverse=True)
    hits = grouped_sums(weights[:, positive], tie[positive], distinct.size)
    misses = grouped_sums(weights[:, ~positive], tie[~positive], distinct.size)
    return hits, misses


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    value: Floats = np.full(denominator.shape, np.nan)
    np.divide(numerator, denominator, out=value, where=denominator > 0)
    return value
