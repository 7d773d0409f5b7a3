"""Reliable messages between two parties over a channel that may lose, repeat, delay and reorder.

A message travels as numbered chunks. The receiver tells which have come; the sender repeats the others. The time to
wait follows the measured round trip (RFC 6298, with the time stamps of RFC 7323, so that an answer to a repeated chunk
is no riddle). How much is under way follows what the line carries (in the manner of RFC 5681 and, for long queues, RFC
6817): a slow line is not buried under repetitions.

No thread and no engine: the caller holds a lock, calls :meth:`Link.tick` now and then, and gives the clock.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from medveil.errors import ConfigError, MessageError
from medveil.federation.link_frames import (
    MAX_CHUNK_BYTES,
    MAX_WINDOW,
    SESSION_BYTES,
    Assembly,
    Frame,
    Kind,
    decode_frame,
    encode_frame,
)

_ACK_DELAY_S = 0.05  # an acknowledgement waits so long for an answer that can carry it
_FIRST_WINDOW = 2
_LEAST_WINDOW = 2
_LONG_QUEUE_S = 2.0  # a round trip so much above the shortest one means that chunks queue up
_LONGEST_ROUND_TRIP_S = 60.0
_STAMPS = 1 << 32


@dataclass(frozen=True)
class LinkSettings:
    """Speed and limits of a link; the two parties' settings may differ.

    Args:
        heartbeat_s: a party that has sent nothing for so long sends a heartbeat.
        chunk_bytes: payload of a frame, 1 to 1 MiB. A peer is heard of at the end of each frame only, so a slow line
            must carry one in less time than a peer may be silent.
        window: chunks sent and not acknowledged, at most; 1 to 32.
        resend_after_s: least and first time to wait for an acknowledgement. Keep it above the time between two ticks
            plus 0.05 s plus the round trip.
        resend_at_most_s: doubling ends here (a measured round trip may ask for more, up to 60 s).
        max_message_bytes: longer messages are neither sent nor received.

    Raises:
        ConfigError: a value is out of its range.
    """

    heartbeat_s: float = 2.0
    chunk_bytes: int = MAX_CHUNK_BYTES
    window: int = 16
    resend_after_s: float = 1.0
    resend_at_most_s: float = 8.0
    max_message_bytes: int = 1 << 32

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("heartbeat_s", self.heartbeat_s, 1e-3, 3600.0),
            ("chunk_bytes", self.chunk_bytes, 1, MAX_CHUNK_BYTES),
            ("window", self.window, 1, MAX_WINDOW),
            ("resend_after_s", self.resend_after_s, 1e-3, _LONGEST_ROUND_TRIP_S),
            ("resend_at_most_s", self.resend_at_most_s, self.resend_after_s, 3600.0),
            ("max_message_bytes", self.max_message_bytes, 1, 1 << 62),
        ):
            if not low <= value <= high:
                raise ConfigError(
                    "A setting of a link is out of range", got=f"{name} = {value}", expected=f"{low} to {high}"
                )


class _Pace:
    """How long to wait for an acknowledgement, and how many chunks to have under way."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._wait_s = settings.resend_after_s
        self._smoothed_s: float | None = None
        self._variation_s = 0.0
        self._shortest_s = _LONGEST_ROUND_TRIP_S
        self._window = float(min(_FIRST_WINDOW, settings.window))
        self._threshold = float(settings.window)
        self._cut_at = -_LONGEST_ROUND_TRIP_S

    @property
    def window(self) -> int:
        """Chunks that may be under way."""
        return int(self._window)

    def wait_s(self, resends: int) -> float:
        """Time to wait for the acknowledgement of a chunk that was repeated ``resends`` times."""
        doubled = self._wait_s * 2.0 ** min(resends, 30)
        return max(self._wait_s, min(doubled, self._settings.resend_at_most_s))

    def measured(self, round_trip_s: float, now: float) -> None:
        """Learn a round trip: RFC 6298, (2.2) and (2.3)."""
        if self._smoothed_s is None:
            self._smoothed_s, self._variation_s = round_trip_s, round_trip_s / 2
        else:
            self._variation_s += (abs(self._smoothed_s - round_trip_s) - self._variation_s) / 4
            self._smoothed_s += (round_trip_s - self._smoothed_s) / 8
        wait_s = self._smoothed_s + 4 * self._variation_s
        self._wait_s = min(max(wait_s, self._settings.resend_after_s), _LONGEST_ROUND_TRIP_S)
        self._shortest_s = min(self._shortest_s, round_trip_s)
        if round_trip_s > self._shortest_s + _LONG_QUEUE_S:
            self.narrow(now)

    def widen(self, acknowledged: int) -> None:
        """A full window moved on: RFC 5681, slow start and congestion avoidance."""
        step = acknowledged if self._window < self._threshold else acknowledged / self._window
        self._window = min(self._window + step, float(self._settings.window))

    def narrow(self, now: float) -> None:
        """A chunk seems lost or chunks queue up: halve the window, once in a round trip."""
        if now - self._cut_at >= self._wait_s:
            self._window = self._threshold = max(self._window / 2, float(min(_LEAST_WINDOW, self._settings.window)))
            self._cut_at = now


@dataclass
class _Chunk:
    message: bytes
    start: int
    stop: int
    sent_at: float
    resends: int = 0


class _Outgoing:
    """Messages that wait and chunks that are under way."""

    def __init__(self, settings: LinkSettings) -> None:
        self.pace = _Pace(settings)
        self.next_sequence = 0
        self.under_way: dict[int, _Chunk] = {}  # in the order of their numbers
        self._settings = settings
        self._queue: deque[bytes] = deque()
        self._start = 0

    @property
    def empty(self) -> bool:
        return not self._queue and not self.under_way

    def put(self, message: bytes) -> None:
        self._queue.append(message)

    def overdue(self, now: float) -> list[int]:
        """Chunks to repeat, oldest first; a loss halves the window, and those beyond it have to wait."""
        late = [
            sequence
            for sequence, chunk in itertools.islice(self.under_way.items(), self.pace.window)
            if now - chunk.sent_at >= self.pace.wait_s(chunk.resends)
        ]
        if late:
            self.pace.narrow(now)
        return late[: self.pace.window]

    def cut(self, now: float) -> int | None:
        """Put the next chunk under way if the window allows; its number."""
        first = next(iter(self.under_way), self.next_sequence)
        if (
            not self._queue
            or len(self.under_way) >= self.pace.window
            or self.next_sequence >= first + self._settings.window
        ):
            return None
        message, start = self._queue[0], self._start
        stop = min(start + self._settings.chunk_bytes, len(message))
        if stop == len(message):
            self._queue.popleft()
        self._start = 0 if stop == len(message) else stop
        sequence = self.next_sequence
        self.under_way[sequence] = _Chunk(message, start, stop, now)
        self.next_sequence += 1
        return sequence

    def check(self, frame: Frame) -> None:
        """Refuse an acknowledgement of what was never sent.

        Raises:
            MessageError: as said.
        """
        top = frame.acknowledged + frame.held.bit_length() + 1 if frame.held else frame.acknowledged
        if top > self.next_sequence:
            raise MessageError(
                "A frame acknowledges chunks that were never sent",
                got=top,
                expected=f"at most {self.next_sequence}",
                remedy="give every pair of links a session of its own",
            )

    def acknowledge(self, frame: Frame) -> None:
        was_full = len(self.under_way) >= self.pace.window
        done = [
            sequence
            for sequence in self.under_way
            if sequence < frame.acknowledged
            or (sequence > frame.acknowledged and frame.held >> (sequence - frame.acknowledged - 1) & 1)
        ]
        for sequence in done:
            del self.under_way[sequence]
        if was_full:
            self.pace.widen(len(done))

    def forget_resends(self) -> None:
        for chunk in self.under_way.values():
            chunk.resends = 0


class Link:
    """Reliable messages to and from one peer.

    Args:
        session: 16 bytes that both parties know, used for one pair of links and never again.
        post: gives a frame (at most 1 MiB + 62 bytes) to the channel. It must not call back into the link.
        clock: seconds, never backwards.
        settings: speed and limits.

    Raises:
        ConfigError: the session is not 16 bytes.

    Guarantees:
        Whatever the channel does, each message comes out of the peer's :meth:`receive` at most once, unchanged, whole,
        and in the order in which it was sent; and exactly once if the channel lets a frame through now and then. Not
        against forgery: a frame that the peer did not make must not reach :meth:`receive` (TLS).

        Memory for what is received: one message in progress, as far as it has come, and 32 chunks. For what is sent:
        the caller's messages until they are acknowledged (not copied), and one frame.
    """

    def __init__(
        self,
        session: bytes,
        *,
        post: Callable[[bytes], None],
        clock: Callable[[], float] = time.monotonic,
        settings: LinkSettings | None = None,
    ) -> None:
        if len(session) != SESSION_BYTES:
            raise ConfigError("A session has the wrong length", got=f"{len(session)} bytes", expected=SESSION_BYTES)
        self.sent_bytes = 0
        self.received_bytes = 0
        self.resent_frames = 0
        self._session = bytes(session)
        self._post = post
        self._clock = clock
        self._settings = settings or LinkSettings()
        self._outgoing = _Outgoing(self._settings)
        self._incoming = Assembly(self._settings.max_message_bytes)
        self._began = self._heard_at = self._posted_at = clock()
        self._ack_due_at: float | None = None
        self._echo = 0

    @property
    def silent_s(self) -> float:
        """Seconds since the last valid frame of this session came, or since the link was made."""
        return self._clock() - self._heard_at

    @property
    def flushed(self) -> bool:
        """Whether the peer has acknowledged everything that was sent."""
        return self._outgoing.empty

    @property
    def too_long(self) -> int | None:
        """Bytes that are left of a message that the peer tries to send and that is refused for its length, or None."""
        return self._incoming.too_long

    def send(self, message: bytes) -> None:
        """Queue a message, to be left unchanged; what the window allows goes out at once.

        Raises:
            MessageError: the message is empty or longer than ``max_message_bytes``.
        """
        if not 1 <= len(message) <= self._settings.max_message_bytes:
            raise MessageError(
                "A message is empty or too long to be sent",
                got=f"{len(message)} bytes",
                expected=f"1 to {self._settings.max_message_bytes}",
                remedy="raise max_message_mb in server.json and in every site's site.toml",
            )
        self._outgoing.put(message)
        self.sent_bytes += len(message)
        self._move(self._clock())

    def receive(self, frame: bytes) -> list[bytes]:
        """Take a frame from the channel.

        Returns:
            The messages that are now complete, in order; mostly none.

        Raises:
            MessageError: the frame is damaged, of another session, too far ahead, or contradicts what came before.
                The link is as if it had never come.
        """
        taken = decode_frame(self._session, frame)
        self._outgoing.check(taken)
        is_new = taken.is_data and self._incoming.is_new(taken)
        now = self._clock()
        self._hear(taken, now)
        messages: list[bytes] = []
        if taken.is_data:
            messages = self._take(taken, now, is_new=is_new)
        self._move(now)
        return messages

    def tick(self) -> None:
        """Send what is due: repetitions, acknowledgements that found no answer to ride on, heartbeats.

        To be called every 0.1 to 0.5 s.
        """
        now = self._clock()
        self._move(now)
        if now - self._posted_at >= self._settings.heartbeat_s:
            self._post_frame(Kind.HEARTBEAT, now)

    def settle(self) -> None:
        """Send the acknowledgement that still waits for an answer to ride on: no answer will come any more."""
        if self._ack_due_at is not None:
            self._post_frame(Kind.ACK, self._clock())

    def _hear(self, frame: Frame, now: float) -> None:
        back_again = now - self._heard_at > 2 * self._settings.heartbeat_s
        self._heard_at = now
        if frame.echo:
            round_trip_s = ((self._stamp(now) - frame.echo) % _STAMPS) / 1000
            self._outgoing.pace.measured(min(round_trip_s, _LONGEST_ROUND_TRIP_S), now)
        self._outgoing.acknowledge(frame)
        if back_again:
            self._outgoing.forget_resends()  # the channel works again: do not sit out the longest wait

    def _take(self, frame: Frame, now: float, *, is_new: bool) -> list[bytes]:
        in_order = frame.sequence == self._incoming.next_sequence
        messages = self._incoming.take(frame) if is_new else []
        self.received_bytes += sum(map(len, messages))
        # Only the end of a message can have an answer that carries the acknowledgement; one may wait, not two.
        may_wait = in_order and messages and not self._incoming.amid_message and self._ack_due_at is None
        if self._ack_due_at is None:
            self._echo = frame.stamp
        self._ack_due_at = now + _ACK_DELAY_S if may_wait else now
        return messages

    def _move(self, now: float) -> None:
        for sequence in self._outgoing.overdue(now):
            chunk = self._outgoing.under_way[sequence]
            chunk.sent_at = now
            chunk.resends += 1
            self.resent_frames += 1
            self._post_chunk(sequence, chunk, now)
        while (sequence_new := self._outgoing.cut(now)) is not None:
            self._post_chunk(sequence_new, self._outgoing.under_way[sequence_new], now)
        if self._ack_due_at is not None and self._ack_due_at <= now:
            self._post_frame(Kind.ACK, now)

    def _post_chunk(self, sequence: int, chunk: _Chunk, now: float) -> None:
        kind = Kind.MORE if chunk.start else Kind.FIRST
        remaining = len(chunk.message) - chunk.start
        payload = memoryview(chunk.message)[chunk.start : chunk.stop]
        self._post_frame(kind, now, sequence, self._stamp(now), remaining, payload)

    def _post_frame(
        self,
        kind: Kind,
        now: float,
        sequence: int = 0,
        stamp: int = 0,
        remaining: int = 0,
        payload: bytes | memoryview = b"",
    ) -> None:
        acknowledged, held = self._incoming.next_sequence, self._incoming.held_bits
        frame = Frame(kind, acknowledged, held, self._echo, sequence, stamp, remaining, payload)
        self._ack_due_at = None
        self._echo = 0
        self._posted_at = now
        self._post(encode_frame(self._session, frame))

    def _stamp(self, now: float) -> int:
        return int((now - self._began) * 1000) % (_STAMPS - 1) + 1
