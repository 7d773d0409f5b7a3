"""The privacy ledger of one hospital: every release is charged before its data are touched.

A reservation is on disk before the data are read and is never taken back, so a crash costs at most the release that
it hit and never makes one free. What the hash chain and the head file cannot show: someone who rewrites the ledger
and its head file together and consistently, or puts back old copies of both. Against that, keep the head hash
(:attr:`Ledger.head`) somewhere else and verify with it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medveil.accounting.events import Event, Relation, Repeated, compose
from medveil.accounting.ledger_journal import Journal
from medveil.accounting.ledger_rows import EVERYONE, Budget, Committed, Entry, parse_entry
from medveil.accounting.ledger_rules import charge, check_caps, check_limit
from medveil.accounting.ledger_state import LedgerSpent, Reservation, RunCharges, State, counted, spending
from medveil.accounting.ledger_store import Store
from medveil.accounting.ledger_verify import Verification, verify_store
from medveil.configuration import Config
from medveil.errors import ConfigError, LedgerError


class Ledger:
    """An append-only, hash-chained record of what was charged to each data set and patient group.

    Threads and processes of one machine may share the file. A data set has one privacy unit and one neighbouring
    relation, fixed by its first row; others are refused, because figures under different terms do not add up. Group
    ``"*"`` means every patient: its charges count for each group, and its cap limits each group. Named groups must
    not overlap: the ledger cannot see who is in them.

    Args:
        path: the SQLite file, on a local disk. The head file ``<name>.head`` lies beside it.
        create: make the file (mode 0600) where there is none.

    Raises:
        LedgerError: missing, damaged, changed, or not a ledger.

    Guarantees:
        What :meth:`reserve` returned is on disk and counts as spent from then on, exactly once, come what may.
        Composition assumes that a run's events are fixed before it starts; for events chosen after looking at
        earlier releases, see Feldman & Zrnic 2021, https://arxiv.org/abs/2008.11193.
    """

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self._store = Store(Path(path), create=create)
        self._journal = Journal(self._store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._store.close()

    @property
    def head(self) -> tuple[int, str]:
        """Number of rows and hash of the last: keep both elsewhere, and nobody can rewrite the ledger unnoticed."""
        state = self._journal.read()
        return state.entries, state.head

    def set_budget(
        self, dataset: str, group: str = EVERYONE, *, epsilon: float, delta: float, relation: Relation, unit: str
    ) -> None:
        """Set or change a cap. A cap below what is spent refuses every further release; it undoes none.

        Args:
            dataset: name of the data set.
            group: a patient group, or ``"*"`` for the cap of every patient, whatever the group.
            epsilon: >= 0, the most that may be spent.
            delta: in (0, 1), at which epsilon is measured.
            relation: ``"add-remove"`` or ``"replace-one"``.
            unit: privacy unit, for example ``"patient"``.

        Raises:
            ConfigError: a name or number out of range.
            LedgerError: unit or relation are not those of the data set, or the ledger cannot be used.
        """
        values = {"dataset": dataset, "group": group, "epsilon": epsilon, "delta": delta}
        entry = parse_entry({"kind": "budget", "relation": relation, "unit": unit, **values})
        self._journal.write(lambda state: charge(state, entry))

    def open_run(
        self, run: str, *, dataset: str, group: str = EVERYONE, unit: str, relation: Relation, planned: Event
    ) -> None:
        """Hold back all that a run may spend, so that its steps need no further composition.

        A step inside the plan changes nothing about what is held, so checking it is cheap. A run that outgrows its
        plan (attempts after a crash) is checked at each step. Opening again with the same plan does nothing; with
        another one the plan is replaced. A run that dies keeps its plan held until :meth:`close_run`.

        Args:
            run: the run's name; the plan counts from its first release, those before a resume included.
            dataset: name of the data set.
            group: patient group, or ``"*"``.
            unit: privacy unit.
            relation: neighbouring relation.
            planned: everything the run may release from this group, for example a :class:`Repeated` step.

        Raises:
            BudgetError: the plan does not fit under a cap; nothing was written.
            ConfigError: a name out of range.
            LedgerError: other terms than the data set's, or the ledger cannot be used.
        """
        values = {"run": run, "dataset": dataset, "group": group, "planned": planned}
        entry = parse_entry({"kind": "open", "unit": unit, "relation": relation, **values})
        self._journal.write(lambda state: charge(state, entry))

    def close_run(self, run: str) -> None:
        """Give back what a run planned and never reserved. What it reserved stays spent.

        Raises:
            LedgerError: the ledger cannot be used.
        """
        entry = parse_entry({"kind": "close", "run": run})
        self._journal.write(lambda state: entry if state.open_plans(run) else None)

    def reserve(
        self,
        *,
        run: str,
        release: str,
        attempt: int | None = None,
        dataset: str,
        group: str = EVERYONE,
        unit: str,
        relation: Relation,
        event: Event,
    ) -> Reservation:
        """Charge a release before its data are touched. It is on disk, and spent, when this returns.

        Args:
            run: the run's name.
            release: what is released, unique within the run.
            attempt: from 1; reserving the same attempt again charges nothing and gives a reservation that is not
                ``fresh``. None takes the next free attempt, always fresh.
            dataset: name of the data set.
            group: patient group, or ``"*"``.
            unit: privacy unit.
            relation: neighbouring relation.
            event: the mechanism, from :mod:`medveil.accounting.events`.

        Raises:
            BudgetError: it would bring a patient over a cap; nothing was written.
            ConfigError: a name or number out of range.
            LedgerError: the attempt was reserved with other details, the terms are not those of the data set, or
                the ledger cannot be used. Do not touch the data.
        """
        values = {"run": run, "release": release, "dataset": dataset, "group": group, "event": event}
        number_of_attempt = 1 if attempt is None else attempt
        entry = parse_entry(
            {"kind": "reserve", "unit": unit, "relation": relation, "attempt": number_of_attempt, **values}
        )

        def decide(state: State) -> Entry | None:
            if attempt is None:
                return charge(state, entry.model_copy(update={"attempt": state.attempts[run, release] + 1}))
            return charge(state, entry)

        number = self._journal.write(decide)
        state = self._journal.read()
        fresh = number is not None
        if number is None:
            number = state.keys[run, release, number_of_attempt]
        return Reservation(number, run, release, state.reservations[number].attempt, fresh)

    def commit(self, reservation: Reservation) -> None:
        """Record that a reserved release took place. Committing twice is recorded once.

        It charges nothing, so it is not flushed at once: a power failure may leave the reservation open again.

        Raises:
            LedgerError: the ledger holds no such reservation, or cannot be used.
        """

        def decide(state: State) -> Entry | None:
            held = state.reservations.get(reservation.number)
            if held is None or held.key != (reservation.run, reservation.release, reservation.attempt):
                raise LedgerError(
                    "The ledger holds no such reservation",
                    got=f"row {reservation.number}",
                    expected="a reservation of this ledger",
                    remedy="commit to the ledger that gave the reservation",
                )
            return None if reservation.number in state.committed else Committed(reservation=reservation.number)

        self._journal.write(decide, durable=False)

    def next_attempt(self, run: str, release: str) -> int:
        """The attempt to reserve for a release that starts now: 1, or one more than was ever reserved."""
        return self._journal.read().attempts[run, release] + 1

    def note(self, text: str) -> None:
        """Add a remark, at most 1000 printable characters. Never patient data.

        Raises:
            ConfigError: too long or not printable.
            LedgerError: the ledger cannot be used.
        """
        entry = parse_entry({"kind": "note", "text": text})
        self._journal.write(lambda _state: entry)

    def check(self, dataset: str, group: str, events: Event | Iterable[Event], *, run: str | None = None) -> None:
        """Refuse events that would bring a patient over a cap; nothing is written.

        Args:
            dataset: name of the data set.
            group: patient group, or ``"*"``.
            events: what is to be released, all of it.
            run: the run that would release them, if it has a plan of its own; None counts them on top of everything.

        Raises:
            BudgetError: says what it would come to, the cap, and what is left.
            LedgerError: the ledger cannot be used.
        """
        event = events if isinstance(events, Config) else compose(events)
        check_caps(self._journal.read(), dataset, group, run, RunCharges(counted(event)))

    def check_limit(
        self, run: str, dataset: str, planned: Event, *, epsilon: float, delta: float, relation: Relation, unit: str
    ) -> None:
        """Refuse a run that would spend more than a limit that is not this ledger's own; nothing is written.

        Args:
            run: its name, the same after a resume.
            dataset: whose patients it trains on.
            planned: all that the run may spend.
            epsilon: >= 0, the most that may be spent over all runs.
            delta: in (0, 1), at which epsilon is measured.
            relation: under which epsilon is measured, whatever the data set's charges are stated under.
            unit: privacy unit.

        Raises:
            BudgetError: says what it would come to.
            ConfigError: a name or number out of range.
            LedgerError: the ledger cannot be used.
        """
        limit = Budget(dataset=dataset, group=EVERYONE, unit=unit, relation=relation, epsilon=epsilon, delta=delta)
        check_limit(self._journal.read(), limit, run, counted(planned))

    def spent(self, dataset: str, group: str = EVERYONE, delta: float | None = None) -> LedgerSpent:
        """What a patient of the group has been charged, all runs composed.

        Args:
            dataset: name of the data set.
            group: patient group; ``"*"`` counts only what was charged to all patients.
            delta: in (0, 1); None takes the delta of the group's cap, or of the cap of ``"*"``.

        Raises:
            ConfigError: no delta given and no cap to take it from.
            LedgerError: the ledger knows no such data set, or cannot be used.
        """
        data = self._journal.read().datasets.get(dataset)
        if data is None:
            raise LedgerError(
                "The ledger has no such data set", got=dataset, remedy="medveil budget show lists those it has"
            )
        if delta is None:
            cap = data.caps.get(group) or data.caps.get(EVERYONE)
            if cap is None:
                raise ConfigError(f"Data set {dataset!r} has no cap to take delta from", remedy="give delta")
            delta = cap.delta
        return spending(data, dataset, group, delta)

    def verify(self, head: str | None = None) -> Verification:
        """Whether the ledger is as it was written; the first row that is not is named.

        Args:
            head: a head hash that was kept elsewhere; some row must have it.

        Raises:
            LedgerError: the file is damaged or not a SQLite database.
        """
        return verify_store(self._store, head)

    def renew_head(self, head: str | None) -> Verification:
        """Write a lost or damaged head file anew, if everything else holds and the ledger ends where ``head`` says.

        Args:
            head: hash of a row, kept elsewhere; rows after it cannot be vouched for beyond their chain.

        Raises:
            ConfigError: no head given.
            LedgerError: the file is damaged or not a SQLite database.
        """
        if head is None:
            raise ConfigError(
                "Renewing the head file needs a head hash that was kept elsewhere",
                remedy="give --head HASH; without one, nobody knows whether rows are missing",
            )
        found = verify_store(self._store, head, use_head_file=False)
        if found.ok:
            self._store.renew_head(found.entries, found.head)
        return found

    def export(self) -> Iterator[dict[str, Any]]:
        """Every row, oldest first, with its body opened: what another machine needs to check the chain."""
        return (row.exported() for row in self._store.rows())

    def charged(self, run: str, dataset: str, group: str = EVERYONE) -> Event | None:
        """Everything that one run reserved from a group, attempts before a crash included; None for nothing."""
        data = self._journal.read().datasets.get(dataset)
        runs = data.groups.get(group) if data is not None else None
        charges = runs.get(run) if runs is not None else None
        if charges is None or not charges.reserved:
            return None
        return compose(Repeated(event=event, count=count) for event, count in charges.reserved.items())

    def state(self) -> State:
        """Caps, charges and plans of every data set, for reading only."""
        return self._journal.read()
