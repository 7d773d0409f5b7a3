"""A party's store of correlations: each is given out once, come what may, and deleted."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from medveil.disk import sync_folder
from medveil.encrypted.protocol.ring import SEED_BYTES
from medveil.encrypted.stores.journal import Held, Journal
from medveil.encrypted.stores.manifest import Item, Manifest, Side, item_path
from medveil.errors import ChecksumError, LedgerError, MissingDataError, ProtocolError

_CHUNK: Final = 1 << 20
_DEAL: Final = "let the dealer deal a new store"
_Stamp = tuple[int, int, int, int]


def default_journals() -> Path:
    """Where journals lie unless told otherwise: ``correlations`` in ``MEDVEIL_HOME`` or ``~/.config/medveil``."""
    home = os.environ.get("MEDVEIL_HOME")
    return (Path(home) if home else Path.home() / ".config" / "medveil") / "correlations"


class Correlation:
    """A correlation that was taken: one seed, and for the vendor what was dealt to it, to be read once, in order.

    Its file has been deleted already; closing it, or the end of the process, gives its space free.

    Attributes:
        number: in the store.
        seed: this party's own 32 bytes.
        size: bytes dealt, seed not counted.
        left: bytes not read yet.
    """

    def __init__(self, number: int, handle: int, size: int) -> None:
        self.number = number
        self._file = os.fdopen(handle, "rb", buffering=0)
        self.size = self.left = size
        try:
            self.seed = bytes(self._fill(SEED_BYTES))
        except BaseException:  # Ctrl-C too: nobody else closes it
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, size: int) -> memoryview:
        """The next bytes that were dealt; writable, at a multiple of 8, used by nobody else.

        Raises:
            ChecksumError: the file was cut short meanwhile.
            ProtocolError: fewer were dealt.
        """
        if not 0 <= size <= self.left:
            raise ProtocolError(
                "More is read of a correlation than was dealt",
                got=f"{size} bytes",
                expected=f"at most {self.left}",
                remedy="evaluate the program and batch that the store was dealt for",
            )
        self.left -= size
        return self._fill(size)

    def close(self) -> None:
        """Give its space free. Twice does nothing."""
        self._file.close()

    def _fill(self, size: int) -> memoryview:
        data = np.empty(size, np.uint8).data
        left = data
        while left:
            count = self._file.readinto(left)
            if not count:
                raise ChecksumError(
                    "A correlation's file ends too soon", got=f"{len(left)} bytes too few", remedy=_DEAL
                )
            left = left[count:]
        return data


class Store:
    """Correlations of one party, dealt ahead of time.

    Args:
        folder: that the dealer made; the folder is changed by use.
        party: who uses it.
        program: SHA-256 of the program that is to be evaluated, 64 hexadecimal digits.
        journals: folder of the journals of used correlations, on a local disk; the same for every copy of the store.
            None is :func:`default_journals`.

    Raises:
        ChecksumError: the manifest changed.
        LedgerError: the journal is damaged or cannot be used; or it is gone, and correlations have been used.
        MissingDataError: there is no store.
        ProtocolError: another party's store, or another program's.

    Guarantees:
        On one machine and with one folder of journals, no correlation is given out twice: not by two processes, not
        after a crash at any moment, not from a copy of the store. Its use is on disk before a byte of it is given
        out; a crash costs at most the correlation that it hit. What this cannot see: a copy of the store on another
        machine, or one put back together with the journal's loss; there the other party's journal refuses the number.
        Deleting gives a file's space free; it does not overwrite it, so keep stores on an encrypted disk.
    """

    def __init__(self, folder: Path, *, party: Side, program: str, journals: Path | None = None) -> None:
        self._folder = folder
        self.manifest = Manifest.read(folder)
        if self.manifest.party != party:
            raise ProtocolError(
                "A store is the other party's", got=self.manifest.party, expected=party, remedy="give this party's own"
            )
        if self.manifest.program != program:
            raise ProtocolError(
                "A store was dealt for another program",
                got=self.manifest.program,
                expected=ascii(program)[:80],
                remedy=_DEAL + " for this program",
            )
        name = f"{party}-{self.manifest.digest}.used"
        self._journal = Journal((default_journals() if journals is None else journals) / name, self.manifest.digest)
        self._checked: dict[int, _Stamp] = {}
        self._open()

    @property
    def left(self) -> int:
        """How many correlations were not used, as far as this machine knows."""
        with self._journal.hold() as held:
            return len(self.manifest.items) - len(held.used)

    def next(self, at_least: int = 0) -> int:
        """The smallest number from ``at_least`` on that was not used: what this party proposes to the other one.

        Raises:
            ProtocolError: there is none.
        """
        with self._journal.hold() as held:
            return self._smallest(held, at_least)

    def check(self, number: int) -> None:
        """Compare a correlation with its hash ahead of time, so that :meth:`take` need not. Uses nothing.

        Raises:
            ChecksumError: it is damaged.
            MissingDataError: it is not there.
            ProtocolError: it was used, or there is no such number.
        """
        with self._journal.hold() as held:
            self._check_free(held, number)
            os.close(self._verified(number))

    def take(self, number: int | None = None) -> Correlation:
        """Use a correlation: it is written down as used, then deleted, then given out.

        Args:
            number: the one that both parties agreed on; None is the smallest that was not used.

        Raises:
            ChecksumError: it is damaged; it counts as used from now on.
            LedgerError: its use cannot be written down, or its file not be deleted; do not use it.
            MissingDataError: it is not there; it counts as used from now on.
            ProtocolError: it was used before, there is no such number, none is left, or the file is not readable.
        """
        with self._journal.hold() as held:
            if number is None:
                number = self._smallest(held, 0)
            self._check_free(held, number)
            try:
                handle = self._verified(number)
            except (ChecksumError, MissingDataError):
                held.add(number)
                self._delete(number)
                raise
            try:
                held.add(number)
                self._delete(number)
            except BaseException:  # as above
                os.close(handle)
                raise
        return Correlation(number, handle, self.manifest.items[number].size - SEED_BYTES)

    def _open(self) -> None:
        numbers = range(len(self.manifest.items))
        if not self._journal.exists:
            if gone := [number for number in numbers if not item_path(self._folder, number).exists()]:
                raise LedgerError(
                    "A store was used before, and its journal is not here",
                    got=f"{len(gone)} correlations gone",
                    expected=f"the journal {self._journal.path.name}",
                    remedy="name the folder of journals that was used before, or " + _DEAL,
                )
            self._journal.make()
        with self._journal.hold() as held:
            for number in sorted(held.used):  # left by a crash, or copied back
                if item_path(self._folder, number).exists():
                    self._delete(number)

    def _smallest(self, held: Held, at_least: int) -> int:
        for number in range(at_least, len(self.manifest.items)):
            if number not in held.used:
                return number
        raise ProtocolError(
            "No correlation is left",
            got=f"{len(self.manifest.items)} used or passed over",
            expected="one",
            remedy=_DEAL,
        )

    def _check_free(self, held: Held, number: int) -> None:
        if not 0 <= number < len(self.manifest.items):
            raise ProtocolError(
                "A store has no such correlation",
                got=number,
                expected=f"0 to {len(self.manifest.items) - 1}",
                remedy="see that both parties hold stores of the same run of the dealer",
            )
        if number in held.used:
            raise ProtocolError(
                "A correlation was used before; a second use would leak",
                got=number,
                expected="one that was not used",
                remedy="go on with the next number, at both parties",
            )

    def _verified(self, number: int) -> int:
        """The opened file, at its first byte, once its content is what was dealt."""
        item = self.manifest.items[number]
        try:
            handle = os.open(item_path(self._folder, number), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise MissingDataError(
                "A correlation is not in its store",
                got="no such file",
                expected=f"the file of number {number}",
                remedy="go on with the next number, at both parties",
            ) from None
        except OSError as error:
            raise ProtocolError(
                "A correlation cannot be opened",
                got=error.strerror,
                expected=f"the file of number {number}, readable by this user",
                remedy="see its permissions; it was not used",
            ) from None
        try:
            self._compare(number, handle, item)
            os.lseek(handle, 0, os.SEEK_SET)
        except BaseException:  # as above
            os.close(handle)
            raise
        return handle

    def _compare(self, number: int, handle: int, item: Item) -> None:
        stat = os.fstat(handle)
        stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if self._checked.get(number) == stamp:
            return
        found = hashlib.sha256()
        if stat.st_size == item.size:
            with suppress(OSError):  # a disk that cannot read it has damaged it
                while chunk := os.read(handle, _CHUNK):
                    found.update(chunk)
        if stat.st_size != item.size or found.hexdigest() != item.sha256:
            raise ChecksumError(
                "A correlation was damaged since the dealer wrote it",
                got=f"{stat.st_size} bytes, SHA-256 {found.hexdigest()[:16]}",
                expected=f"{item.size} bytes, SHA-256 {item.sha256[:16]}",
                remedy="go on with the next number, at both parties; look at the disk",
            )
        self._checked[number] = stamp

    def _delete(self, number: int) -> None:
        try:
            item_path(self._folder, number).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise LedgerError(
                "A used correlation cannot be deleted",
                got=error.strerror,
                expected="a folder that this user may write",
                remedy="delete it by hand; it counts as used",
            ) from None
