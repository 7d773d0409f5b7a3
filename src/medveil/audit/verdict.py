"""What an audit answers: one line a component, whether all hold, and what epsilon the measurements leave open."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

CAVEAT: Final = (
    "Evidence about this code on this machine, not a proof of the guarantee: what was not tried here may still differ."
)


@dataclass(frozen=True)
class Component:
    """One component of the mechanism.

    Attributes:
        name: stable word.
        passed: whether the measurement agrees with the claim.
        claimed: what the event says; None where nothing is a number.
        measured: best estimate.
        low: end of the interval that holds the true value, except with the audit's alpha; None without one.
        high: the other end.
        finding: one sentence.
    """

    name: str
    passed: bool
    claimed: float | None
    measured: float | None
    low: float | None
    high: float | None
    finding: str


@dataclass(frozen=True)
class Epsilon:
    """What the measurements mean for the whole training.

    Attributes:
        claimed: of the plan.
        not_excluded: with the least noise, the largest sampling rate and the largest sensitivity that the
            measurements cannot exclude; None where that has no finite epsilon. Wider than the claim even for a
            right step: the intervals have a width.
        delta: of both.
        steps: of the training.
    """

    claimed: float
    not_excluded: float | None
    delta: float
    steps: int


@dataclass(frozen=True)
class ComponentAudit:
    """Whether the components of a private step are what its event says. Not a proof of the guarantee.

    Attributes:
        components: in the order of the step.
        event: that was claimed, as the accountant reads it.
        epsilon: of the training, or None where no training was stated.
        alpha: the probability that a step which is right fails is at most this.
        scope: what was run, and what was not, in sentences.
        seconds: it took.
    """

    components: tuple[Component, ...]
    event: dict[str, Any]
    epsilon: Epsilon | None
    alpha: float
    scope: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every component holds."""
        return all(component.passed for component in self.components)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the components that do not."""
        return tuple(component.name for component in self.components if not component.passed)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        components = [{key: finite(value) for key, value in asdict(component).items()} for component in self.components]
        return {**asdict(self), "components": components, "passed": self.passed, "caveat": CAVEAT}


def finite(value: object) -> object:
    """The same, or None for an infinite number or NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
