"""Reading and adding rows: what was read is checked before it is believed, what is added is decided under the lock."""

from collections.abc import Callable
from datetime import UTC, datetime

from medveil.accounting.ledger_rows import GENESIS, Entry, Problem, Row, first_break, make_row
from medveil.accounting.ledger_state import State
from medveil.accounting.ledger_store import Store
from medveil.accounting.ledger_verify import first_problem
from medveil.errors import LedgerError

Decision = Callable[[State], Entry | None]
"""Looks at the ledger as it stands and says what to add, nothing, or raises. Has no effects: it is asked twice."""


class Journal:
    """The rows of a store and what they add up to, kept up to date with what other processes add.

    Args:
        store: the opened file.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._state: State | None = None

    def read(self) -> State:
        """The ledger as it stands now.

        Raises:
            LedgerError: a row is not as it was written, or rows are missing.
        """
        with self._store.connection():
            if self._state is None:
                self._state = self._first_read()
            else:
                self._read_on(self._state)
            return self._state

    def write(self, decide: Decision, *, durable: bool = True) -> int | None:
        """Add what ``decide`` says, durably, as one step that no other process can come between.

        Args:
            decide: asked once before the ledger is held, so that slow composition keeps nobody waiting (its result
                is remembered), and again while it is held.
            durable: False for rows that charge nothing: the next durable row flushes them and moves the head file.

        Returns:
            Number of the new row, or None where there was nothing to add.

        Raises:
            LedgerError: the ledger cannot be used.
            PrivacyError: what ``decide`` raised; nothing was written.
        """
        with self._store.connection():
            decide(self.read())
            row = self._append(decide, durable=durable)
            if row is None:
                return None
            self.read()
            if durable:  # the head file must never be ahead of what a power failure leaves
                self._store.anchor(row.seq, row.hash)
            return row.seq

    def _append(self, decide: Decision, *, durable: bool) -> Row | None:
        with self._store.transaction(durable=durable):
            state = self.read()
            entry = decide(state)
            if entry is None:
                return None
            at = datetime.now(UTC).isoformat(timespec="seconds")
            row = make_row(entry, seq=state.entries + 1, at=at, previous=state.head)
            self._store.append(row)
        return row

    def _first_read(self) -> State:
        if problem := self._store.schema_problem():
            raise _damaged(problem)
        with self._store.transaction():  # the head file may be behind the rows, but not ahead of those read here
            rows, said, highest = self._store.rows(), self._store.head.read(), self._store.highest()
        if problem := first_problem(rows, said, highest):
            raise _damaged(problem)
        state = State()
        for row in rows:
            state.add(row)
        return state

    def _read_on(self, state: State) -> None:
        last = max(state.entries - 1, 0)
        rows = self._store.rows(last)
        if state.entries and (not rows or rows[0].hash != state.head):
            raise _damaged(Problem(state.entries, "chain", "it changed or vanished since it was read"))
        new = rows[1:] if state.entries else rows
        if problem := first_break(new, after=state.entries, head=state.head if state.entries else GENESIS):
            raise _damaged(problem)
        for row in new:
            state.add(row)


def _damaged(problem: Problem) -> LedgerError:
    return LedgerError(
        "The ledger is not as it was written",
        got=problem,
        expected="whole rows, an unbroken chain and its head file",
        remedy="release nothing; run medveil budget verify, then restore the newest copy that verifies",
    )
