"""The noisy count that moves an adaptive bound, read from the bound that it leads to.

Two trainers with the same coins, one of which keeps its bound, give steps whose noise differs by the bounds' ratio
and by nothing else. Each ratio tells one noisy count.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.audit.probes import Probe, arrays, not_a_number
from medveil.audit.rig import AuditedStep, on_one_layer, releases, with_step
from medveil.audit.statistics import Interval, std_interval
from medveil.audit.verdict import Component
from medveil.dp.clipping import AdaptiveClipping
from medveil.rng import SecureRandom, Seeds

_STEPS: Final = 250
_PIXELS: Final = 32
_SWING: Final = 0.05
_EXACT: Final = 1e-3


def check_count(audited: AuditedStep, seeds: Seeds, *, tests: float) -> tuple[list[Component], Interval | None]:
    """Noise and sensitivity of the count; nothing where the bound is not adaptive.

    Args:
        audited: settled; the count does not depend on its network, which is replaced by a small one.
        seeds: of the coins that two runs share.
        tests: alpha of the test.

    Returns:
        Components, and the interval of ``count_noise_multiplier``.
    """
    clipping = audited.step.clipping
    audited = on_one_layer(audited, _PIXELS)
    if not isinstance(clipping, AdaptiveClipping):
        return [], None
    claimed = clipping.count_noise_multiplier
    # One unit with a gradient of zero is there throughout and counts one.
    counts = _counts(audited, [_black(audited)], seeds, _STEPS) - 1
    # The count is of plus and minus one: its noise is twice the multiplier.
    found = std_interval(counts / 2, tests)
    said = f"{counts.size} noisy counts, read from the bounds that they led to"
    noise = Component("count-noise", found.holds(claimed), claimed, found.measured, found.low, found.high, said)
    moved = _moved_by_one(audited, seeds)
    said = "one unit moves the count by exactly one, clipped or not"
    held = abs(moved - 1) <= _EXACT * max(1.0, claimed)
    return [noise, Component("count-sensitivity", held, 1.0, moved, None, None, said)], found


def _moved_by_one(audited: AuditedStep, seeds: Seeds) -> float:
    """The farthest from one that the count moves for one unit: without gradient, or with one that is not finite."""
    others = [_black(audited)]
    before = float(_counts(audited, others, seeds, 1)[0])
    units = (_black(audited), not_a_number(audited))
    moved = [abs(float(_counts(audited, [*others, unit], seeds, 1)[0]) - before) for unit in units]
    return max(moved, key=lambda one: abs(one - 1))


def _black(audited: AuditedStep) -> Probe:
    return Probe("black", torch.zeros(audited.input_shape), 0, 1)


def _counts(audited: AuditedStep, probes: list[Probe], seeds: Seeds, count: int) -> NDArray[np.float64]:
    """Noisy counts of ``count`` successive steps, in units."""
    step = with_step(audited, rate=1.0).step
    clipping = step.clipping
    assert isinstance(clipping, AdaptiveClipping)
    rate = min(0.5, _SWING * step.divisor / clipping.count_noise_multiplier)
    moving = replace(step, clipping=clipping.model_copy(update={"learning_rate": rate, "quantile": 0.5}))
    data = arrays(audited, probes)
    pairs = zip(
        releases(replace(audited, step=moving), data, SecureRandom.seeded(seeds), count + 1),
        releases(replace(audited, step=step), data, SecureRandom.seeded(seeds), count + 1),
        strict=True,
    )
    logarithms = np.array([math.log(np.dot(a.total, b.total) / np.dot(b.total, b.total)) for a, b in pairs])
    return -np.diff(logarithms) / rate * 2 * step.divisor
