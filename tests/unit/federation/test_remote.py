"""Who is lost when, and what a site's faults cost the others."""

from collections import deque

import pytest

from medveil.errors import InterruptedRunError, ProtocolError
from medveil.federation.coordinator import Outgoing
from medveil.federation.messages import Decline, Notice, Settled, decode, encode
from medveil.federation.patience import Patience
from medveil.federation.postman import Arrival
from medveil.federation.remote import Remote

TOLD = encode(Settled(steps=None, ledger=None, protocol_seconds=0.0))


class Post:
    def __init__(self, *arrivals):
        self.arrivals = deque(Arrival(site, data) for site, data in arrivals)
        self.silent, self.long = {}, {}
        self.sent = []
        self.polls = 0

    def send(self, site, data):
        self.sent.append((site, data))

    def next(self, _timeout):
        self.polls += 1
        assert self.polls < 1000, "the run stands still"
        return self.arrivals.popleft() if self.arrivals else None

    def silent_s(self, site):
        return self.silent.get(site, 0.0)

    def too_long(self, site):
        return self.long.get(site)

    def bytes_carried(self, site):
        return {"a": (3, 5), "b": (7, 11)}[site]


class Machine:
    def __init__(self, *sites, spare=()):
        self.alive, self.spare, self.told, self.lost = list(sites), spare, [], {}

    @property
    def awaited(self):
        return [site for site in self.alive if site not in self.told]

    @property
    def done(self):
        return not self.awaited

    def receive(self, site, data):
        if data == b"x" * 20:
            raise ProtocolError("wrong")
        self.told.append(site)
        return [Outgoing(site, b"thanks")]

    def lose(self, site, reason):
        self.alive.remove(site)
        self.lost[site] = reason
        return []

    def can_spare(self, site):
        return site in self.spare


def remote(post, **options):
    seen = []
    return Remote("test", post, ["a", "b"], watch=seen.append, **options), seen


def test_answers_are_passed_on_and_strangers_are_not():
    post = Post(("z", TOLD), ("a", TOLD), ("b", TOLD))
    machine = Machine("a", "b")
    remote(post)[0].lead(machine, [Outgoing("a", b"ask")])
    assert machine.told == ["a", "b"]
    assert post.sent == [("a", b"ask"), ("a", b"thanks"), ("b", b"thanks")]


@pytest.mark.parametrize("fault", [b"x" * 20, b"", b"MVF1"])
def test_a_fault_costs_the_site_alone_and_for_good(fault):
    post = Post(("a", fault), ("a", TOLD), ("b", TOLD))
    machine = Machine("a", "b")
    lines, _ = remote(post)
    lines.lead(machine)
    assert machine.told == ["b"]
    assert lines.left == {"a": True}
    assert lines.returned == ()


def test_words_of_a_site_are_noted_and_a_farewell_is_believed():
    post = Post(
        ("a", encode(Notice(text="reading its data"))), ("a", encode(Decline(reason="no", final=False))), ("b", TOLD)
    )
    machine = Machine("a", "b")
    lines, seen = remote(post)
    lines.lead(machine)
    assert [(one.what, one.site) for one in seen] == [("notice", "a"), ("declined", "a"), ("lost", "a")]
    assert lines.left == {"a": False}
    assert lines.returned == ("a",)  # heard of again
    post.silent["a"] = 60.0
    assert lines.returned == ()


def test_a_silent_site_is_spared_at_once_where_it_can_be_and_held_for_where_it_cannot():
    patience = Patience(dead_after_s=10, hold_s=100)
    post = Post(("b", TOLD))
    post.silent["a"] = 11.0
    machine = Machine("a", "b", spare=("a",))
    lines, seen = remote(post, patience=patience)
    lines.lead(machine)
    assert list(machine.lost) == ["a"]
    assert [one.what for one in seen] == ["silent", "lost"]

    post = Post()
    post.silent["a"] = 99.0
    machine = Machine("a", "b")
    lines, seen = remote(post, patience=patience)
    assert lines._missing(machine) == []
    assert machine.lost == {}
    post.silent["a"] = 0.0
    lines._missing(machine)
    assert [one.what for one in seen] == ["silent", "back"]
    post.silent["a"] = 101.0
    lines._missing(machine)
    assert list(machine.lost) == ["a"]


def test_a_site_that_lives_but_never_answers_is_lost():
    post, machine = Post(("b", TOLD)), Machine("a", "b")
    lines, _ = remote(post, patience=Patience(answer_s=0.0))
    lines.lead(machine)
    assert "did not answer" in machine.lost["a"]


def test_a_site_whose_message_is_too_long_is_lost_at_once_and_told_why():
    post, machine = Post(("b", TOLD)), Machine("a", "b")
    post.long["a"] = 300 << 20
    lines, _ = remote(post)
    lines.lead(machine)
    assert "300 MiB" in machine.lost["a"]
    assert "max_message_mb" in machine.lost["a"]
    assert lines.left == {"a": True}
    ((_, data),) = [one for one in post.sent if one[0] == "a"]
    assert "max_message_mb" in decode(data)[0].reason


def test_a_site_that_is_dismissed_is_told_why_and_gone_for_good():
    post = Post()
    lines, seen = remote(post)
    lines.dismiss("a", "x" * 900)
    assert lines.left == {"a": True}
    assert [(one.what, one.site) for one in seen] == [("lost", "a")]
    ((to, data),) = post.sent
    assert (to, decode(data)[0].reason) == ("a", "x" * 500)
    lines.tell(b"later", ["a"])
    assert len(post.sent) == 1


def test_a_run_that_is_ended_from_outside_stops():
    with pytest.raises(InterruptedRunError):
        remote(Post(), stopped=lambda: True)[0].lead(Machine("a"))


def test_traffic_is_what_each_side_sent():
    traffic = remote(Post())[0].traffic()
    assert traffic.sent == {"a": 5, "b": 11}
    assert traffic.received == {"a": 3, "b": 7}
