"""A connection between two parties: shares and small tables, counted, bounded in memory and in time."""

import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.wire.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    Kind,
    decode_control,
    encode_control,
    encode_reason,
    write_header,
)
from medveil.encrypted.wire.reader import Reader
from medveil.encrypted.wire.transport import Transport
from medveil.encrypted.wire.writer import Writer
from medveil.errors import ConfigError, FederationError, ProtocolError

_FAREWELL_S: Final = 1.0
_SLICE: Final = 1 << 18


class Link:
    """Sends and receives over a connected socket; used by one thread.

    What is sent is gathered, and leaves as one frame when this party next receives, tells, hears, flushes or closes;
    more than ``MAX_PAYLOAD`` bytes leave as several. After an error in reading the link is of no use: every later call
    raises the same error.

    Args:
        sock: connected, plain or TLS; belongs to the link from now on. Parties on different machines use TLS: the
            check sums of a plain link notice accidents only.
        timeout_s: longest silence, in seconds, before data-dependent time is added; must cover the other party's
            computation between two messages.
        slowest_rate: slowest network allowed, in bytes a second; what is received or sent may take ``timeout_s`` plus
            its size at this rate.
        slack: how many bytes a frame may hold beyond those that :meth:`receive` was asked for.
        outstanding: bytes that may wait to be sent. Sending more waits for the other party to read, so both must not
            send more than this before they receive.
        peer: the other party's name, as the authority signed it; empty where there is none.

    Attributes:
        bytes_sent: what was handed to the network, headers included.
        frames_sent: number of frames.

    Guarantees:
        The n-th frame that is accepted is the n-th that the other party sent, whole. Besides what is asked for, at most
        ``slack`` bytes are set aside, and never before version, order, kind and length were checked. No call takes
        longer than the time allowed, but for a :meth:`send` that waits for several frames to leave, each in its time.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout_s: float = 60.0,
        slowest_rate: float = 125_000.0,
        slack: int = MAX_PAYLOAD,
        outstanding: int = 4 * MAX_PAYLOAD,
        peer: str = "",
    ) -> None:
        if not (timeout_s > 0 and slowest_rate > 0 and slack >= 0 and outstanding > 0):
            raise ConfigError("A link's limits are not positive", remedy="give a time, a rate and sizes above 0")
        self._timeout_s = timeout_s
        self._slowest_rate = slowest_rate
        self._transport = Transport(sock)
        self._reader = Reader(self._transport, slack=slack)
        self._writer = Writer(self._transport, patience=self._patience, limit=outstanding)
        self._pending = bytearray(HEADER_BYTES)
        self._broken: FederationError | None = None
        self._closed = False
        self.outstanding = outstanding
        self.peer = peer
        self.bytes_sent = 0
        self.frames_sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(discard=kind is not None)

    def send(self, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Add data to the next frame. They are copied: the caller may change them afterwards.

        Args:
            data: bytes, or an array, whose elements go in C order as they lie in memory.

        Raises:
            FederationError: earlier data could not be sent.
        """
        self._check_open()
        left = np.frombuffer(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data, np.uint8).data
        while left:
            room = HEADER_BYTES + MAX_PAYLOAD - len(self._pending)
            self._pending += left[:room]
            left = left[room:]
            if left:
                self._leave(Kind.DATA)

    def flush(self) -> None:
        """Let what was gathered leave; does not wait for it.

        Raises:
            FederationError: earlier data could not be sent, or the other party gave up (then with its reason).
        """
        self._check_open()
        if len(self._pending) > HEADER_BYTES:
            self._leave(Kind.DATA)

    def receive(self, size: int) -> memoryview:
        """The next bytes that the other party sent; flushes first.

        Args:
            size: how many, at least 0.

        Returns:
            ``size`` writable bytes at an address that is a multiple of 8; nobody else uses them.

        Raises:
            MessageError: something else came than the next frame of this protocol, or more than may come.
            ProtocolError: the other party gave up, has gone, is silent or too slow, or sent a control message.
        """
        self.flush()
        if size < 0:
            raise ConfigError("Fewer than no bytes cannot be received", got=size)
        with self._reading():
            return self._reader.take(size, self._deadline(size))

    def tell(self, values: Mapping[str, Any]) -> None:
        """Send a small table at once, after what was gathered.

        Args:
            values: plain values; never patient data, weights, seeds or shares. At most 64 KiB of JSON.

        Raises:
            MessageError: too large, too deep, or not plain.
            FederationError: as for :meth:`flush`.
        """
        payload = encode_control(values)
        self.flush()
        self._pending += payload
        self._leave(Kind.CONTROL)

    def hear(self, keys: Iterable[str]) -> dict[str, Any]:
        """The small table that the other party must send now; flushes first.

        Args:
            keys: exactly those that it must have; the values are for the caller to check.

        Raises:
            MessageError: not such a table, or data came that nobody asked for.
            ProtocolError: as for :meth:`receive`.
        """
        self.flush()
        with self._reading():
            return decode_control(self._reader.control(self._deadline(0)), keys)

    def stop(self, reason: str) -> None:
        """Tell the other party why this one gives up, and close. Never raises.

        What was gathered is thrown away; takes two seconds at most where the other party does not listen.

        Args:
            reason: one sentence for a reader at the other party; never patient data. Cut at 500 characters.
        """
        if self._closed:
            return
        del self._pending[HEADER_BYTES:]
        with suppress(FederationError):
            self._pending += encode_reason(reason)
            self._leave(Kind.STOP)
            self._writer.drain(_FAREWELL_S)
            # Closing while bytes arrive would make the network drop the reason: read on for a moment.
            self._transport.end_writing()
            self._reader.skip(time.monotonic() + _FAREWELL_S)
        self.close(discard=True)

    def close(self, *, discard: bool = False) -> None:
        """Let what was gathered leave, wait for it, close the socket and end the thread. Twice does nothing.

        Args:
            discard: whether to throw away instead what has not left.

        Raises:
            MessageError: the other party sent data that nobody asked for.
            FederationError: what was gathered could not be sent in time.
        """
        if self._closed:
            return
        if self._broken is not None:
            discard = True  # it was raised already
        try:
            if not discard:
                self.flush()
                self._writer.drain()
                self._reader.check_taken()
                self._transport.end_writing()
        finally:
            self._closed = True
            self._writer.close()
            self._transport.close()

    @property
    def bytes_received(self) -> int:
        """What was taken from the network, headers included."""
        return self._reader.bytes_received

    @property
    def frames_received(self) -> int:
        """Number of frames."""
        return self._reader.frames_received

    def _patience(self, size: int) -> float:
        return self._timeout_s + size / self._slowest_rate

    def _deadline(self, size: int) -> float:
        return time.monotonic() + self._patience(size + self._writer.queued)

    def _leave(self, kind: Kind) -> None:
        frame, self._pending = self._pending, bytearray(HEADER_BYTES)
        with memoryview(frame)[HEADER_BYTES:] as payload:
            header = write_header(kind, self.frames_sent, payload, checked=not self._transport.protected)
        frame[:HEADER_BYTES] = header
        size = len(frame)
        try:
            if not self._writer.queued:
                _offer(self._transport, frame)
            if frame:
                self._writer.put(frame)
        except FederationError as error:
            self._broken = self._reader.last_words(time.monotonic() + _FAREWELL_S) or error
            raise self._broken from None
        self.frames_sent += 1
        self.bytes_sent += size

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FederationError as error:
            self._broken = error
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolError("The link is closed", remedy="open a new one")
        if self._broken is not None:
            raise self._broken


def _offer(transport: Transport, frame: bytearray) -> None:
    """Send what the network takes at once, and leave the rest; waking the writer's thread takes longer than that."""
    sent = 0
    with memoryview(frame) as left:
        while sent < len(frame) and (taken := transport.offer(left[sent : sent + _SLICE])):
            sent += taken
    del frame[:sent]
