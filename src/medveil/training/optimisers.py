"""Optimisers, schedules, and their state as plain tensors (never a pickle)."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.errors import ResumeError


class Sgd(Config):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0, le=1e30)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self


class Adam(Config):
    """Adam with decoupled weight decay (AdamW; without decay the two are one)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(gt=0, le=1e30)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


Optimiser = Annotated[Sgd | Adam, Field(discriminator="kind")]


class Schedule(Config):
    """Learning rate over the whole training, as a factor of ``lr``.

    Attributes:
        kind: "constant", "cosine" (down to ``final``) or "linear" (likewise).
        warmup: first part of the training, as a fraction, over which the factor rises from 0.
        final: last factor.
    """

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)
    final: float = Field(0.0, ge=0, le=1)

    def factor(self, progress: float) -> float:
        """Factor at ``progress`` in [0, 1].

        >>> Schedule(kind="cosine").factor(0.5)
        0.5
        """
        if progress < self.warmup:
            return progress / self.warmup
        part = (progress - self.warmup) / (1 - self.warmup)
        if self.kind == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * part)) / 2
        return 1.0 if self.kind == "constant" else 1 - (1 - self.final) * part


def build_optimiser(parameters: Iterable[torch.Tensor], config: Sgd | Adam) -> torch.optim.Optimizer:
    """The torch optimiser that ``config`` describes."""
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments and counters as named tensors: ``"<parameter index>.<name>"``."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).clone()
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo :func:`optimiser_state`.

    Raises:
        ResumeError: a name that is not of that form.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdigit() or not name:
            raise ResumeError("The saved optimiser state is damaged", remedy="delete the run folder and start again")
        state.setdefault(int(index), {})[name] = tensor
    full = optimiser.state_dict()
    full["state"] = state
    optimiser.load_state_dict(full)
