"""The tables of an epsilon grid: for a spreadsheet, for a reader, for a program."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import medveil
from medveil.study.folder import write_json, write_text
from medveil.study.grid_result import Grid, Row
from medveil.study.grid_runs import GridRun
from medveil.study.grid_text import PHANTOM, markdown_line, number_text, spending_notes, spread_text, title

SCHEMA_VERSION = 1
_SPREAD = ("mean", "sd", "low", "high")
_COLUMNS = ("plan", "mode", "epsilon", "epsilon_reached", "delta", "noise_multiplier", "stamp")
_FIXED = "The settings of each plan were fixed in advance and are the same at every epsilon and seed. "
_OWN = "The settings of each plan are the same at every seed; these epsilons have settings of their own: {}. "
_NONE = '"none" is the same training without its protection: no noise, no clipping of single patients or sites.'


def write_tables(grid: Grid, out: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.json`` into ``out``, each at once."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.csv", csv_table(grid))
    write_text(out / "table.md", markdown(grid))
    write_json(out / "table.json", to_json(grid))


def to_json(grid: Grid) -> dict[str, Any]:
    """Everything, for a program; epsilon null is "none"."""
    return {
        "schema_version": SCHEMA_VERSION,
        "medveil_version": medveil.__version__,
        "task": grid.task,
        "metrics": list(grid.metrics),
        "phantom": grid.phantom,
        "rows": [_row_json(row) for row in grid.rows],
        "runs": [asdict(run) for run in grid.runs],
        "spending": asdict(grid.spending),
        "notes": notes(grid),
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "failed": {str(seed): reason for seed, reason in row.failed.items()}}


def csv_table(grid: Grid) -> str:
    """One line for each plan and epsilon, figures with every digit."""
    stored = io.StringIO()
    writer = csv.writer(stored, lineterminator="\n")
    spreads = [f"{metric}_{part}" for metric in grid.metrics for part in _SPREAD]
    writer.writerow([*_COLUMNS, "seeds", "failed", *spreads])
    for row in grid.rows:
        head = ["none" if name == "epsilon" and row.epsilon is None else getattr(row, name) for name in _COLUMNS]
        parts = [getattr(row.metrics[metric], part, None) for metric in grid.metrics for part in _SPREAD]
        writer.writerow([*head, len(row.seeds), len(row.failed), *parts])
    return stored.getvalue()


def markdown(grid: Grid) -> str:
    """The table for a reader, with what the whole grid cost and what failed."""
    parts = [f"# {title(grid.metrics[0])} against epsilon", "\n".join(_table(grid)), *notes(grid)]
    if failed := [run for run in grid.runs if run.failed is not None]:
        parts += ["## Runs that failed", "\n".join(_failure(run) for run in failed)]
    return "\n\n".join(parts) + "\n"


def notes(grid: Grid) -> list[str]:
    """What a reader must know to read the figures, one paragraph each."""
    first = [PHANTOM] if grid.phantom else []
    settings = _OWN.format(", ".join(grid.own_settings)) if grid.own_settings else _FIXED
    return [*first, settings + _NONE, _spread_note(grid), *spending_notes(grid.spending)]


def _spread_note(grid: Grid) -> str:
    return (
        "Figures are of the test set: mean over the seeds ± sample standard deviation (smallest to largest). "
        "A seed decides first weights, batches and, where they are random, splits and sites; noise and sampling of "
        f"private runs come from the operating system, unless the run is stamped for it. Seeds: {_seeds(grid)}."
    )


def _seeds(grid: Grid) -> str:
    return ", ".join(dict.fromkeys(str(run.seed) for run in grid.runs))


def _table(grid: Grid) -> list[str]:
    head = ["Plan", "Mode", "Epsilon", "Reached", "Delta", "Noise multiplier", "Seeds"]
    head += [title(metric) for metric in grid.metrics]
    return [
        markdown_line(head),
        markdown_line(["---"] * len(head)),
        *(markdown_line(_cells(row, grid.metrics)) for row in grid.rows),
    ]


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    epsilon = "none" if row.epsilon is None else f"{row.epsilon:g}"
    seeds = f"{len(row.seeds)}" + (f", {len(row.failed)} failed" if row.failed else "")
    return [
        row.plan,
        row.mode,
        epsilon + (f" ({row.stamp})" if row.stamp else ""),
        *(number_text(value) for value in (row.epsilon_reached, row.delta, row.noise_multiplier)),
        seeds,
        *(spread_text(row.metrics[metric]) for metric in metrics),
    ]


def _failure(run: GridRun) -> str:
    epsilon = "none" if run.epsilon is None else f"{run.epsilon:g}"
    return f"- {run.plan}, epsilon {epsilon}, seed {run.seed}: {run.failed}"
