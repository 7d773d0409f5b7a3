"""What a hospital's own people can watch of its site: where a job stands, in words, and what its steps cost.

``progress.json`` says where the site stands, ``metrics.jsonl`` has a line for each step, the log has each change once.
No figure is of a patient: no scores, no losses, no counts of images. How long a step took tells how many images were
drawn for it, which a plan with differential privacy keeps secret; under such a plan durations are given as the next
power of two only, and when a step ended to the minute.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
SILENT_S = 15.0
"""The server counts as silent after so long."""
LEAST_S = 2.0**-6
"""Durations below it are not told apart under differential privacy."""

_MOST_BYTES = 10_000_000
_SAVE_S = 1.0
_log = logging.getLogger("medveil.connect.site")


def coarse(seconds: float) -> float:
    """The power of two at or above ``seconds``, at least 1/64 s.

    Guarantees:
        Tells the time, and what follows from it, no better than to a factor of two. Not a privacy guarantee.

    >>> coarse(0.3), coarse(0.001), coarse(2.0)
    (0.5, 0.015625, 2.0)
    """
    return max(LEAST_S, 2.0 ** math.ceil(math.log2(seconds))) if seconds > 0 else LEAST_S


@dataclass
class _Step:
    """What one round has cost so far."""

    round: int
    compute_s: float = 0.0
    secure_s: float = 0.0
    received: int = 0
    sent: int = 0


@dataclass
class _Message:
    """One message of the server and the answers to it."""

    sent_bytes: int = 0

    def sent(self, count: int) -> None:
        """Note how many bytes the answers have."""
        self.sent_bytes += count


@dataclass
class _Totals:
    """Of the job, so that a watcher who comes late misses nothing."""

    steps: int = 0
    compute_seconds: float = 0.0
    secure_sum_seconds: float = 0.0
    bytes_received: int = 0
    bytes_sent: int = 0
    server_lost: int = 0


@dataclass
class _Standing:
    """Content of ``progress.json``."""

    job: str
    plan: str = ""
    plan_hash: str = ""
    private: bool = True
    stands: str = "received a job"
    state: str = "running"
    round: int = 0
    rounds: int = 0
    server: str = "heard of"
    totals: _Totals = field(default_factory=_Totals)


class SiteObserver:
    """Tells the hospital what its site does in one job. Safe to call from several threads.

    A file that cannot be written is left: watching never stops a run.

    Args:
        folder: ``medveil/`` of the site's kit.
        job: the engine's name of the job.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._progress, self._metrics = folder / PROGRESS_FILE, folder / METRICS_FILE
        self._lock = threading.RLock()
        self._standing = _Standing(job)
        self._step: _Step | None = None
        self._secure = 0.0
        self._saved = -math.inf
        self._save()

    def plan(self, name: str, plan_hash: str, rounds: int, *, private: bool) -> None:
        """Which plan the job holds.

        Args:
            name: of the plan.
            plan_hash: of the plan.
            rounds: at most.
            private: whether it promises differential privacy; until this is called, it is taken to.
        """
        with self._lock:
            self._standing.plan, self._standing.plan_hash = name, plan_hash
            self._standing.rounds, self._standing.private = rounds, private
            self._say(f"received plan {name}, {plan_hash[:12]}, {rounds} rounds")

    def note(self, text: str) -> None:
        """A new part begins, in words that hold nothing about patients."""
        with self._lock:
            self._say(text)

    def awaits_approval(self) -> None:
        """A person has to decide."""
        digits = self._standing.plan_hash[:12]
        self.note(f"waiting for approval of plan {digits}: medveil connect approve KIT {digits}")

    def begun(self, attempt: int, rounds_done: int, sites: int) -> None:
        """The run begins, or goes on.

        Args:
            attempt: 1 for the first job of the run.
            rounds_done: committed by earlier jobs.
            sites: how many take part.
        """
        with self._lock:
            self._standing.round = rounds_done
            again = f" again, from round {rounds_done} on, attempt {attempt}" if attempt > 1 else ""
            self._say(f"taking part{again}, one of {sites} sites")

    def step(self, number: int) -> None:
        """The server asks for a round of training."""
        with self._lock:
            self._end_step()
            self._step = _Step(number)
            self._standing.round = number
            self._standing.stands = f"training, round {number} of {self._standing.rounds}"
            self._save(later=True)

    @contextmanager
    def message(self, received: int) -> Iterator[_Message]:
        """Around what is done with one message of the server; give the answers' bytes to what this yields.

        Args:
            received: bytes of the message.
        """
        before, begun, seen = self._secure, time.perf_counter(), _Message()
        try:
            yield seen
        finally:
            taken = time.perf_counter() - begun
            with self._lock:
                secure = self._secure - before
                self._standing.totals.bytes_received += received
                self._standing.totals.bytes_sent += seen.sent_bytes
                if self._step is not None:
                    self._step.compute_s += max(0.0, taken - secure)
                    self._step.secure_s += secure
                    self._step.received += received
                    self._step.sent += seen.sent_bytes

    def secure_sum(self, seconds: float) -> None:
        """The secure sum has taken so long, inside of a message."""
        with self._lock:
            self._secure += seconds

    def trained(self) -> None:
        """The last round is over; what follows belongs to no round."""
        with self._lock:
            self._end_step()
            self._say("the training has ended; scoring the model on its own patients")

    def server_silent(self, seconds: float) -> None:
        """How long nothing was heard of the server; to be called now and then while waiting for it."""
        with self._lock:
            silent = seconds > SILENT_S
            if silent == (self._standing.server == "silent"):
                return
            self._standing.server = "silent" if silent else "heard of"
            if silent:
                self._standing.totals.server_lost += 1
                _log.warning("nothing was heard of the server for %.0f s; waiting for it", seconds)
            else:
                _log.info("the server is heard of again")
            self._save()

    def finished(self, text: str = "took part until the server ended the run") -> None:
        """The job is over and went as it should."""
        self._close("finished", text)

    def stopped(self, text: str) -> None:
        """This site does not go on.

        Args:
            text: why, in a sentence that may be read by whoever watches.
        """
        self._close("stopped", text)

    def _close(self, state: str, text: str) -> None:
        with self._lock:
            self._end_step()
            self._standing.state = state
            self._say(text)

    def _end_step(self) -> None:
        """Write the line of the round that is over."""
        if self._step is None:
            return
        step, self._step = self._step, None
        private = self._standing.private
        compute, secure = [coarse(taken) if private else round(taken, 4) for taken in (step.compute_s, step.secure_s)]
        totals = self._standing.totals
        totals.steps += 1
        totals.compute_seconds += compute
        totals.secure_sum_seconds += secure
        line = {
            "at": _now("minutes" if private else "milliseconds"),
            "job": self._standing.job,
            "plan_hash": self._standing.plan_hash,
            "round": step.round,
            "compute_seconds": compute,
            "secure_sum_seconds": secure,
            "seconds_are": "at most" if private else "measured",
            "bytes_received": step.received,
            "bytes_sent": step.sent,
        }
        with suppress(OSError):
            if self._metrics.exists() and self._metrics.stat().st_size > _MOST_BYTES:
                self._metrics.replace(self._metrics.with_name(METRICS_FILE + ".1"))
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, sort_keys=True) + "\n")

    def _say(self, text: str) -> None:
        self._standing.stands = text
        _log.info("%s", text)
        self._save()

    def _save(self, *, later: bool = False) -> None:
        """Replace ``progress.json``; with ``later`` not more than once a second."""
        now = time.monotonic()
        if later and now - self._saved < _SAVE_S:
            return
        self._saved = now
        content = {**vars(self._standing), "at": _now(), "totals": _rounded(vars(self._standing.totals))}
        fresh = self._progress.with_name(PROGRESS_FILE + ".tmp")
        with suppress(OSError):
            fresh.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            fresh.replace(self._progress)


def progress_lines(folder: Path) -> list[str]:
    """Where a site stands, in words.

    Args:
        folder: ``medveil/`` of its kit.
    """
    try:
        content = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        heard = "; nothing is heard of the server" if content["server"] == "silent" else ""
        return [f"{content['stands']}{heard} (at {content['at']})"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _rounded(totals: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in totals.items()}


def _now(timespec: Literal["minutes", "seconds", "milliseconds"] = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=timespec)
