"""Typed, versioned, length-checked messages between sites and server; another language needs only this page.

A frame is ``MVSA`` | version u8 (2) | kind u8 | the kind's fields. u8 to u64 are unsigned little-endian numbers, [n] is
n bytes. A list is a count u16 and its records, in strictly ascending order of their site's index. Indices and steps
start at 1. :mod:`medveil.secagg.records` lays out the records. Nothing may follow the last field.

==  =========  ==========  ==============================================================================
    kind       from        fields
==  =========  ==========  ==============================================================================
 1  Advertise  a site      Advertisement
 2  Roster     the server  list of Advertisement
 3  Prepare    a site      step u32, Entry, list of (to u16, sealed pair [88]), signature [64]
 4  Begin      the server  step u32, list of Entry, list of (from u16, sealed pair [88])
 5  Upload     a site      Receipt
 6  Chunk      a site      index u16, step u32, offset u64, bytes to the end of the frame
 7  Survivors  the server  step u32, list of Receipt
 8  Agree      a site      step u32, Agreement
 9  Agreed     the server  step u32, list of Agreement
10  Reveal     a site      step u32, index u16, list of (of u16, kind u8, share [36]), signature [64]
11  Abort      the server  reason: UTF-8 to the end of the frame, at most 1000 bytes
==  =========  ==========  ==============================================================================

A sealed pair holds the share of the sender's seed, then the share of its mask key. A share's kind is 1 for a seed, 2
for a mask key. The signatures of Prepare and Reveal cover the frame before them (purposes ``shares`` and ``reveal``;
scope: the session, for Reveal followed by the view's hash). Chunks are covered by the digest in the receipt. Version 1
had receipts without a context; the labels in signatures, hashes and keys are the same in both.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from medveil.errors import MessageError
from medveil.secagg.identity import SIGNATURE_BYTES
from medveil.secagg.records import Advertisement, Agreement, Entry, Receipt, Sealed, Share, signed_text
from medveil.secagg.wire import U8, U64, Reader

VERSION = 2
MAGIC = b"MVSA"
_LONGEST_REASON = 1000


@dataclass(frozen=True, slots=True)
class Advertise:
    """A site's key of this session."""

    kind: ClassVar[int] = 1
    advertisement: Advertisement

    def body(self) -> bytes:
        """The fields."""
        return self.advertisement.encode()

    @staticmethod
    def read(reader: Reader) -> "Advertise":
        """The fields, from bytes."""
        return Advertise(Advertisement.read(reader))


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is in the session."""

    kind: ClassVar[int] = 2
    advertisements: tuple[Advertisement, ...]

    def body(self) -> bytes:
        """The fields."""
        return _list(self.advertisements)

    @staticmethod
    def read(reader: Reader) -> "Roster":
        """The fields, from bytes."""
        return Roster(tuple(reader.records(Advertisement.read, Advertisement.size, lambda one: one.index)))


@dataclass(frozen=True, slots=True)
class Prepare:
    """What a site gives for one step before it begins."""

    kind: ClassVar[int] = 3
    step: int
    entry: Entry
    sealed: tuple[Sealed, ...]
    signature: bytes = field(default=b"", repr=False)

    def text(self, session: bytes) -> bytes:
        """What the signature covers."""
        return signed_text(b"shares", session, _frame(self.kind, self._unsigned()))

    def body(self) -> bytes:
        """The fields."""
        return self._unsigned() + self.signature

    def _unsigned(self) -> bytes:
        return struct.pack("<I", self.step) + self.entry.encode() + _list(self.sealed)

    @staticmethod
    def read(reader: Reader) -> "Prepare":
        """The fields, from bytes."""
        step, entry = reader.step(), Entry.read(reader)
        sealed = tuple(reader.records(Sealed.read, Sealed.size, lambda one: one.index))
        return Prepare(step, entry, sealed, reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Begin:
    """A step begins, with the sites of ``entries``; ``sealed`` is for the receiver."""

    kind: ClassVar[int] = 4
    step: int
    entries: tuple[Entry, ...]
    sealed: tuple[Sealed, ...]

    def body(self) -> bytes:
        """The fields."""
        return struct.pack("<I", self.step) + _list(self.entries) + _list(self.sealed)

    @staticmethod
    def read(reader: Reader) -> "Begin":
        """The fields, from bytes."""
        step = reader.step()
        entries = tuple(reader.records(Entry.read, Entry.size, lambda one: one.index))
        return Begin(step, entries, tuple(reader.records(Sealed.read, Sealed.size, lambda one: one.index)))


@dataclass(frozen=True, slots=True)
class Upload:
    """The header of a masked vector; its chunks follow."""

    kind: ClassVar[int] = 5
    receipt: Receipt

    def body(self) -> bytes:
        """The fields."""
        return self.receipt.encode()

    @staticmethod
    def read(reader: Reader) -> "Upload":
        """The fields, from bytes."""
        return Upload(Receipt.read(reader))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a masked vector, from byte ``offset`` on."""

    kind: ClassVar[int] = 6
    index: int
    step: int
    offset: int
    data: bytes | memoryview = field(repr=False)

    def body(self) -> bytes:
        """The fields."""
        return b"".join((struct.pack("<HIQ", self.index, self.step, self.offset), self.data))

    @staticmethod
    def read(reader: Reader) -> "Chunk":
        """The fields, from bytes; ``data`` is a view of them."""
        return Chunk(reader.index(), reader.step(), reader.number(U64), reader.rest())


@dataclass(frozen=True, slots=True)
class Survivors:
    """Whose vectors are in the sum."""

    kind: ClassVar[int] = 7
    step: int
    receipts: tuple[Receipt, ...]

    def body(self) -> bytes:
        """The fields."""
        return struct.pack("<I", self.step) + _list(self.receipts)

    @staticmethod
    def read(reader: Reader) -> "Survivors":
        """The fields, from bytes."""
        step = reader.step()
        return Survivors(step, tuple(reader.records(Receipt.read, Receipt.size, lambda one: one.index)))


@dataclass(frozen=True, slots=True)
class Agree:
    """A site's signature under the survivors."""

    kind: ClassVar[int] = 8
    step: int
    agreement: Agreement

    def body(self) -> bytes:
        """The fields."""
        return struct.pack("<I", self.step) + self.agreement.encode()

    @staticmethod
    def read(reader: Reader) -> "Agree":
        """The fields, from bytes."""
        return Agree(reader.step(), Agreement.read(reader))


@dataclass(frozen=True, slots=True)
class Agreed:
    """The signatures that the server gathered."""

    kind: ClassVar[int] = 9
    step: int
    agreements: tuple[Agreement, ...]

    def body(self) -> bytes:
        """The fields."""
        return struct.pack("<I", self.step) + _list(self.agreements)

    @staticmethod
    def read(reader: Reader) -> "Agreed":
        """The fields, from bytes."""
        step = reader.step()
        return Agreed(step, tuple(reader.records(Agreement.read, Agreement.size, lambda one: one.index)))


@dataclass(frozen=True, slots=True)
class Reveal:
    """The shares that a site gives to open a step."""

    kind: ClassVar[int] = 10
    step: int
    index: int
    shares: tuple[Share, ...]
    signature: bytes = field(default=b"", repr=False)

    def text(self, session: bytes, view: bytes) -> bytes:
        """What the signature covers."""
        return signed_text(b"reveal", session + view, _frame(self.kind, self._unsigned()))

    def body(self) -> bytes:
        """The fields."""
        return self._unsigned() + self.signature

    def _unsigned(self) -> bytes:
        return struct.pack("<IH", self.step, self.index) + _list(self.shares)

    @staticmethod
    def read(reader: Reader) -> "Reveal":
        """The fields, from bytes; each site at most once, so with one kind of share."""
        step, index = reader.step(), reader.index()
        shares = tuple(reader.records(Share.read, Share.size, lambda one: one.index))
        return Reveal(step, index, shares, reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Abort:
    """The session is over."""

    kind: ClassVar[int] = 11
    reason: str

    def body(self) -> bytes:
        """The fields; a longer reason is cut."""
        return self.reason.encode()[:_LONGEST_REASON].decode(errors="ignore").encode()

    @staticmethod
    def read(reader: Reader) -> "Abort":
        """The fields, from bytes."""
        text = bytes(reader.rest())
        if len(text) > _LONGEST_REASON:
            raise MessageError("A reason is too long", got=f"{len(text)} bytes", expected=f"at most {_LONGEST_REASON}")
        try:
            return Abort(text.decode())
        except UnicodeDecodeError:
            raise MessageError("A reason is not text", expected="UTF-8") from None


Message: TypeAlias = Advertise | Roster | Prepare | Begin | Upload | Chunk | Survivors | Agree | Agreed | Reveal | Abort
_READ: dict[int, Callable[[Reader], Message]] = {
    Advertise.kind: Advertise.read,
    Roster.kind: Roster.read,
    Prepare.kind: Prepare.read,
    Begin.kind: Begin.read,
    Upload.kind: Upload.read,
    Chunk.kind: Chunk.read,
    Survivors.kind: Survivors.read,
    Agree.kind: Agree.read,
    Agreed.kind: Agreed.read,
    Reveal.kind: Reveal.read,
    Abort.kind: Abort.read,
}


def encode(message: Message) -> bytes:
    """The frame of a message."""
    return _frame(message.kind, message.body())


def decode(data: bytes) -> Message:
    """The message in a frame.

    Raises:
        MessageError: not a frame of this version, or a field is cut short, out of order, out of range or left over.

    Guarantees:
        Never another error, whatever the bytes; never sets aside more than a small multiple of the frame's own length.
        ``encode(decode(data)) == data``.
    """
    reader = Reader(data)
    magic, version, kind = reader.take(len(MAGIC)), reader.number(U8), reader.number(U8)
    if magic != MAGIC or version != VERSION or kind not in _READ:
        raise MessageError(
            "These bytes are no message of secure aggregation",
            got=f"version {version}, kind {kind}" if magic == MAGIC else "another beginning",
            expected=f"version {VERSION}, a kind from 1 to {len(_READ)}",
            remedy="let all parties run the same version of medveil",
        )
    message = _READ[kind](reader)
    reader.end()
    return message


def _frame(kind: int, body: bytes) -> bytes:
    return b"".join((MAGIC, bytes((VERSION, kind)), body))


def _list(records: tuple[Advertisement | Agreement | Entry | Receipt | Sealed | Share, ...]) -> bytes:
    return struct.pack("<H", len(records)) + b"".join(record.encode() for record in records)
