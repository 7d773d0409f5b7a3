"""What one row of the ledger says, and the chain of hashes that ties the rows together."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from medveil.accounting.events import Event, Relation
from medveil.configuration import Config, config_error
from medveil.errors import ConfigError, LedgerError

EVERYONE: Final = "*"
"""The group that means all patients of a data set: what it is charged counts for every group."""

_LONGEST_NAME: Final = 128
_LONGEST_NOTE: Final = 1000


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("printable characters, no space at either end")
    return text


Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME), AfterValidator(_printable)]


class Budget(Config):
    """A cap, set or changed: from this row on, a patient of the group may spend at most epsilon at delta.

    Attributes:
        dataset: name of the data set.
        group: a patient group, or ``"*"``: the cap of every patient.
        unit: the privacy unit, for example ``"patient"``.
        relation: neighbouring relation, ``"add-remove"`` or ``"replace-one"``.
        epsilon: >= 0.
        delta: in (0, 1).
    """

    kind: Literal["budget"] = "budget"
    dataset: Name
    group: Name
    unit: Name
    relation: Relation
    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


class Opened(Config):
    """A run planned all it will spend; until it is closed, that much is held back from others."""

    kind: Literal["open"] = "open"
    run: Name
    dataset: Name
    group: Name
    unit: Name
    relation: Relation
    planned: Event


class Closed(Config):
    """A run is over: what it planned and never reserved is free again."""

    kind: Literal["close"] = "close"
    run: Name


class Reserved(Config):
    """One release is charged, before its data are touched."""

    kind: Literal["reserve"] = "reserve"
    run: Name
    release: Name
    attempt: Annotated[int, Field(ge=1)]
    dataset: Name
    group: Name
    unit: Name
    relation: Relation
    event: Event

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a release: run, release and attempt."""
        return self.run, self.release, self.attempt


class Committed(Config):
    """A reserved release took place."""

    kind: Literal["commit"] = "commit"
    reservation: Annotated[int, Field(ge=1)]


class Note(Config):
    """A remark of the people who keep the ledger."""

    kind: Literal["note"] = "note"
    text: Annotated[str, Field(min_length=1, max_length=_LONGEST_NOTE), AfterValidator(_printable)]


Entry = Annotated[Budget | Opened | Closed | Reserved | Committed | Note, Field(discriminator="kind")]
_ENTRY: Final[TypeAdapter[Entry]] = TypeAdapter(Entry)
KINDS: Final = frozenset({"budget", "open", "close", "reserve", "commit", "note"})

GENESIS: Final = hashlib.sha256(b"medveil ledger 1").hexdigest()
"""What the first row names as the hash before it."""


@dataclass(frozen=True)
class Row:
    """One row as stored.

    Attributes:
        seq: 1, 2, 3, ... without a gap.
        at: when it was written, UTC, ISO 8601.
        kind: which :data:`Entry` it is.
        body: the entry as canonical JSON.
        previous: hash of the row before, :data:`GENESIS` for the first.
        hash: SHA-256 over all of the above.
    """

    seq: int
    at: str
    kind: str
    body: str
    previous: str
    hash: str

    def expected_hash(self) -> str:
        """The hash that the other fields ask for."""
        fields = asdict(self)
        del fields["hash"]
        return hashlib.sha256(b"medveil ledger row 1\n" + canonical(fields).encode()).hexdigest()

    def entry(self) -> Entry:
        """What the row says.

        Raises:
            LedgerError: it is not an entry of this version.
        """
        try:
            entry = _ENTRY.validate_json(self.body)
        except (ValidationError, ConfigError):
            entry = None
        if entry is None or entry.kind != self.kind:
            raise LedgerError(
                f"Row {self.seq} of the ledger is not an entry that this version knows",
                got=f"kind {self.kind!r}",
                expected=", ".join(sorted(KINDS)),
                remedy="use the version of medveil that wrote the ledger, or verify the ledger",
            )
        return entry

    def exported(self) -> dict[str, Any]:
        """The row with its body opened, for export."""
        return {**asdict(self), "body": json.loads(self.body)}


def make_row(entry: Entry, *, seq: int, at: str, previous: str) -> Row:
    """Seal an entry into the row that follows the one whose hash is ``previous``."""
    row = Row(seq, at, entry.kind, canonical(entry.model_dump(mode="json")), previous, "")
    return Row(**{**asdict(row), "hash": row.expected_hash()})


def canonical(content: Any) -> str:
    r"""JSON with one spelling only: keys sorted, no spaces, ASCII, no NaN.

    >>> canonical({"b": 1, "a": "é"})
    '{"a":"\\u00e9","b":1}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_entry(values: dict[str, Any]) -> Entry:
    """Check an entry that is about to be written.

    Raises:
        ConfigError: a name too long or not printable, a number out of range, an unknown relation.
    """
    try:
        return _ENTRY.validate_python(values)
    except ValidationError as error:
        raise config_error(error, values, where="privacy ledger") from None


@dataclass(frozen=True)
class Problem:
    """The first thing in a ledger that is not as it was written.

    Attributes:
        row: number of the row, or None when the file as a whole is meant.
        what: ``"content"``, ``"chain"``, ``"missing row"``, ``"truncated tail"``, ``"unknown kind"``,
            ``"foreign schema"``, ``"head file"`` or ``"other head"``.
        detail: one sentence.
    """

    row: int | None
    what: str
    detail: str

    def __str__(self) -> str:
        place = "the file" if self.row is None else f"row {self.row}"
        return f"{place}: {self.what}: {self.detail}"


def first_break(rows: Sequence[Row], *, after: int = 0, head: str = GENESIS) -> Problem | None:
    """The first row that breaks the chain.

    Args:
        rows: in stored order, those that follow row ``after``.
        after: number of rows before these.
        head: hash of row ``after``.

    Returns:
        None where every row is whole and tied to the one before.
    """
    for seq, row in enumerate(rows, start=after + 1):
        if problem := _broken(row, seq, head):
            return problem
        head = row.hash
    return None


def _broken(row: Row, seq: int, head: str) -> Problem | None:
    if row.seq != seq:
        return Problem(seq, "missing row", f"the next row there is number {row.seq}")
    if row.hash != row.expected_hash():
        return Problem(seq, "content", "its fields do not give its hash")
    if row.previous != head:
        changed = max(seq - 1, 1)
        return Problem(changed, "chain", f"row {seq} was written after a row with another hash")
    if row.kind not in KINDS:
        return Problem(seq, "unknown kind", "whole, but of a kind that this version does not know")
    return None
