"""How well masks agree: Dice, surface Dice and the 95th percentile of the Hausdorff distance."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from medveil.errors import ConfigError, DataError, LabelError
from medveil.evaluation.intervals import BootstrapConfig, Estimate, with_intervals
from medveil.rng import Seeds

DEFAULT_BOOTSTRAP = BootstrapConfig()
SURFACE_TOLERANCE = 2.0
_PERCENTILE = 95.0
_FILTERS = threading.Lock()  # which warnings are shown is the process's, and sites score in threads of one

Floats = NDArray[np.float64]
DistanceUnit = Literal["mm", "pixels"]


@dataclass(frozen=True, eq=False)
class VolumeMasks:
    """One volume (or picture) of one patient: what the model drew and what the expert drew.

    Args:
        predicted: shape (*spatial), two or three axes, class indices, 0 is the background.
        reference: same shape.
        subject: which patient; equal for volumes of one patient.
        spacing_mm: distance between neighbours along each axis, or None where unknown.

    Raises:
        DataError: shapes or spacing that do not fit.
        LabelError: masks that are not whole numbers.
    """

    predicted: NDArray[np.integer]
    reference: NDArray[np.integer]
    subject: int
    spacing_mm: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.predicted.shape != self.reference.shape or self.reference.ndim not in (2, 3):
            raise DataError(
                "A predicted mask does not fit its reference",
                got=f"shapes {self.predicted.shape} and {self.reference.shape}",
                expected="equal shapes with two or three axes",
            )
        if self.spacing_mm is not None and (len(self.spacing_mm) != self.reference.ndim or min(self.spacing_mm) <= 0):
            raise DataError(
                "The spacing does not fit the mask",
                got=self.spacing_mm,
                expected=f"{self.reference.ndim} positive numbers in mm",
            )
        if self.predicted.dtype.kind not in "iu" or self.reference.dtype.kind not in "iu":
            raise LabelError(
                "A mask is not made of class indices",
                got=f"{self.predicted.dtype} and {self.reference.dtype}",
                expected="integers",
            )


@dataclass(frozen=True)
class SegmentationResult:
    """What :func:`evaluate_segmentation` found.

    Args:
        metrics: ``dice``, ``surface_dice`` and ``hd95_mm`` (``hd95_pixels`` where spacing is unknown): means
            over foreground classes.
        per_class: class name -> the same metrics.
        distance_unit: "mm", or "pixels" when at least one volume has no spacing.
        surface_tolerance: of the surface Dice, in ``distance_unit``.
        one_sided: pairs of volume and class where only one of the two masks holds the class.
        num_subjects: patients.
        num_examples: volumes (or pictures).
        bootstrap: how the intervals were made.
    """

    metrics: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    distance_unit: DistanceUnit
    surface_tolerance: float
    one_sided: int
    num_subjects: int
    num_examples: int
    bootstrap: BootstrapConfig

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: ``metrics`` (name -> estimate) and ``details`` (everything else)."""
        return {
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "details": {
                "per_class": {
                    name: {metric: estimate.to_json() for metric, estimate in metrics.items()}
                    for name, metrics in self.per_class.items()
                },
                "distance_unit": self.distance_unit,
                "surface_tolerance": self.surface_tolerance,
                "one_sided": self.one_sided,
                "num_subjects": self.num_subjects,
                "num_examples": self.num_examples,
                "bootstrap": self.bootstrap.model_dump(),
            },
        }


def evaluate_segmentation(
    volumes: Sequence[VolumeMasks],
    class_names: Sequence[str],
    *,
    seeds: Seeds,
    surface_tolerance: float = SURFACE_TOLERANCE,
    bootstrap: BootstrapConfig = DEFAULT_BOOTSTRAP,
) -> SegmentationResult:
    """Evaluate masks on volumes the model has not seen.

    A patient's value is the mean over their volumes, a class's the mean over patients, the headline the mean
    over foreground classes. Conventions where a class is absent from a volume:

    - absent from both masks: the volume says nothing about the class and is left out of its mean;
    - absent from one mask only: Dice and surface Dice are 0, and the Hausdorff distance is the volume's
      diagonal, the largest it could be (leaving it out would reward a model that finds nothing);
    - absent from every mask: the class has the value None with a reason, and the headline is the mean over
      the classes that do occur, with a reason that says so.

    Args:
        volumes: at least one.
        class_names: index -> name; index 0 is the background and is not evaluated.
        seeds: for the bootstrap.
        surface_tolerance: surfaces closer than this agree; in mm, or in pixels where spacing is unknown.
        bootstrap: how intervals are made.

    Returns:
        Means and per-class figures, each with patient-level intervals.

    Raises:
        DataError: no volumes.
        LabelError: a mask with an index that has no name.
        ConfigError: no foreground class, or a tolerance that is not positive.

    Reference:
        Surface Dice: Nikolov et al. 2018, https://arxiv.org/abs/1809.04430. Conventions: Maier-Hein et al.
        2024, https://doi.org/10.1038/s41592-023-02151-z
    """
    _check(volumes, class_names, surface_tolerance)
    unit: DistanceUnit = "mm" if all(volume.spacing_mm is not None for volume in volumes) else "pixels"
    names = ("dice", "surface_dice", f"hd95_{unit}")
    scores = np.stack([_score(v, len(class_names), surface_tolerance, unit) for v in volumes])
    patients, rows = np.unique([volume.subject for volume in volumes], return_inverse=True)
    values = np.stack([_mean_defined(scores[rows == row]) for row in range(patients.size)])
    occurs = np.atleast_1d(np.isfinite(values).any(axis=(0, 1)))
    keys = [(metric, k) for metric in range(len(names)) for k in range(len(class_names) - 1)]

    def statistics(weights: Floats) -> dict[str, Floats]:
        means = _weighted_means(values, weights)
        overall = means[:, :, occurs].mean(axis=2) if occurs.any() else np.full(means.shape[:2], np.nan)
        headline = {name: overall[:, metric] for metric, name in enumerate(names)}
        return headline | {f"{names[metric]}/{k}": means[:, metric, k] for metric, k in keys}

    points = {
        name: _point(float(value[0]), name, occurs) for name, value in statistics(np.ones((1, patients.size))).items()
    }
    estimates = with_intervals(points, statistics, np.arange(patients.size), config=bootstrap, seeds=seeds)
    return SegmentationResult(
        metrics={name: estimates[name] for name in names},
        per_class={class_names[k + 1]: {name: estimates[f"{name}/{k}"] for name in names} for k in range(occurs.size)},
        distance_unit=unit,
        surface_tolerance=surface_tolerance,
        one_sided=sum(_one_sided(volume, len(class_names)) for volume in volumes),
        num_subjects=int(patients.size),
        num_examples=len(volumes),
        bootstrap=bootstrap,
    )


def _check(volumes: Sequence[VolumeMasks], class_names: Sequence[str], surface_tolerance: float) -> None:
    if not volumes:
        raise DataError("There are no masks to evaluate", got=0, expected="at least one volume")
    if len(class_names) < 2 or not surface_tolerance > 0:  # noqa: PLR2004 - background and one foreground class
        raise ConfigError(
            "The segmentation cannot be evaluated as asked",
            got=f"{len(class_names)} classes, surface tolerance {surface_tolerance}",
            expected="background and at least one class, and a tolerance above 0",
        )
    lowest = min(int(min(v.predicted.min(), v.reference.min())) for v in volumes)
    highest = max(int(max(v.predicted.max(), v.reference.max())) for v in volumes)
    if lowest < 0 or highest >= len(class_names):
        raise LabelError(
            "A mask holds a class that has no name",
            got=f"indices from {lowest} to {highest}",
            expected=f"indices from 0 to {len(class_names) - 1}",
        )


def _score(volume: VolumeMasks, num_classes: int, tolerance: float, unit: DistanceUnit) -> Floats:
    """Shape (3, classes - 1): Dice, surface Dice, HD95; NaN where neither mask holds the class."""
    spacing = volume.spacing_mm if unit == "mm" and volume.spacing_mm else (1.0,) * volume.reference.ndim
    columns = [
        _score_class(volume.predicted == k, volume.reference == k, spacing, tolerance) for k in range(1, num_classes)
    ]
    return np.asarray(columns, dtype=np.float64).T


def _score_class(
    predicted: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: tuple[float, ...],
    tolerance: float,
) -> tuple[float, float, float]:
    if not predicted.any() and not reference.any():
        return (np.nan, np.nan, np.nan)
    if not predicted.any() or not reference.any():
        return (0.0, 0.0, float(np.linalg.norm(np.multiply(reference.shape, spacing))))
    pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (predicted, reference)]
    with _FILTERS, warnings.catch_warnings():
        # MONAI 1.5 and 1.6 warn about an argument that they themselves pass on.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        dice = compute_dice(*pair)
        surface = compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True, spacing=spacing)
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=_PERCENTILE, spacing=spacing)
    return (float(dice), float(surface), float(distance))


def _one_sided(volume: VolumeMasks, num_classes: int) -> int:
    masks = (volume.predicted, volume.reference)
    return sum(len({bool((mask == k).any()) for mask in masks}) - 1 for k in range(1, num_classes))


def _mean_defined(values: Floats) -> Floats:
    """Mean over the first axis, NaN left out; NaN where nothing is defined."""
    mean: Floats = _weighted_means(values, np.ones((1, values.shape[0])))[0]
    return mean


def _weighted_means(values: Floats, weights: Floats) -> Floats:
    """From (S, metrics, classes) and (B, S) to (B, metrics, classes), NaN left out."""
    defined = np.isfinite(values)
    sums = np.tensordot(weights, np.where(defined, values, 0), axes=1)
    counts = np.tensordot(weights, defined.astype(np.float64), axes=1)
    means: Floats = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _point(value: float, name: str, occurs: NDArray[np.bool_]) -> Estimate:
    if not np.isfinite(value):
        return Estimate(None, reason="the class is in no mask, drawn or predicted")
    if "/" not in name and not occurs.all():
        return Estimate(value, reason=f"mean over the {occurs.sum()} of {occurs.size} classes that occur")
    return Estimate(value)
