"""Accuracy against epsilon: every plan at every epsilon with every seed, each in its own run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medveil.errors import ConfigError, RunError
from medveil.study.folder import file_name
from medveil.study.grid_checks import check_folders, check_list, epsilon_name, settings_at
from medveil.study.grid_plan import at_epsilon, mechanism_of, private_batch, without_privacy
from medveil.study.grid_result import METRICS, Grid, rows_of
from medveil.study.grid_runs import Cell, run_cells
from medveil.study.grid_spending import composed
from medveil.study.grid_table import write_tables
from medveil.study.plan import Plan
from medveil.study.progress import Progress, Silent

EPSILONS: tuple[float | None, ...] = (0.5, 1.0, 3.0, 8.0, None)
SEEDS = (1, 2, 3)


def epsilon_grid(
    plans: Sequence[Plan],
    out: Path,
    *,
    epsilons: Sequence[float | None] = EPSILONS,
    seeds: Sequence[int] = SEEDS,
    at: Mapping[float | None, Sequence[Plan]] | None = None,
    ledgers: Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Grid:
    """Train every plan at every epsilon with every seed, and write ``table.csv``, ``table.md`` and ``table.json``.

    The settings of a plan are fixed in advance; what an epsilon changes in them is stated in ``at``. Each run lies in
    ``out/<plan>/eps-<epsilon>/seed-<seed>``. Called again with the same plans and folder, finished runs are verified
    and used as they are, interrupted ones go on after their last full round.

    Args:
        plans: with a ``[privacy.dp]`` table, of one task, of different names.
        out: folder of the grid.
        epsilons: each > 0, or None for the plan without its protection
            (:func:`medveil.study.grid_plan.without_privacy`).
        seeds: root seeds of the runs.
        at: for some epsilons, other plans of the same names (a learning rate that goes with the noise, say).
        ledgers: folder of the parties' privacy ledgers, in which all runs compose; by default each run has its own.
        jobs: runs that train at the same time, each in a process of its own when above 1 (a program that calls this
            then needs the usual ``if __name__ == "__main__"``).
        progress: told what happens.

    Returns:
        The grid. A run that diverged, whose model cannot be trained privately, whose seed leaves a split empty, or that
        a ledger refuses, is in it as failed, with the reason. What diverged is not tried again: choosing the attempts
        that went well would flatter the result.

    Raises:
        ConfigError: plans, epsilons or seeds that make no grid, or a plan that is wrong.
        ResumeError: the folder holds runs of other plans under the same names.
        RunError: no run of the grid finished, or a run's folder cannot be used.
        MedveilError: the data or a ledger cannot be used.
    """
    cells = grid_cells(plans, out, epsilons, seeds, at)
    watch, task = progress or Silent(), plans[0].task
    runs = run_cells(cells, METRICS[task], ledgers=ledgers, jobs=jobs, progress=watch)
    watch.note("Adding up what all private runs cost together")
    grid = Grid(
        task, runs, rows_of(runs, METRICS[task]), composed(out, ledgers), tuple(epsilon_name(one) for one in at or {})
    )
    write_tables(grid, out)
    if all(run.failed is not None for run in runs):
        raise RunError(
            "No run of the grid finished",
            got=f"{len(runs)} failed runs; the first one because: {runs[0].failed}",
            remedy="mend the plans; table.md in the grid's folder has every reason",
        )
    return grid


def grid_cells(
    plans: Sequence[Plan],
    out: Path,
    epsilons: Sequence[float | None],
    seeds: Sequence[int],
    at: Mapping[float | None, Sequence[Plan]] | None = None,
) -> tuple[Cell, ...]:
    """Every run of the grid, seed by seed, so that an early end leaves whole tables.

    Raises:
        ConfigError: the lists make no grid.
        ResumeError: a run folder was begun with another plan.
    """
    _check_lists(plans, epsilons, seeds)
    chosen = settings_at(plans, epsilons, at or {})
    batches = {plan.name: private_batch(plan) for plan in chosen.get(None, {}).values()}
    cells = tuple(
        _cell(chosen[epsilon][plan.name], out, epsilon, seed, batches)
        for seed in seeds
        for plan in plans
        for epsilon in epsilons
    )
    check_folders(cells)
    return cells


def _cell(plan: Plan, out: Path, epsilon: float | None, seed: int, batches: dict[str, int]) -> Cell:
    if epsilon is None:
        derived = without_privacy(plan, seed, batch_size=batches[plan.name])
    else:
        derived = at_epsilon(plan, epsilon, seed)
    folder = out / file_name(plan.name) / f"eps-{epsilon_name(epsilon)}" / f"seed-{seed}"
    return Cell(plan=derived, mode=mechanism_of(plan).kind, epsilon=epsilon, folder=folder)


def _check_lists(plans: Sequence[Plan], epsilons: Sequence[float | None], seeds: Sequence[int]) -> None:
    check_list("plans", [plan.name for plan in plans], remedy="give every plan a name of its own")
    check_list("epsilons", epsilons)
    check_list("seeds", seeds)
    if len(tasks := {plan.task for plan in plans}) > 1:
        raise ConfigError(
            "The grid's plans have different tasks", got=", ".join(sorted(tasks)), expected="one task, hence one metric"
        )
    for plan in plans:
        mechanism_of(plan)
