"""What a run ran on: versions and machine, nothing that names a person or a path."""

import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import medveil

_LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-learn", "pydicom", "nibabel", "pillow", "safetensors")
_KIB = 1024


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor and operating system, as JSON values."""
    return {
        "medveil": medveil.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB of 10**6 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / 1e6


def _revision() -> str | None:
    """Git commit of the source tree, or None when this is an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(  # noqa: S603 - fixed arguments and our own folder
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607 - git is found on the user's path
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
