"""A test set that lies at several sites: each scores the model on its own patients, and only sums are read."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, matthews_corrcoef, roc_auc_score
from torch import nn

from medveil.evaluation.classification import evaluate_classification
from medveil.evaluation.curves import FIXED_HALF, Threshold
from medveil.evaluation.intervals import BootstrapConfig, Estimate
from medveil.federation.secure.statistics import CountPacking
from medveil.federation.secure.tallies import confusion_counts, score_counts
from medveil.rng import Seeds
from medveil.secagg.ring import RingVector
from medveil.study.plan import Plan
from medveil.study.prepare import Party, TestSet
from medveil.study.scoring import Scorer
from medveil.study.secure_statistics import SCORE_BINS, binned_threshold, validation_counts

Counts = NDArray[np.int64]
_BINARY = 2
_CALIBRATION_BINS = 10
_SEVERAL_IMAGES = "no interval: some patients have several images, and sums over sites do not tell whose they are"
_SEVERAL_CLASSES = "no interval: sums over sites tell no joint counts of more than two classes' scores"


class Tally(Protocol):
    """What one sum over sites is of."""

    length: int

    def vector(self, scorer: Scorer, model: nn.Module, party: Party, test: TestSet) -> RingVector:
        """A site's own."""
        ...


class ThresholdTally:
    """Validation scores by class and bin, from which the decision threshold is chosen.

    Args:
        sites: most in one sum.
    """

    def __init__(self, sites: int) -> None:
        self._packing = CountPacking((2, SCORE_BINS), sites)
        self.length = self._packing.length

    def vector(self, scorer: Scorer, model: nn.Module, party: Party, test: TestSet) -> RingVector:
        """Counts of the site's validation scores; none where it has no validation images."""
        del test
        return self._packing.pack(validation_counts(scorer, model, party))

    def read(self, total: RingVector, included: int) -> Threshold:
        """The threshold that the sum of all sites' counts gives."""
        return binned_threshold(self._packing.unpack(total, included))


def on_bin_edge(threshold: Threshold) -> Threshold:
    """The nearest threshold at which decisions can be told from binned scores."""
    edge = round(threshold.value * SCORE_BINS) / SCORE_BINS
    if edge == threshold.value:
        return threshold
    return Threshold(edge, f"{threshold.source}, to the nearest {SCORE_BINS}th")


class ClassificationTally:
    """A classifier's test scores: histograms by class, confusion by the most probable class, numbers of patients.

    Args:
        num_classes: K.
        sites: most in one sum.
    """

    def __init__(self, num_classes: int, sites: int) -> None:
        self._classes = num_classes
        self._scored = [1] if num_classes == _BINARY else list(range(num_classes))
        histograms = (len(self._scored) + 1) * 2 * SCORE_BINS
        self._packing = CountPacking((2 + num_classes**2 + histograms,), sites)
        self.length = self._packing.length

    def vector(self, scorer: Scorer, model: nn.Module, party: Party, test: TestSet) -> RingVector:
        """The site's own counts; all zero where it has no test patients."""
        del party
        if not len(test.data):
            return self._packing.pack(np.zeros(self._packing.shape, np.int64))
        scores = np.asarray(scorer.predict(model, test.data), dtype=np.float64).clip(0, 1)
        labels = test.data.targets.numpy()
        called = scores.argmax(axis=1)
        parts = [
            np.array([test.data.num_subjects, len(labels)], np.int64),
            confusion_counts(labels, called, self._classes),
            *(score_counts(scores[:, k], (labels == k).astype(np.int64), SCORE_BINS) for k in self._scored),
            score_counts(scores.max(axis=1), (called == labels).astype(np.int64), SCORE_BINS),
        ]
        return self._packing.pack(np.concatenate([np.asarray(part, np.int64).ravel() for part in parts]))

    def read(self, total: RingVector, included: int, *, plan: Plan, threshold: Threshold) -> dict[str, Any]:
        """Metrics and details, as the record has them.

        Guarantees:
            Decisions are counted exactly. Ranks within one bin of the scores (1/4096) are not told apart, and a score
            counts as the middle of its bin.
        """
        counts = self._packing.unpack(total, included)
        subjects, images = int(counts[0]), int(counts[1])
        confusion = counts[2 : 2 + self._classes**2].reshape(self._classes, self._classes)
        histograms = counts[2 + self._classes**2 :].reshape(-1, 2, SCORE_BINS)
        if not images:
            return {
                "metrics": {},
                "details": {"num_subjects": 0, "num_examples": 0, "bootstrap": {"resamples": 0, "level": 0.95}},
            }
        if self._classes == _BINARY:
            return _binary(histograms[0], subjects, plan, threshold)
        return _several(histograms[:-1], histograms[-1], confusion, subjects)


def _middles() -> NDArray[np.float64]:
    return (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS


def _binary(histogram: Counts, subjects: int, plan: Plan, threshold: Threshold) -> dict[str, Any]:
    """One row an image, with the middle of its bin for its score; each image is a patient where the numbers agree."""
    labels = np.repeat([0, 1], histogram.sum(axis=1))
    scores = np.concatenate([np.repeat(_middles(), row) for row in histogram])
    alone = subjects == labels.size
    result = evaluate_classification(
        np.stack([1 - scores, scores], axis=1),
        labels,
        np.arange(labels.size),
        threshold=threshold,
        seeds=Seeds(plan.seed).child("bootstrap"),
        bootstrap=plan.evaluation.bootstrap if alone else BootstrapConfig(resamples=0),
    ).to_json()
    if not alone:
        for estimate in result["metrics"].values():
            estimate["reason"] = estimate["reason"] if estimate["value"] is None else _SEVERAL_IMAGES
    result["details"]["num_subjects"] = subjects
    return result


def _several(histograms: Counts, confidence: Counts, confusion: Counts, subjects: int) -> dict[str, Any]:
    """More than two classes: means over one class against the rest; no intervals."""
    middles = np.tile(_middles(), 2)
    truth = np.repeat([0, 1], SCORE_BINS)
    defined = [one for one in histograms if one[0].sum() and one[1].sum()]
    weights = [one.ravel().astype(np.float64) for one in defined]
    auc = [float(roc_auc_score(truth, middles, sample_weight=weight)) for weight in weights]
    precision = [float(average_precision_score(truth, middles, sample_weight=weight)) for weight in weights]
    total, rows, columns, hits = confusion.sum(), confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    there, elsewhere = rows > 0, rows < total
    sensitivity = hits[there] / rows[there]
    specificity = ((total - rows - columns + hits) / np.maximum(total - rows, 1))[elsewhere]
    true, called = np.indices(confusion.shape).reshape(2, -1)
    mcc = float(matthews_corrcoef(true, called, sample_weight=confusion.ravel()))
    bins = (np.arange(SCORE_BINS) * _CALIBRATION_BINS) // SCORE_BINS
    wrong, right = (np.bincount(bins, row, _CALIBRATION_BINS) for row in confidence)
    stated = np.bincount(bins, _middles() * confidence.sum(axis=0), _CALIBRATION_BINS)
    values = {
        "auc": _mean(auc),
        "average_precision": _mean(precision),
        "mcc": mcc,
        "sensitivity": _mean(sensitivity.tolist()),
        "specificity": _mean(specificity.tolist()),
        "balanced_accuracy": _mean(sensitivity.tolist()),
        "calibration_error": float(np.abs(stated - right).sum() / max(1, (wrong + right).sum())),
    }
    return {
        "metrics": {name: Estimate(value, reason=_SEVERAL_CLASSES).to_json() for name, value in values.items()},
        "details": {
            "threshold": None,
            "threshold_source": "the most probable class",
            "confusion": confusion.tolist(),
            "roc": None,
            "num_subjects": subjects,
            "num_examples": int(total),
            "bootstrap": {"resamples": 0, "level": 0.95},
        },
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def fixed_threshold(plan: Plan) -> Threshold:
    """The threshold where none is chosen on validation images."""
    wanted = plan.evaluation.threshold
    return FIXED_HALF if wanted == "validation" else on_bin_edge(Threshold(float(wanted), "stated in the plan"))
