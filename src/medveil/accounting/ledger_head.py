"""The head file: how many rows the ledger has and the hash of the last, kept outside the ledger's own file."""

import hashlib
import os
from pathlib import Path
from typing import Final

from medveil.errors import LedgerError

_LABEL: Final = "medveil-ledger-head-1"
_LINE: Final = len(_LABEL) + 1 + 12 + 1 + 64 + 1 + 16 + 1


class HeadFile:
    """Two lines of fixed length, written in turn and each with its own check: a torn write leaves the other one.

    Each line: label, number of rows, hash of the last row, first 16 digits of the line's SHA-256. Not a secret
    and no signature: it notices rows that went missing by accident or by hand, not someone who rewrites both files.

    Args:
        path: where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, str] | None:
        """Number of rows and hash of the last, from the later of the whole lines; None where there is no file.

        Raises:
            LedgerError: no line is whole, or the file cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error.strerror) from None
        whole = [found for at in (0, _LINE) if (found := _parse(content[at : at + _LINE - 1])) is not None]
        if not whole:
            raise self._unusable("no whole line")
        return max(whole)

    def write(self, entries: int, head: str) -> None:
        """Overwrite the older line. Not flushed: after a power failure the file may be behind, which it may be anyway.

        The whole file is smaller than one sector of a disk, which is written as a whole or not at all.
        """
        if not self.path.exists():
            self.replace(entries, head)
            return
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(handle, _line(entries, head), (entries % 2) * _LINE)
        finally:
            os.close(handle)

    def replace(self, entries: int, head: str) -> None:
        """Write the file anew (mode 0600), whatever it held before."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(handle, _line(entries, head) * 2)
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(self.path)

    def _unusable(self, got: str | None) -> LedgerError:
        return LedgerError(
            "The ledger's head file cannot be read",
            got=got,
            expected="a line with the number of rows and the hash of the last",
            remedy="restore it from a copy, or run medveil budget verify --head HASH --renew-head",
        )


def _line(entries: int, head: str) -> bytes:
    said = f"{_LABEL} {entries:012d} {head}"
    return f"{said} {_check(said)}\n".encode("ascii")


def _parse(line: bytes) -> tuple[int, str] | None:
    said, _, check = line.decode("ascii", "replace").rpartition(" ")
    match said.split(" "):
        case [label, entries, head] if check == _check(said) and label == _LABEL and entries.isdecimal():
            return int(entries), head
    return None


def _check(said: str) -> str:
    return hashlib.sha256(said.encode("ascii", "replace")).hexdigest()[:16]
