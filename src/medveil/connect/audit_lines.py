"""A line of the audit log: which facts it may hold, how it is written, hashed and signed."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from medveil.errors import AuditLogError, ConfigError
from medveil.secagg.identity import IdentityKey
from medveil.secagg.identity import verify as signature_holds

GENESIS: Final = hashlib.sha256(b"medveil audit log 1").hexdigest()
"""What the first line names as the hash before it."""

RECOVERED: Final = "recovered"
"""The event of a line that follows what a crash left of a line."""

LONGEST_LINE: Final = 1 << 16
"""Bytes, the line feed included."""

Fact = str | int | float | bool | tuple[str, ...]

_LINE_LABEL: Final = b"medveil audit line 1\n"
_SIGNATURE_LABEL: Final = b"medveil audit signature 1\n"
_EVENT: Final = re.compile(r"[a-z]+(-[a-z]+)*")
_NAME: Final = re.compile(r"[\w@.:+(),'-]+([ /][\w@.:+(),'-]+)*")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME: Final = 128
_LONGEST_LIST: Final = 200


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and _NAME.fullmatch(value) is not None


def as_name(text: str) -> str:
    """The nearest name that a line may hold to one that was made elsewhere: a certificate's, a data set's.

    >>> as_name("St. Mary's  <x-ray> ward"), as_name("")
    ("St. Mary's _x-ray_ ward", '_')
    """
    words = re.sub(r"[^\w@.:+(),'/ -]", "_", text)
    return " ".join(re.sub(r"[/ ]*/[/ ]*", "/", words).strip("/ ").split())[:_LONGEST_NAME].strip("/ ") or "_"


def _is_names(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) <= _LONGEST_LIST and all(map(_is_name, value))


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_KINDS: Final[Mapping[str, tuple[Callable[[object], bool], tuple[str, ...]]]] = {
    "a name of at most 128 letters, digits and @ . : + ( ) , ' - _, single spaces or / between": (
        _is_name,
        (
            *("by", "submitter", "org", "role", "peer", "site", "job", "run", "dataset", "task", "mode", "unit"),
            *("relation", "model_kind", "reason", "error", "phase", "rule", "state", "version", "ending"),
        ),
    ),
    "a list of at most 200 names": (_is_names, ("sites", "rules", "dropped", "included", "overrides")),
    "64 hexadecimal digits": (
        _is_hash,
        ("plan", "policy", "architecture", "weights", "record", "identity", "head", "torn_hash", "note_hash"),
    ),
    "a whole number, 0 or more": (
        _is_count,
        (
            *("round", "rounds", "step", "steps", "attempt", "parameters", "count", "bytes_sent", "bytes_received"),
            *("torn_bytes", "colluding", "findings"),
        ),
    ),
    "a finite number": (_is_number, ("epsilon", "epsilon_left", "delta", "seconds", "wait_minutes")),
    "true or false": (_is_flag, ("private", "deidentified", "secure")),
}

FACTS: Final[Mapping[str, str]] = {key: kind for kind, (_, keys) in _KINDS.items() for key in keys}
"""Every fact that a line may hold, and what its value must be: names, hashes, counts. No key is free text."""


@dataclass(frozen=True)
class Line:
    """One line as stored.

    Attributes:
        number: 1, 2, 3, ... without a gap.
        at: when it was written, UTC, ISO 8601.
        event: what happened, lower-case words joined by "-".
        facts: keys of :data:`FACTS`.
        previous: hash of the line before, :data:`GENESIS` for the first.
        signature: Ed25519, hexadecimal, over all of the above; empty where the log has no key.
        hash: SHA-256 over all of the above.
    """

    number: int
    at: str
    event: str
    facts: Mapping[str, Any]
    previous: str
    signature: str
    hash: str

    def expected_hash(self) -> str:
        """The hash that the other fields ask for."""
        return hashlib.sha256(_LINE_LABEL + self._text("hash")).hexdigest()

    def is_signed_by(self, public_key: bytes) -> bool:
        """Whether the signature was made with the key whose public half is this."""
        try:
            signature = bytes.fromhex(self.signature)
        except ValueError:
            return False
        return signature_holds(public_key, signature, _SIGNATURE_LABEL + self._text("hash", "signature"))

    def signature_of(self, key: IdentityKey) -> str:
        """The signature that ``key`` makes of the other fields."""
        return key.sign(_SIGNATURE_LABEL + self._text("hash", "signature")).hex()

    def raw(self) -> bytes:
        """The line's only spelling, its line feed included."""
        return self._text() + b"\n"

    def _text(self, *without: str) -> bytes:
        fields = {name: value for name, value in vars(self).items() if name not in without}
        return canonical(fields).encode()


def make_line(
    event: str,
    facts: Mapping[str, Fact],
    *,
    number: int,
    previous: str,
    key: IdentityKey | None,
    at: datetime | None = None,
) -> Line:
    """Seal an event into the line that follows the one whose hash is ``previous``.

    Raises:
        ConfigError: an event or a fact that a line may not hold.
    """
    check_facts(event, facts)
    time = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}
    line = Line(number, time, event, kept, previous, "", "")
    line = Line(**{**asdict(line), "signature": line.signature_of(key) if key else ""})
    return Line(**{**asdict(line), "hash": line.expected_hash()})


def check_facts(event: str, facts: Mapping[str, Fact]) -> None:
    """Refuse what could carry more than names, hashes and counts.

    Raises:
        ConfigError: an event that is no word, an unknown fact, or a value of another kind; the value is not quoted.
    """
    if not _EVENT.fullmatch(event) or len(event) > _LONGEST_NAME:
        raise ConfigError("This is no event of an audit log", expected='lower-case words such as "plan-approved"')
    tests = {key: (kind, test) for kind, (test, keys) in _KINDS.items() for key in keys}
    for name, value in facts.items():
        if name not in tests:
            raise ConfigError(
                "The audit log has no such fact", got=name, expected=", ".join(sorted(FACTS)), remedy="use a known fact"
            )
        kind, test = tests[name]
        if not test(value):
            raise ConfigError(
                f"A fact of the audit log is not what {name} must be",
                got=f"a {type(value).__name__} of another form",
                expected=kind,
                remedy="log names, hashes and counts only, never free text",
            )


def parse_line(raw: bytes) -> Line | None:
    """The line that these bytes spell, its hash not yet checked; None where they are no whole line.

    Raises:
        AuditLogError: whole JSON, but not a line in its only spelling: somebody edited it.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    edited = AuditLogError("This is not a line as medveil writes it")
    if not isinstance(values, dict) or values.keys() != Line.__dataclass_fields__.keys():
        raise edited
    line = Line(**values)
    texts = (line.at, line.event, line.previous, line.signature, line.hash)
    if not _is_count(line.number) or not all(isinstance(text, str) for text in texts):
        raise edited
    try:
        spelled = line.raw()
    except (ValueError, RecursionError):
        raise edited from None
    if not isinstance(line.facts, dict) or spelled not in {raw, raw + b"\n"}:
        raise edited
    return line


def canonical(content: Mapping[str, Any]) -> str:
    """JSON with one spelling only: keys sorted, no spaces, ASCII, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
