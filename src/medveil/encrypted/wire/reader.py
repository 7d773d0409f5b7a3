"""Reads frames from a transport: each is checked before its payload is set aside, and whole before it is given out."""

from contextlib import suppress
from typing import Final

import numpy as np

from medveil.encrypted.wire.frames import HEADER_BYTES, Header, Kind, decode_reason, read_header
from medveil.encrypted.wire.transport import Transport, lost
from medveil.errors import FederationError, MessageError, ProtocolError

_ALIGNMENT: Final = 8
_SCRATCH: Final = 1 << 16
_EMPTY: Final = memoryview(b"")
_SAME_PROGRAM: Final = "run the same version of medveil and the same program at both parties"


class Reader:
    """The receiving side of a link.

    Args:
        transport: to read from.
        slack: bytes that a frame may hold beyond those that are asked for.

    Attributes:
        bytes_received: headers included.
        frames_received: whose header was accepted.

    Guarantees:
        Besides what is asked for, one frame's payload is held at most, of no more than is asked for plus ``slack``.
    """

    def __init__(self, transport: Transport, *, slack: int) -> None:
        self._transport = transport
        self._slack = slack
        self._rest, self._at = _EMPTY, 0
        self.bytes_received = 0
        self.frames_received = 0

    def take(self, size: int, deadline: float) -> memoryview:
        """The next ``size`` bytes of data, however many frames they came in; writable, at a multiple of 8.

        Raises:
            MessageError: something else came than the next frame of this protocol, or more than may come.
            ProtocolError: the other party gave up, has gone, is silent or too slow, or sent a control message.
        """
        if not self._left and size:
            header = self._header(Kind.DATA, size, deadline)
            if header.length < size:
                return self._collect(size, header, deadline)
            self._rest, self._at = self._payload(header, _buffer(header.length), deadline), 0
        return self._give(size) if size <= self._left else self._collect(size, None, deadline)

    def control(self, deadline: float) -> bytes:
        """The next control message, which must come now.

        Raises:
            MessageError: as for :meth:`take`; or data are left that nobody asked for.
            ProtocolError: as for :meth:`take`.
        """
        self.check_taken()
        header = self._header(Kind.CONTROL, 0, deadline)
        return bytes(self._payload(header, _buffer(header.length), deadline))

    def check_taken(self) -> None:
        """Everything that came must have been asked for.

        Raises:
            MessageError: something was not.
        """
        if self._left:
            raise MessageError(
                "The other party sent more than it was asked for", got=f"{self._left} bytes", remedy=_SAME_PROGRAM
            )

    def last_words(self, deadline: float) -> FederationError | None:
        """Read on until the other party's reason for giving up, the end, or the deadline; data are thrown away.

        Returns:
            The reason, or None where none came.
        """
        scratch = _buffer(_SCRATCH)
        try:
            while True:
                header = self._next(deadline)
                if header.kind is Kind.STOP:
                    return self._reason(header, deadline)
                left = header.length
                while left:
                    part = scratch[:left]
                    self._fill(part, deadline)
                    left -= len(part)
        except FederationError:
            return None

    def skip(self, deadline: float) -> None:
        """Throw away what comes until the end or the deadline."""
        scratch = _buffer(_SCRATCH)
        with suppress(FederationError):
            while self._transport.read(scratch, deadline):
                pass

    @property
    def _left(self) -> int:
        return len(self._rest) - self._at

    def _give(self, size: int) -> memoryview:
        start, self._at = self._at, self._at + size
        given = self._rest[start : self._at]
        if not self._left:
            self._rest, self._at = _EMPTY, 0
        if start % _ALIGNMENT == 0:
            return given
        moved = _buffer(size)
        moved[:] = given
        return moved

    def _collect(self, size: int, header: Header | None, deadline: float) -> memoryview:
        """Bytes from several frames, the first of which may be begun, or announced by ``header``, already."""
        target = _buffer(size)
        filled = self._left
        target[:filled] = self._rest[self._at :]
        self._rest, self._at = _EMPTY, 0
        while filled < size:
            needed = size - filled
            header = header or self._header(Kind.DATA, needed, deadline)
            if header.length <= needed:
                self._payload(header, target[filled : filled + header.length], deadline)
                filled += header.length
            else:
                self._rest = self._payload(header, _buffer(header.length), deadline)
                target[filled:] = self._give(needed)
                filled = size
            header = None
        return target

    def _header(self, wanted: Kind, needed: int, deadline: float) -> Header:
        header = self._next(deadline)
        if header.kind is Kind.STOP:
            raise self._reason(header, deadline)
        if header.kind is not wanted:
            raise ProtocolError(
                "A frame of another kind came than is due",
                got=header.kind.name.lower(),
                expected=wanted.name.lower(),
                remedy=_SAME_PROGRAM,
            )
        if wanted is Kind.DATA and header.length > needed + self._slack:
            raise MessageError(
                "The other party sends more than it was asked for",
                got=f"{header.length} bytes",
                expected=f"{needed} and at most {self._slack} more",
                remedy=_SAME_PROGRAM,
            )
        return header

    def _next(self, deadline: float) -> Header:
        data = bytearray(HEADER_BYTES)
        self._fill(memoryview(data), deadline, begun=False)
        header = read_header(data, self.frames_received, checked=not self._transport.protected)
        self.frames_received += 1
        return header

    def _payload(self, header: Header, into: memoryview, deadline: float) -> memoryview:
        self._fill(into, deadline)
        header.verify(into)
        return into

    def _reason(self, header: Header, deadline: float) -> ProtocolError:
        payload = self._payload(header, _buffer(header.length), deadline)
        return ProtocolError("The other party gave up", got=decode_reason(bytes(payload)), remedy="see its log")

    def _fill(self, into: memoryview, deadline: float, *, begun: bool = True) -> None:
        left = into
        while left:
            count = self._transport.read(left, deadline)
            if count == 0 and not begun:
                raise lost()
            if count == 0:
                raise MessageError(
                    "The connection ended within a frame", got=f"{len(left)} bytes too few", remedy="start again"
                )
            begun = True
            self.bytes_received += count
            left = left[count:]


def _buffer(size: int) -> memoryview:
    return np.empty(size, np.uint8).data
