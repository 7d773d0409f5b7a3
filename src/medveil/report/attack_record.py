"""What the red team found, as the report reads it: ``red_team/results.json``, ``pictures.npz`` and ``audit.json``."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from medveil.errors import RunError
from medveil.report.parts import Part

SCHEMA_VERSION = 1
_FOLDER = "red_team"
_REMEDY = "run medveil attack or medveil audit again"
_Kept = TypeVar("_Kept", bound=Part)


class Measured(Part):
    """A figure with its interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None


class Setting(Part):
    """What the attacker faced."""

    name: str
    l2_clip_norm: float | None = None
    noise_multiplier: float | None = None
    epsilon: float | None = None
    epsilon_of_release: float | None = None
    delta: float | None = None
    sites: int = 1


class Reached(Part):
    """How far an attack came."""

    condition: Setting
    figures: dict[str, Measured] = Field(default_factory=dict)
    images: tuple[dict[str, Any], ...] = ()
    bound: float | None = None


class Adversary(Part):
    """Who attacks."""

    adversary: str
    sees: str
    knows: str
    does: str


class Attacked(Part):
    """One attack; one that could not be tried has ``not_tried`` and nothing else."""

    name: str
    not_tried: str | None = None
    title: str = ""
    threat_model: Adversary | None = None
    success: str = ""
    unprotected: Reached | None = None
    protected: Reached | None = None
    control: Reached | None = None
    curve: tuple[Reached, ...] = ()
    succeeded_unprotected: bool = False
    resisted: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    seconds: float | None = None


class Results(Part):
    """The whole file."""

    schema_version: int
    effort: str
    protection: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    hides_whole_sites: bool = False
    attacks: tuple[Attacked, ...] = ()
    seconds: float | None = None


class AuditedComponent(Part):
    """One component of the private step, measured."""

    claimed: float | None = None
    measured: float | None = None
    passed: bool
    failed: tuple[str, ...] = ()


class AuditedPart(Part):
    """A lower bound beside what is claimed for the same number of steps; no bound means that none is finite."""

    claimed_epsilon: float
    lower_bound: float | None = None
    canaries: int | None = None


class AuditDetails(Part):
    """One run and single steps with canaries."""

    one_run: AuditedPart
    one_step: AuditedPart


class Audited(Part):
    """What ``medveil audit`` kept."""

    claimed_epsilon: float
    lower_bound: float | None = None
    confidence: float
    components: dict[str, AuditedComponent]
    verdict: str
    violations: tuple[str, ...] = ()
    details: AuditDetails
    caveat: str = ""


@dataclass(frozen=True, eq=False)
class RedTeam:
    """What the section on attacks is made of.

    Args:
        results: figures, or None where no attack was run.
        pictures: arrays by "attack/name".
        audit: of the privacy claim, or None where none was made.
    """

    results: Results | None
    pictures: dict[str, NDArray[np.float32]]
    audit: Audited | None = None

    def pictured(self, attack: str, name: str) -> NDArray[np.float32] | None:
        """One attack's array, or None."""
        return self.pictures.get(f"{attack}/{name}")


def read_red_team(run: Path) -> RedTeam | None:
    """What ``medveil attack`` kept in a run folder; None where it did not run.

    Raises:
        RunError: damaged files, or those of a newer medveil.
    """
    results = _read(run / _FOLDER / "results.json", Results)
    audit = _read(run / _FOLDER / "audit.json", Audited)
    if results is None:
        return None if audit is None else RedTeam(None, {}, audit)
    if results.schema_version > SCHEMA_VERSION:
        raise RunError(
            "The results of the attacks were written by a newer medveil",
            got=f"schema {results.schema_version}",
            expected=f"at most {SCHEMA_VERSION}",
            remedy="update medveil",
        )
    return RedTeam(results, _read_pictures(run / _FOLDER / "pictures.npz"), audit)


def _read(path: Path, kind: type[_Kept]) -> _Kept | None:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        got = f"{error.error_count()} parts" if isinstance(error, ValidationError) else type(error).__name__
        raise RunError(f"{path.name} of the red team is damaged", got=got, remedy=_REMEDY) from None


def _read_pictures(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError("The pictures of the attacks cannot be read", got=type(error).__name__, remedy=_REMEDY) from None
    if not all(np.isfinite(values).all() for values in found.values()):
        raise RunError("The pictures of the attacks are damaged", got="numbers that are not finite", remedy=_REMEDY)
    return found
