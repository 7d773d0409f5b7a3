"""The tables of a comparison of trust models: for a spreadsheet, for a reader, for a program."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import medveil
from medveil.study.compare_result import REFERENCE_ARMS, ArmRow, Comparison
from medveil.study.folder import write_json, write_text
from medveil.study.grid_text import PHANTOM, markdown_line, spending_notes, spread_text, title

SCHEMA_VERSION = 1
_SPREAD = ("mean", "sd", "low", "high")
_FACTS = (
    "arm",
    "trusted",
    "epsilon",
    "epsilon_server",
    "epsilon_insider",
    "delta",
    "stamp",
    "dropouts",
    "rounds",
    "bytes_sent_per_site",
    "seconds",
)
_NO_PROMISE = frozenset({"epsilon", "epsilon_server", "epsilon_insider"})
_SAME = (
    "All arms have the same data, splits, sites, seeds, network, optimiser and number of steps; those with "
    "differential privacy also sampling, clipping and epsilon."
)
_FIXED = "The settings were fixed in advance."
_OWN = "These epsilons have settings of their own: {}."
_EPSILON = (
    '"Server" is epsilon against the server alone. "Insider" is epsilon against the server together with what one '
    "site knows, its own share of the noise included, or as many sites as the arm tolerates. With t = 0 it supposes "
    "that the two follow the protocol: a server that lies is withstood with up to t sites on its side. With central DP "
    "no hospital, and with local DP no other hospital than the patient's own, learns more than the server. "
    '"none" promises nothing.'
)
_REFERENCES = (
    'The references are trained without protection beside the unprotected arm: "pooled" takes a step on all data '
    'together for every step of every site, so several times as many; "each site alone" is the mean over the sites.'
)
_DROPOUTS = {
    True: "The plan says how many sites may vanish, and all secure sums are made for so many.",
    False: "The plan does not say how many sites may vanish: each secure sum is made for as many as its threshold "
    "allows, which is fewer the more sites may collude. So the noise of each site differs between the arms.",
}
_COST = (
    "Bytes are what the busiest site sends over the whole training; with central DP a hospital sends its images once, "
    "which is not counted. Seconds are of the training, all sites on this machine, secure sums included."
)


def write_tables(comparison: Comparison, out: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.json`` into ``out``, each at once."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.csv", csv_table(comparison))
    write_text(out / "table.md", markdown(comparison))
    write_json(out / "table.json", to_json(comparison))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for a program; epsilon null promises nothing."""
    return {
        "schema_version": SCHEMA_VERSION,
        "medveil_version": medveil.__version__,
        "plan": comparison.plan,
        "plan_hash": comparison.plan_hash,
        "task": comparison.task,
        "metrics": list(comparison.metrics),
        "phantom": comparison.phantom,
        "rows": [_row_json(row) for row in comparison.rows],
        "runs": [asdict(run) for run in comparison.runs],
        "spending": asdict(comparison.spending),
        "notes": notes(comparison),
    }


def _row_json(row: ArmRow) -> dict[str, Any]:
    return {**asdict(row), "failed": {str(seed): reason for seed, reason in row.failed.items()}}


def csv_table(comparison: Comparison) -> str:
    """One line for each arm and epsilon, figures with every digit."""
    stored = io.StringIO()
    writer = csv.writer(stored, lineterminator="\n")
    spreads = [f"{metric}_{part}" for metric in comparison.metrics for part in _SPREAD]
    writer.writerow([*_FACTS, "seeds", "failed", *spreads])
    for row in comparison.rows:
        facts = [_fact(row, name) for name in _FACTS]
        parts = [getattr(row.metrics[metric], part, None) for metric in comparison.metrics for part in _SPREAD]
        writer.writerow([*facts, len(row.seeds), len(row.failed), *parts])
    return stored.getvalue()


def _fact(row: ArmRow, name: str) -> Any:
    value = getattr(row, name)
    return "none" if value is None and name in _NO_PROMISE and row.seeds else value


def markdown(comparison: Comparison) -> str:
    """The table for a reader, with what everything cost together and what failed."""
    parts = [f"# Trust models of {comparison.plan}", "\n".join(_table(comparison)), *notes(comparison)]
    failures = [
        f"- {row.title}, epsilon {epsilon_text(row.epsilon)}, seed {seed}: {reason}"
        for row in comparison.rows
        for seed, reason in row.failed.items()
    ]
    if failures:
        parts += ["## Runs that failed", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the figures, one paragraph each."""
    first = [PHANTOM] if comparison.phantom else []
    own = _OWN.format(", ".join(comparison.own_settings)) if comparison.own_settings else _FIXED
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in comparison.runs))
    figures = (
        "Figures are of the test set: mean over the seeds ± sample standard deviation (smallest to largest). "
        f"Seeds: {seeds}. Plan {comparison.plan_hash[:12]}."
    )
    references = [_REFERENCES] if any(row.arm in REFERENCE_ARMS for row in comparison.rows) else []
    return [
        *first,
        f"{_SAME} {own}",
        figures,
        _EPSILON,
        _DROPOUTS[comparison.dropouts_stated],
        _COST,
        *references,
        *spending_notes(comparison.spending),
    ]


def epsilon_text(epsilon: float | None) -> str:
    """Three digits, or "none".

    >>> epsilon_text(7.9961), epsilon_text(None)
    ('8', 'none')
    """
    return "none" if epsilon is None else f"{epsilon:.3g}"


def _table(comparison: Comparison) -> list[str]:
    metric = comparison.metrics[0]
    head = [
        "Arm",
        title(metric),
        "Epsilon",
        "Server",
        "Insider",
        "Trusted",
        "May vanish",
        "Rounds",
        "Sent per site",
        "Seconds",
        "Seeds",
    ]
    lines = [markdown_line(head), markdown_line(["---"] * len(head))]
    return [*lines, *(markdown_line(_cells(row, metric)) for row in comparison.rows)]


def _cells(row: ArmRow, metric: str) -> list[str]:
    reached = [epsilon_text(value) if row.seeds else "-" for value in (row.epsilon_server, row.epsilon_insider)]
    return [
        row.title,
        spread_text(row.metrics[metric]),
        epsilon_text(row.epsilon) + (f" ({row.stamp})" if row.stamp else ""),
        *reached,
        row.trusted,
        "-" if row.dropouts is None else str(row.dropouts),
        "-" if row.rounds is None else str(row.rounds),
        "-" if row.bytes_sent_per_site is None else f"{row.bytes_sent_per_site / 1e6:.3g} MB",
        "-" if row.seconds is None else f"{row.seconds:.3g}",
        f"{len(row.seeds)}" + (f", {len(row.failed)} failed" if row.failed else ""),
    ]
