"""Frames of a :class:`~medveil.federation.link.Link`, and the chunks that have come.

Frame, big-endian, 62 bytes and the payload::

    magic MVL1 | version u8 | kind u8 | session 16 bytes | sequence u64 | acknowledged u64 | held u32 |
    stamp u32 | echo u32 | remaining u64 | CRC-32 of all the rest u32 | payload

``kind`` is FIRST (a message begins), MORE (it goes on), ACK or HEARTBEAT. ``sequence`` counts chunks, from 0 on,
through all messages. ``acknowledged`` is the number of the first chunk that has not come; bit i of ``held`` says that
chunk ``acknowledged + 1 + i`` has come all the same. ``remaining`` counts the bytes of the message from this chunk to
its end, so in FIRST it is the message's length. ``stamp`` is the sender's time in milliseconds, which the receiver
gives back in ``echo``; 0 is none.

The CRC finds damage, not forgery: who may speak at all is for the encrypted connection below to decide.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from medveil.errors import MessageError

LINK_VERSION = 1
MAX_CHUNK_BYTES = 1 << 20
MAX_WINDOW = 32
_MAGIC = b"MVL1"
_HEAD = struct.Struct(">4sBB16sQQIIIQ")
_CRC = struct.Struct(">I")
FRAME_OVERHEAD = _HEAD.size + _CRC.size
SESSION_BYTES = 16
_SAME_VERSION = "run the same version of medveil at every party"


class Kind(IntEnum):
    """What a frame carries."""

    FIRST = 1
    MORE = 2
    ACK = 3
    HEARTBEAT = 4


@dataclass(frozen=True)
class Frame:
    """One frame, as the head of this module describes it. Only FIRST and MORE have a payload."""

    kind: Kind
    acknowledged: int
    held: int
    echo: int
    sequence: int = 0
    stamp: int = 0
    remaining: int = 0
    payload: bytes | memoryview = b""

    @property
    def is_data(self) -> bool:
        """Whether the frame carries a chunk."""
        return self.kind in {Kind.FIRST, Kind.MORE}


def encode_frame(session: bytes, frame: Frame) -> bytes:
    """The bytes of a frame; the payload is copied once."""
    head = _HEAD.pack(
        _MAGIC,
        LINK_VERSION,
        frame.kind,
        session,
        frame.sequence,
        frame.acknowledged,
        frame.held,
        frame.stamp,
        frame.echo,
        frame.remaining,
    )
    return b"".join((head, _CRC.pack(zlib.crc32(frame.payload, zlib.crc32(head))), frame.payload))


def decode_frame(session: bytes, data: bytes) -> Frame:
    """Read one frame; its payload is a view of ``data``.

    Raises:
        MessageError: anything but an undamaged frame of this version and session whose fields fit its kind.
    """
    if not FRAME_OVERHEAD <= len(data) <= FRAME_OVERHEAD + MAX_CHUNK_BYTES:
        raise MessageError(
            "A frame has a length that no frame has",
            got=f"{len(data)} bytes",
            expected=f"{FRAME_OVERHEAD} to {FRAME_OVERHEAD + MAX_CHUNK_BYTES}",
        )
    magic, version, kind, its_session, sequence, acknowledged, held, stamp, echo, remaining = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError("Bytes arrived that are not a frame of a link", expected="the magic MVL1")
    if version != LINK_VERSION:
        raise MessageError("A frame has another version", got=version, expected=LINK_VERSION, remedy=_SAME_VERSION)
    if its_session != session:
        raise MessageError("A frame belongs to another session")
    view = memoryview(data)
    payload = view[FRAME_OVERHEAD:]
    if _CRC.unpack_from(data, _HEAD.size)[0] != zlib.crc32(payload, zlib.crc32(view[: _HEAD.size])):
        raise MessageError("A frame is damaged: its CRC does not fit")
    if kind not in _KINDS:
        raise MessageError("A frame has an unknown kind", got=kind, expected=sorted(_KINDS), remedy=_SAME_VERSION)
    frame = Frame(Kind(kind), acknowledged, held, echo, sequence, stamp, remaining, payload)
    if frame.is_data:
        if not 1 <= len(payload) <= remaining:
            raise MessageError(
                "A chunk is empty or longer than what is left of its message",
                got=f"{len(payload)} bytes of {remaining}",
            )
    elif payload or sequence or stamp or remaining:
        raise MessageError("A frame without a chunk has fields of a chunk", got=frame.kind.name)
    return frame


_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class _Held:
    first: bool
    remaining: int
    payload: bytes | memoryview

    @property
    def left_after(self) -> int:
        return self.remaining - len(self.payload)


class Assembly:
    """Chunks that have come, in whatever order, and the message that grows from them.

    Args:
        max_message_bytes: a longer message is refused.

    Guarantees:
        Never keeps more than ``MAX_WINDOW`` chunks out of order, and for the message in progress no more memory than
        bytes that have come (times the growth factor of a bytearray): an announced length allocates nothing.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self.next_sequence = 0
        self._max_message_bytes = max_message_bytes
        self.too_long: int | None = None
        self._held: dict[int, _Held] = {}
        self._message = bytearray()
        self._left = 0

    @property
    def held_bits(self) -> int:
        """Bit i: chunk ``next_sequence + 1 + i`` is held."""
        return sum(1 << (sequence - self.next_sequence - 1) for sequence in self._held)

    @property
    def kept_bytes(self) -> int:
        """Bytes of chunks held out of order and of the message in progress."""
        return len(self._message) + sum(len(chunk.payload) for chunk in self._held.values())

    @property
    def amid_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._left > 0

    def is_new(self, frame: Frame) -> bool:
        """Whether the chunk has not come before.

        Raises:
            MessageError: it is too far ahead, too long, or contradicts a neighbour that has come.
        """
        sequence = frame.sequence
        if sequence < self.next_sequence or sequence in self._held:
            return False
        if sequence - self.next_sequence >= MAX_WINDOW:
            raise MessageError(
                "A chunk is too far ahead",
                got=sequence,
                expected=f"less than {self.next_sequence + MAX_WINDOW}",
            )
        if frame.remaining > self._max_message_bytes:
            self.too_long = frame.remaining
            raise MessageError(
                "A message is larger than allowed",
                got=f"{frame.remaining} bytes",
                expected=f"at most {self._max_message_bytes}",
                remedy="raise max_message_bytes of the link's settings at both parties",
            )
        chunk = _held(frame)
        if sequence == self.next_sequence:
            _check_follows(self._left, chunk)
        elif sequence - 1 in self._held:
            _check_follows(self._held[sequence - 1].left_after, chunk)
        if sequence + 1 in self._held:
            _check_follows(chunk.left_after, self._held[sequence + 1])
        return True

    def take(self, frame: Frame) -> list[bytes]:
        """Keep a chunk for which :meth:`is_new` holds; the messages that it completes, in order."""
        if frame.sequence != self.next_sequence:
            self._held[frame.sequence] = _held(frame, copy=True)
            return []
        messages: list[bytes] = []
        chunk: _Held | None = _held(frame)
        while chunk is not None:
            self._append(chunk, messages)
            self.next_sequence += 1
            chunk = self._held.pop(self.next_sequence, None)
        return messages

    def _append(self, chunk: _Held, messages: list[bytes]) -> None:
        self._left = chunk.left_after
        if chunk.first and not self._left:
            messages.append(bytes(chunk.payload))
            return
        self._message += chunk.payload
        if not self._left:
            messages.append(bytes(self._message))
            self._message = bytearray()


def _held(frame: Frame, *, copy: bool = False) -> _Held:
    # A copy, so that what is kept is the chunk and never a buffer of the caller's.
    return _Held(frame.kind is Kind.FIRST, frame.remaining, bytes(frame.payload) if copy else frame.payload)


def _check_follows(left: int, chunk: _Held) -> None:
    """``left`` bytes of a message are still to come (0: it is complete) when ``chunk`` is next."""
    if chunk.first != (left == 0) or (left and chunk.remaining != left):
        raise MessageError(
            "Chunks contradict each other",
            got=f"{'the first' if chunk.first else 'a later'} chunk, {chunk.remaining} bytes to come",
            expected=f"a later chunk, {left} bytes to come" if left else "the first chunk of a message",
        )
