"""Messages to and from several peers over one :class:`~medveil.federation.channel.Channel`, a link each."""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from medveil.errors import MessageError
from medveil.federation.channel import Channel
from medveil.federation.link import Link, LinkSettings

_log = logging.getLogger(__name__)
_TICK_S = 0.05
LINKS = LinkSettings(chunk_bytes=1 << 18, window=32)
"""A site on a slow line is heard of at the end of each frame only: 0.2 Mbit/s carry one of 256 KiB in 10.5 s."""


@dataclass(frozen=True)
class Arrival:
    """A whole message.

    Args:
        peer: who sent it, by the engine's word.
        data: its bytes.
    """

    peer: str
    data: bytes


class Postman:
    """Carries whole messages, in order and once each, from threads of its own; safe to call from any thread.

    Args:
        channel: that carries the frames.
        sessions: 16 bytes that both ends of a link know, by peer. Frames of strangers are ignored.
        settings: of the links; by default chunks of 256 KiB.
        unread_bytes: of one peer's messages that wait to be taken; beyond it the peer's frames are not acknowledged.
    """

    def __init__(
        self,
        channel: Channel,
        sessions: Mapping[str, bytes],
        *,
        settings: LinkSettings | None = None,
        unread_bytes: int = 1 << 31,
    ) -> None:
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._unread: Counter[str] = Counter()
        self._unread_bytes = unread_bytes
        self._refused: Counter[str] = Counter()
        self._closed = threading.Event()
        self._links = {
            peer: Link(session, post=_to(channel, peer), settings=settings or LINKS)
            for peer, session in sessions.items()
        }
        channel.listen(self._on_frame)
        self._ticking = threading.Thread(target=self._tick, name="medveil-links", daemon=True)
        self._ticking.start()

    def send(self, peer: str, data: bytes) -> None:
        """Queue a message; returns at once."""
        with self._lock:
            self._links[peer].send(data)

    def next(self, timeout: float) -> Arrival | None:
        """The next message of any peer; None when none came for ``timeout`` seconds."""
        try:
            arrival = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        with self._lock:
            self._unread[arrival.peer] -= len(arrival.data)
        return arrival

    def silent_s(self, peer: str) -> float:
        """Seconds since anything valid came from ``peer``."""
        with self._lock:
            return self._links[peer].silent_s

    def bytes_carried(self, peer: str) -> tuple[int, int]:
        """Bytes of messages sent to and received from ``peer``."""
        with self._lock:
            return self._links[peer].sent_bytes, self._links[peer].received_bytes

    def too_long(self, peer: str) -> int | None:
        """Bytes of a message of ``peer`` that is longer than allowed and never arrives; None where there is none."""
        with self._lock:
            return self._links[peer].too_long

    @property
    def refused(self) -> Mapping[str, int]:
        """Frames that were not well-formed, by peer."""
        with self._lock:
            return dict(self._refused)

    def flush(self, timeout: float, peers: Collection[str] | None = None) -> bool:
        """Wait until everything that was sent has arrived; False when it has not within ``timeout`` seconds.

        Args:
            timeout: seconds.
            peers: whose; all by default.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with self._lock:
                if all(link.flushed for peer, link in self._links.items() if peers is None or peer in peers):
                    return True
            time.sleep(_TICK_S)
        return False

    def close(self) -> None:
        """End the threads; nothing is sent or received any more."""
        self._closed.set()
        self._ticking.join(timeout=5)
        with self._lock:
            for link in self._links.values():
                link.settle()  # who waits for the last message to have arrived waits no longer

    def _on_frame(self, peer: str, frame: bytes) -> None:
        with self._lock:
            link = self._links.get(peer)
            if link is None or self._closed.is_set() or self._unread[peer] > self._unread_bytes:
                return
            try:
                messages = link.receive(frame)
            except MessageError as error:
                self._refused[peer] += 1
                if _worth_telling(self._refused[peer]):
                    _log.warning("refused %d frames of %s, the last: %s", self._refused[peer], peer, error)
                return
            for data in messages:
                self._unread[peer] += len(data)
                self._inbox.put(Arrival(peer, data))

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_S):
            with self._lock:
                for link in self._links.values():
                    link.tick()


def _worth_telling(count: int) -> bool:
    """The 1st, 10th, 100th, ...: a peer that floods fills no log."""
    return str(count).rstrip("0") == "1"


def _to(channel: Channel, peer: str) -> Callable[[bytes], None]:
    return lambda frame: channel.post(peer, frame)
