"""Where and with how many threads torch computes."""

import os
from typing import Literal

import torch

from medveil.errors import ConfigError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that the plan asks for.

    Raises:
        ConfigError: a GPU is asked for and none is there.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError(
            "The plan asks for a GPU and this machine has none that torch can use",
            got='performance.device = "cuda"',
            expected="an NVIDIA GPU with a CUDA build of torch",
            remedy='set performance.device = "auto"',
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


def be_deterministic(device: torch.device) -> None:
    """Ask torch for operations that give the same result every time.

    On a CPU one that cannot raises an error. On a GPU some layers have no such operation; torch then warns and the
    run may differ in the last digits.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=device.type == "cuda")


def one_thread() -> None:
    """Make the calling thread compute on one core.

    Sums are then taken in one order, so results depend neither on the number of cores nor on other workers.
    """
    torch.set_num_threads(1)
