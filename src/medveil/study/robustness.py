"""What hostile sites can do under each defence: every setting, attack, share of hostile sites and seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medveil.errors import ConfigError, RunError
from medveil.study.folder import file_name
from medveil.study.plan import Plan
from medveil.study.progress import Progress, Silent
from medveil.study.robustness_attack import ATTACKS, Attack, AttackKind, hostile_sites
from medveil.study.robustness_plan import (
    BOUNDED,
    WITHOUT_DP,
    Defence,
    Setting,
    defended,
    hides_among,
    sites_of,
)
from medveil.study.robustness_runs import Bench, Cell, RobustnessRun
from medveil.study.robustness_table import Robustness, rows_of, write_tables

FRACTIONS = (0.1, 0.2, 0.3)
SEEDS = (1,)


@dataclass(frozen=True)
class Hostile:
    """The attacks of a study.

    Args:
        attacks: kinds.
        fractions: of the sites that are hostile, each in (0, 1).
        scale: as for :class:`Attack`.
        target: as for :class:`Attack`.
        share: as for :class:`Attack`.
    """

    attacks: Sequence[AttackKind] = ATTACKS
    fractions: Sequence[float] = FRACTIONS
    scale: float = 10.0
    target: int = 0
    share: float = 0.5

    def cases(self) -> list[tuple[Attack | None, float]]:
        """Every attack at every fraction, after no attack at all."""
        kinds = [Attack(kind, self.scale, self.target, self.share) for kind in self.attacks]
        return [(None, 0.0), *((kind, fraction) for kind in kinds for fraction in self.fractions)]


def robustness(
    plan: Plan,
    out: Path,
    *,
    settings: Sequence[Setting] = WITHOUT_DP,
    hostile: Hostile | None = None,
    seeds: Sequence[int] = SEEDS,
    groups: int = 3,
    l2_norm: float | None = None,
    private: Plan | None = None,
    progress: Progress | None = None,
) -> Robustness:
    """Train under every setting with and without attackers, and write ``table.csv``, ``table.md``, ``table.json``.

    Runs lie in ``out/<setting>/<attack>-<fraction>/seed-<seed>``. Called again with the same settings and folder,
    finished runs are used as they are, and one that was interrupted goes on after its last full round. The setting
    "sum" is always there: the others are read against it, and without ``l2_norm`` the norm bound of a seed is the
    largest change that any site made in its unattacked run. A server would have to know that from elsewhere.

    Args:
        plan: without privacy, with a known number of at least ten sites.
        out: folder of the study.
        settings: what defends.
        hostile: attacks and fractions.
        seeds: root seeds; a seed also draws the hostile sites and the groups, independently of each other.
        groups: of the settings in groups, at least three sites each.
        l2_norm: the norm bound; None takes it from the unattacked run.
        private: plan with distributed privacy, for the settings "dp" and "dp-off".
        progress: told what happens.

    Returns:
        The study. A run that ended without a model (it diverged, or every group was refused) is in it as failed.

    Raises:
        ConfigError: lists that make no study, or a plan that does not fit.
        GuaranteeError: groups too small to hide anybody.
        ResumeError: the folder holds runs of another plan.
        RunError: the unattacked run failed, so that there is nothing to compare with.
        MedveilError: the data cannot be used.
    """
    watch, hostile = progress or Silent(), hostile or Hostile()
    _check_lists(settings=settings, attacks=hostile.attacks, fractions=hostile.fractions, seeds=seeds)
    wanted: list[Setting] = ["sum", *(setting for setting in settings if setting != "sum")]
    defence = Defence(groups, l2_norm or 1.0, private)
    count = sites_of(plan)
    cases = _counted(hostile, count)
    for setting in wanted:  # what cannot be built is refused before anything is trained
        defended(plan, setting, seeds[0], defence)
    bench = Bench(hostile.target, watch)
    runs: list[RobustnessRun] = []
    total = len(seeds) * len(wanted) * len(cases)
    for seed in seeds:
        bound = l2_norm
        for setting in wanted:
            for case in cases:
                watch.note(f"Run {len(runs) + 1} of {total}: {_describe(setting, case, seed)}")
                cell = _cell(plan, out, setting, case, seed, replace(defence, l2_norm=bound or 1.0))
                runs.append(
                    bench.run(
                        cell,
                        hides_among=hides_among(cell.plan),
                        l2_norm=bound if setting in BOUNDED else None,
                        measure=setting == "sum" and case[0] is None,
                    )
                )
                _tell(runs[-1], watch)
                bound = bound or _measured(runs[-1])
    study = Robustness(plan.task, plan.name, count, groups, tuple(runs), rows_of(runs), _facts(hostile, private))
    write_tables(study, out)
    return study


Case = tuple[Attack | None, float, int]


def _counted(hostile: Hostile, sites: int) -> list[Case]:
    """Every case with its number of hostile sites.

    Raises:
        ConfigError: a fraction out of range, or two that make the same number.
    """
    for fraction in hostile.fractions:
        if not 0 < fraction < 1 or round(fraction * sites) < 1:
            raise ConfigError(
                "A fraction of hostile sites is out of range",
                got=fraction,
                expected=f"between 0 and 1, and at least one of {sites} sites",
                remedy="correct --fractions",
            )
    return [(attack, fraction, round(fraction * sites)) for attack, fraction in hostile.cases()]


def _cell(plan: Plan, out: Path, setting: Setting, case: Case, seed: int, defence: Defence) -> Cell:
    attack, fraction, count = case
    derived = defended(plan, setting, seed, defence)
    name = "none" if attack is None else f"{attack.kind}-{fraction:g}"
    width = len(str(sites_of(plan)))
    names = [f"site-{number:0{width}d}" for number in range(1, sites_of(plan) + 1)]
    return Cell(
        plan=derived,
        setting=setting,
        attack=attack,
        fraction=fraction,
        hostile=hostile_sites(names, count, seed),
        folder=out / setting / file_name(name) / f"seed-{seed}",
    )


def _measured(run: RobustnessRun) -> float | None:
    if run.failed is not None:
        raise RunError(
            "The unattacked run failed, so there is nothing to compare with",
            got=run.failed,
            remedy="mend the plan",
        )
    return run.largest_change


def _facts(hostile: Hostile, private: Plan | None) -> dict[str, Any]:
    return {
        "scale": hostile.scale,
        "target": hostile.target,
        "share": hostile.share,
        "private_plan": None if private is None else private.name,
    }


def _describe(setting: Setting, case: Case, seed: int) -> str:
    attack, _, count = case
    what = "no attack" if attack is None else f"{attack.kind} by {count}"
    return f"{setting}, {what}, seed {seed}"


def _tell(run: RobustnessRun, progress: Progress) -> None:
    if run.failed is not None:
        progress.note(f"Ended without a model: {run.failed}")


def _check_lists(**lists: Sequence[Any]) -> None:
    for what, values in lists.items():
        twice = [value for value, count in Counter(values).items() if count > 1]
        if not values or twice:
            raise ConfigError(
                f"The study's {what} are not a list of different ones",
                got=f"{twice[0]} twice" if twice else "none",
                expected=f"one or more {what}, each once",
            )
