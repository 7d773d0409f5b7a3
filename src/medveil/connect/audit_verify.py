"""Whether an audit log is as it was written, and which line is the first that is not."""

import fcntl
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from medveil.connect.audit_lines import GENESIS, LONGEST_LINE, RECOVERED, Line, parse_line
from medveil.errors import AuditLogError

What = Literal["changed", "missing", "inserted", "repeated", "reordered", "signature", "torn", "truncated"]


@dataclass(frozen=True)
class Verified:
    """A log that is as it was written.

    Attributes:
        lines: how many.
        head: hash of the last line; noted elsewhere, it shows later that no line was taken off the end.
    """

    lines: int
    head: str


class LogBreakError(AuditLogError):
    """The first place where a log is not as it was written.

    Args:
        line: its place in the chain, counted from 1.
        what: what is wrong there.
        detail: one sentence.
    """

    def __init__(self, line: int, what: What, detail: str) -> None:
        self.line = line
        self.kind = what
        super().__init__(
            "The audit log is not as it was written",
            got=f"line {line}: {what}: {detail}",
            expected="whole lines, each tied to the one before",
            remedy="keep the file as it is for an inquiry, and compare it with a copy from a backup",
        )


@dataclass(frozen=True)
class Torn:
    """What a crash left after the last whole line.

    Attributes:
        size: bytes, with the line feed that ends them; 0 where nothing but a whole line's line feed is missing.
        digest: their SHA-256, as the recovering line will state it.
        line_feed: whether that line feed is still to be written.
        edited: it does not look like the beginning of a line, so no crash left it.
    """

    size: int
    digest: str
    line_feed: bool
    edited: bool = False


@dataclass(frozen=True)
class Place:
    """How far a log has been read.

    Attributes:
        number: of the last whole line.
        head: its hash.
        last: the line itself; None before the first.
        offset: bytes up to its end, its line feed included even where that is missing.
        torn: what follows it and is no line.
    """

    number: int = 0
    head: str = GENESIS
    last: Line | None = None
    offset: int = 0
    torn: Torn | None = None


def verify(path: Path, *, public_key: bytes | None = None, expect: str | None = None) -> Verified:
    """Check every line of an audit log.

    Args:
        path: of the log.
        public_key: 32 bytes, of the site's identity; every line must then be signed with it.
        expect: a head noted earlier, which must still stand in the log.

    Raises:
        AuditLogError: the first line that was changed, lost, repeated, put in or moved (:class:`LogBreakError`), or the
            file cannot be read.

    Guarantees:
        Without ``public_key`` it finds what was changed by accident or by hand, but not somebody who rewrote every
        line after the first change. With it, nobody without the secret key can change, add or move a line; only a
        head noted elsewhere shows that lines were taken off the end.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            seen = _Seen(expect)
            place = walk(file, Place(), public_key=public_key, seen=seen)
    except OSError as error:
        raise AuditLogError(
            "The audit log cannot be read", got=error.strerror, remedy="check its path and permissions"
        ) from None
    if place.torn is not None:
        raise LogBreakError(
            place.number + bool(place.torn.size),
            "torn",
            "the file ends within a line; the next event will say so in the log",
        )
    if place.number == 0:
        raise LogBreakError(1, "missing", "the log is empty")
    if not seen.found:
        raise LogBreakError(place.number + 1, "truncated", "the expected head is not in the log: its end is gone")
    return Verified(place.number, place.head)


class _Seen:
    """Whether a hash has come by."""

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self.found = wanted is None

    def note(self, value: str) -> None:
        self.found = self.found or value == self._wanted


def walk(file: BinaryIO, place: Place, *, public_key: bytes | None = None, seen: _Seen | None = None) -> Place:
    """Read on from ``place`` to the end, checking every line.

    Args:
        file: of the log.
        place: as far as it was read before, without anything torn.
        public_key: as in :func:`verify`.
        seen: told every hash.

    Raises:
        LogBreakError: the first line that is not as it was written.
    """
    file.seek(place.offset)
    number, head, last, offset = place.number, place.head, place.last, place.offset
    rest = _Rest()
    for raw in _pieces(file):
        line = _parsed(raw, number + 1)
        if line is None:
            rest.add(raw)
            continue
        if rest.size or line.event == RECOVERED:
            _check_recovery(line, rest, number + 1)
        _check(line, number + 1, head, last, file, public_key)
        number, head, last, offset = number + 1, line.hash, line, offset + rest.size + len(line.raw())
        rest = _Rest()
        if seen is not None:
            seen.note(head)
        if not raw.endswith(b"\n"):
            return Place(number, head, last, offset, rest.torn())
    return Place(number, head, last, offset, rest.torn() if rest.size else None)


class _Rest:
    """Bytes that are no line, so far."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._edited = self._line_feed = False

    def add(self, raw: bytes) -> None:
        self.size += len(raw)
        self._digest.update(raw)
        self._line_feed = raw.endswith(b"\n")
        self._edited = self._edited or raw.endswith(b'"}\n')  # ends as a line ends, which its beginning does not

    def said(self) -> dict[str, object]:
        """What a line that tells of these bytes says."""
        return {"torn_bytes": self.size, "torn_hash": self._digest.hexdigest()}

    def torn(self) -> Torn:
        digest, size = self._digest.copy(), self.size
        if size and not self._line_feed:
            digest.update(b"\n")
            size += 1
        return Torn(size, digest.hexdigest(), line_feed=not self._line_feed, edited=self._edited)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(LONGEST_LINE):
        yield raw


def _parsed(raw: bytes, number: int) -> Line | None:
    try:
        line = parse_line(raw)
    except AuditLogError:
        line = None
        edited = True
    else:
        edited = line is not None and line.hash != line.expected_hash()
    if edited:
        raise LogBreakError(number, "changed", "its content does not give its hash")
    return line


def _check_recovery(line: Line, rest: _Rest, number: int) -> None:
    """Bytes that are no line are in order only where the next line tells of exactly these."""
    if line.event != RECOVERED or line.facts != rest.said():
        detail = "no whole line, and no line tells of a crash" if rest.size else "what it says of a crash is not there"
        raise LogBreakError(number, "changed", detail)


def _check(line: Line, number: int, head: str, last: Line | None, file: BinaryIO, public_key: bytes | None) -> None:
    if public_key is not None and not line.is_signed_by(public_key):
        raise LogBreakError(number, "signature", "it is not signed with this site's identity key")
    if (line.number, line.previous) == (number, head):
        return
    later = _whole_lines(file)
    if line.number > number:
        moved = any(other.number == number for other in later)
        what: What = "reordered" if moved else "missing"
        raise LogBreakError(number, what, f"line {line.number} stands in its place")
    if line.number < number:
        raise _again(line, number, last, later)
    raise _unlinked(line, number, later)


def _again(line: Line, number: int, last: Line | None, later: Iterator[Line]) -> LogBreakError:
    """A number that was there already: a repeated line, or one of two that claim the same place."""
    if last is None or line.number != number - 1 or line.previous != last.previous or line.hash == last.hash:
        return LogBreakError(number, "repeated", f"line {line.number} stands here again")
    follower = next((other for other in later if other.number == number), None)
    true_one_is_last = follower is not None and follower.previous == last.hash
    return LogBreakError(
        number if true_one_is_last else number - 1, "inserted", f"two lines claim number {line.number}"
    )


def _unlinked(line: Line, number: int, later: Iterator[Line]) -> LogBreakError:
    """The right number after another hash: the line before was rewritten, unless the next line disowns this one."""
    follower = next((other for other in later if other.number == number + 1), None)
    if number == 1 or (follower is not None and follower.previous != line.hash):
        return LogBreakError(number, "changed", "its link to the line before was rewritten")
    return LogBreakError(
        number - 1, "changed", "it was rewritten with a hash of its own, which the next line does not name"
    )


def _whole_lines(file: BinaryIO) -> Iterator[Line]:
    for raw in _pieces(file):
        try:
            line = parse_line(raw)
        except AuditLogError:
            continue
        if line is not None:
            yield line
