"""What a robustness study found, and its tables: for a spreadsheet, for a reader, for a program."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import medveil
from medveil.study.folder import write_json, write_text
from medveil.study.grid_result import Spread, spread
from medveil.study.robustness_plan import MEANINGS
from medveil.study.robustness_runs import RobustnessRun

SCHEMA_VERSION = 1
_SPREAD = ("mean", "sd", "low", "high")
_FIGURES = ("score", "lost", "backdoor")
_ATTACK_NOTE = (
    "Hostile sites send their change times -1 (sign-flip), times {scale} (scaling), or, times {scale}, what they "
    "learnt from data of which {share} carry a bright patch and the attacker's class (backdoor). Success is the share "
    "of test images of the other classes that the patch turns into the attacker's class, at 0.5; without attack it is "
    "the model's ordinary error on patched images."
)
_SITE_NOTE = (
    "A bound at the site holds for sites that run it. A hostile site leaves it out, and a secure sum hides that it "
    "did; the same holds for the clipping of patients under differential privacy."
)
_GROUP_NOTE = (
    "Groups weaken privacy. The server learns one sum a group: a site of a group of g hides among g - 1 - t others, t "
    "of whom may side with the server, instead of among all. And with distributed differential privacy every group's "
    "sum needs the whole noise, which the few sites of a group must make among them."
)
_BOUND_NOTE = (
    "Unless it was given, it is the largest change of a site in the unattacked run of the same seed: better than what "
    "a server could know beforehand."
)


@dataclass(frozen=True)
class Row:
    """A setting under an attack, over its seeds.

    Args:
        setting: what defended.
        attack: kind, or "none".
        fraction: of the sites that were hostile.
        hostile: how many sites that is.
        seeds: those whose run ended with a model.
        failed: the reason by seed, of those that did not.
        score: clean AUC or Dice.
        lost: score of the same setting and seed without attack, minus this one.
        backdoor: share of triggered test images of other classes that become the target.
        refused: share of group sums that were beyond the norm bound, over finished runs; None without a bound.
        hides_among: sites that hide each other in the smallest sum.
    """

    setting: str
    attack: str
    fraction: float
    hostile: int
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    score: Spread | None
    lost: Spread | None
    backdoor: Spread | None
    refused: float | None
    hides_among: int


@dataclass(frozen=True)
class Robustness:
    """A finished study.

    Args:
        task: of the plan.
        plan: its name.
        sites: how many.
        groups: of the settings in groups.
        runs: every run, in the order in which they were begun.
        rows: one for each setting, attack and fraction.
        attack: scale, target and share of the attacks, and the name of the private plan.
    """

    task: str
    plan: str
    sites: int
    groups: int
    runs: tuple[RobustnessRun, ...]
    rows: tuple[Row, ...]
    attack: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """Name of the score for readers."""
        return "AUC" if self.task == "classification" else "Dice"


def rows_of(runs: Sequence[RobustnessRun]) -> tuple[Row, ...]:
    """One row for each setting, attack and fraction, in the order in which they first occur."""
    gathered: dict[tuple[str, str, float], list[RobustnessRun]] = {}
    for run in runs:
        gathered.setdefault((run.setting, run.attack, run.fraction), []).append(run)
    unattacked = {(run.setting, run.seed): run.score for run in runs if run.attack == "none"}
    return tuple(_row(group, unattacked) for group in gathered.values())


def _row(runs: Sequence[RobustnessRun], unattacked: Mapping[tuple[str, int], float | None]) -> Row:
    finished = [run for run in runs if run.failed is None]
    lost = [
        before - run.score
        for run in finished
        if run.score is not None and (before := unattacked.get((run.setting, run.seed))) is not None
    ]
    sums = sum(run.groups for run in finished)
    bounded = runs[0].setting in {"group-bound", "group-both"} and sums > 0
    return Row(
        setting=runs[0].setting,
        attack=runs[0].attack,
        fraction=runs[0].fraction,
        hostile=runs[0].hostile,
        seeds=tuple(run.seed for run in finished),
        failed={run.seed: run.failed for run in runs if run.failed is not None},
        score=spread([run.score for run in finished if run.score is not None]),
        lost=spread(lost),
        backdoor=spread([run.backdoor for run in finished if run.backdoor is not None]),
        refused=sum(run.refused_groups for run in finished) / sums if bounded else None,
        hides_among=runs[0].hides_among,
    )


def write_tables(study: Robustness, out: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.json`` into ``out``, each at once."""
    write_text(out / "table.csv", csv_table(study))
    write_text(out / "table.md", markdown(study))
    write_json(out / "table.json", to_json(study))


def to_json(study: Robustness) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "schema_version": SCHEMA_VERSION,
        "medveil_version": medveil.__version__,
        "task": study.task,
        "plan": study.plan,
        "metric": study.metric.lower(),
        "sites": study.sites,
        "groups": study.groups,
        "attack": dict(study.attack),
        "rows": [
            {**asdict(row), "failed": {str(seed): reason for seed, reason in row.failed.items()}} for row in study.rows
        ],
        "runs": [asdict(run) for run in study.runs],
        "notes": notes(study),
    }


def csv_table(study: Robustness) -> str:
    """One line for each setting, attack and fraction, figures with every digit."""
    stored = io.StringIO()
    writer = csv.writer(stored, lineterminator="\n")
    head = ["setting", "attack", "fraction", "hostile", "hides_among", "seeds", "failed", "refused"]
    writer.writerow([*head, *(f"{figure}_{part}" for figure in _FIGURES for part in _SPREAD)])
    for row in study.rows:
        facts = [row.setting, row.attack, row.fraction, row.hostile, row.hides_among, len(row.seeds), len(row.failed)]
        parts = [getattr(getattr(row, figure), part, None) for figure in _FIGURES for part in _SPREAD]
        writer.writerow([*facts, row.refused, *parts])
    return stored.getvalue()


def markdown(study: Robustness) -> str:
    """The table for a reader: a line a setting and attack, a column a fraction."""
    parts = [f"# {study.metric} under hostile sites", "\n".join(_table(study))]
    if study.task == "classification":
        parts += ["## Success of the backdoor's trigger", "\n".join(_backdoor_table(study))]
    parts += ["## Settings", "\n".join(_setting_line(study, setting) for setting in _settings(study)), *notes(study)]
    if failed := [run for run in study.runs if run.failed is not None]:
        parts += ["## Runs that ended without a model", "\n".join(_failure(run) for run in failed)]
    return "\n\n".join(parts) + "\n"


def notes(study: Robustness) -> list[str]:
    """What a reader must know to read the figures, one paragraph each."""
    scale, share = study.attack["scale"], study.attack["share"]
    bounds = sorted({run.l2_norm for run in study.runs if run.l2_norm is not None})
    said = [
        f"{study.metric} on the clean test set{_over(study)}. "
        + _ATTACK_NOTE.format(scale=f"{scale:g}", share=f"{share:.0%}"),
        _SITE_NOTE,
        _GROUP_NOTE,
    ]
    if bounds:
        said.append(f"Norm bound: {', '.join(f'{bound:.3g}' for bound in bounds)}. {_BOUND_NOTE}")
    epsilons = sorted({run.epsilon for run in study.runs if run.epsilon is not None})
    if epsilons:
        said.append(
            f'The setting "dp" claims epsilon {epsilons[-1]:.3g} as its plan does: hostile sites beyond those that the '
            "plan counts as colluding make less noise than it says, and the claim does not hold against them."
        )
    if any(run.clipped for run in study.runs):
        said.append("In some runs a hostile change was so large that the encoding of the secure sum cut coordinates.")
    return said


def _over(study: Robustness) -> str:
    seeds = list(dict.fromkeys(run.seed for run in study.runs))
    if len(seeds) == 1:
        return f", seed {seeds[0]}"
    return f", mean over seeds {', '.join(map(str, seeds))} ± sample standard deviation"


def _settings(study: Robustness) -> list[str]:
    return list(dict.fromkeys(row.setting for row in study.rows))


def _setting_line(study: Robustness, setting: str) -> str:
    hides = next(row.hides_among for row in study.rows if row.setting == setting)
    meaning = next((text for name, text in MEANINGS.items() if name == setting), "")
    return f"- {setting}: {meaning}; a site is one of {hides} in the smallest sum."


def _fractions(study: Robustness) -> list[tuple[float, int]]:
    return list(dict.fromkeys((row.fraction, row.hostile) for row in study.rows if row.attack != "none"))


def _find(study: Robustness, setting: str, attack: str, fraction: float) -> Row | None:
    wanted = (setting, attack, fraction)
    return next((row for row in study.rows if (row.setting, row.attack, row.fraction) == wanted), None)


def _attacks(study: Robustness) -> list[str]:
    return list(dict.fromkeys(row.attack for row in study.rows if row.attack != "none"))


def _table(study: Robustness) -> list[str]:
    fractions = _fractions(study)
    head = ["Attack", "Setting", "None hostile", *(f"{hostile} of {study.sites}" for _, hostile in fractions)]
    lines = [_line(head), _line(["---"] * len(head))]
    for attack in _attacks(study):
        for setting in _settings(study):
            found = [_find(study, setting, attack, fraction) for fraction, _ in fractions]
            cells = [_shown(row, "score") for row in (_find(study, setting, "none", 0.0), *found)]
            lines.append(_line([attack, setting, *cells]))
    return lines


def _backdoor_table(study: Robustness) -> list[str]:
    fractions = _fractions(study)
    head = ["Setting", "None hostile", *(f"{hostile} of {study.sites}" for _, hostile in fractions)]
    lines = [_line(head), _line(["---"] * len(head))]
    for setting in _settings(study):
        found = [_find(study, setting, "backdoor", fraction) for fraction, _ in fractions]
        cells = [_shown(row, "backdoor") for row in (_find(study, setting, "none", 0.0), *found)]
        lines.append(_line([setting, *cells]))
    return lines


def _shown(row: Row | None, figure: str) -> str:
    if row is None:
        return "-"
    value = getattr(row, figure)
    parts = [] if value is None else [f"{value.mean:.3f}" + (f" ± {value.sd:.3f}" if value.sd is not None else "")]
    if row.failed:
        parts.append("no model" if not row.seeds else f"{len(row.failed)} without a model")
    return ", ".join(parts) or "-"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _failure(run: RobustnessRun) -> str:
    return f"- {run.setting}, {run.attack} by {run.hostile}, seed {run.seed}, after {run.rounds} rounds: {run.failed}"
