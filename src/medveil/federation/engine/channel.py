"""Frames over the engine's cell network, from one job process to another."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.message import Message

SERVER = "server"
CHANNEL = "medveil"
TOPIC = "frame"
QUEUE_BYTES = 32 * 1024 * 1024
"""Frames waiting for one peer; beyond that a frame is dropped, as a network would."""

_log = logging.getLogger("medveil.channel")


class CellChannel:
    """A :class:`~medveil.federation.channel.Channel` between a job's process at the server and those at its sites.

    Frames go straight over open connections: there is no polling, and no answer is waited for. Every peer has a queue
    and a thread, so that a peer that does not read delays nobody.

    Args:
        cell: the job process's own.
        job_id: the job; frames of another are not accepted.
        peers: who may be sent to and heard.
    Guarantees:
        A frame is accepted only from a peer's process of the same job. Who sent it, the server's parent process checks
        against the token of the site's registration, which its certificate obtained; a site hears the server alone.
    """

    def __init__(self, cell: Cell, job_id: str, peers: Collection[str]) -> None:
        self._cell = cell
        self._outboxes = {peer: _Outbox(cell, f"{peer}.{job_id}") for peer in peers}
        self._peers = {f"{peer}.{job_id}": peer for peer in peers}
        self._handler: Callable[[str, bytes], None] | None = None
        cell.core_cell.register_request_cb(CHANNEL, TOPIC, self._received)

    def post(self, peer: str, frame: bytes) -> None:
        """Queue a frame; lost when the peer is unknown, unreachable or far behind."""
        outbox = self._outboxes.get(peer)
        if outbox is not None:
            outbox.put(frame)

    def listen(self, handler: Callable[[str, bytes], None]) -> None:
        """Call ``handler(peer, frame)`` for every frame from now on; frames that came before are lost."""
        self._handler = handler

    def close(self) -> None:
        """Send nothing more and hear nothing more."""
        self._handler = None
        for outbox in self._outboxes.values():
            outbox.close()

    def _received(self, message: Message) -> None:
        peer = self._peers.get(str(message.get_header(MessageHeaderKey.ORIGIN)))
        handler, payload = self._handler, message.payload
        if peer is None or handler is None or not isinstance(payload, bytes | bytearray | memoryview):
            return
        handler(peer, bytes(payload))  # the engine logs what it raises, and tells nobody what that was


class _Outbox:
    """Frames for one peer, sent by a thread of their own in the order of their queueing."""

    def __init__(self, cell: Cell, target: str) -> None:
        self._cell = cell
        self._target = target
        self._frames: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, daemon=True, name=f"to-{target.partition('.')[0]}").start()

    def put(self, frame: bytes) -> None:
        with self._changed:
            if self._closed or self._waiting_bytes + len(frame) > QUEUE_BYTES:
                return
            self._frames.append(frame)
            self._waiting_bytes += len(frame)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._frames and not self._closed:
                    self._changed.wait()
                if not self._frames:
                    return
                frame = self._frames.popleft()
                self._waiting_bytes -= len(frame)
            try:
                self._cell.core_cell.fire_and_forget(
                    CHANNEL, TOPIC, self._target, Message(payload=frame), optional=True
                )
            except (RuntimeError, CommError):  # the cell has stopped; what else goes wrong it logs itself
                _log.debug("a frame to %s was lost", self._target, exc_info=True)
