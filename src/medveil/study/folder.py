"""The run folder: where each file lies, and writes that a crash cannot tear."""

import fcntl
import hashlib
import itertools
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medveil.disk import replace_file
from medveil.errors import ResumeError, RunError


class RunFolder:
    """Paths inside one run's folder.

    Args:
        path: of the folder; made by :meth:`claim` when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "record.json"
        self.plan = path / "plan.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.weights = path / "weights.safetensors"
        self.references = path / "references"
        self.examples = path / "examples.npz"
        self.card = path / "model_card.md"
        self.manifest = path / "manifest.json"
        self.report = path / "report.html"
        self.state = path / "state"
        self.seen = self.state / "seen.txt"
        self.inputs = self.state / "inputs.json"
        self.ledgers = path / "ledgers"
        self.outboxes = self.state / "outboxes"
        self.red_team = path / "red_team"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunError: it holds something that is not a run, another process holds it, or it cannot be made.
        """
        self._refuse_foreign()
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = (self.state / "lock").open("w")
        except OSError as error:
            raise RunError(
                "The run folder cannot be written",
                got=error.strerror,
                expected="a folder that this user may write",
                remedy="choose another --out",
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    "Another process is working in this run folder",
                    expected="one process a run",
                    remedy="wait for it, or choose another --out",
                ) from None
            yield

    def bind_plan(self, content: dict[str, Any]) -> None:
        """Write the plan, or check that the folder belongs to it.

        Args:
            content: with the key ``plan_hash``.

        Raises:
            ResumeError: the folder holds a run of another plan, or checkpoints without a plan.
        """
        if not self.plan.exists():
            if any(self.state.glob("*.safetensors")):
                raise ResumeError(
                    "The run folder holds checkpoints but not the plan that they belong to",
                    expected=f"the file {self.plan.name}",
                    remedy="choose another --out",
                )
            write_json(self.plan, content)
            return
        stored = read_json(self.plan).get("plan_hash", "")
        if stored != content["plan_hash"]:
            raise ResumeError(
                "The run folder was begun with another plan",
                got=f"plan {content['plan_hash'][:12]}",
                expected=f"plan {stored[:12]}, as the folder has it",
                remedy="choose another --out, or go back to the plan that the folder was begun with",
            )

    def bind_inputs(self, inputs: dict[str, Any]) -> None:
        """Write the digests of what is trained on, or check that they are what the run began with.

        Raises:
            ResumeError: the data, the network or the first weights changed since.
        """
        if not self.inputs.exists():
            write_json(self.inputs, inputs)
            return
        stored = read_json(self.inputs)
        changed = sorted(name for name in inputs if stored.get(name) != inputs[name])
        if changed:
            raise ResumeError(
                "What the run trains on changed since it began",
                got=f"other {', '.join(changed)}",
                expected="the same data, network and first weights",
                remedy="choose another --out, or bring back what was there",
            )

    def run_id(self) -> str:
        """A random name for this run, made once: two runs of one plan are two entries in a privacy ledger."""
        path = self.state / "run-id"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def checkpoint(self, arm: str) -> Path:
        """Checkpoint file of an arm."""
        return self.state / f"{file_name(arm)}.safetensors"

    @property
    def decided(self) -> Path:
        """What the sites were asked to open."""
        return self.state / "decided.json"

    def lines(self, arm: str) -> Path:
        """File with an arm's metrics of every round, beside its checkpoint."""
        return self.state / f"{file_name(arm)}.rounds.jsonl"

    def reference(self, arm: str) -> Path:
        """Weights file of a reference."""
        return self.references / f"{file_name(arm)}.safetensors"

    def artifacts(self) -> list[Path]:
        """Files that the manifest covers, those that are there."""
        named = [self.plan, self.environment, self.metrics, self.weights, self.examples, self.card, self.record]
        return [path for path in (*named, *sorted(self.references.glob("*.safetensors"))) if path.is_file()]

    def _refuse_foreign(self) -> None:
        """A folder with other things in it is not a run's: they would be mixed up with it."""
        if not self.path.is_dir() or self.plan.exists():
            return
        others = [path for path in self.path.iterdir() if path.name != self.state.name and path.suffix != ".tmp"]
        if others:
            raise RunError(
                "The folder for the run is not empty and holds no run",
                got=f"{len(others)} other files or folders",
                expected="a new or empty folder, or one with a run that was interrupted",
                remedy="choose another --out",
            )


def file_name(arm: str) -> str:
    """A file name for an arm: its own name where that is harmless, else with a hash, never the same for two.

    >>> file_name("local_only/site-1")
    'local_only-site-1'
    """
    readable = re.sub(r"[^A-Za-z0-9_.]+", "-", arm)[:60]
    plain = arm.replace("/", "-", 1) == readable and "--" not in arm
    return readable if plain else f"{readable}-{hashlib.sha256(arm.encode()).hexdigest()[:12]}"


class RoundLines:
    """An arm's metrics of every round, beside its checkpoint.

    The checkpoint remembers their number only: memory and the writing of a checkpoint do not grow with the rounds.

    Args:
        path: of the file.
        count: what the checkpoint says of them: the number of lines that it vouches for; what follows them belongs to
            a round that is done again.

    Raises:
        ResumeError: there are fewer, or another version of medveil wrote the checkpoint.
    """

    def __init__(self, path: Path, count: object) -> None:
        if not isinstance(count, int):
            raise ResumeError(
                "The run was begun with a version of medveil that kept its metrics otherwise",
                remedy="finish it with that version, or start again in a new folder",
            )
        self._path = path
        self.count = count
        if not count:
            path.unlink(missing_ok=True)
            return
        kept = self.read()
        with path.open("r+b") as file:
            file.truncate(sum(len(line) for line in kept))

    def read(self) -> list[bytes]:
        """The lines, with their line feeds.

        Raises:
            ResumeError: not all are there.
        """
        if not self.count:
            return []
        lines: list[bytes] = []
        if self._path.exists():
            with self._path.open("rb") as file:
                lines = list(itertools.islice(file, self.count))
        if len(lines) < self.count or not lines[-1].endswith(b"\n"):
            raise ResumeError(
                "The metrics of the run's rounds are damaged",
                got=f"{len(lines)} lines of {self._path.name}",
                expected=f"{self.count}, as the checkpoint says",
                remedy="restore the run folder from a backup, or start again in a new one",
            )
        return lines

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.count += 1


class MetricsLog:
    """``metrics.jsonl``: one line a round and arm; threads may share it.

    Args:
        path: of the file; begun anew, since every arm writes again what its checkpoint remembers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        write_text(path, "")

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add lines."""
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write atomically: afterwards the file is the old one or the new one, on disk."""
    replace_file(path, data)


def write_json(path: Path, content: Any) -> None:
    """Write atomically, keys sorted, NaN refused."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that medveil wrote.

    Raises:
        RunError: missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            "The run folder lacks a file",
            got=f"no {path.name}",
            expected="the folder of a finished run",
            remedy="check the path, or run medveil train with this folder as --out",
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name} is damaged", got=type(error).__name__, expected="JSON") from None
    if not isinstance(content, dict):
        raise RunError(f"{path.name} is damaged", got=type(content).__name__, expected="a JSON object")
    return content
