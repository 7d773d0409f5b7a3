"""What all runs of a grid cost together: the same patients are in every one of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medveil.accounting.accountants import bound_of
from medveil.accounting.budget import show
from medveil.accounting.events import Event, compose, parse_event
from medveil.dp.plan import net_delta
from medveil.dp.settings import Relation
from medveil.errors import GuaranteeError
from medveil.study.folder import read_json


@dataclass(frozen=True)
class Together:
    """All finished private runs that hide the same kind of unit of the same data.

    Args:
        dataset: its name.
        unit: "patient", "image" or "site".
        relation: between neighbours.
        delta: at which they are added up.
        runs: how many.
        epsilon: of all of them together, what they state as earlier counted once; None where no finite one holds.
        ledgers: the largest epsilon that a party's ledger states for these data, whatever it was spent by; None
            without ledgers.
    """

    dataset: str
    unit: str
    relation: Relation
    delta: float
    runs: int
    epsilon: float | None
    ledgers: float | None


@dataclass(frozen=True)
class Spending:
    """What the runs in a grid's folder cost.

    Args:
        together: one entry for each data set, unit, relation and delta.
        unprotected: finished runs without privacy.
        unfinished: runs that were begun and did not finish; their cost is in the ledgers only.
    """

    together: tuple[Together, ...]
    unprotected: int
    unfinished: int


def composed(out: Path, ledgers: Path | None) -> Spending:
    """Add up every run that lies in the folder of a grid, those of earlier calls included.

    Args:
        out: folder of the grid.
        ledgers: folder of the parties' ledgers, or None where each run has its own.

    Raises:
        RunError: a record is damaged.
        LedgerError: a ledger cannot be used.

    Guarantees:
        The epsilon of an entry is an upper bound on what all its runs' releases tell together about one unit that is
        in every one of them.
    """
    begun = sorted(path.parent for path in out.glob("*/eps-*/seed-*/plan.json"))
    records = [read_json(run / "record.json") for run in begun if (run / "manifest.json").exists()]
    groups: dict[tuple[str, str, Relation, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if (privacy := record["privacy"]) is not None:
            key = (record["data"]["name"], privacy["unit"], privacy["relation"], privacy["delta"])
            groups[key].append(privacy)
    return Spending(
        together=tuple(_together(key, group, ledgers) for key, group in sorted(groups.items())),
        unprotected=sum(record["privacy"] is None for record in records),
        unfinished=len(begun) - len(records),
    )


def _together(
    key: tuple[str, str, Relation, float], claims: Sequence[dict[str, Any]], ledgers: Path | None
) -> Together:
    dataset, unit, relation, delta = key
    try:
        epsilon = bound_of(_event(claims), delta=net_delta(delta), relation=relation)
    except GuaranteeError:
        epsilon = None
    said = None if ledgers is None else _said(ledgers, dataset, unit, delta)
    return Together(dataset, unit, relation, delta, len(claims), epsilon, said)


def _event(claims: Sequence[dict[str, Any]]) -> Event:
    """Every run's training, and what they say went before: once for all the runs that say the same."""
    parts = [[parse_event(part["event"]) for part in claim["composition"]] for claim in claims]
    earlier: list[list[Event]] = []
    for _, *before in parts:
        if before not in earlier:
            earlier.append(before)
    return compose([*(training for training, *_ in parts), *(event for before in earlier for event in before)])


def _said(ledgers: Path, dataset: str, unit: str, delta: float) -> float | None:
    lines = [line for path in sorted(ledgers.glob("*.sqlite")) for line in show(path, delta=delta)]
    found = [
        line["epsilon"]
        for line in lines
        if line["dataset"] == dataset and line["unit"] == unit and line["epsilon"] is not None
    ]
    return max(found, default=None)
