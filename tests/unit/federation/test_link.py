"""A link's frames, times and limits, one by one, with a clock that the test turns."""

import struct
import tracemalloc
import zlib

import pytest

from medveil.errors import ConfigError, MessageError
from medveil.federation import link_frames
from medveil.federation.link import Link, LinkSettings

SESSION = b"sixteen bytes ok"
LAYOUT = struct.Struct(">4sBB16sQQIIIQI")
FIRST, MORE, ACK, HEARTBEAT = 1, 2, 3, 4


def frame(
    payload=b"", *, magic=b"MVL1", version=1, kind=FIRST, session=SESSION, sequence=0, acked=0, held=0, remaining=None,
    stamp=0, echo=0,
):  # fmt: skip
    remaining = len(payload) if remaining is None else remaining
    head = LAYOUT.pack(magic, version, kind, session, sequence, acked, held, stamp, echo, remaining, 0)[:-4]
    return head + struct.pack(">I", zlib.crc32(head + payload)) + payload


def kind_of(data):
    return LAYOUT.unpack_from(data)[2]


def sequence_of(data):
    return LAYOUT.unpack_from(data)[4]


class End:
    """A link with a clock and a box for what it posts."""

    def __init__(self, **settings):
        self.now = 100.0
        self.out = []
        self.link = Link(SESSION, post=self.out.append, clock=lambda: self.now, settings=LinkSettings(**settings))

    def taken(self):
        taken, self.out[:] = list(self.out), []
        return taken

    def tick_until(self, end, step=0.125):
        """Posted frames with the time at which each went out."""
        seen = []
        while self.now < end - 1e-9:
            self.now += step
            self.link.tick()
            seen += [(round(self.now - 100, 3), data) for data in self.taken()]
        return seen


def test_a_small_message_and_its_answer_are_two_frames_and_one_late_acknowledgement():
    left, right = End(), End()
    left.link.send(b"question")
    (question,) = left.taken()
    assert len(question) == len(b"question") + 62
    assert not left.link.flushed
    assert right.link.receive(question) == [b"question"]
    assert right.taken() == []
    right.now += 0.04
    right.link.tick()
    assert right.taken() == []
    right.link.send(b"answer")
    (answer,) = right.taken()
    left.now += 0.06
    assert left.link.receive(answer) == [b"answer"]
    assert left.link.flushed
    assert left.taken() == []
    left.now += 0.051
    left.link.tick()
    (late,) = left.taken()
    assert kind_of(late) == ACK
    assert len(late) == 62
    assert right.link.receive(late) == []
    assert right.link.flushed
    assert right.taken() == left.taken() == []
    assert (left.link.sent_bytes, left.link.received_bytes) == (8, 6)
    assert (right.link.sent_bytes, right.link.received_bytes) == (6, 8)


def test_two_messages_without_an_answer_are_acknowledged_at_once():
    left, right = End(), End()
    left.link.send(b"one")
    left.link.send(b"two")
    one, two = left.taken()
    right.link.receive(one)
    assert right.taken() == []
    right.link.receive(two)
    (ack,) = right.taken()
    left.link.receive(ack)
    assert left.link.flushed


def test_an_idle_link_sends_heartbeats_and_nothing_else():
    end = End()
    seen = end.tick_until(160.0)
    assert [kind_of(data) for _, data in seen] == [HEARTBEAT] * 30
    peer = End()
    for _, data in seen:
        assert peer.link.receive(data) == []
    assert peer.taken() == []


def test_silence_is_counted_from_the_last_valid_frame():
    end = End()
    end.now += 3
    assert end.link.silent_s == 3
    with pytest.raises(MessageError):
        end.link.receive(frame(kind=HEARTBEAT, session=b"another session!"))
    assert end.link.silent_s == 3
    end.link.receive(frame(kind=HEARTBEAT))
    assert end.link.silent_s == 0


def test_without_an_answer_the_wait_doubles_up_to_its_limit():
    end = End()
    end.link.send(b"anyone there")
    end.taken()
    data = [when for when, sent in end.tick_until(140.0) if kind_of(sent) == FIRST]
    assert data == pytest.approx([1, 3, 7, 15, 23, 31, 39], abs=0.3)
    assert end.link.resent_frames == 7


def test_the_wait_follows_the_measured_round_trip():
    end = End()
    end.link.send(b"slow")
    (sent,) = end.taken()
    stamp = LAYOUT.unpack_from(sent)[7]
    end.now += 0.9
    end.link.receive(frame(kind=ACK, acked=1, echo=stamp))
    assert end.link.flushed
    start = end.now - 100
    end.link.send(b"again")
    end.taken()
    data = [when - start for when, data in end.tick_until(115.0) if kind_of(data) == FIRST]
    # RFC 6298 (2.2): SRTT = R, RTTVAR = R/2, wait = SRTT + 4 RTTVAR = 3 R.
    assert data[0] == pytest.approx(2.7, abs=0.13)
    assert data[1] - data[0] == pytest.approx(5.4, abs=0.13)


def test_an_answer_to_a_repetition_is_measured_from_the_repetition():
    end = End()
    end.link.send(b"slow")
    end.taken()
    ((_, again),) = [item for item in end.tick_until(101.2) if kind_of(item[1]) == FIRST]
    end.now += 0.1
    end.link.receive(frame(kind=ACK, acked=1, echo=LAYOUT.unpack_from(again)[7]))
    # Repeated at 101.0, answered at 101.35: 3 R as above. Measured from the first time it would be 4.05 s.
    assert end.link._outgoing.pace.wait_s(0) == pytest.approx(1.05, abs=0.01)


def test_a_held_chunk_is_not_repeated_and_a_missing_one_is():
    left, right = End(chunk_bytes=10), End()
    left.link.send(b"0123456789abcdefghijABCDE")
    first, second = left.taken()
    right.link.receive(second)
    (ack,) = right.taken()
    left.link.receive(ack)
    (third,) = left.taken()
    right.link.receive(third)
    (ack,) = right.taken()
    left.link.receive(ack)
    assert not left.link.flushed
    repeated = [sequence_of(data) for _, data in left.tick_until(101.5) if kind_of(data) in {FIRST, MORE}]
    assert repeated == [0]
    assert right.link.receive(first) == [b"0123456789abcdefghijABCDE"]


@pytest.mark.parametrize("window", [1, 2, 16, 32])
def test_never_more_than_the_window_is_under_way(window):
    left, right = End(chunk_bytes=10, window=window), End()
    left.link.send(bytes(10 * 500))
    waiting, most, received = [], 0, []
    while waiting or left.out:
        waiting += left.taken()
        most = max(most, len(waiting))
        received += right.link.receive(waiting.pop(0))
        left.now += 0.01
        right.now += 0.01
        for ack in right.taken():
            left.link.receive(ack)
    assert received == [bytes(5000)]
    assert most == window


def test_fifty_mebibytes_are_fifty_chunks_and_as_many_acknowledgements():
    left, right = End(), End()
    message = bytes(range(256)) * (50 << 12)
    left.link.send(message)
    data = acks = 0
    received = []
    while left.out:
        for sent in left.taken():
            data += 1
            received += right.link.receive(sent)
            for ack in right.taken():
                acks += 1
                left.link.receive(ack)
    assert received == [message]
    assert data == 50
    assert acks == 49  # the last one waits for an answer
    assert left.link.resent_frames == 0


def test_settings_of_the_two_parties_may_differ():
    left, right = End(chunk_bytes=7, window=32), End(chunk_bytes=1000, window=1)
    left.link.send(bytes(200))
    received = []
    while left.out:
        for sent in left.taken():
            received += right.link.receive(sent)
        for ack in right.taken():
            left.link.receive(ack)
    assert received == [bytes(200)]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        frame(b"x")[:61],
        bytes(62),
        frame(b"x", magic=b"MVF1"),
        frame(b"x", version=2),
        frame(b"x", session=bytes(16)),
        frame(b"x", kind=0),
        frame(b"x", kind=5),
        frame(b""),
        frame(b"xy", remaining=1),
        frame(bytes((1 << 20) + 1)),
        frame(b"x", remaining=(1 << 32) + 1),
        frame(b"x", remaining=(1 << 64) - 1),
        frame(b"x", kind=MORE),
        frame(b"x", sequence=32),
        frame(b"x", sequence=(1 << 64) - 1),
        frame(b"x", acked=1),
        frame(b"x", held=1),
        frame(b"x", kind=ACK),
        frame(kind=ACK, sequence=1),
        frame(kind=ACK, stamp=1),
        frame(kind=HEARTBEAT, remaining=1),
        frame(kind=ACK, acked=(1 << 64) - 1),
    ],
    ids=lambda bad: f"{len(bad)}_bytes",
)
def test_what_is_no_valid_frame_is_refused_and_changes_nothing(bad):
    end = End()
    with pytest.raises(MessageError):
        end.link.receive(bad)
    assert end.taken() == []
    assert end.link.receive(frame(b"good")) == [b"good"]


@pytest.mark.parametrize(
    ("came", "bad", "good"),
    [
        # (frames that came, one that contradicts them, the rest of the true message)
        ([frame(b"ab", remaining=4)], frame(b"cd", sequence=1), [frame(b"cd", sequence=1, kind=MORE)]),
        ([frame(b"ab", remaining=4)], frame(b"c", sequence=1, kind=MORE), [frame(b"cd", sequence=1, kind=MORE)]),
        (
            [frame(b"ab", remaining=4)],
            frame(b"c", sequence=1, kind=MORE, remaining=3),
            [frame(b"cd", sequence=1, kind=MORE)],
        ),
        ([frame(b"cd", sequence=1, kind=MORE)], frame(b"ab"), [frame(b"ab", remaining=4)]),
        ([frame(b"cd", sequence=1, kind=MORE)], frame(b"ab", remaining=5), [frame(b"ab", remaining=4)]),
        (
            [frame(b"c", sequence=1, kind=MORE, remaining=2)],
            frame(b"d", sequence=2),
            [frame(b"d", sequence=2, kind=MORE), frame(b"ab", remaining=4)],
        ),
    ],
)
def test_chunks_that_contradict_each_other_are_refused(came, bad, good):
    end = End()
    for data in came:
        assert end.link.receive(data) == []
    with pytest.raises(MessageError, match="contradict"):
        end.link.receive(bad)
    received = [message for data in good for message in end.link.receive(data)]
    assert received == [b"abcd"]


def test_an_announced_length_allocates_nothing():
    end = End()
    tracemalloc.start()
    try:
        end.link.receive(frame(b"x", remaining=1 << 32))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_chunks_out_of_order_are_kept_as_copies():
    end = End()
    buffer = bytearray(frame(b"cd", sequence=1, kind=MORE))
    end.link.receive(buffer)
    buffer[:] = bytes(len(buffer))
    assert end.link.receive(frame(b"ab", remaining=4)) == [b"abcd"]


def test_a_damaged_payload_is_found_by_the_crc_and_by_nothing_else(monkeypatch):
    damaged = bytearray(frame(b"weights"))
    damaged[-1] ^= 1
    with pytest.raises(MessageError, match="damaged"):
        End().link.receive(bytes(damaged))
    crc = struct.unpack_from(">I", damaged, LAYOUT.size - 4)[0]
    monkeypatch.setattr(link_frames.zlib, "crc32", lambda *_: crc)
    assert End().link.receive(bytes(damaged)) == [b"weightr"]


def test_stamps_wrap_after_seven_weeks():
    left, right = End(), End()
    for end in (left, right):
        end.now += 2**32 / 1000 - 0.2
    left.link.send(b"late")
    right.link.receive(left.taken()[0])
    left.now += 0.4
    right.now += 0.4
    right.link.tick()
    left.link.receive(right.taken()[0])
    assert left.link.flushed
    assert left.link._outgoing.pace.wait_s(0) == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0},
        {"chunk_bytes": 0},
        {"chunk_bytes": (1 << 20) + 1},
        {"window": 0},
        {"window": 33},
        {"resend_after_s": float("nan")},
        {"resend_at_most_s": 0.5},
        {"max_message_bytes": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        LinkSettings(**wrong)


def test_session_and_messages_must_have_a_fitting_length():
    with pytest.raises(ConfigError):
        Link(b"short", post=lambda _: None)
    end = End(max_message_bytes=10)
    for message in (b"", bytes(11)):
        with pytest.raises(MessageError):
            end.link.send(message)
    assert end.taken() == []
    assert end.link.flushed
