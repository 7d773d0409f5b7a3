"""How things stand, for whoever owns a kit."""

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from medveil.connect.deciding import waiting_plans
from medveil.connect.home import Home
from medveil.connect.job import Federation
from medveil.connect.kit import kind_of_kit
from medveil.connect.observing import progress_lines
from medveil.errors import ConfigError

_EVENTS = 10
_LOG = "log.txt"


def standing(kit: Path) -> dict[str, list[Any]]:
    """What the owner of a kit may know.

    Returns:
        For a person: ``sites`` and ``jobs``. For the server: ``runs``, each with its sites in words. For a site:
        ``waiting`` plans and the latest ``events`` of its audit log.

    Raises:
        ConfigError: not a kit.
        MedveilError: the server cannot be reached.
    """
    kind = kind_of_kit(kit)
    if kind == "person":
        return _of_person(kit)
    if kind == "server":
        return {"runs": [line for folder in _runs(kit) for line in _run_lines(folder)]}
    waiting = [{"plan": one.plan_hash, "asks": one.summary} for one in waiting_plans(kit)]
    return {"stands": progress_lines(Home(kit).folder), "waiting": waiting, "events": _events(Home(kit).audit_path)}


def log_lines(kit: Path, job: str | None, count: int) -> list[str]:
    """The last lines of a log.

    Args:
        kit: whose.
        job: for a person, which job's at the server.
        count: how many lines.

    Raises:
        ConfigError: a person named no job, or there is no log yet.
    """
    if kind_of_kit(kit) == "person":
        if job is None:
            raise ConfigError("Which job's log?", remedy="name a job: medveil connect status lists them")
        with Federation(kit) as federation:
            return federation.log(job).splitlines()[-count:]
    path = kit / _LOG
    if not path.exists():
        raise ConfigError("There is no log yet", expected=f"{_LOG} in the kit", remedy="start the server or the site")
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=count)]


def _of_person(kit: Path) -> dict[str, list[Any]]:
    with Federation(kit) as federation:
        heard, jobs = federation.connected(), federation.jobs()
    now = time.time()
    return {
        "sites": [{"site": name, "heard": f"{now - at:.0f} s ago"} for name, at in sorted(heard.items())],
        "jobs": [
            {"job": job.job_id, "plan": job.name, "status": job.status, "submitter": job.submitter, "at": job.submitted}
            for job in jobs
        ],
    }


def _runs(kit: Path) -> list[Path]:
    runs = Home(kit).runs
    return (
        sorted((path for path in runs.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        if (runs.is_dir())
        else []
    )


def _run_lines(folder: Path) -> list[str]:
    try:
        content = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{folder.name}: nothing is known of it"]
    sites = [f"  {site}: {text}" for site, text in sorted(content["sites"].items())]
    return [f"{folder.name}: {content['stands']} (at {content['at']})", *sites]


def _events(path: Path) -> list[Any]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        last = deque(file, maxlen=_EVENTS)
    events = []
    for line in last:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        facts = ", ".join(f"{key} {str(value)[:40]}" for key, value in sorted(content["facts"].items()))
        events.append({"at": content["at"], "event": content["event"], "facts": facts})
    return events
