"""A link over simulated channels in virtual time: exactly once, in order, unchanged, whatever the channel does."""

import heapq
import itertools
import random
import struct
import zlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.errors import MessageError
from medveil.federation.link import Link, LinkSettings

SESSION = bytes(range(16))
# The frame as the documentation gives it, written down a second time.
LAYOUT = struct.Struct(">4sBB16sQQIIIQI")
FIELDS = ("magic", "version", "kind", "session", "sequence", "acked", "held", "stamp", "echo", "remaining", "crc")
DATA = {1, 2}


def fields_of(frame):
    return dict(zip(FIELDS, LAYOUT.unpack_from(frame), strict=True))


def forged(payload=b"", **changes):
    """A frame with a CRC that fits."""
    values = {"magic": b"MVL1", "version": 1, "kind": 1, "session": SESSION} | dict.fromkeys(FIELDS[4:], 0) | changes
    head = LAYOUT.pack(*values.values())[:-4]
    return head + struct.pack(">I", zlib.crc32(head + payload)) + payload


@dataclass
class Weather:
    """What a channel does to frames."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.02
    jitter_s: float = 0.0
    rate: float = float("inf")  # bytes a second
    dark: tuple[float, float] = (0.0, 0.0)
    seed: int = 0


@dataclass
class Party:
    link: Link
    received: list = field(default_factory=list)
    got_at: list = field(default_factory=list)
    posted: list = field(default_factory=list)
    unacked: set = field(default_factory=set)
    most_under_way: int = 0
    most_kept: int = 0
    line_free_at: float = 0.0


class World:
    """Two links, a channel in each direction, and a clock that jumps from event to event."""

    def __init__(self, weather, link_settings, tick_s=0.25):
        self.now = 0.0
        self.weather = weather
        self.random = random.Random(weather.seed)
        self.tick_s = tick_s
        self.events = []
        self.order = itertools.count()
        self.parties = [
            Party(Link(SESSION, post=lambda frame, me=me: self.post(me, frame), clock=self.clock, settings=each))
            for me, each in enumerate((link_settings, link_settings))
        ]
        for me in (0, 1):
            self.at(self.random.uniform(0, tick_s), self.tick, me)

    def clock(self):
        return self.now

    def at(self, when, what, *arguments):
        heapq.heappush(self.events, (when, next(self.order), what, arguments))

    def tick(self, me):
        self.parties[me].link.tick()
        self.at(self.now + self.tick_s, self.tick, me)

    def send(self, me, message):
        self.parties[me].link.send(message)

    def post(self, me, frame):
        party, weather = self.parties[me], self.weather
        parsed = fields_of(frame)
        party.posted.append((self.now, parsed))
        if parsed["kind"] in DATA:
            party.unacked.add(parsed["sequence"])
            party.most_under_way = max(party.most_under_way, len(party.unacked))
        party.line_free_at = max(party.line_free_at, self.now) + len(frame) / weather.rate
        for _ in range(2 if self.random.random() < weather.repeat else 1):
            begin, end = weather.dark
            if self.random.random() >= weather.loss and not begin <= self.now < end:
                delay = weather.delay_s + self.random.uniform(0, weather.jitter_s)
                self.at(party.line_free_at + delay, self.arrive, 1 - me, frame)

    def arrive(self, me, frame):
        party = self.parties[me]
        parsed = fields_of(frame)
        party.unacked = {
            sequence
            for sequence in party.unacked
            if sequence >= parsed["acked"]
            and not (sequence > parsed["acked"] and parsed["held"] >> (sequence - parsed["acked"] - 1) & 1)
        }
        messages = party.link.receive(frame)
        party.received += messages
        party.got_at += [self.now] * len(messages)
        party.most_kept = max(party.most_kept, party.link._incoming.kept_bytes)

    def run(self, until, *, stop=lambda: False):
        while self.events and self.events[0][0] <= until and not stop():
            self.now, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
        if not stop():
            self.now = until

    def quiet(self):
        return all(party.link.flushed for party in self.parties)


def text(length, seed):
    return random.Random(seed).randbytes(length)


weathers = st.builds(
    Weather,
    loss=st.floats(0, 0.4),
    repeat=st.floats(0, 0.5),
    delay_s=st.floats(0, 0.5),
    jitter_s=st.floats(0, 2.5),
    seed=st.integers(0, 2**32),
)
scripts = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 20), st.one_of(st.integers(1, 200), st.integers(1, 3000))),
    min_size=1,
    max_size=25,
)


@given(weathers, scripts, st.integers(1, 32), st.sampled_from([1 << 20, 64, 100]), st.floats(0.1, 0.5))
@settings(deadline=None, max_examples=150)
def test_every_message_arrives_once_in_order_and_unchanged(weather, script, window, chunk_bytes, tick_s):
    world = World(weather, LinkSettings(window=window, chunk_bytes=chunk_bytes), tick_s)
    expected = ([], [])
    for index, (me, when, length) in sorted(enumerate(script), key=lambda item: item[1][1]):
        message = text(length, index)
        expected[1 - me].append(message)
        world.at(when, world.send, me, message)
    started = max(when for _, when, _ in script)
    world.run(started)
    world.run(20_000, stop=world.quiet)
    assert world.quiet()
    world.run(world.now + 30)  # late repetitions change nothing
    longest = max(length for _, _, length in script)
    for me, party in enumerate(world.parties):
        assert party.received == expected[me]
        assert party.link.received_bytes == sum(map(len, expected[me]))
        assert party.link.sent_bytes == sum(map(len, expected[1 - me]))
        assert party.most_under_way <= window
        assert party.most_kept <= longest + 32 * min(chunk_bytes, longest)
        numbers = [parsed["sequence"] for _, parsed in party.posted if parsed["kind"] in DATA]
        assert party.link.resent_frames == len(numbers) - len(set(numbers))
        assert party.link.silent_s < 30


@given(st.integers(0, 2**32), st.floats(0, 0.3), st.floats(0.01, 0.5))
@settings(deadline=None, max_examples=15)
def test_recovers_from_a_blackout_within_seconds(seed, jitter_s, tick_s):
    weather = Weather(delay_s=0.02, jitter_s=jitter_s, dark=(0.0, 60.0), seed=seed)
    world = World(weather, LinkSettings(chunk_bytes=100), tick_s)
    messages = [text(400, index) for index in range(8)]
    for message in messages:
        world.send(0, message)
        world.send(1, message)
    world.run(59.9)
    assert not any(party.received for party in world.parties)
    assert max(party.link.silent_s for party in world.parties) > 59
    world.run(67.0)
    for party in world.parties:
        assert party.received == messages
        assert party.got_at[0] <= 60 + 2 + 2 * (tick_s + 0.02 + jitter_s)  # the next heartbeat, and the answer to it


@pytest.mark.parametrize("seconds_a_chunk", [0.05, 0.9, 8.0])
def test_a_slow_line_is_not_buried_under_repetitions(seconds_a_chunk):
    size, count = 50_000, 60  # heartbeats and heads are small beside a chunk, as in real life
    world = World(Weather(rate=(size + 62) / seconds_a_chunk), LinkSettings(chunk_bytes=size))
    message = text(size * count, 1)
    world.send(0, message)
    world.run(10_000, stop=lambda: bool(world.parties[1].received))
    assert world.parties[1].received == [message]
    assert world.now <= 1.25 * count * seconds_a_chunk + 1
    assert world.parties[0].link.resent_frames <= count // 5


@given(
    st.lists(st.sampled_from(["flip", "cut", "random", "grow", "other session"]), min_size=1, max_size=12), st.data()
)
@settings(deadline=None, max_examples=150)
def test_damaged_frames_are_refused_and_change_nothing(damages, data):
    out = []
    sender = Link(SESSION, post=out.append, clock=lambda: 0.0, settings=LinkSettings(chunk_bytes=50, window=32))
    answers = []
    receiver = Link(SESSION, post=answers.append, clock=lambda: 0.0)
    messages = [text(length, length) for length in (120, 3, 77)]
    for message in messages:
        sender.send(message)
    received = []
    for frame in itertools.chain.from_iterable(itertools.repeat(out, 1)):
        for damage in damages[:3]:
            bad = bytearray(frame)
            if damage == "flip":
                for place in data.draw(st.sets(st.integers(0, len(bad) * 8 - 1), min_size=1, max_size=3)):
                    bad[place // 8] ^= 1 << place % 8
            elif damage == "cut":
                bad = bad[: data.draw(st.integers(0, len(bad) - 1))]
            elif damage == "random":
                bad = bytearray(data.draw(st.binary(max_size=200)))
            elif damage == "grow":
                bad += data.draw(st.binary(min_size=1, max_size=20))
            else:
                bad[6] ^= 1
            before, posted = state_of(receiver), len(answers)
            with pytest.raises(MessageError):
                receiver.receive(bytes(bad))
            assert state_of(receiver) == before
            assert len(answers) == posted
        received += receiver.receive(frame)
        for answer in answers:
            sender.receive(answer)
        answers.clear()
    assert received == messages


def state_of(link):
    incoming, outgoing = link._incoming, link._outgoing
    return (
        incoming.next_sequence,
        {number: (chunk.first, chunk.remaining, chunk.payload) for number, chunk in incoming._held.items()},
        bytes(incoming._message),
        incoming._left,
        outgoing.next_sequence,
        {number: vars(chunk).copy() for number, chunk in outgoing.under_way.items()},
        list(outgoing._queue),
        vars(outgoing.pace).copy(),
        link._ack_due_at,
        link._echo,
        link.received_bytes,
        link.resent_frames,
    )


small = st.integers(0, 40)
hostile = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.integers(0, 6),
        "sequence": st.one_of(small, st.integers(0, 2**64 - 1)),
        "acked": st.one_of(small, st.integers(0, 2**64 - 1)),
        "held": st.one_of(st.just(0), st.integers(0, 2**32 - 1)),
        "stamp": st.integers(0, 2**32 - 1),
        "echo": st.integers(0, 2**32 - 1),
        "remaining": st.one_of(small, st.integers(0, 2**64 - 1)),
    },
)


@given(st.lists(st.tuples(hostile, st.binary(max_size=40)), max_size=60))
@settings(deadline=None, max_examples=200)
def test_a_hostile_peer_gets_message_errors_and_no_memory(frames):
    clock = iter(itertools.count()).__next__
    link = Link(SESSION, post=lambda frame: None, clock=clock, settings=LinkSettings(max_message_bytes=1000))
    link.send(b"x" * 100)
    given_bytes = 0
    for changes, payload in frames:
        before = state_of(link)
        given_bytes += len(payload)
        try:
            messages = link.receive(forged(payload, **changes))
        except MessageError:
            assert state_of(link) == before
        else:
            assert all(len(message) <= 1000 for message in messages)
        assert len(link._incoming._held) <= 31
        assert link._incoming.kept_bytes + link.received_bytes <= given_bytes
    link.tick()
