"""What a run tells whoever watches it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Tick:
    """Where a training stands.

    Args:
        arm: "federated", "central" or "local_only/<site>".
        round: rounds done, or being done when ``sites_back`` < ``sites``.
        rounds: at most.
        sites_back: sites that have answered in this round.
        sites: sites that take part.
        metric: name of the validation score, or "".
        score: latest validation score, or None.
        seconds_left: estimate for the whole run, or None.
    """

    arm: str
    round: int
    rounds: int
    sites_back: int
    sites: int
    metric: str
    score: float | None
    seconds_left: float | None


class Progress(Protocol):
    """Receives a run's progress; called from several threads."""

    def note(self, text: str) -> None:
        """A new part of the run begins."""
        ...

    def tick(self, tick: Tick) -> None:
        """A site came back, or a round ended."""
        ...


class Silent:
    """A :class:`Progress` that says nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def tick(self, tick: Tick) -> None:
        """Ignore."""
