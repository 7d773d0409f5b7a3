"""What the server remembers of a run from one of its jobs to the next, and what it tells whoever watches."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medveil.connect.jobs import RESULT
from medveil.federation.engine.context import JobContext
from medveil.federation.messages import LONGEST_TEXT, Farewell, encode
from medveil.federation.postman import Postman
from medveil.federation.remote import Happening
from medveil.study.folder import RunFolder, read_json, write_json
from medveil.study.progress import Tick

_MOST_TOLD = 1000
_FAREWELL_S = 10.0


class RunMemory:
    """``state/network.json``: the run's sites, and how often it was begun.

    Args:
        folder: of the run.
        sites: of this job; the first job's stay those of the run.
        first_job: of the run.
        rounds_done: committed so far.

    Attributes:
        sites: of the run.
        attempt: 1 for the first job of the run.
        fruitless: jobs in a row, this one included, that began without a round more than the one before.
        cut_off: whether the job before this one did not come to its end.
    """

    def __init__(self, folder: RunFolder, sites: tuple[str, ...], *, first_job: str, rounds_done: int) -> None:
        self._path = folder.state / "network.json"
        known: dict[str, Any] = {"sites": sorted(sites), "attempt": 0, "rounds_done": -1, "fruitless": 0}
        if self._path.exists():
            known |= read_json(self._path)
        self.sites: tuple[str, ...] = tuple(known["sites"])
        self.attempt = int(known["attempt"]) + 1
        self.fruitless = int(known["fruitless"]) + 1 if rounds_done <= int(known["rounds_done"]) else 0
        self.cut_off = bool(known.get("running", False))
        self._facts = {
            "sites": list(self.sites),
            "attempt": self.attempt,
            "first_job": first_job,
            "rounds_done": rounds_done,
            "fruitless": self.fruitless,
        }
        write_json(self._path, {**self._facts, "running": True})

    def ended(self) -> None:
        """The job comes to its end, whatever its outcome.

        Raises:
            OSError: it cannot be written down.
        """
        write_json(self._path, {**self._facts, "running": False})


class Events:
    """``events.jsonl`` and ``progress.json`` in the run's folder: what happened, and where the run stands, in words.

    Args:
        folder: of the run.
        sites: of the run.
    """

    def __init__(self, folder: RunFolder, sites: tuple[str, ...]) -> None:
        self._events = folder.path / "events.jsonl"
        self._status = folder.path / "progress.json"
        self._lock = threading.Lock()
        self._sites = dict.fromkeys(sites, "not heard of yet")
        self._round, self._rounds = _round_of(self._status), 0
        self._note = "waiting for the sites"
        self._told: Counter[str] = Counter()

    def note(self, text: str) -> None:
        """A new part of the run begins."""
        with self._lock:
            self._note = text
            self._write("note", text)

    def tick(self, tick: Tick) -> None:
        """A site answered, or a round ended."""
        with self._lock:
            self._round, self._rounds = tick.round, tick.rounds
            back = "" if tick.sites_back == tick.sites else f", {tick.sites_back} of {tick.sites} sites back"
            score = "" if tick.score is None else f", {tick.metric} {tick.score:.3f}"
            self._note = f"training, round {tick.round} of {tick.rounds}{back}{score}"
            self._save()

    def happened(self, happening: Happening) -> None:
        """Something happened at a site."""
        with self._lock:
            self._told[happening.site] += 1
            if self._told[happening.site] > _MOST_TOLD:  # a site that floods fills no disk
                return
            self._sites[happening.site] = happening.text
            self._write(happening.what, happening.text, happening.site)

    def joined(self, site: str) -> None:
        """A site is there."""
        with self._lock:
            self._sites[site] = "takes part"
            self._write("joined", "takes part", site)

    def cut_off(self, done: int) -> None:
        """The server is back after a job that did not come to its end."""
        with self._lock:
            self._round = done
            text = f"The server was stopped or killed, or its machine failed; the run goes on after round {done}"
            self._write("server-back", text)

    def told(self) -> list[dict[str, Any]]:
        """Everything that happened, jobs before this one included, without notices."""
        if not self._events.exists():
            return []
        lines = [json.loads(line) for line in self._events.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["what"] not in ("notice", "note")]

    def _write(self, what: str, text: str, site: str | None = None) -> None:
        line = {"at": _now(), "what": what, "site": site, "round": self._round, "text": text}
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
        self._save()

    def _save(self) -> None:
        write_json(
            self._status,
            {"at": _now(), "stands": self._note, "round": self._round, "rounds": self._rounds, "sites": self._sites},
        )


def _round_of(status: Path) -> int:
    """The round that an earlier job's status says; 0 where there is none."""
    try:
        return int(json.loads(status.read_text(encoding="utf-8"))["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def returned_sites(folder: Path) -> frozenset[str]:
    """Sites that came back while a run went on without them, as the engine noted."""
    return frozenset(path.name for path in folder.glob("*")) if folder.is_dir() else frozenset()


def note_returned(folder: Path, site: str) -> None:
    """Note that a site came back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / site).touch()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def leave_result(job: JobContext, folder: RunFolder) -> None:
    """Leave the run where the engine hands a job's files to its submitter."""
    result = job.app / RESULT
    shutil.rmtree(result, ignore_errors=True)
    shutil.copytree(folder.path, result, ignore=shutil.ignore_patterns("state", "*.tmp"))


def part(postman: Postman, sites: Sequence[str], reason: str) -> None:
    """Say farewell to ``sites``, wait a moment for it to arrive, and end the links."""
    for site in sites:
        postman.send(site, encode(Farewell(reason=reason[:LONGEST_TEXT])))
    postman.flush(_FAREWELL_S, sites)
    postman.close()
