"""Two parties in two threads, and a dealer, without sockets."""

import os
import queue
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path

SILENCE = 30


class Pipe:
    """One end; remembers what it sent, as the other end gets it."""

    outstanding = 1 << 28

    def __init__(self, outgoing, incoming):
        self._outgoing, self._incoming, self._rest = outgoing, incoming, bytearray()
        self.sent = []

    def send(self, data):
        self.sent.append(bytes(data))
        self._outgoing.put(self.sent[-1])

    def receive(self, size):
        while len(self._rest) < size:
            self._rest += self._incoming.get(timeout=SILENCE)
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken


def both(hospital, vendor):
    """Run two functions, each with its end of a pipe; their results, and the ends."""
    there, back = queue.Queue(), queue.Queue()
    ends = Pipe(there, back), Pipe(back, there)
    found = {}

    def run():
        try:
            found["result"] = vendor(ends[1])
        except BaseException as error:  # noqa: BLE001 - raised again by the other thread
            found["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    result = hospital(ends[0])
    thread.join(SILENCE)
    assert not thread.is_alive()
    if "error" in found:
        raise found["error"]
    return result, found["result"], ends


@pytest.fixture(scope="session")
def run_both():
    """:func:`both`."""
    return both


@pytest.fixture
def seeds():
    """Fresh seeds of hospital and vendor."""
    return os.urandom(32), os.urandom(32)
