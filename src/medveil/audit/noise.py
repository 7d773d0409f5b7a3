"""How much noise there is, in every parameter tensor, of which shape, and whether any of it comes twice."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medveil.audit.probes import arrays, not_a_number, ordinary
from medveil.audit.rig import QUIET_STD_GRID, AuditedStep, releases, with_step
from medveil.audit.statistics import (
    Interval,
    largest_distance,
    largest_echo,
    loudest_echo,
    normal_distance,
    std_interval,
)
from medveil.audit.verdict import Component
from medveil.errors import PrivacyError
from medveil.rng import SecureRandom, Seeds

_UNITS: Final = 4
_VALUES: Final = 1_000_000
_FEWEST, _MOST = 6, 24
_FRESH_TRAINERS: Final = 2


def check_noise(audited: AuditedStep, seeds: Seeds, *, tests: float) -> tuple[list[Component], Interval]:
    """The noise of real steps, on synthetic units and on none.

    Args:
        audited: settled.
        seeds: of the coins that two runs share.
        tests: alpha of each single test.

    Returns:
        Components, and the interval of the noise multiplier of the sum.
    """
    claimed = audited.step.noise.noise_multiplier
    try:
        values = np.stack([*_on_units(audited, seeds), *_on_nobody(audited)])
    except PrivacyError as error:
        broken = Component("noise", False, claimed, None, None, None, f"the step refused its own sum: {error.what}")
        return [broken], Interval(0.0, 0.0, np.inf)
    whole = std_interval(values.ravel(), tests)
    said = f"{values.size:,} values of {len(values)} steps"
    found = Component("noise", whole.holds(claimed), claimed, whole.measured, whole.low, whole.high, said)
    standard = values.ravel() / claimed
    return [found, _by_tensor(audited, values, tests), _shape(audited, standard, tests), _fresh(standard, tests)], whole


def num_steps(dimension: int) -> int:
    """Steps whose noise is read: enough for about a million values, at least a few."""
    return min(max(-(-_VALUES // dimension), _FEWEST), _MOST)


def _on_units(audited: AuditedStep, seeds: Seeds) -> Iterator[NDArray[np.float64]]:
    """Steps less the same steps with next to no noise: what is left is noise."""
    count = num_steps(audited.step.noise.dimension)
    data = arrays(audited, ordinary(audited, _UNITS, seeds.child("units")))
    loud = releases(with_step(audited, rate=0.5), data, SecureRandom.seeded(seeds), count)
    quiet = releases(with_step(audited, rate=0.5, quiet=True), data, SecureRandom.seeded(seeds), count)
    noise = audited.step.noise
    # The twin's noise is the same in small, and is missing from the difference.
    missing = 1 - QUIET_STD_GRID / (noise.noise_multiplier * noise.sensitivity_grid)
    for first, second in zip(loud, quiet, strict=True):
        yield (first.total - second.total) / (noise.grid * noise.sensitivity_grid * missing)


def _on_nobody(audited: AuditedStep) -> Iterator[NDArray[np.float64]]:
    """Steps with the operating system's coins, as in training, of a unit that adds nothing: noise and nothing else."""
    noise = audited.step.noise
    count = max(2, num_steps(noise.dimension) // 4)
    nobody = arrays(audited, [not_a_number(audited)])
    for _ in range(_FRESH_TRAINERS):
        for released in islice(releases(audited, nobody, SecureRandom(), count), count):
            yield released.total / (noise.grid * noise.sensitivity_grid)


def _by_tensor(audited: AuditedStep, values: NDArray[np.float64], alpha: float) -> Component:
    """The tensor whose noise is farthest from the claim, at alpha over the number of tensors."""
    claimed = audited.step.noise.noise_multiplier
    parts = np.split(values, np.cumsum([size for _, size in audited.tensors])[:-1], axis=1)
    found = [std_interval(np.ascontiguousarray(part).ravel(), alpha / len(parts)) for part in parts]
    names = [name for name, _ in audited.tensors]
    wrong = [name for name, interval in zip(names, found, strict=True) if not interval.holds(claimed)]
    worst = max(range(len(found)), key=lambda index: (names[index] in wrong, abs(found[index].measured - claimed)))
    said = f"{len(parts)} parameter tensors, farthest {names[worst]}"
    if wrong:
        said = f"{len(wrong)} of {len(parts)} parameter tensors have other noise, most of all {names[worst]}"
    interval = found[worst]
    return Component("noise-by-tensor", not wrong, claimed, interval.measured, interval.low, interval.high, said)


def _shape(audited: AuditedStep, standard: NDArray[np.float64], alpha: float) -> Component:
    distance = normal_distance(standard)
    # A rounded normal number stands for a whole cell of the grid.
    most = largest_distance(standard.size, alpha) + 0.4 / audited.step.noise.std_grid
    return Component("noise-shape", distance <= most, 0.0, distance, 0.0, most, "distance from the normal distribution")


def _fresh(standard: NDArray[np.float64], alpha: float) -> Component:
    echo, lag = largest_echo(standard)
    most = loudest_echo(standard.size, alpha)
    said = "no noise comes again, within a step, in later ones or in another trainer"
    if not echo <= most:
        said = f"the noise repeats itself after {lag} values"
    return Component("noise-freshness", echo <= most, 0.0, echo, 0.0, most, said)
