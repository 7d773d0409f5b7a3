"""Score a model on a test set: as a whole, per site and per subgroup."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.errors import ConfigError
from medveil.evaluation.classification import ClassificationResult, evaluate_classification
from medveil.evaluation.curves import FIXED_HALF, Threshold, choose_threshold
from medveil.evaluation.groups import per_group
from medveil.evaluation.intervals import BootstrapConfig
from medveil.evaluation.segmentation import SegmentationResult, VolumeMasks, evaluate_segmentation
from medveil.evaluation.slices import group_volumes
from medveil.rng import Seeds
from medveil.study.plan import Plan
from medveil.study.prepare import TestSet, input_scale
from medveil.training.arrays import ArrayData
from medveil.training.predict import predict_masks, predict_probabilities

_SLICE_SHAPE = 3  # (slice distance, row, column)
_BINARY = 2
Result = ClassificationResult | SegmentationResult


@dataclass(frozen=True, eq=False)
class Scorer:
    """How a plan scores models.

    Args:
        plan: of the run.
        class_names: of the task.
        device: where models compute.
    """

    plan: Plan
    class_names: tuple[str, ...]
    device: torch.device

    def predict(self, model: nn.Module, data: ArrayData) -> NDArray[Any]:
        """Probabilities, shape (N, K), or masks, shape (N, *spatial)."""
        function = predict_probabilities if self.plan.task == "classification" else predict_masks
        return function(
            model,
            data,
            scale=input_scale(self.plan.data.preprocess),
            batch_size=self.plan.performance.eval_batch_size,
            device=self.device,
        )

    @property
    def chooses_threshold(self) -> bool:
        """Whether a decision threshold is chosen on validation images."""
        binary = self.plan.task == "classification" and len(self.class_names) == _BINARY
        return binary and self.plan.evaluation.threshold == "validation"

    def threshold(self, model: nn.Module, validation: ArrayData | None) -> Threshold:
        """Decision threshold, fixed before the test set is looked at."""
        wanted = self.plan.evaluation.threshold
        if wanted != "validation":
            return Threshold(float(wanted), "stated in the plan")
        if not self.chooses_threshold or validation is None or len(torch.unique(validation.targets)) < _BINARY:
            return FIXED_HALF
        return choose_threshold(self.predict(model, validation)[:, 1], validation.targets.numpy())

    def score(
        self, predictions: NDArray[Any], test: TestSet, threshold: Threshold, *, intervals: bool = True
    ) -> Result:
        """Metrics over the whole test set; without intervals the bootstrap is left out."""
        return self._evaluate(predictions, test, threshold, np.arange(len(test.data)), intervals=intervals)

    def by_site(self, predictions: NDArray[Any], test: TestSet, threshold: Threshold) -> dict[str, Any]:
        """Metrics per site; empty when no site is known."""
        return self._by(predictions, test, threshold, test.site_of_subject)

    def by_subgroup(self, predictions: NDArray[Any], test: TestSet, threshold: Threshold) -> dict[str, Any]:
        """Metrics per value of each of the plan's subgroup columns."""
        return {
            column: self._by(
                predictions, test, threshold, [subject.attributes.get(column, "") for subject in test.subjects]
            )
            for column in self.plan.evaluation.subgroups
        }

    def _by(
        self, predictions: NDArray[Any], test: TestSet, threshold: Threshold, group_of_subject: Sequence[str]
    ) -> dict[str, Any]:
        groups = [group_of_subject[index] for index in test.data.subject]

        def evaluate(rows: NDArray[np.int64]) -> Result:
            return self._evaluate(predictions, test, threshold, rows, intervals=True)

        results = per_group(groups, evaluate)
        return {name: result.to_json()["metrics"] for name, result in results.items() if name}

    def _evaluate(
        self,
        predictions: NDArray[Any],
        test: TestSet,
        threshold: Threshold,
        rows: NDArray[np.int64],
        *,
        intervals: bool,
    ) -> Result:
        seeds = Seeds(self.plan.seed).child("bootstrap")
        bootstrap = self.plan.evaluation.bootstrap if intervals else BootstrapConfig(resamples=0)
        if self.plan.task == "classification":
            return evaluate_classification(
                predictions[rows],
                test.data.targets.numpy()[rows],
                test.data.subject[rows],
                threshold=threshold,
                seeds=seeds,
                bootstrap=bootstrap,
            )
        return evaluate_segmentation(
            mask_volumes(predictions, test.data, rows),
            self.class_names,
            seeds=seeds,
            surface_tolerance=self.plan.evaluation.surface_tolerance_mm,
            bootstrap=bootstrap,
        )


def check_subgroups(plan: Plan, test: TestSet) -> None:
    """Refuse subgroup columns that the data do not have.

    Raises:
        ConfigError: a column that no test subject has.
    """
    columns = {column for subject in test.subjects for column in subject.attributes}
    missing = [column for column in plan.evaluation.subgroups if column not in columns]
    if missing:
        raise ConfigError(
            "evaluation.subgroups names a column that the data do not have",
            got=", ".join(missing),
            expected=f"some of: {', '.join(sorted(columns)) or 'none'}",
            remedy="correct the name, or keep the column by the data file's attributes",
        )


def mask_volumes(predictions: NDArray[np.uint8], data: ArrayData, rows: NDArray[np.int64]) -> tuple[VolumeMasks, ...]:
    """Predicted and true masks by volume: slices of one volume are stacked again.

    Args:
        predictions: shape (N, *spatial).
        data: the examples predicted.
        rows: which of them.
    """
    truth = data.targets.numpy()
    spacings = [data.spacing_mm[row] for row in rows]
    if is_sliced(data):
        return group_volumes(
            [predictions[row] for row in rows],
            [truth[row] for row in rows],
            subjects=data.subject[rows].tolist(),
            volumes=data.volume[rows].tolist(),
            positions=data.position[rows].tolist(),
            spacing_mm=[None if spacing is None else _three(spacing) for spacing in spacings],
        )
    return tuple(
        VolumeMasks(predictions[row], truth[row], int(data.subject[row]), data.spacing_mm[row]) for row in rows
    )


def is_sliced(data: ArrayData) -> bool:
    """Whether the examples are slices of volumes."""
    return bool((data.position != 0).any())


def _three(spacing: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = spacing
    return first, second, third


def point_metrics(result: Result) -> dict[str, float]:
    """Values without intervals; metrics that the data do not define are left out."""
    metrics = result.to_json()["metrics"]
    return {name: estimate["value"] for name, estimate in metrics.items() if estimate["value"] is not None}
