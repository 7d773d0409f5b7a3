"""A run folder as the report reads it: the record, ``metrics.jsonl``, ``examples.npz`` and ``red_team``."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medveil.errors import RunError
from medveil.report.attack_record import RedTeam, read_red_team
from medveil.report.parts import Part
from medveil.report.record import SCHEMA_VERSION, Record

_REMEDY = "run the study again, or restore the run folder from a copy"


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
        red_team: what attacks found, or None where none was run.
    """

    record: Record
    steps: tuple[Step, ...] | None = None
    examples: Examples | None = None
    red_team: RedTeam | None = None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: holds ``record.json``, and where they were kept ``metrics.jsonl``, ``examples.npz`` and ``red_team``.

    Returns:
        The run.

    Raises:
        RunError: no record, a newer schema, or a file that is damaged. The message names keys, never contents.
    """
    record = _read_record(folder / "record.json")
    return Run(
        record,
        _read_steps(folder / "metrics.jsonl"),
        _read_examples(folder / "examples.npz", record.task),
        read_red_team(folder),
    )


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
