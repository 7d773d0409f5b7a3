"""Bytes over a connected socket, plain or TLS: some are read or written, or an error comes in time.

The socket does not block. A thread may read while another one writes; a lock keeps them apart inside TLS, whose state
must not be used by two threads at once.
"""

import select
import socket
import ssl
import threading
import time

from medveil.errors import FederationError, MessageError, ProtocolError

_SLICE_S = 0.2
# Bytes that are waited for before a reader is woken, and those from which on this is worth a call to the system.
_GATHERED = 1 << 16
_WORTHWHILE = 1 << 12


class Transport:
    """A connected socket that waits until a deadline at most.

    Args:
        sock: connected; belongs to this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        internet = sock.family in {socket.AF_INET, socket.AF_INET6}
        if internet:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._gathered = 1
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.protected = isinstance(sock, ssl.SSLSocket)
        """Whether TLS vouches for what arrives."""
        self._gathers = internet and not self.protected

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
        while True:
            try:
                with self._lock:
                    return self._socket.recv_into(into)
            except (ssl.SSLWantReadError, BlockingIOError):
                self._gather(len(into))
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise _broken(error) from None

    def write(self, data: memoryview, deadline: float) -> int:
        """Send some bytes.

        Returns:
            How many were taken, at least 1.

        Raises:
            ProtocolError: none were taken in time, or the connection broke.
        """
        while True:
            try:
                with self._lock:
                    return self._socket.send(data)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except (ssl.SSLWantWriteError, BlockingIOError):
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise _broken(error) from None

    def offer(self, data: memoryview) -> int:
        """Send what the network takes at once.

        Returns:
            How many bytes were taken, 0 where it is busy.

        Raises:
            ProtocolError: the connection broke.
        """
        try:
            with self._lock:
                return self._socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return 0
        except OSError as error:
            raise _broken(error) from None

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

    def _gather(self, wanted: int) -> None:
        """Be woken when so much has arrived, or after a fifth of a second, not by every packet."""
        gathered = min(wanted, _GATHERED) if wanted >= _WORTHWHILE else 1
        if not self._gathers or gathered == self._gathered:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, gathered)
            self._gathered = gathered
        except OSError:  # this system cannot: every packet wakes
            self._gathers = False

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
            if event == select.POLLIN:
                self._gather(1)


def _broken(error: OSError) -> FederationError:
    if isinstance(error, ssl.SSLEOFError):
        return lost()
    if isinstance(error, ssl.SSLError):
        return MessageError(
            "TLS refused what arrived", got=error.reason, remedy="look at the network and the other party's log"
        )
    return lost(error.strerror)


def lost(why: str | None = None) -> ProtocolError:
    """The other party has gone."""
    return ProtocolError(
        "The other party has gone",
        got=why or "the end of the connection",
        remedy="see why it ended in its log, and start again with the next correlation",
    )
