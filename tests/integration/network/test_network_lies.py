"""A server that lies to a hospital's own program, frame by frame: what leaves the hospital, and what its log says."""

import threading
import time

import numpy as np
import pytest
from network_plans import CLEAR, DISTRIBUTED, SUMS
from network_rig import HURRIED, Wire, run_of
from network_steps import Guests

from medveil.connect.home import link_session
from medveil.connect.site_program import run_site
from medveil.errors import ProtocolError
from medveil.federation.messages import Decline, Join, Open, Ready, Result, Task, decode, encode
from medveil.federation.postman import Postman
from medveil.training.vectors import floating_buffers, to_vector, trainable

JOB = "job-1"


class Liar:
    """A server made by hand, and the real program of site-1 on the other side of the wire."""

    def __init__(self, place):
        self.place, self.wire = place, Wire()
        self.heard, self.errors = [], []
        self.postman = Postman(self.wire.end("server"), {"site-1": link_session(JOB, "site-1")}, settings=HURRIED)
        self.job = place.context(JOB, "site-1", names=place.names, channel=self.wire.end("site-1"))
        self.site = threading.Thread(target=self._run, daemon=True)
        self.site.start()

    def _run(self):
        try:
            run_site(self.job)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test sees it
            self.errors.append(error)

    def hear(self, kind):
        """Everything until a message of this kind, which is returned with its tensors."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            arrival = self.postman.next(0.1)
            if arrival is None:
                continue
            self.heard.append(decode(arrival.data))
            if isinstance(self.heard[-1][0], kind):
                return self.heard[-1]
        raise AssertionError([type(message).__name__ for message, _ in self.heard])

    def ask_in_the_clear(self):
        """Begin the run as every server does, and ask for a step without the secure sum."""
        self.hear(Ready)
        facts = {"run": run_of(JOB), "attempt": 1, "rounds_done": 0, "sites": self.place.names, "lost": []}
        self.postman.send("site-1", encode(Open(**facts)))
        self.hear(Join)
        first = Guests(self.place).own("site-1", self.place.plan).first
        weights = {"weights": to_vector(trainable(first)), "buffers": to_vector(floating_buffers(first))}
        asked = Task(round=1, validate_model=False, train=True, sites=self.place.names)
        self.before = len(self.sent())
        self.postman.send("site-1", encode(asked, weights))
        return weights["weights"]

    def sent(self):
        return b"".join(frame for sender, _, frame in self.wire.sniffed if sender == "site-1")

    def close(self):
        self.job.abort.set()
        self.site.join(30)
        self.postman.close()
        assert not self.site.is_alive()


@pytest.fixture
def lie(trained, hospitals, monkeypatch):
    monkeypatch.setattr("medveil.connect.site_program.architecture_hash", lambda *_: "0" * 64)
    made = []

    def make(text):
        made.append(Liar(hospitals(trained(text)[0])))
        return made[-1]

    yield make
    for liar in made:
        liar.close()


@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS], ids=["distributed privacy", "secure sums"])
def test_a_hospital_gives_no_update_in_the_clear_under_a_plan_with_secure_sums(lie, text):
    liar = lie(text)
    weights = liar.ask_in_the_clear()
    message, tensors = liar.hear(Decline)
    liar.site.join(30)
    (error,) = liar.errors
    assert type(error) is ProtocolError
    assert (message.final, tensors) == (True, {})
    kinds = [type(one) for one, _ in liar.heard]
    assert kinds[kinds.index(Join) + 1 :] == [Decline]
    assert Result not in kinds
    events = [(line["event"], line["facts"].get("error")) for line in liar.place.log("site-1")]
    assert events[-2:] == [("step-asked", None), ("stopped", "ProtocolError")]
    sent = liar.sent()
    for secret in (b"Traceback", b'File "', b".npz", str(liar.place.root).encode(), b"phantom-1"):
        assert secret not in sent
    assert b"secure sum" in sent
    assert len(sent) - liar.before < weights.nbytes  # heartbeats and a sentence: less than an update


def test_under_a_plan_without_secure_sums_the_same_server_gets_what_the_hospital_agreed_to(lie):
    """That the wire of the other test would show an update, were there one."""
    liar = lie(CLEAR)
    weights = liar.ask_in_the_clear()
    _, tensors = liar.hear(Result)
    update = max(tensors.values(), key=np.size)
    assert update.size == weights.size
    assert update.tobytes()[:64] in liar.sent()
    assert len(liar.sent()) - liar.before > weights.nbytes
