"""How well a classifier does: ranking, decisions at a stated threshold, and calibration."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, matthews_corrcoef, roc_auc_score

from medveil.errors import ConfigError, DataError, LabelError
from medveil.evaluation import weighted
from medveil.evaluation.curves import (
    FIXED_HALF,
    CalibrationCurve,
    RocCurve,
    Threshold,
    calibration_curve,
    roc_points,
)
from medveil.evaluation.intervals import BootstrapConfig, Estimate, with_intervals
from medveil.rng import Seeds

METRICS = (
    "auc",
    "average_precision",
    "mcc",
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "calibration_error",
)
CALIBRATION_BINS = 10
DEFAULT_BOOTSTRAP = BootstrapConfig()
_BINARY = 2
_SUM_TOLERANCE = 1e-3

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ClassificationResult:
    """What :func:`evaluate_classification` found.

    Args:
        metrics: name -> estimate, names as in :data:`METRICS`.
        threshold: the threshold used, or None for more than two classes (the most probable class counts).
        threshold_source: how it was chosen.
        confusion: counts of images; rows are the true class, columns the predicted one.
        roc: None for more than two classes, or where a class has no images.
        calibration: reliability curve.
        num_subjects: patients.
        num_examples: images.
        bootstrap: how the intervals were made.
    """

    metrics: Mapping[str, Estimate]
    threshold: float | None
    threshold_source: str
    confusion: tuple[tuple[int, ...], ...]
    roc: RocCurve | None
    calibration: CalibrationCurve
    num_subjects: int
    num_examples: int
    bootstrap: BootstrapConfig

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: ``metrics`` (name -> estimate) and ``details`` (everything else)."""
        return {
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "details": {
                "threshold": self.threshold,
                "threshold_source": self.threshold_source,
                "confusion": [list(row) for row in self.confusion],
                "roc": None if self.roc is None else _lists(asdict(self.roc)),
                "calibration": _lists(asdict(self.calibration)),
                "num_subjects": self.num_subjects,
                "num_examples": self.num_examples,
                "bootstrap": self.bootstrap.model_dump(),
            },
        }


def evaluate_classification(
    probabilities: ArrayLike,
    labels: ArrayLike,
    subjects: ArrayLike,
    *,
    seeds: Seeds,
    threshold: Threshold = FIXED_HALF,
    bins: int = CALIBRATION_BINS,
    bootstrap: BootstrapConfig = DEFAULT_BOOTSTRAP,
) -> ClassificationResult:
    """Evaluate a classifier on images it has not seen.

    Two classes: class 1 is the positive one, and decisions are ``probability >= threshold``. More classes:
    AUC, average precision, sensitivity and specificity are means over one-versus-rest, decisions are the most
    probable class. Calibration is that of class 1's probability for two classes, of the most probable class's
    for more.

    Args:
        probabilities: shape (N, K), K >= 2, rows sum to 1.
        labels: shape (N,), class indices.
        subjects: shape (N,), equal for images of one patient.
        seeds: for the bootstrap.
        threshold: chosen beforehand, see :func:`medveil.evaluation.curves.choose_threshold`; unused for more
            than two classes.
        bins: equally wide bins of the calibration error.
        bootstrap: how intervals are made.

    Returns:
        Every metric of :data:`METRICS`. One that the data do not define (a class without images) has the
        value None and a reason. A classifier that calls every image the same has an MCC of 0, by convention.

    Raises:
        DataError: no images, shapes that do not fit, or numbers that are no probabilities.
        LabelError: a label outside [0, K).
        ConfigError: fewer than one bin.

    Guarantees:
        Patients are the unit of every interval. The interval of ``calibration_error`` leans upwards, because
        resampling adds noise that this metric counts as miscalibration.
    """
    p, y, patients = _checked(probabilities, labels, subjects)
    if bins < 1:
        raise ConfigError("The calibration error needs bins", got=bins, expected="at least 1")
    scored = _Scored.decide(p, y, threshold, bins)
    points = {name: _estimate(value, y, p.shape[1]) for name, value in scored.points().items()}
    return ClassificationResult(
        metrics=with_intervals(points, scored.statistics, patients, config=bootstrap, seeds=seeds),
        threshold=threshold.value if scored.binary else None,
        threshold_source=threshold.source if scored.binary else "the most probable class",
        confusion=scored.confusion(),
        roc=roc_points(p[:, 1], y == 1) if scored.binary else None,
        calibration=calibration_curve(scored.confidence, scored.happened, bins),
        num_subjects=int(np.unique(patients).size),
        num_examples=int(y.size),
        bootstrap=bootstrap,
    )


@dataclass(frozen=True, eq=False)
class _Scored:
    """Predictions with the decisions drawn from them."""

    p: Floats
    y: Indices
    predicted: Indices
    confidence: Floats
    happened: Floats
    bins: int

    @classmethod
    def decide(cls, p: Floats, y: Indices, threshold: Threshold, bins: int) -> "_Scored":
        if p.shape[1] == _BINARY:
            called = (p[:, 1] >= threshold.value).astype(np.int64)
            return cls(p, y, called, p[:, 1], (y == 1).astype(np.float64), bins)
        called = p.argmax(axis=1)
        return cls(p, y, called, p.max(axis=1), (y == called).astype(np.float64), bins)

    @property
    def binary(self) -> bool:
        return bool(self.p.shape[1] == _BINARY)

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        return {
            "auc": self._mean_rank(lambda s, hit: weighted.auc(s, hit, weights)),
            "average_precision": self._mean_rank(lambda s, hit: weighted.average_precision(s, hit, weights)),
            **self._decided(weights),
        }

    def points(self) -> dict[str, float]:
        decided = self._decided(np.ones((1, self.y.size)))
        return {
            **self._ranking_points(),
            **{name: float(value[0]) for name, value in decided.items()},
            "mcc": _mcc_point(self.y, self.predicted),
        }

    def confusion(self) -> tuple[tuple[int, ...], ...]:
        counts = confusion_matrix(self.y, self.predicted, labels=range(self.p.shape[1]))
        return tuple(tuple(map(int, row)) for row in counts)

    def _decided(self, weights: Floats) -> dict[str, Floats]:
        matrix = weighted.confusion(self.y, self.predicted, self.p.shape[1], weights)
        recalls = weighted.recalls(matrix)
        return {
            "mcc": weighted.matthews(matrix),
            "sensitivity": _positive_or_mean(recalls),
            "specificity": _positive_or_mean(weighted.specificities(matrix)),
            "balanced_accuracy": recalls.mean(axis=1),
            "calibration_error": weighted.calibration_error(self.confidence, self.happened, self.bins, weights),
        }

    def _ranking_points(self) -> dict[str, float]:
        if np.unique(self.y).size < self.p.shape[1]:
            return {"auc": np.nan, "average_precision": np.nan}
        return {
            "auc": float(self._mean_rank(lambda s, hit: roc_auc_score(hit, s))),
            "average_precision": float(self._mean_rank(lambda s, hit: average_precision_score(hit, s))),
        }

    def _mean_rank(self, score: Callable[[Floats, NDArray[np.bool_]], Any]) -> Any:
        """Class 1 alone for two classes; the mean over all classes for more."""
        classes = (1,) if self.binary else range(self.p.shape[1])
        return np.mean([score(self.p[:, k], self.y == k) for k in classes], axis=0)


def _checked(probabilities: ArrayLike, labels: ArrayLike, subjects: ArrayLike) -> tuple[Floats, Indices, NDArray[Any]]:
    p, y, patients = np.asarray(probabilities, dtype=np.float64), np.asarray(labels), np.asarray(subjects)
    if p.ndim != _BINARY or p.shape[1] < _BINARY or p.shape[0] == 0:
        raise DataError("Predictions have the wrong shape", got=p.shape, expected="(images, two or more classes)")
    if y.shape != p.shape[:1] or patients.shape != p.shape[:1]:
        raise DataError(
            "Predictions, labels and patients do not fit together",
            got=f"{p.shape[0]} predictions, labels of shape {y.shape}, patients of shape {patients.shape}",
            expected="one label and one patient per prediction",
        )
    if not np.isfinite(p).all() or (p < 0).any() or (abs(p.sum(axis=1) - 1) > _SUM_TOLERANCE).any():
        raise DataError(
            "Predictions are not probabilities",
            expected="numbers in [0, 1] whose rows sum to 1",
            remedy="apply softmax to the model's outputs",
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise LabelError(
            "A label is not one of the model's classes",
            got=f"{y.dtype} from {y.min()} to {y.max()}",
            expected=f"whole numbers from 0 to {p.shape[1] - 1}",
        )
    return p, y.astype(np.int64), patients


def _positive_or_mean(rates: Floats) -> Floats:
    return rates[:, 1] if rates.shape[1] == _BINARY else rates.mean(axis=1)


def _mcc_point(y: Indices, predicted: Indices) -> float:
    return np.nan if np.unique(y).size == 1 else float(matthews_corrcoef(y, predicted))


def _estimate(value: float, y: Indices, num_classes: int) -> Estimate:
    if np.isfinite(value):
        return Estimate(value)
    missing = sorted(set(range(num_classes)) - set(y.tolist()))
    return Estimate(None, reason=f"no image of class {', '.join(map(str, missing))}")


def _lists(fields: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in fields.items()}
