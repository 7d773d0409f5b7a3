"""What every attack is given, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.scene import Scene
from medveil.rng import Seeds

Effort = Literal["quick", "default"]
Tell = Callable[[str], None]
"""Told in a few words what is done now."""


@dataclass(frozen=True)
class ThreatModel:
    """Who attacks, with what.

    Args:
        adversary: "server", "malicious server", "another site", "anyone with the model", ...
        sees: what the attacker is given.
        knows: what it knows besides.
        does: what it may change; "nothing" for a curious one.
    """

    adversary: str
    sees: str
    knows: str
    does: str = "nothing: it follows the protocol"


@dataclass(frozen=True)
class Figure:
    """A measured number with its interval.

    Args:
        value: estimate.
        low: end of the interval; None where there is none.
        high: likewise.
        confidence: of the interval, for example 0.95.
    """

    value: float
    low: float | None = None
    high: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Condition:
    """Under which protection a release is attacked.

    Args:
        name: short, for a reader: "unprotected", "secure sum of 5 sites", "epsilon 8".
        l2_clip_norm: of every unit's contribution; None where nothing is clipped.
        noise_multiplier: noise over clip norm, in the whole release; None or 0 where there is none.
        epsilon: of the whole training under this noise; None where it promises nothing.
        epsilon_of_release: of the attacked release alone; None likewise.
        delta: of both.
        sites: whose contributions are summed before the attacker sees them.
    """

    name: str
    l2_clip_norm: float | None = None
    noise_multiplier: float | None = None
    epsilon: float | None = None
    epsilon_of_release: float | None = None
    delta: float | None = None
    sites: int = 1


@dataclass(frozen=True)
class Outcome:
    """How far an attack came under one condition.

    Args:
        condition: which.
        figures: by name; units in the names (``median_psnr_db``, ``rank1_rate``, ``auc``, ``tpr_at_1e-3``).
        images: one row an attacked image (or nothing, for attacks that have none), plain data for JSON.
        bound: the most that the figure ``Report.success`` can be by theory; None where there is no bound.
    """

    condition: Condition
    figures: Mapping[str, Figure]
    images: tuple[Mapping[str, Any], ...] = ()
    bound: float | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """What an attack found.

    Args:
        name: of the attack, as ``--only`` takes it.
        title: for a reader.
        threat_model: who attacks.
        success: name of the figure that counts.
        unprotected: without protection: the twin that every protected row needs.
        protected: under the run's own protection; None where the run has none.
        curve: under rising noise, for figures over epsilon.
        control: what an attacker reaches who sees nothing.
        succeeded_unprotected: whether the twin worked, so that the protected row means something.
        resisted: variants that were tried and did not work, in sentences.
        findings: sentences for a reader who knows no statistics.
        seconds: it took.
        pictures: arrays for figures, by name: images (rows, columns) in 0..1 under "original", "control",
            "unprotected", "protected", "sum"; shape (images, *spatial). Curves by whatever name the report knows.
    """

    name: str
    title: str
    threat_model: ThreatModel
    success: str
    unprotected: Outcome
    protected: Outcome | None
    curve: tuple[Outcome, ...]
    control: Outcome
    succeeded_unprotected: bool
    resisted: tuple[str, ...]
    findings: tuple[str, ...]
    seconds: float
    pictures: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but pictures, as plain data; ``bound`` is that of the protected row, or of the unprotected one."""
        content = {key: value for key, value in vars(self).items() if key != "pictures"}
        shown = {key: _plain(value) for key, value in content.items()}
        bounded = self.protected or self.unprotected
        return {**shown, "bound": bounded.bound}


class Attack(Protocol):
    """One attack."""

    name: str

    def check(self, scene: Scene) -> None:
        """Say before long work whether the attack can be tried.

        Raises:
            AttackError: it cannot, and why: no update of that kind, a model that it does not fit, too few members.
        """
        ...

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """Attack, without protection, under the scene's protection and over a curve of noise."""
        ...


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Outcome):
        return {key: _plain(each) for key, each in vars(value).items()}
    if isinstance(value, ThreatModel | Figure | Condition):
        return _plain(asdict(value))
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
