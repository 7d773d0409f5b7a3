"""The training step of one party, for every mode: central, local-only and federated."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from medveil.errors import ConfigError, DivergedError
from medveil.rng import Seeds
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.batches import batch_indices, steps_per_epoch
from medveil.training.objectives import balanced_weights, per_example_loss
from medveil.training.optimisers import set_lr
from medveil.training.settings import Training
from medveil.training.vectors import trainable
from medveil.training.views import Views

# Dropout draws from torch's global generator, which threads share.
_GLOBAL_RANDOMNESS = threading.Lock()
_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd,)  # noqa: SLF001 - torch has no public base of its dropout layers


@dataclass(frozen=True)
class Proximal:
    """FedProx's pull towards the weights that the round began with (Li et al. 2020, arXiv 1812.06127).

    Args:
        mu: strength, >= 0; the loss grows by mu/2 times the squared distance.
        anchor: one tensor per trainable parameter.
    """

    mu: float
    anchor: tuple[torch.Tensor, ...]


class Trainer:
    """One party's model, data and settings.

    Step ``t`` is a function of (weights, optimiser state, seeds, t) only, so any step can be repeated.

    Args:
        model: already on its device; trained in place.
        data: at least one example.
        settings: the plan's training table.
        scale: of the input.
        num_classes: of the task.
        seeds: of this party.
        device: where the model is.
        halt: once set, training ends at the next step with a KeyboardInterrupt.
        pool_seeds: of views that are drawn once; None takes a child of ``seeds``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ArrayData,
        settings: Training,
        *,
        scale: InputScale,
        num_classes: int,
        seeds: Seeds,
        device: torch.device,
        halt: threading.Event | None = None,
        pool_seeds: Seeds | None = None,
    ) -> None:
        self.model = model
        self.parameters = trainable(model)
        self._data = data
        self._settings = settings
        self._seeds = seeds
        self._device = device
        self._views = Views(
            model,
            data,
            scale=scale,
            augmentation=settings.augmentation,
            pool=settings.view_pool,
            seeds=pool_seeds or seeds.child("pool"),
            device=device,
        )
        self._amp = settings.amp == "bf16"
        self._random = any(isinstance(layer, _RANDOM_LAYERS) for layer in model.modules())
        self._weights = self._class_weights(num_classes)
        self._halt = halt

    @property
    def num_examples(self) -> int:
        """Training examples of this party."""
        return len(self._data)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the data."""
        return steps_per_epoch(len(self._data), self._settings.batch_size)

    def accumulate_gradient(self, step: int, proximal: Proximal | None = None) -> float | None:
        """Set every parameter's gradient to that of batch ``step``; return the batch's mean loss.

        Raises:
            DivergedError: the loss is not finite.
        """
        self._check_halt()
        self.model.train()
        for parameter in self.parameters:
            parameter.grad = None
        with self._reproducible(step):
            value = self._backward(step)
        if proximal is not None:
            with torch.no_grad():
                for parameter, anchor in zip(self.parameters, proximal.anchor, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - anchor, alpha=proximal.mu)
        if self._settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._settings.max_grad_norm)
        return value

    def run(
        self,
        optimiser: torch.optim.Optimizer,
        *,
        first_step: int,
        count: int,
        total_steps: int,
        proximal: Proximal | None = None,
    ) -> float | None:
        """Take steps ``first_step`` .. ``first_step + count - 1`` of ``total_steps``; return their mean loss.

        Returns:
            The loss, or None where it may not be known (private training).

        Raises:
            DivergedError: the loss or, afterwards, a weight is not finite.
        """
        losses: list[float | None] = []
        for step in range(first_step, first_step + count):
            losses.append(self.accumulate_gradient(step, proximal))
            set_lr(optimiser, self.learning_rate(step / total_steps))
            optimiser.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters):
            raise diverged("weights")
        return None if None in losses else sum(loss or 0.0 for loss in losses) / max(count, 1)

    def learning_rate(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1] of the whole training."""
        return self._settings.optimiser.lr * self._settings.schedule.factor(progress)

    def _check_halt(self) -> None:
        if self._halt is not None and self._halt.is_set():
            raise KeyboardInterrupt

    def _backward(self, step: int) -> float | None:
        """Add the gradient of batch ``step`` to the parameters; return the batch's mean loss."""
        loss = self._batch_loss(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise diverged("loss")
        loss.backward()  # type: ignore[no-untyped-call] # torch does not type it
        return value

    def _batch_loss(self, step: int) -> torch.Tensor:
        picked = torch.from_numpy(
            batch_indices(
                self._seeds.child("batches"),
                step,
                num_examples=len(self._data),
                batch_size=self._settings.batch_size,
            )
        )
        inputs, targets = self._views.draw(picked, self._draws("augment", step))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._amp):
            logits = self._views.network(inputs)
        return self._losses(logits.float(), targets).mean()

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return per_example_loss(logits, targets, self._settings.loss, self._weights)

    @contextmanager
    def _reproducible(self, step: int) -> Iterator[None]:
        """Seed torch's global generator for models with dropout, and give it back as it was."""
        if not self._random:
            yield
            return
        with _GLOBAL_RANDOMNESS, torch.random.fork_rng():
            torch.manual_seed(self._draws("dropout", step).integer())
            yield

    def _draws(self, name: str, step: int) -> Seeds:
        """Seeds of a step's views or of its dropout."""
        return self._seeds.child(name, step)

    def _class_weights(self, num_classes: int) -> torch.Tensor | None:
        chosen = self._settings.class_weights
        if chosen == "none":
            return None
        if chosen == "balanced":
            return balanced_weights(self._data.targets, num_classes).to(self._device)
        if len(chosen) != num_classes:
            raise ConfigError(
                "training.class_weights does not have one weight per class",
                got=f"{len(chosen)} weights",
                expected=f"{num_classes}",
                remedy="give one positive weight for every class, background included, in the order of the classes",
            )
        return torch.tensor(chosen, dtype=torch.float32, device=self._device)


def diverged(what: str) -> DivergedError:
    """The error of a training whose ``what`` is no longer finite."""
    return DivergedError(
        f"The training diverged: its {what} is no longer finite",
        expected="finite numbers",
        remedy="lower training.optimiser.lr, set training.max_grad_norm, or check the images' range",
    )
