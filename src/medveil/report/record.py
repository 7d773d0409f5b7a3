"""A run folder as the report reads it: ``record.json``, ``metrics.jsonl`` and ``examples.npz``.

Unknown keys are left alone, so that a record may grow; a key that is missing is None or empty and is shown as
"not measured".
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from medveil.errors import RunError
from medveil.report.claim import Claim
from medveil.report.parts import Curve, Part
from medveil.report.secure_sums import SecureSums

SCHEMA_VERSION = 3
_REMEDY = "run the study again, or restore the run folder from a copy"


class Quantity(Part):
    """A figure with its interval; a bare number or null is a figure without one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        return {"value": given} if given is None or isinstance(given, int | float) else given


Quantities = dict[str, Quantity]


class Scores(Part):
    """Metrics of one test, with the same metrics by site and by subgroup."""

    metrics: Quantities = Field(default_factory=dict)
    per_site: dict[str, Quantities] = Field(default_factory=dict)
    per_subgroup: dict[str, dict[str, Quantities]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        """In the record, metrics stand beside ``per_site`` and ``per_subgroup``."""
        if not isinstance(given, dict):
            return given
        groups = {key: given[key] or {} for key in ("per_site", "per_subgroup") if key in given}
        return {"metrics": {key: value for key, value in given.items() if key not in groups}, **groups}


class SiteData(Part):
    """What one site brought."""

    site: str
    subjects: int | None = None
    examples: int | None = None
    label_counts: dict[str, int] = Field(default_factory=dict)


class RejectedFiles(Part):
    """Files that were not used, counted by reason."""

    reason: str
    detail: str = ""
    count: int


class Duplicates(Part):
    """Pixel-identical images: how they were treated and how many there were."""

    policy: str | None = None
    across_splits: int | None = None
    within_splits: int | None = None
    dropped: int | None = None


class Data(Part):
    """What the model was trained and tested on."""

    kind: Literal["real", "phantom"]
    name: str
    licence: str = ""
    citation: str = ""
    subject_rule: str = ""
    class_names: tuple[str, ...] = ()
    subjects: dict[str, int] = Field(default_factory=dict)
    examples: dict[str, int] = Field(default_factory=dict)
    sites: tuple[SiteData, ...] = ()
    rejected: tuple[RejectedFiles, ...] = ()
    duplicates: Duplicates | None = None


class Model(Part):
    """The network."""

    kind: str | None = None
    parameters: int | None = None
    architecture_hash: str | None = None
    input_shape: tuple[int, ...] | None = None


class Roc(Curve):
    """Corners of the ROC curve."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


class Calibration(Curve):
    """Reliability curve."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


class BootstrapUsed(Part):
    """How intervals were made."""

    resamples: int
    level: float


class Details(Part):
    """What stands behind the test figures."""

    threshold: float | None = None
    threshold_source: str | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    roc: Roc | None = None
    calibration: Calibration | None = None
    per_class: dict[str, Quantities] = Field(default_factory=dict)
    num_subjects: int | None = None
    num_examples: int | None = None
    bootstrap: BootstrapUsed | None = None
    distance_unit: str | None = None
    surface_tolerance: float | None = None
    one_sided: int | None = None


class External(Part):
    """A test on data from elsewhere."""

    name: str
    relation: str = ""
    test: Scores
    num_subjects: int | None = None
    fall: Quantities = Field(default_factory=dict)


class References(Part):
    """The same training without federation: all data pooled, and each site alone."""

    central: Scores | None = None
    local_only: Scores | None = None


class Cost(Part):
    """What the run took."""

    seconds: float | None = None
    seconds_by_part: dict[str, float] = Field(default_factory=dict)
    peak_memory_mb: float | None = None
    bytes_sent_per_site: dict[str, int] = Field(default_factory=dict)
    bytes_received_per_site: dict[str, int] = Field(default_factory=dict)
    rounds: int | None = None
    device: str | None = None
    threads: int | None = None


class Protection(Part):
    """What stood between a curious party and the images."""

    active: tuple[str, ...] = ()
    inactive: tuple[str, ...] = ()


class Record(Part):
    """``record.json``."""

    schema_version: int
    name: str
    task: Literal["classification", "segmentation"]
    data: Data
    test: Scores
    medveil_version: str | None = None
    plan_hash: str | None = None
    created: str | None = None
    transport: str | None = None
    model: Model = Model()
    training: dict[str, Any] = Field(default_factory=dict)
    details: Details = Details()
    external: tuple[External, ...] = ()
    references: References = References()
    cost: Cost = Cost()
    secure_aggregation: SecureSums | None = None
    privacy: Claim | None = None
    protection: Protection = Protection()
    artifacts: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """A part that is null is a part that was not measured."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @field_validator("privacy", mode="after")
    @classmethod
    def _needs_its_sums(cls, claim: Claim | None, info: ValidationInfo) -> Claim | None:
        """Noise that sites share out protects nobody but in a secure sum."""
        if claim is not None and claim.mode == "distributed" and info.data.get("secure_aggregation") is None:
            raise PydanticCustomError("without_secure_aggregation", "a secure sum")
        return claim


class Step(Part):
    """One line of ``metrics.jsonl``: one round of one arm."""

    arm: str
    round: int
    train_loss: float | None = None
    validation: dict[str, float | None] | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """Some test images with what the model made of them.

    Args:
        images: shape (n, H, W), 0..1.
        targets: class indices of shape (n,), or masks of shape (n, H, W).
        predictions: probabilities of shape (n, K), or masks of shape (n, H, W).
    """

    images: NDArray[np.float64]
    targets: NDArray[np.int64]
    predictions: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that the report reads.

    Args:
        record: what was done and found.
        steps: training history, or None where it was not kept.
        examples: pictures, or None where none were kept.
    """

    record: Record
    steps: tuple[Step, ...] | None = None
    examples: Examples | None = None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: holds ``record.json``, and where they were kept ``metrics.jsonl`` and ``examples.npz``.

    Returns:
        The run.

    Raises:
        RunError: no record, a newer schema, or a file that is damaged. The message names keys, never contents.
    """
    record = _read_record(folder / "record.json")
    return Run(record, _read_steps(folder / "metrics.jsonl"), _read_examples(folder / "examples.npz", record.task))


def _read_record(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = Record.model_validate(content)
    except FileNotFoundError:
        raise RunError(
            "The run folder holds no record", expected=path.name, remedy="name the folder of a finished run"
        ) from None
    except ValidationError as error:
        raise RunError("The run's record is damaged", got=_places(error), remedy=_REMEDY) from None
    except (OSError, ValueError) as error:
        raise RunError("The run's record cannot be read", got=type(error).__name__, remedy=_REMEDY) from None
    if record.schema_version > SCHEMA_VERSION:
        raise RunError(
            "The run's record was written by a newer medveil",
            got=f"schema {record.schema_version}",
            expected=f"at most {SCHEMA_VERSION}",
            remedy="update medveil",
        )
    return record


def _read_steps(path: Path) -> tuple[Step, ...] | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError("The training history cannot be read", got=type(error).__name__, remedy=_REMEDY) from None
    return tuple(_read_step(number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _read_step(number: int, line: str) -> Step:
    try:
        return Step.model_validate_json(line)
    except ValidationError as error:
        raise RunError(
            "The training history is damaged", got=f"line {number}: {_places(error)}", remedy=_REMEDY
        ) from None


def _read_examples(path: Path, task: str) -> Examples | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            images, targets, predictions = (stored[key] for key in ("images", "targets", "predictions"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError("The example pictures cannot be read", got=type(error).__name__, remedy=_REMEDY) from None
    n = len(images)
    fits = (
        targets.shape == (n,) and predictions.ndim == 2 and len(predictions) == n  # noqa: PLR2004 - (n, K)
        if task == "classification"
        else targets.shape == images.shape == predictions.shape
    )
    if images.ndim != 3 or not fits or not np.isfinite(images).all():  # noqa: PLR2004 - (n, H, W)
        raise RunError(
            "The example pictures do not fit the task",
            got=f"shapes {images.shape}, {targets.shape}, {predictions.shape}",
            expected=f"those of {task}",
            remedy=_REMEDY,
        )
    return Examples(images.astype(np.float64), targets.astype(np.int64), predictions)


def _places(error: ValidationError) -> str:
    """Where and what, without the value: it may be a name from somebody's data."""
    found = {".".join(map(str, item["loc"][:2])) + ": " + item["type"].replace("_", " ") for item in error.errors()}
    return "; ".join(sorted(found)[:5])
