"""Who joins a step: the real step on units that can be told apart in its output.

Unit j has images that are black but for pixels of its own, and the network is one linear layer that starts at zero:
each unit's gradient then lies in coordinates of its own, and what a step gives says who took part and with how many
images. The plan's network plays no part in sampling.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.audit.probes import as_data
from medveil.audit.rig import AuditedStep, on_one_layer, releases, with_step
from medveil.audit.statistics import Interval, binomial_p, rate_interval
from medveil.audit.verdict import Component
from medveil.errors import PrivacyError
from medveil.rng import SecureRandom
from medveil.training.arrays import ArrayData

_LEAST_UNITS, _MOST_UNITS = 400, 1600
_LEAST_STEPS, _MOST_STEPS = 240, 1000
_IMAGES: Final = (1, 1, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class Joined:
    """Who took part.

    Attributes:
        units: shape (steps, units), whether the unit took part.
        images: shape (steps, units), with how many images.
        held: shape (units,), images that the unit has.
    """

    units: NDArray[np.bool_]
    images: NDArray[np.int64]
    held: NDArray[np.int64]


def check_sampling(
    audited: AuditedStep, random: SecureRandom, *, tests: float, steps: int | None = None
) -> tuple[list[Component], Interval, tuple[int, int]]:
    """Every unit joins every step on its own, at the claimed rate.

    Args:
        audited: settled.
        random: the trainer's coins.
        tests: alpha of each single test.
        steps: how many; as many as tell shuffling from sampling by default.

    Returns:
        Components, the interval of the sampling rate, and how many steps and units were watched.
    """
    rate = audited.step.event.sampling_rate
    count = steps or min(max(int(4 / rate), _LEAST_STEPS), _MOST_STEPS)
    units = min(max(int(4 / rate), _LEAST_UNITS), _MOST_UNITS)
    try:
        joined = watch(audited, random, count, units)
    except PrivacyError as error:
        broken = Component("sampling-rate", False, rate, None, None, None, f"the step refused its sum: {error.what}")
        return [broken], Interval(0.0, 1.0, 1.0), (count, units)
    interval = rate_interval(int(joined.units.sum()), joined.units.size, tests)
    said = f"{joined.units.sum():,} of {joined.units.size:,} chances to join"
    found = Component("sampling-rate", interval.holds(rate), rate, interval.measured, interval.low, interval.high, said)
    chosen = _images_chosen(audited, joined)
    return [found, *_independence(joined.units, rate, tests), chosen], interval, (count, units)


def watch(audited: AuditedStep, random: SecureRandom, steps: int, units: int) -> Joined:
    """Run the step and read who took part."""
    images_of = np.resize(_IMAGES, units) if audited.unit == "patient" else np.ones(units, dtype=np.int64)
    owner = np.repeat(np.arange(units), images_of).astype(np.int64)
    linear, data = _telling_apart(audited, owner)
    quiet = with_step(linear, quiet=True)
    bound = audited.step.clipping.l2_clip_norm
    # A unit that joins has norm C, shared by its images; what is not there has the noise of a few grid units.
    least = 0.4 * bound / np.sqrt(images_of.max())
    images = np.zeros((steps, units), dtype=np.int64)
    for number, released in enumerate(releases(quiet, data, random, steps)):
        seen = np.linalg.norm(released.total.reshape(2, -1), axis=0) > least
        images[number] = np.bincount(owner[seen], minlength=units)
    return Joined(images > 0, images, images_of.astype(np.int64))


def _telling_apart(audited: AuditedStep, owner: NDArray[np.int64]) -> tuple[AuditedStep, ArrayData]:
    count = owner.size
    clipping = audited.step.clipping
    brightness = 100 * max(clipping.l2_clip_norm, getattr(clipping, "stability", 0.0))
    images = (brightness * torch.eye(count)).view(count, 1, count)
    return on_one_layer(audited, count), as_data(images, torch.zeros(count, dtype=torch.int64), owner)


def _independence(joined: NDArray[np.bool_], rate: float, alpha: float) -> list[Component]:
    """Three counts that are binomial when, and only when, joining is independent in the respect they look at."""
    return [_batch_sizes(joined, rate, alpha), _returns(joined, rate, alpha), _pairs(joined, rate, alpha)]


def _batch_sizes(joined: NDArray[np.bool_], rate: float, alpha: float) -> Component:
    """How many steps have a size in the middle half of the binomial law: all of them, if the size is fixed."""
    from scipy.stats import binom

    steps, units = joined.shape
    sizes = joined.sum(1)
    low, high = (int(binom.ppf(share, units, rate)) for share in (0.25, 0.75))
    expected = float(binom.cdf(high, units, rate) - binom.cdf(low - 1, units, rate))
    hits = int(((sizes >= low) & (sizes <= high)).sum())
    said = f"sizes from {sizes.min()} to {sizes.max()}; share of steps with {low} to {high}"
    return _counted("batch-sizes", hits, steps, expected, alpha, said)


def _returns(joined: NDArray[np.bool_], rate: float, alpha: float) -> Component:
    """How many units join exactly once in an epoch's worth of steps: nearly all of them, if batches are shuffled."""
    steps, units = joined.shape
    window = min(max(2, round(1 / rate)), steps)
    epochs = steps // window
    times = joined[: epochs * window].reshape(epochs, window, units).sum(1)
    expected = window * rate * (1 - rate) ** (window - 1)
    said = f"share of units that join exactly once in {window} steps"
    return _counted("returns", int((times == 1).sum()), times.size, expected, alpha, said)


def _pairs(joined: NDArray[np.bool_], rate: float, alpha: float) -> Component:
    """How often a unit joins two steps running."""
    steps = joined.shape[0] // 2 * 2
    both = joined[:steps:2] & joined[1:steps:2]
    return _counted("steps-apart", int(both.sum()), both.size, rate**2, alpha, "share of units in two steps running")


def _counted(name: str, hits: int, trials: int, expected: float, alpha: float, said: str) -> Component:
    interval = rate_interval(hits, trials, alpha)
    passed = binomial_p(hits, trials, min(expected, 1.0)) >= alpha
    return Component(name, passed, expected, interval.measured, interval.low, interval.high, said)


def _images_chosen(audited: AuditedStep, joined: Joined) -> Component:
    """A unit that joins brings all its images, or as many as the plan allows, never some by chance."""
    most = audited.step.max_images or int(joined.held.max())
    expected = np.where(joined.units, np.minimum(joined.held, most), 0)
    wrong = int((joined.images != expected).sum())
    said = f"units that join with another number of images than they should: {wrong}"
    return Component("images-of-a-unit", wrong == 0, 0.0, float(wrong), None, None, said)
