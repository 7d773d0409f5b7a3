"""The plan's ``[training]`` and ``[performance]`` tables."""

import os
from typing import Literal

from pydantic import Field, field_validator

from medveil.configuration import Config
from medveil.training.augmentation import Augmentation
from medveil.training.objectives import CrossEntropy, Loss
from medveil.training.optimisers import Adam, Optimiser, Schedule


class Training(Config):
    """How one party trains.

    Attributes:
        batch_size: examples a step.
        optimiser: of a site's local steps (FedAvg, FedProx), of the server (FedSGD), of the references.
        schedule: of the learning rate over the whole training.
        loss: per example, averaged over the batch.
        class_weights: "none", "balanced" (each party counts its own labels) or one positive weight per class.
        augmentation: of training images.
        view_pool: views of every image that are drawn once and used again and again; 0 draws fresh ones each step.
            With a network whose front is frozen (scattering), only the rest then runs in a step.
        max_grad_norm: the batch gradient is scaled down to this L2 norm for stability; not a privacy guarantee.
        amp: "off", or "bf16" for mixed precision in bfloat16.
    """

    batch_size: int = Field(64, ge=1)
    optimiser: Optimiser = Adam(lr=1e-3)
    schedule: Schedule = Schedule()
    loss: Loss = CrossEntropy()
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    augmentation: Augmentation = Augmentation()
    view_pool: int = Field(0, ge=0, le=64)
    max_grad_norm: float | None = Field(None, gt=0)
    amp: Literal["off", "bf16"] = "off"

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, tuple) and not all(weight > 0 for weight in value):
            raise ValueError("one positive weight per class")
        return value


class Performance(Config):
    """Settings that change speed and memory only; no guarantee and no figure's meaning depends on them.

    Attributes:
        device: "cpu", "cuda" or "auto" (a GPU when there is one).
        workers: parties that compute at the same time, each on one thread; 0 takes one per core. On a CPU the
            result does not depend on it.
        eval_batch_size: images a forward pass when no gradient is needed.
        dp_method: how per-patient gradients are computed; "auto" times the ways that fit the network, on noise.
        dp_chunk: images whose gradients are held at a time; 0 chooses.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(0, ge=0)
    eval_batch_size: int = Field(256, ge=1)
    dp_method: Literal["auto", "layerwise", "vmap", "microbatch"] = "auto"
    dp_chunk: int = Field(0, ge=0)

    def worker_count(self) -> int:
        """Threads that compute at the same time."""
        return self.workers or len(os.sched_getaffinity(0))
