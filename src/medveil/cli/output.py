"""What the verbs print: progress for a person, JSON for a machine."""

import json
import sys
import threading
import time
from typing import Any

import click

from medveil.study.progress import Tick

_REFRESH_S = 0.1
_PLAIN_S = 5.0
_MINUTE = 60


class Watcher:
    """Progress in words on standard error: one line that changes on a terminal, plain lines elsewhere.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._last = 0.0
        self._width = 0

    def note(self, text: str) -> None:
        """A new part of the run begins."""
        if not self._quiet:
            with self._lock:
                self._clear()
                click.echo(text, err=True)

    def tick(self, tick: Tick) -> None:
        """Show where the training stands, not more often than a person can read."""
        now = time.monotonic()
        ended = tick.round == tick.rounds and tick.sites_back == tick.sites
        with self._lock:
            if self._quiet or (not ended and now - self._last < (_REFRESH_S if self._live else _PLAIN_S)):
                return
            self._last = now
            self._clear()
            click.echo(describe(tick), err=True, nl=not self._live or ended)
            self._width = 0 if not self._live or ended else len(describe(tick))

    def _clear(self) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0


def describe(tick: Tick) -> str:
    """A tick in words.

    >>> describe(Tick("federated", 7, 20, 4, 5, "auc", 0.94, 61.0))
    'Round 7 of 20 · 4 of 5 sites back · AUC 0.940 · 1 min left'
    """
    if tick.arm == "federated":
        parts = [f"Round {tick.round} of {tick.rounds}", f"{tick.sites_back} of {tick.sites} sites back"]
    else:
        parts = [f"Reference {tick.arm.replace('_', ' ')}: pass {tick.round} of {tick.rounds}"]
    if tick.score is not None:
        parts.append(f"{'AUC' if tick.metric == 'auc' else tick.metric.capitalize()} {tick.score:.3f}")
    if tick.seconds_left is not None:
        parts.append(_left(tick.seconds_left))
    return " · ".join(parts)


def _left(seconds: float) -> str:
    return f"{seconds / _MINUTE:.0f} min left" if seconds >= _MINUTE else f"{seconds:.0f} s left"


def print_json(content: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(content, indent=2, sort_keys=True))


def files(count: int) -> str:
    """A count of files in words."""
    return "1 file" if count == 1 else f"{count} files"


def number(value: float | None) -> str:
    """Three digits, or "-" where there is nothing."""
    return "-" if value is None else f"{value:.3f}"
