"""What a run learns from all sites by secure sums beside the training: the decision threshold, the cohort."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.evaluation.curves import FIXED_HALF, Threshold
from medveil.federation.secure.moments import MomentsPacking
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.statistics import CountPacking
from medveil.federation.secure.sums import secure_sums
from medveil.federation.secure.tallies import class_counts, histogram_counts, score_counts
from medveil.imaging.preprocess import Preprocess
from medveil.secagg.ring import RingVector
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared, TestSet, concatenate
from medveil.study.scoring import Scorer
from medveil.training.vectors import floating_buffers, to_vector

SCORE_BINS = 4096  # a power of two: a score is at least k / bins exactly when its bin is at least k
INTENSITY_BINS = 32
_BYTE = 255.0
# Standard deviations of an image's own intensities.
_ZSCORE_RANGE = (-8.0, 8.0)


def decision_threshold(scorer: Scorer, model: nn.Module, sites: Sequence[Party], lost: Collection[str]) -> Threshold:
    """Decision threshold from all sites' validation images, fixed before the test set is looked at.

    Without secure aggregation it is chosen on all sites' predictions together. With it each site counts its own
    predictions in bins, and only the sum over all sites is opened.

    Args:
        scorer: of the run.
        model: as trained.
        sites: with their validation images.
        lost: names of the sites that were lost in the training; they do not answer here either.

    Raises:
        TooFewSitesError: too few sites are left for a secure sum.
    """
    settings = scorer.plan.privacy.secure_aggregation
    validations = [site.validation for site in sites if site.validation is not None]
    if settings is None or not scorer.chooses_threshold or not validations:
        return scorer.threshold(model, concatenate(validations) if validations else None)
    packing = CountPacking((2, SCORE_BINS), len(sites))
    vectors = {
        site.name: packing.pack(validation_counts(scorer, model, site)) for site in sites if site.name not in lost
    }
    absent = [site.name for site in sites if site.name in lost]
    origin = fingerprint(to_vector(model.parameters()), to_vector(floating_buffers(model)))
    opened = secure_sums(vectors, settings, context=f"{scorer.plan.digest()} threshold", origin=origin, absent=absent)
    return binned_threshold(packing.unpack(opened.total, len(opened.included)))


def validation_counts(scorer: Scorer, model: nn.Module, site: Party) -> NDArray[np.int64]:
    """One site's scores of class 1 by true class and bin; a site without validation images counts nothing."""
    if site.validation is None:
        return np.zeros((2, SCORE_BINS), np.int64)
    scores = scorer.predict(model, site.validation)[:, 1]
    return score_counts(scores, site.validation.targets.numpy(), SCORE_BINS).astype(np.int64)


def binned_threshold(counts: NDArray[np.int64]) -> Threshold:
    """The bin edge with the largest Youden's J (sensitivity + specificity - 1).

    Args:
        counts: shape (2, bins): images of class 0 and of class 1 by score, over equally wide bins of [0, 1].

    Returns:
        The lower edge of a bin that holds scores; among equals the highest. One half where a class has no images.

    Guarantees:
        Let J* be the largest J that any threshold reaches on the scores behind the counts. The edge reaches J* less at
        most the largest share of a class that lies in one bin together with images of the other class (the smaller of
        the two shares of a bin counts); ``source`` states it. Where no bin holds both classes that is 0, and the edge
        lies in the bin of the highest score that reaches J*, at most 1 / bins below it, with the same decisions on
        these images. :func:`~medveil.evaluation.curves.choose_threshold` picks that score too, unless others reach the
        same J: there float64 rounding decides.
    """
    totals = counts.sum(axis=1, keepdims=True)
    if (totals == 0).any():
        return FIXED_HALF
    shares = counts / totals
    at_least = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    # Integers, so that equal values of J are equal: J times the product of the two totals.
    gain = at_least[1].astype(object) * int(totals[0, 0]) - at_least[0].astype(object) * int(totals[1, 0])
    filled = np.flatnonzero(counts.any(axis=0))
    best = max(gain[filled])
    chosen = max(bin_ for bin_ in filled if gain[bin_] == best)
    below = float(shares.min(axis=0).max())
    return Threshold(
        float(chosen / counts.shape[1]),
        f"largest Youden's J on histograms of validation scores in {counts.shape[1]} bins, summed over the sites in "
        "secret; " + (f"at most {below:.2g} below the largest of any threshold" if below else "no threshold has more"),
    )


def cohort_statistics(plan: Plan, prepared: Prepared) -> dict[str, Any] | None:
    """The training images of all sites together, from one secure sum; None where the plan does not ask for it.

    Returns:
        ``sites`` (how many are in the sum), ``images``, ``images_by_class`` (for masks: images that hold the class),
        ``intensity``: of the preprocessed images, bytes as 0..1: ``range``, ``mean`` and ``variance`` per channel with
        ``mean_error`` and ``variance_error`` (bounds), ``histogram`` (equal bins of the range, all channels), and
        ``outside`` (numbers beyond the range, counted at its ends).

    Raises:
        GuaranteeError: a sum over so few sites hides none of them.
    """
    settings = plan.privacy.secure_aggregation
    if settings is None or not settings.statistics:
        return None
    return _cohort(
        settings,
        prepared.sites,
        prepared.dataset.class_names,
        intensity_range(plan.data.preprocess),
        f"{plan.digest()} cohort",
    )


def intensity_range(preprocess: Preprocess) -> tuple[float, float]:
    """Public range of preprocessed intensities."""
    return _ZSCORE_RANGE if preprocess.intensity == "zscore" else (0.0, 1.0)


def _cohort(
    settings: SecureAggregation,
    sites: Sequence[Party],
    class_names: tuple[str, ...],
    limits: tuple[float, float],
    context: str,
) -> dict[str, Any]:
    tally = CohortTally(int(sites[0].train.images.shape[1]), class_names, limits, len(sites))
    opened = secure_sums({party.name: tally.counts(party) for party in sites}, settings, context=context)
    return tally.read(opened.total, len(opened.included))


class CohortTally:
    """Counts and intensities of training images.

    Args:
        channels: of an image.
        class_names: of the task.
        limits: public range of intensities.
        sites: most in one sum.
    """

    def __init__(self, channels: int, class_names: tuple[str, ...], limits: tuple[float, float], sites: int) -> None:
        self._classes, self._limits = class_names, limits
        self._counting = CountPacking((1 + len(class_names) + INTENSITY_BINS,), sites)
        self._measuring = MomentsPacking(channels, *limits, sites)
        self._edges = np.linspace(*limits, INTENSITY_BINS + 1).tolist()
        self.length = self._counting.length + self._measuring.length

    def counts(self, party: Party) -> NDArray[Any]:
        """One site's vector."""
        images = party.train.images.numpy()
        unit = _BYTE if images.dtype == np.uint8 else 1.0
        intensities, _ = histogram_counts(images, self._edges, unit=unit)
        classes = _images_by_class(party.train.targets, len(self._classes))
        counts = np.concatenate([[len(images)], classes, intensities]).astype(np.int64)
        return np.concatenate([self._counting.pack(counts), self._measuring.pack(images, unit=unit)])

    def vector(self, scorer: Scorer, model: nn.Module, party: Party, test: TestSet) -> NDArray[Any]:
        """The same, as a :class:`medveil.study.tallied.Tally`."""
        del scorer, model, test
        return self.counts(party)

    def read(self, total: RingVector, included: int) -> dict[str, Any]:
        """What the sum over ``included`` sites says, as :func:`cohort_statistics` returns it."""
        counts = self._counting.unpack(total[: self._counting.length], included)
        moments = self._measuring.unpack(total[self._counting.length :], included)
        by_class = counts[1 : 1 + len(self._classes)].tolist()
        return {
            "sites": included,
            "images": int(counts[0]),
            "images_by_class": dict(zip(self._classes, by_class, strict=True)),
            "intensity": {
                "range": list(self._limits),
                "mean": moments.mean.tolist(),
                "variance": moments.variance.tolist(),
                "mean_error": moments.mean_error,
                "variance_error": moments.variance_error,
                "outside": moments.clipped,
                "histogram": counts[1 + len(self._classes) :].tolist(),
            },
        }


def _images_by_class(targets: torch.Tensor, num_classes: int) -> NDArray[np.int64]:
    """Images per class; for masks, images that hold the class."""
    values = targets.numpy()
    if values.ndim > 1:
        values = np.concatenate([np.unique(mask) for mask in values])
    return class_counts(values, num_classes).astype(np.int64)
