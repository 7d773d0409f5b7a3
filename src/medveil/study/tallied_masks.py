"""Segmentation of test patients that lie at several sites: sums of each patient's figures, and of their squares."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medveil.evaluation.intervals import BootstrapConfig, Estimate
from medveil.evaluation.segmentation import SegmentationResult, VolumeMasks, evaluate_segmentation
from medveil.federation.secure.statistics import CountPacking, WeightedPacking
from medveil.rng import Seeds
from medveil.secagg.ring import RingVector
from medveil.study.plan import Plan
from medveil.study.prepare import Party, TestSet
from medveil.study.scoring import Scorer, mask_volumes

Floats = NDArray[np.float64]
_METRICS = ("dice", "surface_dice", "hd95")
_LARGEST = 1e9  # of a site's sum: patients times (millimetres squared)
_TWO_SIDED_95 = 1.959963984540054
_UNIT_SHARES = ("dice", "surface_dice")


class SegmentationTally:
    """Per class and metric: patients with the class, sum, sum of squares; and the same of the patients' own means.

    Args:
        class_names: index 0 is the background.
        sites: most in one sum.
    """

    def __init__(self, class_names: tuple[str, ...], sites: int) -> None:
        self._names = class_names
        self._sums = WeightedPacking((len(class_names), len(_METRICS), 3), sites, _LARGEST)
        self._counts = CountPacking((4,), sites)
        self.length = self._counts.length + self._sums.length

    def vector(self, scorer: Scorer, model: nn.Module, party: Party, test: TestSet) -> RingVector:
        """The site's own sums; all zero where it has no test patients."""
        del party
        sums = np.zeros(self._sums.shape)
        counts = np.zeros(4, np.int64)
        if len(test.data):
            predictions = scorer.predict(model, test.data)
            volumes = mask_volumes(predictions, test.data, np.arange(len(test.data)))
            for patient in sorted({volume.subject for volume in volumes}):
                own = tuple(volume for volume in volumes if volume.subject == patient)
                result = self._score(own, scorer.plan)
                sums += self._summands(result)
                counts += [1, len(own), result.one_sided, result.distance_unit == "pixels"]
        return np.concatenate([self._counts.pack(counts), self._sums.pack(sums)])

    def read(self, total: RingVector, included: int, *, plan: Plan) -> dict[str, Any]:
        """Metrics and details, as the record has them.

        Guarantees:
            Values are means over patients, as of
            :func:`~medveil.evaluation.segmentation.evaluate_segmentation` on all patients together; intervals are
            the mean and 1.96 standard errors over patients, where that makes them a bootstrap's.
        """
        patients, volumes, one_sided, unspaced = self._counts.unpack(total[: self._counts.length], included).tolist()
        sums = self._sums.unpack(total[self._counts.length :], included).values
        mixed = unspaced not in (0, patients)
        unit = "pixels" if unspaced else "mm"
        names = ("dice", "surface_dice", f"hd95_{unit}")
        per_class = {
            name: {metric: _estimate(sums[k, m], metric) for m, metric in enumerate(names)}
            for k, name in enumerate(self._names)
            if k > 0
        }
        metrics = {}
        for m, metric in enumerate(names):
            means = [row[metric].value for row in per_class.values()]
            metrics[metric] = _centred(_estimate(sums[0, m], metric), [mean for mean in means if mean is not None])
        if mixed:
            metrics[names[2]] = Estimate(None, reason="some sites know their images' spacing and some do not")
        return {
            "metrics": {name: estimate.to_json() for name, estimate in metrics.items()},
            "details": {
                "per_class": {
                    name: {metric: estimate.to_json() for metric, estimate in row.items()}
                    for name, row in per_class.items()
                },
                "distance_unit": unit,
                "surface_tolerance": plan.evaluation.surface_tolerance_mm,
                "one_sided": one_sided,
                "num_subjects": patients,
                "num_examples": volumes,
                "bootstrap": {"resamples": 0, "level": 0.95},
            },
        }

    def _score(self, volumes: tuple[VolumeMasks, ...], plan: Plan) -> SegmentationResult:
        return evaluate_segmentation(
            volumes,
            self._names,
            seeds=Seeds(plan.seed),
            surface_tolerance=plan.evaluation.surface_tolerance_mm,
            bootstrap=BootstrapConfig(resamples=0),
        )

    def _summands(self, result: SegmentationResult) -> Floats:
        """One patient's: row 0 the mean over classes, the others a class each."""
        unit = result.distance_unit
        rows = [result.metrics, *(result.per_class[name] for name in self._names[1:])]
        table = np.zeros(self._sums.shape)
        for k, row in enumerate(rows):
            for m, metric in enumerate((*_UNIT_SHARES, f"hd95_{unit}")):
                value = row[metric].value
                if value is not None:
                    table[k, m] = (1.0, value, value**2)
        return table


def _estimate(sums: Floats, metric: str) -> Estimate:
    """Mean and interval from (patients, sum, sum of squares)."""
    patients, total, squares = sums.tolist()
    patients = round(patients)
    if not patients:
        return Estimate(None, reason="no test patient has the class")
    mean = total / patients
    if patients < 2:  # noqa: PLR2004 - one patient has no spread
        return Estimate(mean, reason="no interval: fewer than two patients")
    spread = math.sqrt(max(0.0, squares / patients - mean**2) / (patients - 1))
    low, high = mean - _TWO_SIDED_95 * spread, mean + _TWO_SIDED_95 * spread
    most = 1.0 if metric in _UNIT_SHARES else math.inf
    return Estimate(mean, max(0.0, low), min(most, high))


def _centred(headline: Estimate, means: list[float]) -> Estimate:
    """The headline is the mean over classes of their means; its interval has the width of the patients' own means."""
    if headline.value is None or not means:
        return headline
    value = float(np.mean(means))
    if headline.low is None or headline.high is None:
        return Estimate(value, reason=headline.reason)
    return Estimate(value, headline.low + value - headline.value, headline.high + value - headline.value)
