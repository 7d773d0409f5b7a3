"""Two links over a socket pair."""

import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_rig import PARTS, TIMEOUT, WHOLE, frame

from medveil.encrypted.protocol.activation import Party
from medveil.encrypted.wire import link as link_module
from medveil.encrypted.wire.frames import HEADER_BYTES
from medveil.encrypted.wire.link import Link
from medveil.errors import ConfigError, FederationError, MessageError, ProtocolError


@pytest.fixture
def two():
    ends = [Link(end, timeout_s=TIMEOUT) for end in socket.socketpair()]
    yield ends
    for end in ends:
        end.close(discard=True)


def run_both(*acts):
    """Run in threads; the errors they raised."""
    errors = [None] * len(acts)

    def one(at):
        try:
            acts[at]()
        except FederationError as error:
            errors[at] = error

    threads = [threading.Thread(target=one, args=(at,), daemon=True) for at in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "dead-lock"
    return errors


def test_sends_leave_as_one_frame_with_the_next_receive(two):
    here, there = two
    there.send(b"answer")
    there.flush()
    for part in PARTS:
        here.send(part)
    here.send(b"")
    assert here.frames_sent == here.bytes_sent == 0
    assert bytes(here.receive(6)) == b"answer"
    assert (here.frames_sent, here.bytes_sent) == (1, HEADER_BYTES + len(WHOLE))
    assert [bytes(there.receive(len(part))) for part in PARTS] == PARTS
    assert (there.frames_received, there.bytes_received) == (1, HEADER_BYTES + len(WHOLE))
    assert (here.frames_received, here.bytes_received) == (there.frames_sent, there.bytes_sent) == (1, HEADER_BYTES + 6)


def test_arrays_arrive_as_they_were_when_sent(two):
    here, there = two
    array = np.arange(12, dtype=np.uint32).reshape(3, 4)
    expected = array.T.copy()
    here.send(array.T)
    here.send(np.zeros((0, 3)))
    array[:] = 0
    here.flush()
    got = np.frombuffer(there.receive(48), np.uint32).reshape(4, 3)
    np.testing.assert_array_equal(got, expected)


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.lists(st.integers(0, 50), max_size=12),
    st.sets(st.integers(0, 8)),
)
@settings(max_examples=40, deadline=None)
def test_any_cut_of_the_same_bytes_is_the_same(sent, sizes, flushes):
    ends = [Link(end, timeout_s=TIMEOUT) for end in socket.socketpair()]
    whole, at = b"".join(sent), 0
    for place, part in enumerate(sent):
        ends[0].send(part)
        if place in flushes:
            ends[0].flush()
    ends[0].flush()
    for size in [*sizes, len(whole)]:
        part = whole[at : at + size]
        got = ends[1].receive(len(part))
        assert bytes(got) == part
        assert not part or np.frombuffer(got, np.uint8).ctypes.data % 8 == 0
        at += len(part)
    for end in ends:
        end.close()


def test_frames_longer_than_the_bound_are_split(two, monkeypatch):
    monkeypatch.setattr(link_module, "MAX_PAYLOAD", 1000)
    here, there = two
    data = bytes(range(256)) * 10
    here.send(b"x" * 10)
    here.send(data)
    here.flush()
    assert here.frames_sent == 3
    assert bytes(there.receive(10 + len(data))) == b"x" * 10 + data


def test_both_may_send_at_once_more_than_the_network_holds(two):
    data = np.random.default_rng(1).integers(0, 256, 20_000_000, dtype=np.uint8)
    got = [None, None]

    def act(at):
        two[at].send(data)
        got[at] = two[at].receive(data.size)

    assert run_both(lambda: act(0), lambda: act(1)) == [None, None]
    assert all(np.array_equal(np.frombuffer(one, np.uint8), data) for one in got)


@pytest.fixture
def two_over_tcp():
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)  # so that much waits for the thread that writes
        ends = [Link(each, timeout_s=TIMEOUT) for each in (mine, server.accept()[0])]
    yield ends
    for end in ends:
        end.close(discard=True)


def exchange(ends, sizes):
    """Each side sends messages of these sizes, all at once, and reads the other's: what both got, in order."""
    sent = [[bytes([which, at]) * size for at, size in enumerate(sizes)] for which in (0, 1)]
    got = [[], []]

    def act(which):
        for message in sent[which]:
            ends[which].send(message)
            ends[which].flush()
        got[which].extend(bytes(ends[which].receive(2 * size)) for size in sizes)

    assert run_both(lambda: act(0), lambda: act(1)) == [None, None]
    return got[0] == sent[1] and got[1] == sent[0]


def test_messages_of_all_sizes_keep_their_order_over_tcp(two_over_tcp):
    assert exchange(two_over_tcp, [1, 12, 700_000, 3, 40_000, 2_000_000, 1, 5_000])


@pytest.mark.parametrize("waits", [True, False])
def test_without_waiting_for_what_is_queued_messages_would_overtake_it(two_over_tcp, monkeypatch, waits):
    """On a network that takes a thousand bytes at once, with a thread that is late."""

    def offer(transport, frame):
        del frame[: transport.offer(memoryview(bytes(frame[:1000])))]

    def send(writer, frame):
        time.sleep(0.1)
        prompt(writer, frame)

    prompt = link_module.Writer._send
    monkeypatch.setattr(link_module, "_offer", offer)
    monkeypatch.setattr(link_module.Writer, "_send", send)
    if waits:
        assert exchange(two_over_tcp, [1, 12, 70_000, 3, 4_000])
        return
    monkeypatch.setattr(link_module.Writer, "queued", 0)
    with pytest.raises(AssertionError):
        assert exchange(two_over_tcp, [1, 12, 70_000, 3, 4_000])


def test_what_comes_piece_by_piece_over_tcp_is_read_before_all_has_come():
    payload = bytes(range(256)) * 400
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        link = Link(server.accept()[0], timeout_s=TIMEOUT)
    with peer:
        data = frame(payload)

        def trickle():
            for start in range(0, len(data), 20_000):
                peer.sendall(data[start : start + 20_000])
                time.sleep(0.05)

        feeder = threading.Thread(target=trickle)
        feeder.start()
        assert bytes(link.receive(len(payload))) == payload
        feeder.join()
        peer.sendall(frame(b"last", 1)[:-1])
        reader = threading.Thread(target=lambda: link.receive(4))
        reader.start()
        time.sleep(0.1)
        peer.sendall(b"t")
        reader.join(1)
        assert not reader.is_alive()
        link.close(discard=True)


def test_without_the_writing_thread_both_would_wait(two):
    """The defence removed: sending in the party's own thread, with the network full, ends in the timeout."""
    ends = socket.socketpair()
    data = bytes(20_000_000)

    def blocking(end):
        end.settimeout(0.5)
        with end, suppress(OSError):
            end.sendall(data)
            return
        raise ProtocolError("stuck")

    assert all(isinstance(error, ProtocolError) for error in run_both(*(lambda end=end: blocking(end) for end in ends)))


@pytest.mark.parametrize("pieces", [True, False])
def test_both_may_open_more_than_may_wait_to_be_sent(monkeypatch, pieces):
    """In pieces, in order; all at once, each party would wait for the other to read."""
    monkeypatch.setattr(link_module, "MAX_PAYLOAD", 1 << 12)
    limits = {"outstanding": 1 << 15} | ({} if pieces else {"slowest_rate": 1e9})
    ends = [Link(end, timeout_s=TIMEOUT if pieces else 1.0, **limits) for end in socket.socketpair()]
    rng = np.random.default_rng(1)
    sums = [rng.integers(0, 2**32, 400_001, dtype=np.uint32) for _ in ends]
    bits = [
        [rng.integers(0, 2**64, shape, dtype=np.uint64) for shape in ((10, 20_001), (7,), (3, 9_999))] for _ in ends
    ]
    found = {}

    def act(place):
        party = Party(ends[place], first=not place)
        if not pieces:
            party._ahead = 1 << 40
        first = party.open_sum(sums[place])
        party.show(bits[place])
        ends[place].receive(0)
        found[place] = first, party.open_each(bits[place]), party.open_bits(bits[place][0])

    errors = run_both(lambda: act(0), lambda: act(1))
    if not pieces:
        assert any(errors)
        for end in ends:
            end.close(discard=True)
        return
    assert errors == [None, None]
    assert [end.bytes_received for end in ends] == [end.bytes_sent for end in reversed(ends)]
    payload = [end.bytes_sent - HEADER_BYTES * end.frames_sent for end in ends]
    assert payload == [sums[0].nbytes + sum(half.nbytes for half in (*bits[0], bits[0][0]))] * 2
    for first, each, last in found.values():
        np.testing.assert_array_equal(first, sums[0] + sums[1])
        for got, one, other in zip([*each, last], [*bits[0], bits[0][0]], [*bits[1], bits[1][0]], strict=True):
            np.testing.assert_array_equal(got, one ^ other)
    for end in ends:
        end.close(discard=True)


def test_what_waits_to_be_sent_is_bounded(monkeypatch):
    """A party that sends a lot one way waits for the reader, and sets no more aside."""
    monkeypatch.setattr(link_module, "MAX_PAYLOAD", 100_000)
    mine, peer = socket.socketpair()
    here, there = (Link(end, timeout_s=TIMEOUT, outstanding=1_000_000) for end in (mine, peer))
    data, most = bytes(range(250)) * 400, []

    def pour():
        for _ in range(100):
            here.send(data)
            most.append(here._writer.queued)
        here.close()

    def drink():
        time.sleep(0.3)
        assert all(there.receive(len(data)) == data for _ in range(100))
        there.close()

    assert run_both(pour, drink) == [None, None]
    assert 800_000 < max(most) <= 1_000_000
    assert len(most) == 100


def test_tables_go_between_data(two):
    here, there = two
    here.send(b"before")
    here.tell({"program": "ab" * 32, "batch": 4})
    here.send(b"after")
    here.flush()
    assert bytes(there.receive(6)) == b"before"
    assert there.hear(["batch", "program"]) == {"batch": 4, "program": "ab" * 32}
    assert bytes(there.receive(5)) == b"after"
    assert here.bytes_sent == there.bytes_received


def test_a_table_while_data_are_left_is_refused(two):
    here, there = two
    here.send(b"data")
    here.tell({"a": 1})
    there.receive(3)
    with pytest.raises(MessageError, match="1 bytes"):
        there.hear(["a"])
    with pytest.raises(MessageError, match="1 bytes"):
        there.receive(1)


def test_the_wrong_kind_is_refused(two):
    here, there = two
    here.tell({"a": 1})
    with pytest.raises(ProtocolError, match=r"Got: control\. Expected: data"):
        there.receive(3)
    with pytest.raises(ProtocolError, match="of another kind"):
        there.send(b"the link is of no use any more")


def test_why_the_other_party_gives_up_is_told(two):
    here, there = two
    thread = threading.Thread(target=here.stop, args=("No correlation\nis left",))
    thread.start()
    with pytest.raises(ProtocolError, match=r"gave up\. Got: No correlation is left"):
        there.receive(1000)
    there.close()
    thread.join(10)
    here.stop("twice does nothing")
    with pytest.raises(ProtocolError, match="closed"):
        here.send(b"x")


def test_the_reason_arrives_even_while_much_is_being_sent(two):
    here, there = two
    there.send(bytes(30_000_000))
    there.flush()
    thread = threading.Thread(target=here.stop, args=("full disk",))
    thread.start()
    with pytest.raises(ProtocolError, match="full disk"):
        there.receive(10)
    there.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_lost_peer_is_noticed_at_once(two):
    here, there = two
    there.close(discard=True)
    start = time.monotonic()
    with pytest.raises(ProtocolError, match="has gone"):
        here.receive(10)
    with pytest.raises(ProtocolError, match="has gone"):
        here.tell({"a": 1})
    assert time.monotonic() - start < 2


def test_a_peer_that_is_lost_while_it_is_sent_to_is_noticed(two):
    here, there = two
    here.send(bytes(30_000_000))
    here.flush()
    there.close(discard=True)
    with pytest.raises(ProtocolError, match="has gone"):
        here.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_our_own_while_sending_hangs_nobody(two, monkeypatch):
    here, _ = two
    monkeypatch.setattr(here._transport, "offer", lambda *_: 0)  # the network is busy: the writer's thread takes over
    monkeypatch.setattr(here._transport, "write", lambda *_: 1 // 0)
    here.send(b"x")
    with pytest.raises(ProtocolError, match="Sending has ended"):
        here.close()


def test_the_time_allowed_grows_with_the_size():
    mine, peer = socket.socketpair()
    with peer, Link(mine, timeout_s=0.2, slowest_rate=1000) as link:
        late = threading.Timer(0.6, peer.sendall, [frame(bytes(1000))])
        late.start()
        assert len(link.receive(1000)) == 1000
        late.join()


def test_what_nobody_asked_for_is_noticed_at_the_end(two):
    here, there = two
    here.send(b"four")
    here.flush()
    there.receive(3)
    with pytest.raises(MessageError, match="1 bytes"):
        there.close()


def test_bad_limits_are_refused(two):
    mine, peer = socket.socketpair()
    with mine, peer, pytest.raises(ConfigError):
        Link(mine, timeout_s=0)
    with pytest.raises(ConfigError):
        two[0].receive(-1)
