"""How much of the engine's streams a process keeps before they are whole: so much of each peer, and no more.

The engine assembles a stream in memory, chunk by chunk, takes any number of streams at a time, believes the size that
the sender states, and keeps for good what comes of a stream whose beginning never does. Frames of a run are not
streamed; what is, is small: requests of the engine's own, people's commands, and files in pieces of 1 or 5 MiB.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)
from nvflare.fuel.f3.streaming.stream_types import StreamError

MOST_BLOB = 32 << 20
"""Bytes of one stream. The largest that is needed: a job's log as a person reads it, of 10 MB at most; a file travels
in pieces of 5 MiB at most, however large it is, and is written to disk piece by piece."""
MOST_OPEN = 16
"""Streams of one sender that are not whole yet; the engine has 128 threads to read them, for all senders together."""
MOST_HELD = 2 * MOST_BLOB
"""Bytes of one sender in streams that are not whole yet."""
MOST_LATER = 1024
"""Chunks of a stream that came before an earlier one; the engine's own limit."""
IDLE_S = 90
"""A stream of which nothing came for so long is given up."""


@dataclass
class _Open:
    """A stream that is not whole yet."""

    touched: float
    held: int = 0
    next: int = 0
    later: dict[int, bool] = field(default_factory=dict)


class Streams:
    """Account of the streams that arrive at this process.

    Args:
        clock: seconds.
        drop: told (sender, stream) of one that is given up, so that what there is of it is forgotten.
    Guarantees:
        Between them, unfinished streams of one sender hold at most :data:`MOST_HELD` bytes of payload.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, drop: Callable[[str, int], None] | None = None
    ) -> None:
        self._clock, self._drop = clock, drop or forget
        self._lock = threading.Lock()
        self._open: dict[str, dict[int, _Open]] = {}

    def refusal(self, headers: Mapping[str, Any], payload: Any) -> str | None:
        """Why a message is not taken as part of a stream; None where it is, or belongs to none.

        Args:
            headers: of a message for this process, whose sender :func:`~medveil.federation.engine.guard.refusal` let
                pass; any other value may be a lie.
            payload: bytes, or None.
        """
        named = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
        if named != (STREAM_CHANNEL, STREAM_DATA_TOPIC):
            return None
        stream: Any = headers.get(StreamHeaderKey.STREAM_ID)
        sequence: Any = headers.get(StreamHeaderKey.SEQUENCE)
        size = headers.get(StreamHeaderKey.SIZE, 0)
        if not _is_count(stream) or not _is_count(size):
            return "its stream has no number or no size"
        if size > MOST_BLOB:
            return "its stream is too large"
        told_of_error = bool(headers.get(StreamHeaderKey.ERROR_MSG))
        if not told_of_error and (not _is_count(sequence) or not isinstance(payload, _BYTES | None)):
            return "its stream cannot be put in order"
        last = headers.get(StreamHeaderKey.DATA_TYPE) == StreamDataType.FINAL
        origin = str(headers.get(MessageHeaderKey.ORIGIN))
        with self._lock:
            self._give_up(origin)
            if told_of_error:
                return None  # the engine stops its reader; the account stays until the stream is given up
            return self._taken(origin, stream, sequence, 0 if payload is None else len(payload), last=last)

    def _taken(self, origin: str, stream: int, sequence: int, count: int, *, last: bool) -> str | None:
        streams = self._open.setdefault(origin, {})
        one = streams.get(stream)
        if one is None and len(streams) >= MOST_OPEN:
            return "too many of its streams are not whole"
        if one is None:
            one = streams[stream] = _Open(self._clock())
        if sequence < one.next or sequence in one.later:
            return None  # the engine ignores it
        if one.held + count > MOST_BLOB or sum(each.held for each in streams.values()) + count > MOST_HELD:
            return "its streams are too large"
        if len(one.later) >= MOST_LATER:
            return "its stream is out of order"
        one.touched = self._clock()
        one.held += count
        one.later[sequence] = last
        whole = False
        while one.next in one.later:
            whole = one.later.pop(one.next)
            one.next += 1
        if whole and not one.later:  # as the engine sees it
            del streams[stream]
        return None

    def _give_up(self, origin: str) -> None:
        before = self._clock() - IDLE_S
        streams = self._open.get(origin, {})
        for stream in [number for number, one in streams.items() if one.touched < before]:
            del streams[stream]
            self._drop(origin, stream)
        if not streams:
            self._open.pop(origin, None)


_BYTES = bytes | bytearray | memoryview


def forget(origin: str, stream: int) -> None:
    """Let go of what the engine holds of a stream, also of one that it would keep to answer for."""
    with RxTask.map_lock:
        task = RxTask.rx_task_map.pop((origin, stream), None)
    if task is not None:
        task.stop(StreamError("nothing more came of this stream"), notify=False)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
