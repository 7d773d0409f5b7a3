"""Which sums over sites a plan asks for beside the rounds of its training."""

from collections.abc import Sequence

from medveil.federation.messages import Purpose
from medveil.study.plan import Plan
from medveil.study.secure_statistics import CohortTally, intensity_range
from medveil.study.tallied import ClassificationTally, Tally, ThresholdTally
from medveil.study.tallied_masks import SegmentationTally

_BINARY = 2


def needed_tallies(plan: Plan, class_names: Sequence[str], channels: int, sites: Sequence[str]) -> dict[Purpose, Tally]:
    """By purpose, in the order in which they are summed.

    Args:
        plan: of the run.
        class_names: of the task.
        channels: of an image.
        sites: all of the run.
    """
    names, number = tuple(class_names), len(sites)
    needed: dict[Purpose, Tally] = {}
    settings = plan.privacy.secure_aggregation
    if settings is not None and settings.statistics:
        needed["cohort"] = CohortTally(channels, names, intensity_range(plan.data.preprocess), number)
    if plan.task == "segmentation":
        return {**needed, "evaluation": SegmentationTally(names, number)}
    if len(names) == _BINARY and plan.evaluation.threshold == "validation":
        needed["threshold"] = ThresholdTally(number)
    return {**needed, "evaluation": ClassificationTally(len(names), number)}
