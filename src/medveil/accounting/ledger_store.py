"""Where the ledger's rows lie: one SQLite file that only grows, and a small head file beside it."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from medveil.accounting.ledger_head import HeadFile
from medveil.accounting.ledger_rows import GENESIS, Problem, Row
from medveil.disk import sync_folder
from medveil.errors import LedgerError

_APPLICATION: Final = 0x6D76_6C67  # "mvlg"
_BUSY_S: Final = 30.0
_COLUMNS: Final = "seq, at, kind, body, previous, hash"
_SCHEMA: Final = {
    "entries": (
        "CREATE TABLE entries (seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL, "
        "body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL)"
    ),
    "entries_stay": (
        "CREATE TRIGGER entries_stay BEFORE UPDATE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
    "entries_last": (
        "CREATE TRIGGER entries_last BEFORE DELETE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
}


class Store:
    """The rows of one ledger file, for several threads and processes at a time.

    A row is on disk when its transaction has ended (write-ahead log, ``synchronous=FULL``). The head file
    ``<name>.head`` holds the number of rows and the last hash; it is written after the rows, so that a crash may leave
    it a little behind, never ahead.

    Args:
        path: the SQLite file, on a local disk: SQLite's locks do not hold on network drives.
        create: make it (readable by its owner only) where there is none.

    Raises:
        LedgerError: the file is missing, cannot be opened or is not a ledger; or it is gone while its head file
            is still there.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.head = HeadFile(path.with_name(path.name + ".head"))
        self._lock = threading.RLock()
        self._left: list[sqlite3.Connection] = []
        if not path.exists():
            self._make_file(create=create)
        self._connect()

    def _make_file(self, *, create: bool) -> None:
        if self.head.path.exists():
            raise LedgerError(
                "The ledger is gone, but its head file is still there",
                got=self.path.name + " is missing",
                expected="both files",
                remedy="put the ledger back; a new one would forget everything that was spent",
            )
        if not create:
            raise LedgerError(
                "There is no ledger", got=self.path, remedy="check the path; medveil budget set makes a new ledger"
            )
        with self.errors():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make_ledger(self.path)

    def _connect(self) -> None:
        with self.errors():
            self._process = os.getpid()
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            self._connection.execute("PRAGMA fullfsync=ON")

    def _schema(self) -> dict[str, str]:
        found = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        return dict(found.fetchall())

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._connection.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what SQLite and the disk raise into LedgerError.

        Raises:
            LedgerError: the file is damaged, busy, read-only or on a full disk.
        """
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            _refuse(error)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Hold the ledger for writing: nobody else, in no process, writes until the block ends.

        Args:
            durable: False leaves the flush to the next durable transaction, which flushes both or neither; a power
                failure until then may undo this one, a crash of the process may not.

        Raises:
            LedgerError: as :meth:`errors`; nothing was written then, unless the disk failed in the very commit.
        """
        with self.connection() as connection:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:  # Ctrl-C too: half a transaction counts for nothing
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """This process's connection, one thread at a time."""
        if self._process != os.getpid():  # after a fork: the parent's connection must be neither used nor closed
            self._left.append(self._connection)
            self._lock = threading.RLock()
            self._connect()
        with self._lock, self.errors():
            yield self._connection

    def rows(self, after: int = 0) -> list[Row]:
        """The rows from number ``after + 1`` on, in stored order."""
        with self.connection() as connection:
            found = connection.execute(f"SELECT {_COLUMNS} FROM entries WHERE seq > ? ORDER BY seq", (after,))  # noqa: S608 - constant columns
            return [
                Row(seq, *(text if isinstance(text, str) else repr(text) for text in rest))
                for seq, *rest in found.fetchall()
            ]

    def append(self, row: Row) -> None:
        """Add a row; call it inside :meth:`transaction`, at whose end the row is durable."""
        with self.connection() as connection:
            if row.seq == 1:
                self.head.replace(0, GENESIS)
            connection.execute(
                f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant columns
                (row.seq, row.at, row.kind, row.body, row.previous, row.hash),
            )

    def highest(self) -> int:
        """The largest row number ever given out, as SQLite itself remembers it."""
        with self.connection() as connection:
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
            return int(found[0]) if found else 0

    def schema_problem(self) -> Problem | None:
        """Whether tables and triggers are those of a ledger, and the file is whole.

        Raises:
            LedgerError: the file is not a SQLite database, or damaged.
        """
        with self.connection() as connection:
            if self._schema() != _SCHEMA or connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION,):
                return Problem(None, "foreign schema", "tables or triggers are not those of a ledger")
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != ("ok",):
                raise LedgerError("The ledger's file is damaged", got=found[0], remedy="restore the newest copy")
        return None

    def anchor(self, entries: int, head: str) -> None:
        """Write the head file, unless another process has already written a later one."""
        with self.transaction():
            said = self.head.read()
            if said is None or said[0] < entries:
                self.head.write(entries, head)

    def renew_head(self, entries: int, head: str) -> None:
        """Write the head file whatever it said before."""
        with self.transaction():
            self.head.replace(entries, head)


def _make_ledger(path: Path) -> None:
    """Make an empty ledger: under another name first, so that nobody ever sees half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            for statement in _SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
        with suppress(FileExistsError):  # another process was quicker: its ledger is the one
            os.link(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink()


def _refuse(error: sqlite3.Error | OSError) -> NoReturn:
    text = str(error)
    if "locked" in text or "busy" in text:
        raise LedgerError(
            "The ledger is busy", got=text, expected="another process to finish", remedy="try again in a moment"
        ) from error
    if isinstance(error, sqlite3.OperationalError | OSError):
        raise LedgerError(
            "The ledger cannot be read or written", got=text, remedy="check the folder, its permissions and free space"
        ) from error
    raise LedgerError(
        "The ledger's file is damaged or not a ledger", got=text, remedy="restore the newest copy and verify it"
    ) from error
