"""What a store of correlations holds, and for whom: written once, and vouched for by its own hash."""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError

from medveil.configuration import Config
from medveil.encrypted.protocol.ring import SEED_BYTES
from medveil.errors import ChecksumError, MissingDataError

Side = Literal["hospital", "vendor"]
"""Parties that hold a store."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MANIFEST: Final = "manifest.json"
_LARGEST: Final = 1 << 26
_DEAL_AGAIN: Final = "let the dealer deal a new store"


class Item(Config):
    """One correlation's file.

    Args:
        size: in bytes, seed included.
        sha256: of all bytes.
    """

    size: int = Field(ge=SEED_BYTES)
    sha256: Digest


class Manifest(Config):
    """What a store holds; the n-th item is correlation number n.

    Args:
        version: of the layout.
        party: whose store it is.
        program: SHA-256 of the program (and of the model's masks, as the dealer defines it).
        batch: images that one correlation serves.
        run: names the dealer's run; both parties' stores have the same.
        items: the correlations.
    """

    version: Literal[1] = 1
    party: Side
    program: Digest
    batch: int = Field(ge=1)
    run: str = Field(min_length=1, max_length=200)
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it: names this store, and no other."""
        return hashlib.sha256(self._canonical()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it, durably, with its hash beside it."""
        data = b'{"content":' + self._canonical() + b',"sha256":"' + self.digest.encode() + b'"}\n'
        handle = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it and compare its hash.

        Raises:
            ChecksumError: it changed since it was written, or is no manifest of this version.
            MissingDataError: there is none.
        """
        path = folder / MANIFEST
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(size) if size <= _LARGEST else b""
        except OSError as error:
            raise MissingDataError(
                "Here is no store of correlations",
                got=error.strerror,
                expected=f"a folder with {MANIFEST}",
                remedy="give the folder that the dealer made",
            ) from None
        try:
            kept = json.loads(data)
            found = cls.model_validate_json(json.dumps(kept["content"]))
            said = kept["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
            raise ChecksumError(
                "A store's manifest cannot be read",
                got="another form",
                expected="a manifest of version 1, as the dealer wrote it",
                remedy="copy the store again before it is used; else " + _DEAL_AGAIN,
            ) from None
        if said != found.digest:
            raise ChecksumError(
                "A store's manifest changed since the dealer wrote it",
                got=found.digest,
                expected=ascii(said)[:80],
                remedy="copy the store again before it is used; else " + _DEAL_AGAIN,
            )
        return found

    def _canonical(self) -> bytes:
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


def item_path(folder: Path, number: int) -> Path:
    """Where correlation ``number`` lies."""
    return folder / f"{number:08d}.correlation"
