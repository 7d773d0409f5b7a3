"""Frames over the engine's cells: who is heard, and what a channel survives."""

import queue
from unittest.mock import MagicMock

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.message import Message

from medveil.federation.engine.channel import CHANNEL, TOPIC, CellChannel


class Cell:
    """A cell's core: it remembers what was sent, and fails as a test says."""

    def __init__(self, *failures):
        self.core_cell, self.sent, self.received = self, queue.Queue(), None
        self._failures = list(failures)

    def register_request_cb(self, channel, topic, received):
        assert (channel, topic) == (CHANNEL, TOPIC)
        self.received = received

    def fire_and_forget(self, channel, topic, target, message, optional):
        assert (channel, topic, optional) == (CHANNEL, TOPIC, True)
        if self._failures:
            raise self._failures.pop(0)
        self.sent.put((target, bytes(message.payload)))


@pytest.fixture
def of():
    """A channel of job ``j`` with ``site-1`` over a cell; closed in the end."""
    channels = []

    def make(cell):
        channels.append(CellChannel(cell, "j", ["site-1"]))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


def frame_of(origin, payload=b"frame"):
    return Message(headers={MessageHeaderKey.ORIGIN: origin}, payload=payload)


def test_a_frame_that_cannot_be_sent_is_lost_and_the_next_ones_go(of):
    cell = Cell(RuntimeError("Messenger is not running"), CommError(CommError.CLOSED, "gone"))
    channel = of(cell)
    for frame in (b"first", b"second", b"third", b"fourth"):
        channel.post("site-1", frame)
    assert [cell.sent.get(timeout=5) for _ in range(2)] == [("site-1.j", b"third"), ("site-1.j", b"fourth")]
    assert cell.sent.empty()


@pytest.mark.parametrize(
    ("origin", "payload", "taken"),
    [
        ("site-1.j", b"frame", [("site-1", b"frame")]),
        ("site-1.other-job", b"frame", []),
        ("site-2.j", b"frame", []),
        ("site-1", b"frame", []),
        ("site-1.j", {"a": "dictionary"}, []),
    ],
)
def test_only_bytes_of_a_peers_process_in_this_job_are_heard(of, origin, payload, taken):
    cell, heard = Cell(), []
    of(cell).listen(lambda peer, frame: heard.append((peer, frame)))
    assert cell.received(frame_of(origin, payload)) is None
    assert heard == taken


def test_what_a_handler_raises_is_not_told_the_sender(of):
    """The engine makes of it a reply with a code and without a word, and goes on hearing."""
    cell = Cell()

    def defect(peer, frame):
        raise ValueError("SECRET")

    of(cell).listen(defect)
    core = MagicMock()
    reply = CoreCell._try_cb(core, frame_of("site-1.j"), cell.received)
    assert "SECRET" in core.log_error.call_args.args[0]
    assert "SECRET" not in repr((reply.headers, reply.payload))
