"""A thread that sends frames, so that two parties that send at once do not wait for each other."""

import threading
import time
from collections import deque
from collections.abc import Callable

from medveil.encrypted.wire.transport import Transport
from medveil.errors import FederationError, ProtocolError

_SLICE = 1 << 18


class Writer:
    """Sends frames in the order in which they were put, in a daemon thread of its own.

    Args:
        transport: to write to.
        patience: how long so many bytes may take, in seconds.
        limit: bytes that may wait; a single longer frame is let through alone.
    """

    def __init__(self, transport: Transport, *, patience: Callable[[int], float], limit: int) -> None:
        self._transport = transport
        self._patience = patience
        self._limit = limit
        self._frames: deque[bytearray] = deque()
        self._turn = threading.Condition()
        self._queued = 0
        self._closing = False
        self._failure: FederationError | None = None
        self._thread = threading.Thread(target=self._run, name="medveil-writer", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Bytes that have not left."""
        with self._turn:
            return self._queued

    def put(self, frame: bytearray) -> None:
        """Hand over a frame; waits while too much is waiting already.

        Raises:
            FederationError: an earlier frame could not be sent; nothing more can.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._failure or not self._queued or self._queued + len(frame) <= self._limit)
            self._check()
            self._queued += len(frame)
            self._frames.append(frame)
            self._turn.notify_all()

    def drain(self, at_most_s: float | None = None) -> None:
        """Wait until everything has left.

        Args:
            at_most_s: go on after so many seconds in any case; None waits as long as every frame may take.

        Raises:
            FederationError: it could not be sent in time.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._failure or not self._queued, at_most_s)
            self._check()

    def close(self) -> None:
        """Give up what has not left, and end the thread."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._transport.stop()
        self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        failure: FederationError = ProtocolError("Sending has ended", remedy="see this party's log, and start again")
        try:
            while (frame := self._next()) is not None:
                self._send(frame)
                with self._turn:
                    self._queued -= len(frame)
                    self._turn.notify_all()
        except FederationError as error:
            failure = error
        finally:  # whatever ended it, nobody waits for it in vain
            with self._turn:
                self._failure = failure
                self._frames.clear()
                self._turn.notify_all()

    def _next(self) -> bytearray | None:
        """The next frame, or None when closing."""
        with self._turn:
            self._turn.wait_for(lambda: self._frames or self._closing)
            return None if self._closing else self._frames.popleft()

    def _send(self, frame: bytearray) -> None:
        deadline = time.monotonic() + self._patience(len(frame))
        left = memoryview(frame)
        while left:
            left = left[self._transport.write(left[:_SLICE], deadline) :]
