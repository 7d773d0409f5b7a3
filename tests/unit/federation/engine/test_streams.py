"""What the engine keeps of streams that are not whole: the account against the engine's own classes."""

import tracemalloc
from collections import defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler, BlobTask
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import StreamDataType
from nvflare.fuel.f3.streaming.stream_types import BlobSizeError, Stream, StreamFuture
from nvflare.fuel.utils.config_service import ConfigService

from medveil.connect import kit_files
from medveil.federation.engine import guard, streams
from medveil.federation.engine.streams import IDLE_S, MOST_BLOB, MOST_HELD, MOST_LATER, MOST_OPEN, Streams

MIB = 1 << 20


class Silent:
    """A cell that sends nothing."""

    def fire_and_forget(self, *_, **__):
        return {}


@pytest.fixture
def configured(monkeypatch):
    """The engine with the settings of a kit."""
    monkeypatch.setattr(CommConfigurator, "_config_loaded", True)
    monkeypatch.setattr(CommConfigurator, "_configuration", kit_files.comm_config())
    monkeypatch.setattr(ConfigService, "_var_values", {})  # it remembers what it was asked first


@pytest.fixture(autouse=True)
def engine():
    RxTask.rx_task_map.clear()
    yield RxTask.rx_task_map
    RxTask.rx_task_map.clear()


def chunk(stream=1, sequence=0, *, origin="site-2", last=False, **more):
    found = {
        "cn__channel": "sm__STREAM",
        "cn__topic": "sm__DATA",
        "cn__origin": origin,
        "sm__id": stream,
        "sm__sq": sequence,
        "sm__dt": StreamDataType.FINAL if last else StreamDataType.CHUNK,
        "sm__ch": "server_command",
        "sm__tp": "get_task",
    }
    return found | more


class Nothing(Stream):
    def read(self, chunk_size):
        return b""


def reading(size):
    stream = Nothing(size)
    future = StreamFuture(1)
    future.set_size(size)
    return stream, future


def peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_engine_reads_the_limits_of_the_kit(configured):
    assert BlobHandler(print).max_blob_size == MOST_BLOB
    assert RxTask(1, "site-2", Silent()).timeout == IDLE_S


def test_a_stream_that_states_too_large_a_size_is_refused_before_memory_is_taken(configured):
    handler = BlobHandler(lambda *_: None)
    stream, future = reading(MOST_BLOB + 1)
    assert peak(lambda: handler.handle_blob_cb(future, stream, False)) < MIB
    with pytest.raises(BlobSizeError):
        future.result(1)


def test_without_the_limit_the_engine_takes_that_memory(monkeypatch):
    monkeypatch.setattr(CommConfigurator, "_config_loaded", True)
    monkeypatch.setattr(CommConfigurator, "_configuration", {})
    monkeypatch.setattr(ConfigService, "_var_values", {})
    handler = BlobHandler(print)
    stream, future = reading(MOST_BLOB + 1)
    assert peak(lambda: BlobTask(future, stream, handler.max_blob_size)) > MOST_BLOB


def test_what_is_needed_goes_through():
    account = Streams()
    for stream in range(200):  # a file of 1 GB, in pieces of 5 MiB, in chunks of 1 MiB
        for sequence in range(5):
            assert account.refusal(chunk(stream, sequence, last=sequence == 4), bytes(MIB)) is None
    assert account.refusal(chunk(origin="server", cn__channel="medveil"), bytes(64 * MIB)) is None
    assert account.refusal(chunk(999, 0, last=True), None) is None


def test_a_stream_that_never_ends_is_cut_off():
    account = Streams()
    taken = [account.refusal(chunk(1, sequence), bytes(MIB)) is None for sequence in range(100)]
    assert sum(taken) * MIB == MOST_BLOB
    assert taken == sorted(taken, reverse=True)


def test_many_streams_that_do_not_end_share_one_bound_and_leave_others_theirs():
    account = Streams()
    taken = [account.refusal(chunk(stream), bytes(10 * MIB)) is None for stream in range(100)]
    assert sum(taken) == MOST_HELD // (10 * MIB)
    assert account.refusal(chunk(1, origin="site-1"), bytes(10 * MIB)) is None
    account = Streams()
    assert sum(account.refusal(chunk(stream), b"1") is None for stream in range(100)) == MOST_OPEN


def test_a_stream_without_its_beginning_is_bounded():
    account = Streams()
    assert sum(account.refusal(chunk(1, n), b"1") is None for n in range(1, 3000)) == MOST_LATER


def test_a_stream_of_which_nothing_more_comes_is_forgotten_by_the_engine_as_well(engine):
    now = [0.0]
    account = Streams(lambda: now[0])
    for stream in range(MOST_OPEN):
        headers = chunk(stream, 5, sm__rs=True)  # the engine keeps a reliable stream that failed for an hour
        assert account.refusal(headers, bytes(1000)) is None
        message = Message(headers, bytes(1000))
        RxTask.find_or_create_task(message, Silent()).process_chunk(message)
    assert len(engine) == MOST_OPEN
    assert account.refusal(chunk(100), b"1") is not None
    now[0] = IDLE_S + 1.0
    assert account.refusal(chunk(100), b"1") is None
    assert not engine


LIES = [None, "1", -1, 1.5, True, [], {}, float("nan"), b"1", 1 << 70]


@pytest.mark.parametrize("lie", LIES, ids=map(repr, LIES))
@pytest.mark.parametrize("key", ["sm__id", "sm__sq", "sm__sz"])
def test_headers_that_the_engine_would_stumble_over_are_refused(key, lie):
    assert Streams().refusal(chunk(**{key: lie}), b"1") is not None
    assert Streams().refusal(chunk(sm__sz=MOST_BLOB + 1), b"1") is not None
    assert Streams().refusal(chunk(), ["no", "bytes"]) is not None


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(["site-1", "site-2"]),
        st.integers(0, 5),
        st.integers(0, 6),
        st.booleans(),
        st.integers(0, 30),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(ARRIVALS)
@example([("site-1", 0, n, n == 1, 30, False) for n in (2, 1, 0)] * 2)  # data behind the end
def test_the_engine_never_holds_more_than_the_account_allows(arrivals):
    """Everything that is let through goes to the engine's receiver; what that keeps is counted there."""
    RxTask.rx_task_map.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "MOST_BLOB", 60)
        patch.setattr(streams, "MOST_HELD", 100)
        patch.setattr(streams, "MOST_OPEN", 3)
        account, refused = Streams(), 0
        for origin, stream, sequence, last, size, reliable in arrivals:
            headers = chunk(stream, sequence, origin=origin, last=last, sm__rs=reliable)
            if account.refusal(headers, bytes(size)) is not None:
                refused += 1
                continue
            message = Message(headers, bytes(size))
            RxTask.find_or_create_task(message, Silent()).process_chunk(message)
            held, open_now = defaultdict(int), defaultdict(int)
            for (who, _), task in RxTask.rx_task_map.items():
                if not task.completed:
                    parts = [*task.chunks, *task.out_seq_chunks.values()]
                    held[who] += sum(len(payload) for _, payload in parts)
                    open_now[who] += 1
            assert all(count <= 100 for count in held.values())
            assert all(count <= 3 for count in open_now.values())
    for task in RxTask.rx_task_map.values():
        if task.cleanup_timer is not None:
            task.cleanup_timer.cancel()


def test_the_engine_itself_asks_the_account(monkeypatch):
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell

    heard = []
    job = "2f72b35a-56ea-4786-b0ca-3d2f5cb3e3aa"
    monkeypatch.setattr(CoreCell, "process_message", lambda *arguments: heard.append(arguments[-1]))
    monkeypatch.setattr(guard, "_STREAMS", Streams())
    guard.install_guard()

    class Named:
        def __init__(self, name):
            self.name = self.fqcn = name

    cell = object.__new__(CoreCell)
    cell.my_info = Named(f"server.{job}")
    names = {"cn__destination": f"server.{job}", "cn__msg_type": "req"}
    for sequence in range(40):
        headers = chunk(1, sequence, origin=f"site-2.{job}", **names)
        cell.process_message(Named("server"), None, 1, Message(headers, bytes(MIB)))
    assert len(heard) * MIB == MOST_BLOB
