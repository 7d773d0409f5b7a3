"""The audit log of a site: one JSON line an event, each tied to the line before by SHA-256, and signed."""

import fcntl
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NoReturn

from medveil.connect.audit_lines import FACTS, GENESIS, LONGEST_LINE, RECOVERED, Fact, Line, check_facts, make_line
from medveil.connect.audit_verify import LogBreakError, Place, Verified, verify, walk
from medveil.disk import sync_folder
from medveil.errors import AuditLogError
from medveil.secagg.identity import IdentityKey

__all__ = ["FACTS", "GENESIS", "AuditLog", "Fact", "LogBreakError", "Verified", "verify"]


class AuditLog:
    """Append-only, for several threads and processes at a time; an event is on disk when :meth:`append` returns.

    Before it writes, a log reads what others have added and checks it; the first time, the whole file. A line that a
    crash left unfinished stays where it is, and a line "recovered" after it states its length and its hash.

    Args:
        path: of the JSONL file, on a local disk; made with the first event, readable by its owner only.
        key: the site's identity, which signs every line; None leaves lines unsigned, and then somebody who may write
            the file can rewrite all of it.

    Guarantees:
        No patient data have a place in a line: its facts are :data:`FACTS`, names, hashes and counts, checked before
        anything is written.
    """

    def __init__(self, path: Path, *, key: IdentityKey | None = None) -> None:
        self.path = path
        self._key = key
        self._lock = threading.Lock()
        self._place = Place()
        self._file: tuple[int, int] | None = None

    def append(self, event: str, *, at: datetime | None = None, **facts: Fact) -> Line:
        """Write one event.

        Args:
            event: lower-case words joined by "-", for example "plan-approved".
            at: when it happened; now by default.
            facts: what it was about; see :data:`FACTS`.

        Raises:
            ConfigError: an event or a fact that a line may not hold; nothing was written.
            AuditLogError: the log is not as it was written, or cannot be written.
        """
        check_facts(event, facts)
        with self._lock, self._held() as file:
            written, data = self._recovery(self._read_on(file))
            line = make_line(event, facts, number=written.number + 1, previous=written.head, key=self._key, at=at)
            if len(line.raw()) > LONGEST_LINE:
                raise AuditLogError("An event is too long", expected=f"at most {LONGEST_LINE} bytes")
            self._write(file, data + line.raw())
            self._place = _after(written, line)
        return line

    def head(self) -> Verified:
        """Number of lines and hash of the last, after reading what others added.

        Raises:
            AuditLogError: as :meth:`append`.
        """
        with self._lock, self._held() as file:
            place = self._read_on(file)
            return Verified(place.number, place.head)

    def _recovery(self, place: Place) -> tuple[Place, bytes]:
        """Where a log stands once it tells what a crash left of its last line, and the bytes that tell it."""
        torn = place.torn
        if torn is None:
            return place, b""
        if torn.edited:
            raise LogBreakError(place.number + 1, "changed", "it is no whole line, and no crash left it so")
        facts: dict[str, Fact] = {"torn_bytes": torn.size, "torn_hash": torn.digest}
        line = make_line(RECOVERED, facts, number=place.number + 1, previous=place.head, key=self._key)
        return _after(place, line, torn.size), (b"\n" if torn.line_feed else b"") + line.raw()

    def _read_on(self, file: BinaryIO) -> Place:
        status = os.fstat(file.fileno())
        this = (status.st_dev, status.st_ino)
        if self._file not in {None, this} or status.st_size < self._place.offset:
            raise LogBreakError(self._place.number, "truncated", "lines that this process wrote or read are gone")
        last = self._place.last
        if last is not None:
            raw = last.raw()
            if os.pread(file.fileno(), len(raw), self._place.offset - len(raw)) != raw:
                raise LogBreakError(self._place.number, "changed", "it changed since this process wrote or read it")
        self._file = this
        # Read for the first time, the signature of the last line vouches for all before it, which the chain ties to it.
        signer = None if self._key is None else self._key.public
        place = walk(file, self._place, public_key=signer if last else None)
        if last is None and place.last is not None and signer is not None and not place.last.is_signed_by(signer):
            raise LogBreakError(place.number, "signature", "it is not signed with this site's identity key")
        if place.torn is None:
            self._place = place
        return place

    def _write(self, file: BinaryIO, data: bytes) -> None:
        handle = file.fileno()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError as error:
            _refuse(error)

    @contextmanager
    def _held(self) -> Iterator[BinaryIO]:
        """The file, opened and locked: nobody else, in no process, writes until the block ends."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = self._open_locked()
        except OSError as error:
            _refuse(error)
        with io.FileIO(handle, "rb+") as raw, io.BufferedReader(raw) as file:
            yield file

    def _open_locked(self) -> int:
        new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if new:  # a new file's name is durable only once its folder is
                sync_folder(self.path.parent)
        except BaseException:  # Ctrl-C too: nobody else closes it
            os.close(handle)
            raise
        return handle


def _after(place: Place, line: Line, torn_bytes: int = 0) -> Place:
    return Place(line.number, line.hash, line, place.offset + torn_bytes + len(line.raw()))


def _refuse(error: OSError) -> NoReturn:
    raise AuditLogError(
        "The audit log cannot be written",
        got=error.strerror,
        expected="a file that this process may add to",
        remedy="check the folder, its permissions and free space; nothing runs that cannot be logged",
    ) from None
