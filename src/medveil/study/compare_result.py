"""What a comparison of trust models found: one row for each arm and epsilon, over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medveil.dp.settings import CentralDpSgd
from medveil.study.compare_plan import Arm
from medveil.study.folder import RunFolder, read_json
from medveil.study.grid_result import METRICS, Spread, rows_of, spread
from medveil.study.grid_runs import Cell, GridRun
from medveil.study.grid_spending import Spending
from medveil.study.plan import Plan


@dataclass(frozen=True)
class _Reference:
    """A row that is not a run: its key in the record, its name, its title, whom its patients must trust."""

    kind: str
    name: str
    title: str
    trusted: str


_REFERENCES = (
    _Reference("central", "pooled", "Pooled, unprotected", "a curator, and everyone who sees the model"),
    _Reference("local_only", "site-alone", "Each site alone", "nobody, until a site shows its model"),
)
REFERENCE_ARMS = tuple(one.name for one in _REFERENCES)
"""Names of the rows that the arm "federated" brings along."""


@dataclass(frozen=True)
class ArmRow:
    """An arm at an epsilon.

    Args:
        arm: its name; "pooled" and "site-alone" are the references of the arm "federated".
        title: for readers.
        trusted: whom its patients must trust.
        epsilon: target, or None without differential privacy.
        epsilon_server: largest over the seeds, against the server alone; None promises nothing.
        epsilon_insider: likewise, against the server together with what one site knows, or as many sites as the arm
            tolerates where that is more.
        delta: of the claim.
        stamp: "NOT PRIVATE" when a seed's run is stamped so, or None.
        metrics: spread by name; None where no seed has the metric.
        dropouts: sites that may vanish in every round; None where no sites train.
        rounds: most over the seeds.
        bytes_sent_per_site: by the busiest site over the whole training, mean over the seeds; None where no sites
            train together.
        seconds: of the training, all sites on this machine, mean over the seeds; None for references.
        seeds: those that finished.
        failed: the reason by seed, of those that did not.
    """

    arm: str
    title: str
    trusted: str
    epsilon: float | None
    epsilon_server: float | None
    epsilon_insider: float | None
    delta: float | None
    stamp: str | None
    metrics: Mapping[str, Spread | None]
    dropouts: int | None
    rounds: int | None
    bytes_sent_per_site: int | None
    seconds: float | None
    seeds: tuple[int, ...]
    failed: Mapping[int, str]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        plan: name of the plan that all arms come from.
        plan_hash: of that plan.
        task: of the plan.
        rows: one for each arm and epsilon.
        runs: every run, finished or failed, in the order in which they were begun.
        spending: what all private runs in the folder cost together.
        dropouts_stated: whether the plan says how many sites may vanish, so that all secure sums have the same number.
        own_settings: epsilons whose plans differ in more than their epsilon, as tables write them.
    """

    plan: str
    plan_hash: str
    task: str
    rows: tuple[ArmRow, ...]
    runs: tuple[GridRun, ...]
    spending: Spending
    dropouts_stated: bool
    own_settings: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the test figures; the first one is drawn."""
        return METRICS[self.task]

    @property
    def phantom(self) -> bool:
        """Whether the images are synthetic, so that no figure says anything about patients."""
        return any(run.phantom for run in self.runs)


def arm_rows(cells: Sequence[tuple[Arm, Cell]], runs: Sequence[GridRun], metrics: Sequence[str]) -> tuple[ArmRow, ...]:
    """One row for each arm and epsilon, in the order in which they first occur; references come last.

    Args:
        cells: of the runs, in the same order.
        runs: what became of them; records of those that finished are read from their folders.
        metrics: names of the test figures.

    Raises:
        RunError: a record is damaged.
    """
    groups: dict[tuple[str, float | None], list[tuple[Arm, Cell, GridRun]]] = {}
    for (arm, cell), run in zip(cells, runs, strict=True):
        groups.setdefault((arm.name, cell.epsilon), []).append((arm, cell, run))
    rows, last = [], []
    for group in groups.values():
        records = {run.seed: _record(cell) for _, cell, run in group if run.failed is None}
        rows.append(_row(group, records, metrics))
        last += _references(records, metrics)
    return (*rows, *last)


def _record(cell: Cell) -> dict[str, Any]:
    return read_json(RunFolder(cell.folder).record)


def _row(
    group: Sequence[tuple[Arm, Cell, GridRun]], records: Mapping[int, dict[str, Any]], metrics: Sequence[str]
) -> ArmRow:
    arm = group[0][0]
    (row,) = rows_of([run for _, _, run in group], metrics)
    plans = {cell.plan.seed: cell.plan for _, cell, _ in group}
    claims = {seed: record["privacy"] for seed, record in records.items() if record["privacy"] is not None}
    costs = [record["cost"] for record in records.values()]
    sent = [max(cost["bytes_sent_per_site"].values()) for cost in costs if cost["bytes_sent_per_site"]]
    dropouts = {may_vanish(plans[seed], len(record["data"]["sites"])) for seed, record in records.items()}
    together = not isinstance(group[0][1].plan.privacy.dp, CentralDpSgd)
    return ArmRow(
        arm=arm.name,
        title=arm.title,
        trusted=arm.trusted,
        epsilon=row.epsilon,
        epsilon_server=_worst([claim["epsilon_server"] for claim in claims.values()]),
        epsilon_insider=_worst([claim["epsilon_insider"] for claim in claims.values()]),
        delta=row.delta,
        stamp=row.stamp,
        metrics=row.metrics,
        dropouts=min((one for one in dropouts if one is not None), default=None),
        rounds=max((cost["rounds"] for cost in costs), default=None),
        bytes_sent_per_site=round(statistics.fmean(sent)) if sent and together else None,
        seconds=statistics.fmean(cost["seconds_by_part"]["federated"] for cost in costs) if costs else None,
        seeds=row.seeds,
        failed=row.failed,
    )


def _worst(epsilons: Sequence[float | None]) -> float | None:
    """The largest; None of nothing, and where one run promises nothing."""
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    return max(known) if known and len(known) == len(epsilons) else None


def may_vanish(plan: Plan, sites: int) -> int | None:
    """Sites that may vanish in every round, whichever they are; None where one curator trains.

    Args:
        plan: of a run.
        sites: that take part.
    """
    if isinstance(plan.privacy.dp, CentralDpSgd):
        return None
    settings, least = plan.privacy.secure_aggregation, plan.federation.min_sites
    if settings is None:
        return sites - (least or sites)
    return min(settings.dropouts_of(sites // settings.groups), sites - least)


def _references(records: Mapping[int, dict[str, Any]], metrics: Sequence[str]) -> list[ArmRow]:
    return [row for reference in _REFERENCES if (row := _reference(reference, records, metrics)) is not None]


def _reference(named: _Reference, records: Mapping[int, dict[str, Any]], metrics: Sequence[str]) -> ArmRow | None:
    found = {seed: record["references"][named.kind] for seed, record in records.items()}
    values = {seed: one for seed, one in found.items() if one is not None}
    failed = {
        seed: reason
        for seed, record in records.items()
        for arm, reason in record["references"]["failed"].items()
        if arm.split("/")[0] == named.kind
    }
    if not values and not failed:
        return None
    return ArmRow(
        arm=named.name,
        title=named.title,
        trusted=named.trusted,
        epsilon=None,
        epsilon_server=None,
        epsilon_insider=None,
        delta=None,
        stamp=None,
        metrics={name: spread([one[name] for one in values.values() if one.get(name) is not None]) for name in metrics},
        dropouts=None,
        rounds=None,
        bytes_sent_per_site=None,
        seconds=None,
        seeds=tuple(values),
        failed=failed,
    )
