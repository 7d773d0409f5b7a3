"""Bytes over a connected socket, plain or TLS: some are read or written, or an error comes in time.

The socket does not block. A thread may read while another one writes; a lock keeps them apart inside TLS, whose state
must not be used by two threads at once.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from medveil.errors import MessageError, ProtocolError

_SLICE_S = 0.2


class Transport:
    """A connected socket that waits until a deadline at most.

    Args:
        sock: connected; belongs to this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.protected = isinstance(sock, ssl.SSLSocket)
        """Whether TLS vouches for what arrives."""

    def read(self, into: memoryview, deadline: float) -> int:
        """Put some bytes into a buffer.

        Args:
            into: not empty.
            deadline: of :func:`time.monotonic`.

        Returns:
            How many came; 0 where the other party sends no more.

        Raises:
            MessageError: what came is not from the party that TLS was agreed with.
            ProtocolError: none came in time, or the connection broke.
        """
        return self._try(lambda: self._socket.recv_into(into), select.POLLIN, deadline)

    def write(self, data: memoryview, deadline: float) -> int:
        """Send some bytes.

        Returns:
            How many were taken, at least 1.

        Raises:
            ProtocolError: none were taken in time, or the connection broke.
        """
        return self._try(lambda: self._socket.send(data), select.POLLOUT, deadline)

    def stop(self) -> None:
        """End what another thread waits for, with an error there."""
        self._stopped.set()

    def end_writing(self) -> None:
        """Tell the other party that no more will come; what was written still arrives."""
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_WR)  # TLS's own would forget its keys for reading
        except OSError:
            return  # it has gone already

    def close(self) -> None:
        """Close the socket. No other thread may use it any more."""
        self._socket.close()

    def _try(self, act: Callable[[], int], event: int, deadline: float) -> int:
        while True:
            try:
                with self._lock:
                    return act()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except BlockingIOError:
                self._wait(event, deadline)
            except ssl.SSLEOFError:
                raise lost() from None
            except ssl.SSLError as error:
                raise MessageError(
                    "TLS refused what arrived", got=error.reason, remedy="look at the network and the other party's log"
                ) from None
            except OSError as error:
                raise lost(error.strerror) from None

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        while True:
            if self._stopped.is_set():
                raise ProtocolError("The connection was closed at this end")
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProtocolError(
                    "The other party is silent or too slow",
                    got="nothing within the time allowed",
                    remedy="see whether it still runs, or allow more time",
                )
            if poll.poll(1000 * min(left, _SLICE_S)):
                return


def lost(why: str | None = None) -> ProtocolError:
    """The other party has gone."""
    return ProtocolError(
        "The other party has gone",
        got=why or "the end of the connection",
        remedy="see why it ended in its log, and start again with the next correlation",
    )
