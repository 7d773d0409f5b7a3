"""Compare trust models: one distributed plan, and the same training with more and with less trust."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medveil.errors import ConfigError, RunError
from medveil.study.compare_plan import Arm, Request, arm_plan, default_arms, distributed_plan, find_arms
from medveil.study.compare_result import Comparison, arm_rows
from medveil.study.compare_table import write_tables
from medveil.study.grid_checks import check_folders, check_list, epsilon_name, settings_at
from medveil.study.grid_plan import mechanism_of
from medveil.study.grid_result import METRICS
from medveil.study.grid_runs import Cell, run_cells
from medveil.study.grid_spending import composed
from medveil.study.plan import Plan
from medveil.study.progress import Progress, Silent

SEEDS = (1, 2, 3)


def compare(
    plan: Plan,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    epsilons: Sequence[float] | None = None,
    seeds: Sequence[int] = SEEDS,
    at: Mapping[float | None, Plan] | None = None,
    local_steps: int | None = None,
    references: bool = True,
    ledgers: Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Train every arm with every seed, and write ``table.csv``, ``table.md`` and ``table.json``.

    All arms have the same data, splits, sites and seeds; :func:`medveil.study.compare_plan.arm_plan` says what
    differs. Each run lies in ``out/<arm>/eps-<epsilon>/seed-<seed>``. Called again with the same plan and folder,
    finished runs are verified and used as they are, interrupted ones go on after their last full round.

    Args:
        plan: with distributed differential privacy.
        out: folder of the comparison.
        arms: by name; by default :func:`medveil.study.compare_plan.default_arms`.
        epsilons: of the arms with differential privacy, each > 0; by default the plan's own.
        seeds: root seeds of the runs.
        at: for some epsilons, the plan with other settings; None is for the arms without differential privacy.
        local_steps: of a round of local privacy; by default the largest divisor of the plan's rounds up to 5.
        references: whether the arm "federated" also trains one model on all data and one a site.
        ledgers: folder of the parties' privacy ledgers, in which all runs compose; by default each run has its own.
        jobs: runs that train at the same time, as for :func:`medveil.study.epsilon_grid.epsilon_grid`.
        progress: told what happens.

    Returns:
        The comparison. A run that failed by itself, for example because its threshold cannot protect, is in it with
        the reason.

    Raises:
        ConfigError: the plan is not distributed, or lists that make no comparison.
        ResumeError: the folder holds runs of another plan.
        RunError: no run finished, or a run's folder cannot be used.
        MedveilError: the data or a ledger cannot be used.
    """
    distributed_plan(plan)
    wanted = find_arms(default_arms(plan) if arms is None else arms)
    targets = _targets(plan) if epsilons is None else tuple(epsilons)
    cells = compare_cells(plan, out, wanted, targets, seeds, at=at, local_steps=local_steps, references=references)
    watch, metrics = progress or Silent(), METRICS[plan.task]
    runs = run_cells([cell for _, cell in cells], metrics, ledgers=ledgers, jobs=jobs, progress=watch)
    watch.note("Adding up what all private runs cost together")
    settings = plan.privacy.secure_aggregation
    comparison = Comparison(
        plan=plan.name,
        plan_hash=plan.digest(),
        task=plan.task,
        rows=arm_rows(cells, runs, metrics),
        runs=runs,
        spending=composed(out, ledgers),
        dropouts_stated=settings is not None and settings.dropouts is not None,
        own_settings=tuple(epsilon_name(one) for one in at or {}),
    )
    write_tables(comparison, out)
    if all(run.failed is not None for run in runs):
        raise RunError(
            "No run of the comparison finished",
            got=f"{len(runs)} failed runs; the first one because: {runs[0].failed}",
            remedy="mend the plan; table.md in the comparison's folder has every reason",
        )
    return comparison


def _targets(plan: Plan) -> tuple[float, ...]:
    epsilon = mechanism_of(plan).noise.epsilon
    if epsilon is None:
        raise ConfigError(
            "The plan states a noise multiplier, and arms are compared at one epsilon",
            got="privacy.dp.noise.multiplier",
            expected="an epsilon",
            remedy="give --epsilon, or set privacy.dp.noise.epsilon",
        )
    return (epsilon,)


def compare_cells(
    plan: Plan,
    out: Path,
    arms: Sequence[Arm],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    *,
    at: Mapping[float | None, Plan] | None = None,
    local_steps: int | None = None,
    references: bool = True,
) -> tuple[tuple[Arm, Cell], ...]:
    """Every run of the comparison with its arm, seed by seed, so that an early end leaves whole tables.

    Raises:
        ConfigError: lists that make no comparison, or an arm that cannot be made from the plan.
        ResumeError: a run folder was begun with another plan.
    """
    check_list("arms", [arm.name for arm in arms])
    check_list("epsilons", epsilons)
    check_list("seeds", seeds)
    targets = [epsilon for epsilon in epsilons if any(arm.private for arm in arms)]
    none = [None] if any(not arm.private for arm in arms) else []
    others = {epsilon: [other] for epsilon, other in (at or {}).items()}
    for other in (at or {}).values():
        distributed_plan(other)
    chosen = settings_at([plan], [*targets, *none], others)
    cells = []
    for seed in seeds:
        for arm in arms:
            for epsilon in targets if arm.private else [None]:
                request = Request(epsilon, seed, local_steps, references)
                derived = arm_plan(arm, chosen[epsilon][plan.name], request)
                folder = out / arm.name / f"eps-{epsilon_name(epsilon)}" / f"seed-{seed}"
                mode = (derived.privacy.dp or mechanism_of(plan)).kind
                cells.append((arm, Cell(plan=derived, mode=mode, epsilon=epsilon, folder=folder)))
    check_folders([cell for _, cell in cells])
    return tuple(cells)
