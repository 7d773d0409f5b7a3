"""What an epsilon grid found: one row for each plan and epsilon, over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medveil.study.grid_runs import GridRun
from medveil.study.grid_spending import Spending

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "classification": ("auc", "balanced_accuracy"),
    "segmentation": ("dice",),
}
"""Test figures of a task that tables show; the first one is also drawn."""


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds that have it.

    Args:
        mean: arithmetic.
        sd: sample standard deviation (n - 1); None for one seed.
        low: smallest.
        high: largest.
        seeds: how many.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Row:
    """A plan at an epsilon.

    Args:
        plan: its name.
        mode: "central", "local", "distributed" or "site".
        epsilon: target, or None without privacy.
        seeds: those that finished.
        failed: the reason by seed, of those that did not.
        metrics: spread by name; None where no seed has the metric.
        epsilon_reached: the largest over the seeds.
        noise_multiplier: the smallest over the seeds.
        delta: of the claim.
        stamp: "NOT PRIVATE" when a seed's run is stamped so, or None.
    """

    plan: str
    mode: str
    epsilon: float | None
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    metrics: Mapping[str, Spread | None]
    epsilon_reached: float | None
    noise_multiplier: float | None
    delta: float | None
    stamp: str | None


@dataclass(frozen=True)
class Grid:
    """A finished grid.

    Args:
        task: of all plans.
        runs: every run, finished or failed, in the order in which they were begun.
        rows: one for each plan and epsilon, over its seeds.
        spending: what all private runs in the folder cost together.
        own_settings: epsilons whose plans differ in more than their epsilon, as tables write them.
    """

    task: str
    runs: tuple[GridRun, ...]
    rows: tuple[Row, ...]
    spending: Spending
    own_settings: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the test figures; the first one is drawn."""
        return METRICS[self.task]

    @property
    def phantom(self) -> bool:
        """Whether the images are synthetic, so that no figure says anything about patients."""
        return any(run.phantom for run in self.runs)


def rows_of(runs: Sequence[GridRun], metrics: Sequence[str]) -> tuple[Row, ...]:
    """One row for each plan and epsilon, in the order in which they first occur."""
    groups: dict[tuple[str, float | None], list[GridRun]] = {}
    for run in runs:
        groups.setdefault((run.plan, run.epsilon), []).append(run)
    return tuple(_row(group, metrics) for group in groups.values())


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, standard deviation and range; None of nothing.

    >>> spread([0.5, 0.75])
    Spread(mean=0.625, sd=0.1767766952966369, low=0.5, high=0.75, seeds=2)
    """
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))


def _row(runs: Sequence[GridRun], metrics: Sequence[str]) -> Row:
    finished = [run for run in runs if run.metrics is not None]
    values = {name: [run.metrics.get(name) for run in finished if run.metrics is not None] for name in metrics}
    reached = [run.epsilon_reached for run in finished if run.epsilon_reached is not None]
    multipliers = [run.noise_multiplier for run in finished if run.noise_multiplier is not None]
    return Row(
        plan=runs[0].plan,
        mode=runs[0].mode,
        epsilon=runs[0].epsilon,
        seeds=tuple(run.seed for run in finished),
        failed={run.seed: run.failed for run in runs if run.failed is not None},
        metrics={name: spread([value for value in values[name] if value is not None]) for name in metrics},
        epsilon_reached=max(reached, default=None),
        noise_multiplier=min(multipliers, default=None),
        delta=next((run.delta for run in finished), None),
        stamp=next((run.stamp for run in finished if run.stamp), None),
    )
