"""A link that is fed hostile bytes, or none."""

import socket
import threading
import time
import tracemalloc
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_rig import PARTS, TIMEOUT, WHOLE, feed, frame

from medveil.encrypted.wire.frames import HEADER_BYTES, Kind, write_header
from medveil.encrypted.wire.link import Link
from medveil.errors import FederationError, MessageError, ProtocolError


@pytest.mark.parametrize("begin", [b"", frame(b"0123456789")[:5], frame(b"0123456789")[:-1]])
def test_silence_ends_in_time(begin):
    mine, peer = socket.socketpair()
    with peer, Link(mine, timeout_s=0.3) as link:
        peer.sendall(begin)
        start = time.monotonic()
        with pytest.raises(ProtocolError, match="silent or too slow"):
            link.receive(10)
        assert 0.25 < time.monotonic() - start < 4


def test_a_trickle_does_not_renew_the_time():
    """A byte every now and then is no reason to wait for ever."""
    mine, peer = socket.socketpair()
    stop = threading.Event()

    def trickle():
        for byte in frame(bytes(200)):
            if stop.wait(0.05):
                return
            peer.sendall(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    with peer, Link(mine, timeout_s=0.5) as link:
        start = time.monotonic()
        with pytest.raises(ProtocolError, match="silent or too slow"):
            link.receive(200)
        assert time.monotonic() - start < 5
        stop.set()
        thread.join()


def test_a_peer_that_does_not_read_is_noticed():
    mine, peer = socket.socketpair()
    with peer:
        link = Link(mine, timeout_s=0.3, slowest_rate=1e9)
        link.send(bytes(30_000_000))
        start = time.monotonic()
        with pytest.raises(ProtocolError, match="silent or too slow"):
            link.close()
        assert time.monotonic() - start < 5


def test_more_than_was_asked_for_is_refused_before_it_is_read():
    stream = frame(bytes(1000))
    with pytest.raises(MessageError, match=r"Got: 1000 bytes\. Expected: 10 and at most 900 more"):
        feed(stream, lambda link: link.receive(10), slack=900)
    assert feed(stream, lambda link: bytes(link.receive(10)), slack=990) == bytes(10)


def test_an_announced_length_sets_nothing_aside():
    """A header may announce a lot; what is not accepted costs nothing, what is costs what was asked for."""
    large = 60_000_000
    header = write_header(Kind.DATA, 0, memoryview(bytes(large)), checked=False)

    def peak(**limits):
        tracemalloc.start()
        with suppress(FederationError):
            feed(header, lambda link: link.receive(1000), timeout_s=0.5, **limits)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(slack=0) < 300_000
    assert large < peak(slack=large) < large + 300_000  # where it is allowed, and to show that it would be seen


STREAM = b"".join(frame(part, at) for at, part in enumerate(PARTS))

CUTS = [0, *np.cumsum([HEADER_BYTES + len(part) for part in PARTS]).tolist()]

FRAMES = [STREAM[a:b] for a, b in pairwise(CUTS)]

places = st.integers(0, len(STREAM) - 1)

changed = st.one_of(
    st.tuples(places, st.integers(1, 255)).map(
        lambda m: STREAM[: m[0]] + bytes([STREAM[m[0]] ^ m[1]]) + STREAM[m[0] + 1 :]
    ),
    places.map(lambda at: STREAM[:at]),
    st.tuples(places, st.binary(min_size=1, max_size=60)).map(lambda m: STREAM[: m[0]] + m[1] + STREAM[m[0] :]),
    st.tuples(places, st.integers(1, 60)).map(lambda m: STREAM[: m[0]] + STREAM[m[0] + m[1] :]),
    st.lists(st.sampled_from(FRAMES), max_size=6).map(b"".join),
    st.binary(max_size=400),
)


def read_all(link, sizes):
    return b"".join(bytes(link.receive(size)) for size in sizes)


def outcome(stream, sizes):
    """The content or the error, in bounded time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        return feed(stream, lambda link: read_all(link, sizes))
    except FederationError as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.monotonic() - start < TIMEOUT
        assert peak < 500_000


@given(changed, st.sampled_from([[len(part) for part in PARTS], [len(WHOLE)], [1, 2, 30, 255, 1]]))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_stream_gives_an_error_or_the_same_content(stream, sizes):
    got = outcome(stream, sizes)
    if isinstance(got, bytes):
        assert got == WHOLE
    elif stream in {STREAM[:cut] for cut in CUTS}:
        assert isinstance(got, ProtocolError)  # the end between two frames: the other party has gone
        assert "has gone" in str(got)
    else:
        assert isinstance(got, MessageError)


@given(st.integers(0, 2), st.integers(0, 4), st.integers(0, 5), st.binary(min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_a_whole_frame_counts_only_in_its_place(place, kind, sequence, payload):
    head = FRAMES[:place]
    got = outcome(b"".join(head) + frame(payload, sequence, kind), [sum(map(len, PARTS[:place])) + len(payload)])
    if sequence == place and kind == Kind.DATA:
        assert got == b"".join(PARTS[:place]) + payload
    elif sequence == place and kind == Kind.CONTROL:
        assert isinstance(got, ProtocolError)
        assert "another kind" in str(got)
    else:
        assert isinstance(got, MessageError)


def test_without_checks_a_change_would_pass():
    """The defence removed: a frame whose check was made after the change is taken as it is."""
    other = bytes(reversed(WHOLE))
    assert outcome(frame(other), [len(WHOLE)]) == other
