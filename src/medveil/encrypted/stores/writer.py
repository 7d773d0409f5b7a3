"""The dealer's side of a store: correlations are streamed to disk, and the store appears as a whole."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from medveil.disk import sync_folder
from medveil.encrypted.protocol.ring import SEED_BYTES
from medveil.encrypted.stores.manifest import Item, Manifest, Side, item_path
from medveil.errors import ConfigError

_BUFFER: Final = 1 << 20


class Part:
    """A correlation that is being written; from :meth:`StoreWriter.correlation`."""

    def __init__(self, file: IO[bytes], seed: bytes) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0
        self.write(seed)

    def write(self, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Add what was dealt to the vendor, in the order in which it will be read.

        Args:
            data: bytes, or an array, whose elements go in C order as they lie in memory.
        """
        view = np.frombuffer(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data, np.uint8).data
        self._hash.update(view)
        self._file.write(view)
        self._size += len(view)

    def item(self) -> Item:
        """Size and hash of what was written."""
        return Item(size=self._size, sha256=self._hash.hexdigest())


class StoreWriter:
    """Writes one party's store. Leaving the ``with`` block finishes it; an error throws everything away.

    Args:
        folder: of the store; must not exist. ``<folder>.partial`` is used until it is finished.
        party: whose store it is.
        program: SHA-256 of the program, 64 hexadecimal digits.
        batch: images that one correlation serves.
        run: names the dealer's run; the same in both parties' stores.

    Raises:
        ConfigError: a store, or one begun, is there already; or a value is not usable.

    Guarantees:
        Under its name there is no store, or a whole one that is on disk, whenever the machine stops. Files have mode
        0600. Memory is bounded by what one :meth:`Part.write` is given.
    """

    def __init__(self, folder: Path, *, party: Side, program: str, batch: int, run: str) -> None:
        try:
            self._manifest = Manifest(party=party, program=program, batch=batch, run=run, items=())
        except ValueError as error:
            raise ConfigError("A store cannot be made for this", got=type(error).__name__) from error
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._items: list[Item] = []
        self._finished = False
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._check_new()
        try:
            self._partial.mkdir(mode=0o700)
        except FileExistsError:
            raise ConfigError(
                "A store was begun here and not finished",
                got=self._partial.name,
                remedy="if no dealer is at work on it, remove it",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif not self._finished:
            self.discard()

    @contextmanager
    def correlation(self, seed: bytes) -> Iterator[Part]:
        """Write the next correlation; it counts when the block ends without an error.

        Args:
            seed: the party's own, 32 fresh bytes.

        Raises:
            ConfigError: a seed of another length.
        """
        if len(seed) != SEED_BYTES:
            raise ConfigError("A seed has another length", got=f"{len(seed)} bytes", expected=f"{SEED_BYTES}")
        path = item_path(self._partial, len(self._items))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb", buffering=_BUFFER) as file:
                part = Part(file, seed)
                yield part
                file.flush()
                os.fsync(handle)
        except BaseException:  # Ctrl-C too: half a correlation is none
            path.unlink()
            raise
        self._items.append(part.item())

    def finish(self) -> Manifest:
        """Write the manifest and give the store its name; twice does nothing.

        Raises:
            ConfigError: another store got the name meanwhile.
        """
        if self._finished:
            return self._manifest
        self._manifest = self._manifest.model_copy(update={"items": tuple(self._items)})
        try:
            self._manifest.write(self._partial)
            sync_folder(self._partial)
            self._check_new()
            self._partial.rename(self._folder)
        except BaseException:  # Ctrl-C too: half a store is none
            self.discard()
            raise
        self._finished = True
        sync_folder(self._folder.parent)
        return self._manifest

    def discard(self) -> None:
        """Throw away what was written."""
        shutil.rmtree(self._partial)

    def _check_new(self) -> None:
        if self._folder.exists():
            raise ConfigError("There is a store already", got=self._folder.name, remedy="give another folder")
