"""What the coordinator must remember to go on after a crash: one file, written at once."""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medveil.errors import ResumeError

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a training that stands between two rounds.

    Args:
        round: rounds committed.
        tensors: weights, moments and whatever else, by name.
        facts: JSON values: history, best score, counters.
    """

    round: int
    tensors: Tensors
    facts: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, NDArray[np.generic]]:
        """Tensors whose name starts with ``prefix``, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write atomically: after a crash the file is the old one or the new one, never a mixture."""
    temporary = path.with_name(path.name + ".tmp")
    facts = json.dumps({"round": snapshot.round, "facts": dict(snapshot.facts)})
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in snapshot.tensors.items()}
    try:
        save_file(arrays, temporary, metadata={"medveil": facts})
    except SafetensorError as error:  # it hides what the operating system said
        raise OSError(errno.EIO, f"a checkpoint cannot be written ({error})") from None
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def load_snapshot(path: Path) -> Snapshot | None:
    """The snapshot at ``path``, or None when there is none.

    Raises:
        ResumeError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as stored:
            facts = json.loads(stored.metadata()["medveil"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(
            "A checkpoint of the run is damaged",
            got=type(error).__name__,
            expected="a checkpoint written by medveil",
            remedy="delete the run folder and start again",
        ) from None
    return Snapshot(round=int(facts["round"]), tensors=tensors, facts=facts["facts"])
