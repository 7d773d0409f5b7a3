"""Which correlations of a store were used: written down before a byte of one is given out."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from medveil.disk import sync_folder
from medveil.errors import LedgerError

_LABEL: Final = "medveil-used-1"
_RECORD: Final = 8 + 1 + 16 + 1
_REMEDY: Final = "use no correlation of this store any more; let the dealer deal a new one"


class Journal:
    """An append-only file of the numbers that were used, one line each.

    Args:
        path: of the file; on a local disk, not in the store's own folder.
        digest: of the store's manifest.

    Guarantees:
        While one process holds the journal (:meth:`hold`), no other one does. A number that :meth:`Held.add` returned
        for is on disk. A line that a crash cut short counts as not written: nothing was given out for it.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self._digest = digest
        self._head = f"{_LABEL} {digest}\n".encode()

    @property
    def exists(self) -> bool:
        """Whether there is one; without it nothing was used on this machine, or someone removed it."""
        return self.path.exists()

    def make(self) -> None:
        """Make an empty one, durably, unless another process was quicker.

        Raises:
            LedgerError: it cannot be written.
        """
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(self._head)
                    file.flush()
                    os.fsync(handle)
                with suppress(FileExistsError):
                    os.link(temporary, self.path)  # unlike a rename, never in place of another one
                sync_folder(self.path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(error) from None

    @contextmanager
    def hold(self) -> Iterator["Held"]:
        """Keep every other process from it, as long as the block runs.

        Raises:
            LedgerError: it is missing, damaged, another store's, or cannot be read.
        """
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise _unusable(error) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                numbers = self._numbers(handle)
            except OSError as error:
                raise _unusable(error) from None
            yield Held(handle, self._digest, numbers, len(self._head) + len(numbers) * _RECORD)
        finally:
            os.close(handle)

    def _numbers(self, handle: int) -> list[int]:
        content = os.pread(handle, os.fstat(handle).st_size, 0)
        if not content.startswith(self._head):
            raise LedgerError(
                "The journal of used correlations is damaged or another store's",
                got="another first line",
                expected=_LABEL + " and the hash of the store's manifest",
                remedy=_REMEDY,
            )
        numbers = []
        for at in range(len(self._head), len(content) - _RECORD + 1, _RECORD):
            line = content[at : at + _RECORD]
            if not line[:8].isdigit() or line != record(self._digest, int(line[:8])):
                raise LedgerError(
                    "The journal of used correlations is damaged",
                    got=f"line {(at - len(self._head)) // _RECORD + 2}",
                    expected="a number with its check",
                    remedy=_REMEDY,
                )
            numbers.append(int(line[:8]))
        return numbers


class Held:
    """A journal that this process holds; from :meth:`Journal.hold`.

    Attributes:
        used: numbers that were used.
    """

    def __init__(self, handle: int, digest: str, numbers: list[int], end: int) -> None:
        self._handle = handle
        self._digest = digest
        self._end = end
        self.used = set(numbers)

    def add(self, number: int) -> None:
        """Write down, durably, that a correlation is used from now on.

        Raises:
            LedgerError: it cannot be written; the correlation must not be used.
        """
        line = record(self._digest, number)
        try:
            os.ftruncate(self._handle, self._end)  # a line that a crash cut short
            written = os.pwrite(self._handle, line, self._end)
            os.fsync(self._handle)
        except OSError as error:
            raise _unusable(error) from None
        if written != len(line):
            raise _unusable(OSError(0, "the disk is full"))
        self._end += len(line)
        self.used.add(number)


def record(digest: str, number: int) -> bytes:
    """The line for a number: eight digits and a check that only fits this store's journal."""
    check = hashlib.sha256(f"{digest} {number:08d}".encode()).hexdigest()[:16]
    return f"{number:08d} {check}\n".encode()


def _unusable(error: OSError) -> LedgerError:
    return LedgerError(
        "The journal of used correlations cannot be read or written",
        got=error.strerror,
        expected="a file on a local disk with free space",
        remedy="give it one; a correlation whose use cannot be written down is not used",
    )
