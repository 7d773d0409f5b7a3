"""What the rows of a ledger add up to: caps, charges and open plans of each data set and patient group."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from medveil.accounting.events import Event, Repeated, compose, flatten
from medveil.accounting.ledger_rows import (
    EVERYONE,
    GENESIS,
    Budget,
    Closed,
    Committed,
    Entry,
    Opened,
    Reserved,
    Row,
)
from medveil.errors import ConfigError, GuaranteeError, LedgerError

Charges = Counter[Event]


@dataclass
class RunCharges:
    """One run's charges to one group of one data set.

    Attributes:
        reserved: what it reserved, each mechanism with its count.
        planned: what it may come to while it is open; empty when it is closed or never planned.
    """

    reserved: Charges = field(default_factory=Counter)
    planned: Charges = field(default_factory=Counter)

    def held(self, more: Charges | None = None) -> Charges:
        """The larger of plan and reservations, mechanism by mechanism; ``more`` is added to the reservations."""
        return self.planned | (self.reserved + (more or Counter()))


@dataclass
class DataSet:
    """Everything charged to one data set.

    Attributes:
        unit: the privacy unit of every charge and cap here; a data set has one.
        relation: the neighbouring relation of every charge and cap here.
        caps: the cap in force of each group.
        groups: group -> run -> its charges.
    """

    unit: str
    relation: str
    caps: dict[str, Budget] = field(default_factory=dict)
    groups: defaultdict[str, defaultdict[str, RunCharges]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(RunCharges))
    )

    def names(self) -> list[str]:
        """Every group with a cap or a charge, ``"*"`` first."""
        return [EVERYONE, *sorted({*self.caps, *self.groups} - {EVERYONE})]

    def charged(self, group: str) -> Charges:
        """What was reserved and counts for a patient of the group: all patients' charges and the group's own."""
        return _total(run.reserved for run in self._runs(group))

    def held(self, group: str) -> Charges:
        """As :meth:`charged`, with open plans counted in full."""
        return _total(run.held() for run in self._runs(group))

    def run(self, group: str, run: str) -> RunCharges:
        """The run's charges to the group; empty ones where there are none."""
        runs = self.groups.get(group)
        return runs.get(run, RunCharges()) if runs is not None else RunCharges()

    def planned(self, group: str, run: str) -> Charges:
        """The run's open plan; empty where it has none."""
        return self.run(group, run).planned

    def runs(self, group: str) -> list[str]:
        """Names of the runs that count for the group."""
        return sorted({name for each in _counting(group) for name in self.groups.get(each, ())})

    def open_runs(self, group: str) -> list[str]:
        """Names of the runs whose plans are held back from the group."""
        return sorted({n for each in _counting(group) for n, run in self.groups.get(each, {}).items() if run.planned})

    def limits(self, group: str) -> tuple[Budget, ...]:
        """The caps that hold for a patient of the group."""
        return tuple(self.caps[each] for each in _counting(group) if each in self.caps)

    def _runs(self, group: str) -> list[RunCharges]:
        return [run for each in _counting(group) for run in self.groups.get(each, {}).values()]


@dataclass
class State:
    """The rows read so far, added up.

    Attributes:
        entries: number of rows.
        head: hash of the last row.
        datasets: by name.
        reservations: row number -> the reservation.
        keys: (run, release, attempt) -> row number of its reservation.
        attempts: (run, release) -> the highest attempt.
        committed: row numbers of the reservations that were committed.
    """

    entries: int = 0
    head: str = GENESIS
    datasets: dict[str, DataSet] = field(default_factory=dict)
    reservations: dict[int, Reserved] = field(default_factory=dict)
    keys: dict[tuple[str, str, int], int] = field(default_factory=dict)
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    committed: set[int] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Count one more row, already checked against the chain.

        Raises:
            LedgerError: it is whole but cannot follow the rows before it.
        """
        entry = row.entry()
        if not self._fits(entry):
            raise LedgerError(
                f"Row {row.seq} of the ledger contradicts the rows before it",
                got=entry.kind,
                expected="one reservation per release and attempt, one commit per reservation, one unit and relation",
                remedy="do not use this ledger; restore the newest copy that verifies",
            )
        self._count(row.seq, entry)
        self.entries, self.head = row.seq, row.hash

    def open_plans(self, run: str) -> bool:
        """Whether the run holds back anything."""
        return any(data.planned(group, run) for data in self.datasets.values() for group in data.groups)

    def _fits(self, entry: Entry) -> bool:
        match entry:
            case Reserved():
                return entry.key not in self.keys and self.same_terms(entry)
            case Committed():
                return entry.reservation in self.reservations and entry.reservation not in self.committed
            case Budget() | Opened():
                return self.same_terms(entry)
        return True

    def same_terms(self, entry: Budget | Opened | Reserved) -> bool:
        """Whether unit and relation are those of the data set."""
        data = self.datasets.get(entry.dataset)
        return data is None or (data.unit, data.relation) == (entry.unit, entry.relation)

    def _count(self, seq: int, entry: Entry) -> None:
        match entry:
            case Budget():
                self._dataset(entry).caps[entry.group] = entry
            case Opened():
                self._dataset(entry).groups[entry.group][entry.run].planned = counted(entry.planned)
            case Reserved():
                self._dataset(entry).groups[entry.group][entry.run].reserved.update(counted(entry.event))
                self.reservations[seq] = entry
                self.keys[entry.key] = seq
                self.attempts[entry.run, entry.release] = max(entry.attempt, self.attempts[entry.run, entry.release])
            case Committed():
                self.committed.add(entry.reservation)
            case Closed():
                for data in self.datasets.values():
                    for runs in data.groups.values():
                        if entry.run in runs:
                            runs[entry.run].planned = Counter()

    def _dataset(self, entry: Budget | Opened | Reserved) -> DataSet:
        return self.datasets.setdefault(entry.dataset, DataSet(entry.unit, entry.relation))


@dataclass(frozen=True)
class Reservation:
    """A charge that is on disk: its release may now touch the data.

    Attributes:
        number: row number in the ledger.
        run: the run's name.
        release: what the run releases, for example ``"step-17"``.
        attempt: 1 for the first try, one more for each try after a crash.
        fresh: False when the ledger held this very charge already. The data may then have been used under it: do
            not compute with new noise again, reserve the next attempt instead.
    """

    number: int
    run: str
    release: str
    attempt: int
    fresh: bool


@dataclass(frozen=True)
class LedgerSpent:
    """What a patient of a group has been charged.

    Attributes:
        dataset: name of the data set.
        group: patient group; ``"*"`` counts only what was charged to all patients.
        unit: privacy unit.
        relation: neighbouring relation.
        epsilon: of everything reserved, composed; inf where no epsilon holds at this delta.
        delta: the delta that epsilon holds at.
        held: epsilon with open runs counted as planned; at least ``epsilon``. Caps are checked against it.
        releases: number of mechanisms that were reserved, repetitions counted.
        runs: names of the runs that charged or hold.
    """

    dataset: str
    group: str
    unit: str
    relation: str
    epsilon: float
    delta: float
    held: float
    releases: int
    runs: tuple[str, ...]


def spending(data: DataSet, dataset: str, group: str, delta: float) -> LedgerSpent:
    """What a patient of the group has been charged, composed at ``delta``.

    Raises:
        ConfigError: delta is out of range.
    """
    if not 0 < delta < 1:
        raise ConfigError("delta is out of range", got=delta, expected="in (0, 1)", remedy="correct delta")
    charged, held = data.charged(group), data.held(group)
    return LedgerSpent(
        dataset=dataset,
        group=group,
        unit=data.unit,
        relation=data.relation,
        epsilon=epsilon_at(charged, delta, data.relation),
        delta=delta,
        held=epsilon_at(held, delta, data.relation),
        releases=charged.total(),
        runs=tuple(data.runs(group)),
    )


def counted(event: Event) -> Charges:
    """Each mechanism of an event with how often it runs."""
    counts: Charges = Counter()
    for simple, count in flatten(event):
        counts[simple] += count
    return counts


def epsilon_at(charges: Charges, delta: float, relation: str) -> float:
    """Epsilon at delta of everything counted, composed once per set of counts and process; inf where none holds."""
    return _epsilon(frozenset(charges.items()), delta, relation)


@lru_cache(maxsize=4096)
def _epsilon(counts: frozenset[tuple[Event, int]], delta: float, relation: str) -> float:
    if not counts:
        return 0.0
    from medveil.accounting.accountants import check_relation, epsilon_of

    ordered = sorted(counts, key=lambda part: part[0].model_dump_json())
    event = compose(Repeated(event=simple, count=count) for simple, count in ordered)
    try:
        return epsilon_of(event, delta=delta, relation=check_relation(relation)).epsilon
    except GuaranteeError:
        return math.inf


def _counting(group: str) -> tuple[str, ...]:
    return (EVERYONE,) if group == EVERYONE else (EVERYONE, group)


def _total(parts: Iterable[Charges]) -> Charges:
    total: Charges = Counter()
    for part in parts:
        total.update(part)
    return total
