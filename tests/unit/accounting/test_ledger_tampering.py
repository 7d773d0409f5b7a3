"""A row that is not as it was written is named, and a ledger that has one takes no more charges."""

import random
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest

from medveil.accounting.events import Gaussian, PoissonGaussian, Repeated
from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import Note, Row, make_row
from medveil.errors import ConfigError, LedgerError

TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}
ROWS = 9
FIELDS = ("at", "kind", "body", "previous", "hash")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    step = PoissonGaussian(sampling_rate=0.1, noise_multiplier=2.0)
    with Ledger(path) as ledger:
        ledger.set_budget("chest", epsilon=9, delta=1e-5, relation="add-remove", unit="patient")
        ledger.open_run("r", planned=Repeated(event=step, count=3), **TERMS)
        for number in range(2):
            ledger.commit(ledger.reserve(run="r", release=f"step-{number}", attempt=1, event=step, **TERMS))
        ledger.note("half way")
        ledger.close_run("r")
        ledger.reserve(run="r", release="last", attempt=1, event=Gaussian(noise_multiplier=3.0), **TERMS)
        assert ledger.head[0] == ROWS
    return path


@pytest.fixture
def path(original, tmp_path):
    for name in ("ledger.db", "ledger.db.head"):
        shutil.copy(original.with_name(name), tmp_path / name)
    return tmp_path / "ledger.db"


def change(path, *statements):
    """What someone with a SQLite shell would do: take the triggers off, change, put them back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement, *values in statements:
            connection.execute(statement, *values)
        for _, made in triggers:
            connection.execute(made)


def stored(path):
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT seq, at, kind, body, previous, hash FROM entries ORDER BY seq")
        return [Row(*row) for row in rows]


def reseal(row, **changed):
    """The row with a hash that fits its changed fields."""
    sealed = Row(**{**vars(row), **changed})
    return Row(**{**vars(sealed), "hash": sealed.expected_hash()})


def put(row):
    columns = ", ".join(f"{name} = ?" for name in FIELDS)
    return f"UPDATE entries SET {columns} WHERE seq = ?", (*(getattr(row, name) for name in FIELDS), row.seq)


def problem(path, head=None):
    """The problem; and the ledger must take no charge any more."""
    with Ledger(path, create=False) as ledger:
        found = ledger.verify(head).problem
    if head is None:
        with Ledger(path, create=False) as ledger, pytest.raises(LedgerError, match="not as it was written"):
            ledger.reserve(run="x", release="x", attempt=1, event=Gaussian(noise_multiplier=9.0), **TERMS)
    return found


def test_an_unchanged_ledger_verifies(path):
    with Ledger(path, create=False) as ledger:
        found = ledger.verify()
        assert found.ok
        assert (found.entries, found.head) == ledger.head == (ROWS, stored(path)[-1].hash)
        assert all(ledger.verify(row.hash).ok for row in stored(path))


@pytest.mark.parametrize(
    "statement", ["UPDATE entries SET at = ''", "DELETE FROM entries", "DELETE FROM entries WHERE seq = 9"]
)
def test_rows_cannot_be_changed_by_mistake(path, statement):
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


@pytest.mark.parametrize("row", range(1, ROWS + 1))
@pytest.mark.parametrize("field", FIELDS)
def test_any_changed_field_of_any_row_is_named(path, field, row):
    old = getattr(stored(path)[row - 1], field)
    position = random.Random(row).randrange(len(old))
    new = old[:position] + ("0" if old[position] != "0" else "1") + old[position + 1 :]
    change(path, (f"UPDATE entries SET {field} = ? WHERE seq = ?", (new, row)))
    found = problem(path)
    assert (found.row, found.what) == (row, "content")


@pytest.mark.parametrize("value", [b"bytes", b"\xff\xfe", 3, 2.5])
def test_another_type_is_a_changed_field(path, value):
    change(path, ("UPDATE entries SET body = ? WHERE seq = 4", (value,)))
    assert problem(path).row == 4


def test_bytes_in_place_of_the_same_text(path):
    change(path, ("UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = 4",))
    assert problem(path).row == 4


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_changed_row_with_a_new_hash_is_named(path, row):
    change(path, put(reseal(stored(path)[row - 1], at="2001-01-01T00:00:00+00:00")))
    found = problem(path)
    assert (found.row, found.what) == (row, "chain")


@pytest.mark.parametrize("row", range(1, ROWS))
def test_a_deleted_row_is_named(path, row):
    change(path, ("DELETE FROM entries WHERE seq = ?", (row,)))
    found = problem(path)
    assert (found.row, found.what) == (row, "missing row")


@pytest.mark.parametrize("row", range(1, ROWS))
def test_a_deleted_row_with_the_gap_closed_is_named(path, row):
    change(
        path,
        ("DELETE FROM entries WHERE seq = ?", (row,)),
        *[("UPDATE entries SET seq = ? WHERE seq = ?", (seq - 1, seq)) for seq in range(row + 1, ROWS + 1)],
    )
    assert problem(path).row == row


@pytest.mark.parametrize("row", range(1, ROWS))
def test_swapped_rows_are_named(path, row):
    change(
        path,
        ("UPDATE entries SET seq = -1 WHERE seq = ?", (row,)),
        ("UPDATE entries SET seq = ? WHERE seq = ?", (row, row + 1)),
        ("UPDATE entries SET seq = ? WHERE seq = -1", (row + 1,)),
    )
    assert problem(path).row == row


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_an_inserted_row_is_named(path, row):
    rows = stored(path)
    new = make_row(Note(text="slipped in"), seq=row, at="", previous=rows[row - 1].previous)
    change(
        path,
        *[("UPDATE entries SET seq = ? WHERE seq = ?", (seq + 1, seq)) for seq in range(ROWS, row - 1, -1)],
        ("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", tuple(vars(new).values())),
    )
    assert problem(path).row in {row, row + 1}


@pytest.mark.parametrize("left", range(ROWS))
def test_a_truncated_tail_is_named_even_with_the_counter_set_back(path, left):
    delete = ("DELETE FROM entries WHERE seq > ?", (left,))
    change(path, delete)
    assert problem(path) is not None
    change(path, ("UPDATE sqlite_sequence SET seq = ?", (left,)))
    found = problem(path)
    assert (found.row, found.what) == (left + 1, "truncated tail")


@pytest.mark.parametrize("left", range(1, ROWS))
def test_a_truncated_tail_is_named_even_without_the_head_file(path, left):
    change(path, ("DELETE FROM entries WHERE seq > ?", (left,)))
    path.with_name("ledger.db.head").unlink()
    found = problem(path)
    assert (found.row, found.what) == (left + 1, "truncated tail")


def test_an_old_copy_put_back_is_noticed(path, tmp_path):
    shutil.copy(path, tmp_path / "backup")
    with Ledger(path) as ledger:
        ledger.reserve(run="s", release="new", attempt=1, event=Gaussian(noise_multiplier=3.0), **TERMS)
    shutil.copy(tmp_path / "backup", path)
    found = problem(path)
    assert (found.row, found.what) == (ROWS + 1, "truncated tail")


def test_a_ledger_that_is_gone_is_not_begun_anew(path):
    path.unlink()
    with pytest.raises(LedgerError, match="gone"):
        Ledger(path)


def rewrite(path, keep):
    """What cannot be noticed from inside: row 4 changed, all later rows sealed again, head file too."""
    rows, previous = stored(path), None
    for index, row in enumerate(rows[:keep]):
        at = "2001-01-01T00:00:00+00:00" if index == 3 else row.at
        rows[index] = reseal(row, at=at, previous=previous or row.previous)
        previous = rows[index].hash
    change(path, ("DELETE FROM entries",), ("UPDATE sqlite_sequence SET seq = ?", (keep,)), *map(_insert, rows[:keep]))
    with Ledger(path) as ledger:
        ledger._store.renew_head(keep, rows[keep - 1].hash)


def _insert(row):
    return "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", tuple(vars(row).values())


def test_a_consistent_rewrite_is_noticed_only_with_a_head_kept_elsewhere(path):
    kept = stored(path)[-1].hash
    rewrite(path, ROWS)
    with Ledger(path) as ledger:
        assert ledger.verify().ok
        assert ledger.verify(kept).problem.what == "other head"


def test_an_unknown_kind_is_named(path):
    rows = stored(path)
    body = '{"kind":"gift"}'
    change(path, put(reseal(rows[-1], kind="gift", body=body)))
    path.with_name("ledger.db.head").unlink()
    with Ledger(path) as ledger:
        found = ledger.verify().problem
    assert (found.row, found.what) == (ROWS, "unknown kind")


@pytest.mark.parametrize("body", ["{", "[]", '{"kind":"note"}', '{"kind":"note","text":"a","more":1}'])
def test_a_sealed_row_that_says_nothing_known_is_named(path, body):
    change(path, put(reseal(stored(path)[-1], kind="note", body=body)))
    with Ledger(path) as ledger:
        ledger._store.renew_head(ROWS, stored(path)[-1].hash)
        found = ledger.verify().problem
        assert (found.row, found.what) == (ROWS, "content")
        with pytest.raises(LedgerError):
            ledger.note("more")


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER entries_stay",
        "CREATE TABLE more (x)",
        "ALTER TABLE entries ADD COLUMN x",
        "PRAGMA application_id=1",
    ],
)
def test_a_foreign_schema_is_named(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    assert problem(path).what == "foreign schema"


def test_another_database_is_not_taken_over(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE patients (name)")
    before = path.read_bytes()
    assert problem(path).what == "foreign schema"
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(range(200)) * 40])
def test_a_file_that_is_no_ledger(tmp_path, content):
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    if not content:
        assert problem(path).what == "foreign schema"
        return
    with pytest.raises(LedgerError), Ledger(path) as ledger:
        ledger.verify()


def test_damaged_bytes_are_noticed_or_harmless(path):
    """Every 61st byte in turn: a typed error, a named problem, or rows that are still what was written."""
    whole, rows = path.read_bytes(), stored(path)
    noticed = 0
    for position in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        intact = False
        with suppress(LedgerError), Ledger(path, create=False) as ledger:
            intact = ledger.verify().ok
        noticed += not intact
        assert not intact or stored(path) == rows
    assert noticed > 20


def test_a_cut_file_is_noticed(path):
    whole = path.read_bytes()
    for size in range(1, len(whole), 1500):
        path.write_bytes(whole[:size])
        intact = False
        with suppress(LedgerError), Ledger(path, create=False) as ledger:
            intact = ledger.verify().ok
        assert not intact, size


# The head file


def test_a_lost_head_file_can_be_renewed_with_a_hash_kept_elsewhere(path):
    head = path.with_name("ledger.db.head")
    head.unlink()
    assert problem(path).what == "head file"
    with Ledger(path) as ledger:
        with pytest.raises(ConfigError, match="kept elsewhere"):
            ledger.renew_head(None)
        assert not ledger.renew_head("0" * 64).ok
        assert not head.exists()
        assert ledger.renew_head(stored(path)[5].hash).ok
        assert ledger.verify().ok


@pytest.mark.parametrize("size", [0, 10, 100])
def test_a_damaged_head_file_is_named(path, size):
    head = path.with_name("ledger.db.head")
    head.write_bytes(head.read_bytes()[:size])
    with Ledger(path) as ledger:
        assert ledger.verify().problem.what == "head file"
        with pytest.raises(LedgerError, match="head file"):
            ledger.note("more")


def test_a_torn_line_of_the_head_file_leaves_the_other(path):
    head = path.with_name("ledger.db.head")
    whole = head.read_bytes()
    for position in range(len(whole)):
        head.write_bytes(whole[:position] + b"#" + whole[position + 1 :])
        with Ledger(path) as ledger:
            assert ledger.verify().ok, position


def test_a_row_changed_under_an_open_ledger_stops_it(path):
    with Ledger(path) as ledger:
        assert ledger.head[0] == ROWS
        change(path, put(reseal(stored(path)[-1], at="2001-01-01T00:00:00+00:00")))
        with pytest.raises(LedgerError, match="since it was read"):
            ledger.note("more")


def test_no_ledger_and_none_wanted(tmp_path):
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger(tmp_path / "ledger.db", create=False)
    assert not list(tmp_path.iterdir())
