"""The frames in which hospital, vendor and dealer talk: built, and read without trust.

A frame: magic ``MVE1`` | version (u8) | kind (u8) | sequence number (u64) | length (u32) | check of the payload (u32) |
check of the header (u32), big-endian; then the payload. The checks are CRC-32: they notice accidents. Against an
attacker there is TLS; where it runs, the payload's check is left out (0). Nothing is ever unpickled.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Any, Final, NoReturn

from medveil.errors import MessageError

PROTOCOL_VERSION: Final = 1
MAX_PAYLOAD: Final = 1 << 26
"""Longest payload of one frame, in bytes; longer data go in several."""
MAX_CONTROL: Final = 1 << 16
"""Longest control message, in bytes."""
MAX_DEPTH: Final = 8
"""Deepest nesting of a control message."""

_MAGIC: Final = b"MVE1"
_FIELDS: Final = struct.Struct(">4sBBQII")
_CHECK: Final = struct.Struct(">I")
HEADER_BYTES: Final = _FIELDS.size + _CHECK.size
_LONGEST_REASON: Final = 500
_SAME_VERSION: Final = "run the same version of medveil at every party"
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEPS: Final = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}


class Kind(IntEnum):
    """What a frame holds: shares, a small table in JSON, or the reason why the other party gave up."""

    DATA = 1
    CONTROL = 2
    STOP = 3


@dataclass(frozen=True)
class Header:
    """A frame's header that has been checked.

    Args:
        kind: of the payload.
        length: of the payload, in bytes; at least 1, at most what the kind allows.
        check: CRC-32 of the payload, or None where TLS vouches for it.
    """

    kind: Kind
    length: int
    check: int | None

    def verify(self, payload: memoryview | bytes) -> None:
        """Compare the payload with its check.

        Raises:
            MessageError: they differ.
        """
        if self.check is not None and zlib.crc32(payload) != self.check:
            raise MessageError(
                "A frame was damaged on its way", got="another check sum", remedy="use TLS, and look at the network"
            )


def write_header(kind: Kind, sequence: int, payload: memoryview | bytes, *, checked: bool) -> bytes:
    """The header that goes before a payload.

    Args:
        kind: of the payload.
        sequence: number of the frame in its direction, from 0.
        payload: 1 to ``MAX_PAYLOAD`` bytes.
        checked: whether to add a check of the payload.
    """
    check = zlib.crc32(payload) if checked else 0
    fields = _FIELDS.pack(_MAGIC, PROTOCOL_VERSION, kind, sequence, len(payload), check)
    return fields + _CHECK.pack(zlib.crc32(fields))


def read_header(data: bytes | bytearray, sequence: int, *, checked: bool) -> Header:
    """Check a header before anything is set aside for its payload.

    Args:
        data: exactly ``HEADER_BYTES`` bytes.
        sequence: the number that this frame must have.
        checked: whether the payload carries a check.

    Raises:
        MessageError: no medveil frame, another version, another number than the next, an unknown kind, or a length
            that no such frame has.
    """
    magic, version, kind, number, length, check = _FIELDS.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError("Bytes arrived that are not a medveil frame", expected="the magic MVE1")
    if version != PROTOCOL_VERSION:
        raise MessageError(
            "A frame has another protocol version", got=version, expected=PROTOCOL_VERSION, remedy=_SAME_VERSION
        )
    if _CHECK.unpack_from(data, _FIELDS.size)[0] != zlib.crc32(bytes(data[: _FIELDS.size])):
        raise MessageError("A frame's header is damaged", got="another check sum", remedy="look at the network")
    if number != sequence:
        raise MessageError("A frame is out of order, repeated or missing", got=number, expected=sequence)
    if kind not in list(Kind):
        raise MessageError("A frame has an unknown kind", got=kind, expected=list(map(int, Kind)), remedy=_SAME_VERSION)
    most = MAX_PAYLOAD if kind == Kind.DATA else MAX_CONTROL
    if not 1 <= length <= most:
        raise MessageError("A frame has a length that is not allowed", got=length, expected=f"1 to {most} bytes")
    if not checked and check != 0:
        raise MessageError("A frame has a check that does not belong there", remedy="use TLS at both ends or at none")
    return Header(Kind(kind), length, check if checked else None)


def encode_control(values: Mapping[str, Any]) -> bytes:
    """A control message as JSON.

    Raises:
        MessageError: too large or too deep, or holding what JSON has no form for.
    """
    try:
        data = json.dumps(dict(values), allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(
            "A control message has no form in JSON", got=type(error).__name__, expected="finite plain values"
        ) from None
    if len(data) > MAX_CONTROL:
        raise _too_large(len(data))
    _check_depth(data)
    return data


def decode_control(data: bytes, keys: Iterable[str]) -> dict[str, Any]:
    """Read a control message.

    Args:
        data: at most ``MAX_CONTROL`` bytes.
        keys: exactly those that it must have.

    Raises:
        MessageError: not such a table, nested deeper than ``MAX_DEPTH``, a key twice, or a number that is not finite.
    """
    if len(data) > MAX_CONTROL:
        raise _too_large(len(data))
    _check_depth(data)
    try:
        values = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError):
        raise _unreadable("something else than JSON in UTF-8") from None
    expected = sorted(keys)
    if not isinstance(values, dict):
        raise _unreadable(type(values).__name__)
    if sorted(values) != expected:
        raise MessageError(
            "A control message has other keys than it should",
            got=ascii(sorted(values))[:200],
            expected=ascii(expected),
            remedy=_SAME_VERSION,
        )
    return values


def encode_reason(reason: str) -> bytes:
    """What a frame of the kind STOP holds: one sentence, cut at 500 characters."""
    return encode_control({"reason": reason[:_LONGEST_REASON]})


def decode_reason(data: bytes) -> str:
    """The sentence of a frame of the kind STOP, at most 500 printable characters.

    Raises:
        MessageError: as for :func:`decode_control`.
    """
    reason = str(decode_control(data, ["reason"])["reason"])[:_LONGEST_REASON]
    return "".join(letter if letter.isprintable() else " " for letter in reason)


def _check_depth(data: bytes) -> None:
    steps = (_STEPS.get(byte, 0) for byte in _STRING.sub(b"", data))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise MessageError("A control message is nested too deeply", expected=f"at most {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _unreadable("the same key twice")
    return values


def _refuse_number(text: str) -> NoReturn:
    raise _unreadable(f"the number {text}")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise _unreadable("a number too large")
    return value


def _too_large(size: int) -> MessageError:
    return MessageError("A control message is too large", got=f"{size} bytes", expected=f"at most {MAX_CONTROL}")


def _unreadable(got: str) -> MessageError:
    return MessageError("A control message cannot be read", got=got, expected="a table in JSON", remedy=_SAME_VERSION)
