"""Is the ledger as it was written? The first row that is not is named."""

from collections.abc import Sequence
from dataclasses import dataclass

from medveil.accounting.ledger_rows import GENESIS, Problem, Row, first_break
from medveil.accounting.ledger_state import State
from medveil.accounting.ledger_store import Store
from medveil.errors import LedgerError


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        entries: number of rows.
        head: hash of the last row.
        problem: the first thing that is wrong, or None.
    """

    entries: int
    head: str
    problem: Problem | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def verify_store(store: Store, head: str | None = None, *, use_head_file: bool = True) -> Verification:
    """Check schema, rows, chain, highest row number and head file.

    Args:
        store: the opened file.
        head: a hash kept elsewhere; some row must have it.
        use_head_file: False checks everything but the head file.

    Raises:
        LedgerError: the file is damaged or not a SQLite database.
    """
    if problem := store.schema_problem():
        return Verification(0, "", problem)
    with store.transaction():  # no row is added between the questions
        rows, highest = store.rows(), store.highest()
        try:
            said = store.head.read() if use_head_file else (0, GENESIS)
        except LedgerError as error:
            return _found(rows, Problem(None, "head file", error.what))
    return _found(rows, first_problem(rows, said, highest) or _contradiction(rows) or _other_head(rows, head))


def first_problem(rows: Sequence[Row], said: tuple[int, str] | None, highest: int) -> Problem | None:
    """The first broken row, or what head file and SQLite's counter know and the rows do not.

    Args:
        rows: all rows, in stored order.
        said: what the head file says, None where there is no file.
        highest: the largest row number ever given out.
    """
    if problem := first_break(rows):
        return problem
    if len(rows) < highest:
        return Problem(len(rows) + 1, "truncated tail", f"there were {highest} rows, {len(rows)} are left")
    return _against_head_file(rows, said)


def _against_head_file(rows: Sequence[Row], said: tuple[int, str] | None) -> Problem | None:
    if said is None:
        return Problem(None, "head file", "it is missing") if rows else None
    entries, head = said
    if entries > len(rows):
        return Problem(
            len(rows) + 1, "truncated tail", f"the head file counts {entries} rows, {len(rows)} are left: an old copy?"
        )
    if head != (rows[entries - 1].hash if entries > 0 else GENESIS):
        return Problem(max(entries, 1), "chain", "the head file holds another hash for it: it or a row before changed")
    return None


def _contradiction(rows: Sequence[Row]) -> Problem | None:
    state = State()
    for row in rows:
        try:
            state.add(row)
        except LedgerError as error:
            return Problem(row.seq, "content", error.what)
    return None


def _other_head(rows: Sequence[Row], head: str | None) -> Problem | None:
    if head is None or head in {GENESIS, *(row.hash for row in rows)}:
        return None
    return Problem(None, "other head", "no row has the hash that was kept elsewhere: rows changed or are missing")


def _found(rows: Sequence[Row], problem: Problem | None) -> Verification:
    return Verification(len(rows), rows[-1].hash if rows else GENESIS, problem)
