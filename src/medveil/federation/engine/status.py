"""What became of each job, in small files at the server: ``HOME/medveil/jobs/<job id>.json``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medveil.disk import replace_file

State = Literal["waiting", "running", "done", "failed", "again", "aborted"]
RETURNED = "returned"
"""Folder in ``HOME/medveil``: a file for each site that could take part again in the job that runs."""


@dataclass(frozen=True)
class JobStatus:
    """One attempt at a run.

    Attributes:
        status: ``waiting`` until it starts, ``running`` while it does, then how it ended. One that says ``running``
            while nothing runs was cut off.
        of: the first job of the run.
        attempt: 1 for the first job.
        next: the job that continued this one, or None.
        unstarted: how many attempts before this one ended before their program began.
    """

    status: State
    of: str
    attempt: int
    next: str | None = None
    unstarted: int = 0


def status_file(home: Path, job_id: str) -> Path:
    """Where the status of a job stands."""
    return home / "medveil" / "jobs" / f"{job_id}.json"


def read_status(home: Path, job_id: str) -> JobStatus:
    """The status of a job; one without a file is the first of its run and waits."""
    try:
        return JobStatus(**json.loads(status_file(home, job_id).read_text("utf-8")))
    except FileNotFoundError:
        return JobStatus("waiting", job_id, 1)
    except (OSError, ValueError, TypeError):
        return JobStatus("failed", job_id, 1)  # damaged: never resumed by guess


def write_status(home: Path, job_id: str, status: JobStatus) -> None:
    """Replace the status of a job in one step."""
    path = status_file(home, job_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(vars(status)).encode())


def note_spared(home: Path, first_job: str, sites: Sequence[str]) -> None:
    """Note which sites a run can go on without, so that a further job does not wait for them."""
    path = _spared_file(home, first_job)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(sorted(sites)).encode())


def spared_sites(home: Path, first_job: str) -> frozenset[str]:
    """Sites that :func:`note_spared` noted last; none where nothing can be read."""
    try:
        return frozenset(json.loads(_spared_file(home, first_job).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return frozenset()


def _spared_file(home: Path, first_job: str) -> Path:
    return home / "medveil" / "jobs" / f"{first_job}.spared"


def known_jobs(home: Path) -> list[str]:
    """Jobs that have a status, in no order."""
    return [path.stem for path in (home / "medveil" / "jobs").glob("*.json")]


def clear_returned(home: Path, before: float) -> None:
    """Forget who returned before ``before``, seconds since 1970: the job that starts has them."""
    for path in (home / "medveil" / RETURNED).glob("*"):
        if path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
