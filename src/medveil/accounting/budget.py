"""What ``medveil budget`` does, as functions: set a cap, show what is spent, verify, export, close a run."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medveil.accounting.events import Relation
from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import EVERYONE, Budget
from medveil.accounting.ledger_state import DataSet, State, spending
from medveil.accounting.ledger_verify import Verification


def set_cap(
    ledger: Path,
    *,
    dataset: str,
    group: str = EVERYONE,
    epsilon: float,
    delta: float,
    relation: Relation,
    unit: str,
) -> None:
    """Set or change a cap; makes the ledger where there is none.

    Args:
        ledger: the ledger's file.
        dataset: name of the data set.
        group: patient group, or ``"*"`` for every patient.
        epsilon: >= 0.
        delta: in (0, 1).
        relation: ``"add-remove"`` or ``"replace-one"``.
        unit: privacy unit, for example ``"patient"``.

    Raises:
        ConfigError: a name or number out of range.
        LedgerError: unit or relation are not those of the data set, or the ledger cannot be used.
    """
    with Ledger(ledger) as opened:
        opened.set_budget(dataset, group, epsilon=epsilon, delta=delta, relation=relation, unit=unit)


def show(ledger: Path, *, delta: float | None = None) -> list[dict[str, Any]]:
    """What is spent and left, one entry for each data set, group and cap that limits the group.

    Args:
        ledger: the ledger's file.
        delta: in (0, 1), to measure at; None takes each cap's own.

    Returns:
        Dictionaries with dataset, group, unit, relation, cap (group, epsilon, delta; or None), delta, epsilon (of all
        that is reserved), held (with open runs counted as planned), remaining (cap less held, at the cap's delta),
        releases, runs, open_runs, open_reservations. Figures are None where there is no delta or no epsilon holds.

    Raises:
        ConfigError: delta out of range.
        LedgerError: the ledger cannot be used.
    """
    with Ledger(ledger, create=False) as opened:
        state = opened.state()
        return [
            _line(state, name, group, cap, delta)
            for name, data in sorted(state.datasets.items())
            for group in data.names()
            if group in data.caps or data.runs(group)
            for cap in data.limits(group) or (None,)
        ]


def verify(ledger: Path, *, head: str | None = None, renew_head: bool = False) -> Verification:
    """Whether the ledger is as it was written.

    Args:
        ledger: the ledger's file.
        head: a head hash that was kept elsewhere.
        renew_head: write the head file anew when it is lost and everything else holds; needs ``head``.

    Raises:
        ConfigError: renew_head without head.
        LedgerError: the file is missing, damaged or not a SQLite database.
    """
    with Ledger(ledger, create=False) as opened:
        return opened.renew_head(head) if renew_head else opened.verify(head)


def export(ledger: Path) -> Iterator[dict[str, Any]]:
    """Every row, oldest first, as it is stored; the last one's hash is the head hash to keep elsewhere.

    Raises:
        LedgerError: the file is missing or damaged.
    """
    with Ledger(ledger, create=False) as opened:
        yield from opened.export()


def close(ledger: Path, run: str) -> None:
    """Give back what a dead or finished run planned and never reserved.

    Raises:
        LedgerError: the ledger cannot be used.
    """
    with Ledger(ledger, create=False) as opened:
        opened.close_run(run)


def _line(state: State, name: str, group: str, cap: Budget | None, delta: float | None) -> dict[str, Any]:
    data = state.datasets[name]
    return {
        "dataset": name,
        "group": group,
        "unit": data.unit,
        "relation": data.relation,
        "cap": None if cap is None else {"group": cap.group, "epsilon": cap.epsilon, "delta": cap.delta},
        **_figures(data, name, group, cap, delta),
        "releases": data.charged(group).total(),
        "runs": data.runs(group),
        "open_runs": data.open_runs(group),
        "open_reservations": [
            {"run": made.run, "release": made.release, "attempt": made.attempt}
            for number, made in state.reservations.items()
            if number not in state.committed and made.dataset == name and made.group in {EVERYONE, group}
        ],
    }


def _figures(data: DataSet, name: str, group: str, cap: Budget | None, delta: float | None) -> dict[str, Any]:
    at = delta if delta is not None else None if cap is None else cap.delta
    if at is None:
        return dict.fromkeys(("delta", "epsilon", "held", "remaining"))
    spent = spending(data, name, group, at)
    left = None if cap is None else max(cap.epsilon - spending(data, name, group, cap.delta).held, 0.0)
    return {"delta": at, "epsilon": _finite(spent.epsilon), "held": _finite(spent.held), "remaining": left}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
