"""What the coordinator does with the sites' weighted mean."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.training.optimisers import (
    Adam,
    Schedule,
    Sgd,
    build_optimiser,
    optimiser_state,
    restore_optimiser,
    set_lr,
)
from medveil.training.vectors import Vector, from_vector, to_vector

State = dict[str, NDArray[np.generic]]


class ServerStep(Protocol):
    """From the weights of this round and the mean of the updates to the weights of the next."""

    def apply(self, weights: Vector, mean: NDArray[np.float64], progress: float) -> Vector:
        """New weights, shape (d,), float32; ``progress`` in [0, 1] of the whole training."""
        ...

    def state(self) -> State:
        """What must survive a restart."""
        ...

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Undo :meth:`state`."""
        ...


class Averaging:
    """FedAvg: add the mean change, in float64.

    A sole site's weights come back to the last bit, unless one shrank more than 2**28-fold in a round.
    """

    def apply(self, weights: Vector, mean: NDArray[np.float64], progress: float) -> Vector:
        """``weights + mean``, rounded once."""
        del progress
        return (weights.astype(np.float64) + mean).astype(np.float32)

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Nothing."""
        del state


class ServerOptimiser:
    """A torch optimiser over the model's own shapes, so that its arithmetic is that of central training.

    Args:
        config: of the optimiser.
        schedule: of its learning rate.
        shapes: of the trainable parameters, in order.
        direction: +1 when the mean is a gradient (FedSGD), -1 when it is a change (FedOpt).
    """

    def __init__(self, config: Sgd | Adam, schedule: Schedule, shapes: Sequence[torch.Size], *, direction: int) -> None:
        self._tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        self._optimiser = build_optimiser(self._tensors, config)
        self._lr = config.lr
        self._schedule = schedule
        self._direction = direction

    def apply(self, weights: Vector, mean: NDArray[np.float64], progress: float) -> Vector:
        """One step of the optimiser."""
        from_vector(weights, self._tensors)
        gradients = [torch.empty_like(tensor) for tensor in self._tensors]
        from_vector((self._direction * mean).astype(np.float32), gradients)
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = gradient
        set_lr(self._optimiser, self._lr * self._schedule.factor(progress))
        self._optimiser.step()
        return to_vector(self._tensors)

    def state(self) -> State:
        """Moments and counters."""
        return {name: tensor.numpy() for name, tensor in optimiser_state(self._optimiser).items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Moments and counters."""
        restore_optimiser(self._optimiser, {name: torch.from_numpy(np.array(value)) for name, value in state.items()})
