"""Checks of the machine and the installation: what was found, and what to do about it."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from medveil.errors import MedveilError
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.study.inspect import catalogue_status
from medveil.study.manifest import key_path, signing_key

State = Literal["ok", "note", "problem"]
Finding = dict[str, str]
_GIB = 1 << 30
_MIN_MEMORY_GIB = 4
_MIN_DISK_GIB = 2


def examine() -> list[Finding]:
    """All checks, in the order in which a reader wants them; no check reads patient data."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _libraries, _compute, _memory, _disk, _key, _data)
    return [finding for check in checks for finding in check()]


def _finding(state: State, what: str, found: object, remedy: str = "") -> Finding:
    return {"state": state, "what": what, "found": str(found), "remedy": remedy}


def _python() -> Iterator[Finding]:
    yield _finding("ok", "Python", sys.version.split()[0])


def _libraries() -> Iterator[Finding]:
    for line in metadata.requires("medveil") or []:
        if "extra ==" in line:
            continue
        name = line.split(";")[0].split(">")[0].split("=")[0].strip()
        try:
            yield _finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield _finding("problem", name, "not installed", "pip install medveil")


def _compute() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (training runs on the processor)"
    yield _finding("ok", "Cores", cores)
    yield _finding("ok" if torch.cuda.is_available() else "note", "GPU", gpu)
    model = build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=0)
    answer = model(torch.zeros(2, 1, 28, 28))
    sound = answer.shape == (2, 2) and bool(torch.isfinite(answer).all())
    yield _finding(
        "ok" if sound else "problem",
        "Forward pass",
        "finite" if sound else "not finite",
        "" if sound else "reinstall torch",
    )


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    enough = total >= _MIN_MEMORY_GIB
    yield _finding("ok" if enough else "note", "Memory", f"{total:.0f} GiB", "" if enough else "use 28x28 plans")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    enough = free >= _MIN_DISK_GIB
    yield _finding(
        "ok" if enough else "problem", "Free disk here", f"{free:.0f} GiB", "" if enough else "free some space"
    )


def _key() -> Iterator[Finding]:
    try:
        fresh = not key_path().exists()
        signing_key()
    except (MedveilError, OSError) as error:
        yield _finding("problem", "Signing key", type(error).__name__, "set MEDVEIL_HOME to a folder you may write")
        return
    loose = key_path().stat().st_mode & 0o077
    if loose:
        yield _finding("problem", "Signing key", "readable by others", "chmod 600 the file signing.pem")
    else:
        yield _finding("ok", "Signing key", "made now" if fresh else "found")


def _data() -> Iterator[Finding]:
    for row in catalogue_status():
        remedy = "" if row["found"] else f"set MEDVEIL_DATA, or: medveil data download {row['name']}"
        yield _finding(
            "ok" if row["found"] else "note", f"Data set {row['name']}", "here" if row["found"] else "not here", remedy
        )
