"""Parts of messages that a site signs on their own, because the server shows them to the other sites.

Layouts are given field by field: u8 to u64 are unsigned little-endian numbers, [n] is n bytes. What is signed is
``medveil secagg 1 PURPOSE`` and a line feed, then the scope, then the fields without the signature; the scope is the
32 bytes of the session (of the parameters' digest for an advertisement). Shares are
signed with their message.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from medveil.errors import ConfigError, MessageError
from medveil.secagg.identity import SIGNATURE_BYTES
from medveil.secagg.keys import SEAL_BYTES
from medveil.secagg.shamir import SHARE_BYTES
from medveil.secagg.wire import U8, U64, Reader

HASH_BYTES = 32
KEY_BYTES = 32
NO_CONTEXT = bytes(HASH_BYTES)
"""The context of a vector of which nothing is said."""
PAIR_BYTES = 2 * SHARE_BYTES + SEAL_BYTES
_LABEL = b"medveil secagg 1 "


def check_context(context: bytes) -> None:
    """Refuse a context of another length than 32 bytes.

    Raises:
        ConfigError: it has one.
    """
    if len(context) != HASH_BYTES:
        raise ConfigError(
            "The context of a vector is a hash",
            got=f"{len(context)} bytes",
            expected=f"{HASH_BYTES} bytes",
            remedy="hash what the vector is computed from with SHA-256",
        )


def signed_text(purpose: bytes, scope: bytes, content: bytes) -> bytes:
    """What a signature covers."""
    return _LABEL + purpose + b"\n" + scope + content


@dataclass(frozen=True, slots=True)
class Advertisement:
    """index u16 | run key [32] | signature [64]. Purpose ``advertise``, scope the parameters' digest."""

    size: ClassVar[int] = 2 + KEY_BYTES + SIGNATURE_BYTES

    index: int
    key: bytes
    signature: bytes = field(default=b"", repr=False)

    def content(self) -> bytes:
        """The fields without the signature."""
        return struct.pack("<H", self.index) + self.key

    def text(self, parameters_digest: bytes) -> bytes:
        """What the signature covers."""
        return signed_text(b"advertise", parameters_digest, self.content())

    def encode(self) -> bytes:
        """All fields."""
        return self.content() + self.signature

    @staticmethod
    def read(reader: Reader) -> "Advertisement":
        """The next one."""
        return Advertisement(reader.index(), reader.take(KEY_BYTES), reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Entry:
    """index u16 | mask key [32] | commitment [32] | signature [64]. Purpose ``prepare``, scope session and step u32."""

    size: ClassVar[int] = 2 + KEY_BYTES + HASH_BYTES + SIGNATURE_BYTES

    index: int
    key: bytes
    commitment: bytes
    signature: bytes = field(default=b"", repr=False)

    def content(self) -> bytes:
        """The fields without the signature."""
        return struct.pack("<H", self.index) + self.key + self.commitment

    def text(self, session: bytes, step: int) -> bytes:
        """What the signature covers; also what a sealed pair of shares is bound to."""
        return signed_text(b"prepare", session + struct.pack("<I", step), self.content())

    def encode(self) -> bytes:
        """All fields."""
        return self.content() + self.signature

    @staticmethod
    def read(reader: Reader) -> "Entry":
        """The next one."""
        index = reader.index()
        return Entry(index, reader.take(KEY_BYTES), reader.take(HASH_BYTES), reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a site uploaded, with its signature. Purpose ``upload``, scope the session.

    index u16 | step u32 | view hash [32] | context [32] | bits u8 | length u64 | SHA-256 of the masked vector [32] |
    signature [64]. The context says what the vector was computed from; all receipts of one sum state the same.
    """

    size: ClassVar[int] = 2 + 4 + 2 * HASH_BYTES + 1 + 8 + HASH_BYTES + SIGNATURE_BYTES

    index: int
    step: int
    view: bytes
    context: bytes
    bits: int
    length: int
    digest: bytes
    signature: bytes = field(default=b"", repr=False)

    def content(self) -> bytes:
        """The fields without the signature."""
        head = struct.pack("<HI", self.index, self.step) + self.view + self.context
        return head + struct.pack("<BQ", self.bits, self.length) + self.digest

    def text(self, session: bytes) -> bytes:
        """What the signature covers."""
        return signed_text(b"upload", session, self.content())

    def encode(self) -> bytes:
        """All fields."""
        return self.content() + self.signature

    @staticmethod
    def read(reader: Reader) -> "Receipt":
        """The next one."""
        index, step, view, context = reader.index(), reader.step(), reader.take(HASH_BYTES), reader.take(HASH_BYTES)
        bits, length = reader.number(U8), reader.number(U64)
        return Receipt(index, step, view, context, bits, length, reader.take(HASH_BYTES), reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Agreement:
    """index u16 | signature [64]. Purpose ``agree``, scope the session; signed: step u32, index, survivors' hash."""

    size: ClassVar[int] = 2 + SIGNATURE_BYTES

    index: int
    signature: bytes = field(default=b"", repr=False)

    def text(self, session: bytes, step: int, survivors: bytes) -> bytes:
        """What the signature covers."""
        return signed_text(b"agree", session, struct.pack("<IH", step, self.index) + survivors)

    def encode(self) -> bytes:
        """All fields."""
        return struct.pack("<H", self.index) + self.signature

    @staticmethod
    def read(reader: Reader) -> "Agreement":
        """The next one."""
        return Agreement(reader.index(), reader.take(SIGNATURE_BYTES))


class Kind(IntEnum):
    """Which secret a share belongs to."""

    SEED = 1
    MASK_KEY = 2


@dataclass(frozen=True, slots=True)
class Sealed:
    """A pair of shares that only one site can open; ``index`` is the other end, ``pair`` 88 bytes."""

    size: ClassVar[int] = 2 + PAIR_BYTES

    index: int
    pair: bytes = field(repr=False)

    def encode(self) -> bytes:
        """All fields."""
        return struct.pack("<H", self.index) + self.pair

    @staticmethod
    def read(reader: Reader) -> "Sealed":
        """The next one."""
        return Sealed(reader.index(), reader.take(PAIR_BYTES))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a secret of the site ``index``."""

    size: ClassVar[int] = 2 + 1 + SHARE_BYTES

    index: int
    kind: Kind
    value: bytes = field(repr=False)

    def encode(self) -> bytes:
        """All fields."""
        return struct.pack("<HB", self.index, self.kind) + self.value

    @staticmethod
    def read(reader: Reader) -> "Share":
        """The next one."""
        index, kind = reader.index(), reader.number(U8)
        if kind not in {Kind.SEED, Kind.MASK_KEY}:
            raise MessageError("There is no such kind of share", got=kind, expected="1 (seed) or 2 (mask key)")
        return Share(index, Kind(kind), reader.take(SHARE_BYTES))


def session_id(parameters_digest: bytes, advertisements: Iterable[Advertisement]) -> bytes:
    """SHA-256 of ``medveil secagg 1 session``, a line feed, the digest and all advertisements by index."""
    return _hash(b"session", parameters_digest, *(one.encode() for one in advertisements))


def view_hash(session: bytes, step: int, entries: Iterable[Entry]) -> bytes:
    """SHA-256 of ``medveil secagg 1 view``, a line feed, session, step u32, and all entries by index, unsigned."""
    return _hash(b"view", session, struct.pack("<I", step), *(entry.content() for entry in entries))


def survivors_hash(session: bytes, step: int, view: bytes, receipts: Iterable[Receipt]) -> bytes:
    """SHA-256 of ``medveil secagg 1 survivors``, a line feed, session, step u32, view hash, all receipts by index."""
    return _hash(b"survivors", session, struct.pack("<I", step), view, *(receipt.encode() for receipt in receipts))


def commitment(seed: bytes) -> bytes:
    """What a site publishes about its self-mask seed: SHA-256 of ``medveil secagg 1 seed``, a line feed, the seed."""
    return _hash(b"seed", seed)


def _hash(purpose: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(_LABEL + purpose + b"\n" + b"".join(parts)).digest()
