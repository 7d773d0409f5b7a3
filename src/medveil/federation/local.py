"""A site's own work in torch: train from given weights, score given weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from medveil.errors import DivergedError, ProtocolError, UnsupportedModelError
from medveil.federation.settings import Algorithm, FedProx, FedSgd
from medveil.federation.site import LocalResult
from medveil.training.device import one_thread
from medveil.training.loop import Proximal, Trainer
from medveil.training.optimisers import Adam, Sgd, build_optimiser
from medveil.training.private import PrivateTrainer
from medveil.training.validation import Scores
from medveil.training.vectors import Vector, floating_buffers, from_vector, to_vector


@dataclass(frozen=True, eq=False)
class LocalWork:
    """Implements :class:`medveil.federation.site.Work` with torch.

    Args:
        trainer: model, data and settings of the site.
        algorithm: of the federation.
        optimiser: of local steps; made anew each round, so that no state outlives a round.
        rounds: of the whole training, for the schedule.
        score: validation of the trainer's model, or None when the site has no validation data.
        num_validation: validation examples.
        silent: tell neither the size of the data nor the loss: a privacy claim covers them.
        hidden: a training that diverges counts as no change, because whether it did would tell about the whole site.
        inspect: looks at the weights that arrived, in the trainer's model, before they are trained; raises what refuses
            them. It must not look at the site's data.
    """

    trainer: Trainer
    algorithm: Algorithm
    optimiser: Sgd | Adam
    rounds: int
    score: Callable[[], Scores] | None
    num_validation: int
    silent: bool = False
    hidden: bool = False
    inspect: Callable[[], None] | None = None

    @property
    def num_examples(self) -> int | None:
        """Training examples, or None where their number is private."""
        return None if self.silent else self.trainer.num_examples

    def train(self, round_number: int, weights: Vector, buffers: Vector) -> LocalResult:
        """Work of one round; round numbers start at 1.

        Raises:
            ProtocolError: a round that the plan does not have, or weights of another size.
            GuaranteeError: weights that look crafted to copy images into the update.
            DivergedError: the loss or the weights are no longer finite.
        """
        if not 1 <= round_number <= self.rounds:
            raise ProtocolError(
                "The coordinator asks for a round that the plan does not have",
                got=round_number,
                expected=f"1 to {self.rounds}",
            )
        one_thread()
        self._load(weights, buffers)
        if self.inspect is not None:
            self.inspect()
        if isinstance(self.algorithm, FedSgd):
            if isinstance(self.trainer, PrivateTrainer) and self.trainer.shares_noise:
                return LocalResult("grid", self.trainer.encoded_step(round_number - 1), self._buffers(), None)
            loss = self._told(self.trainer.accumulate_gradient(round_number - 1))
            gradients = [_gradient(parameter) for parameter in self.trainer.parameters]
            return LocalResult("mean", to_vector(gradients), self._buffers(), loss)
        try:
            loss = self._told(self._local_steps(round_number))
        except DivergedError:
            if not self.hidden:
                raise
            self._load(weights, buffers)
            loss = None
        return LocalResult("weights", to_vector(self.trainer.parameters), self._buffers(), loss)

    def validate(self, weights: Vector, buffers: Vector) -> Scores:
        """Scores of ``weights`` on the site's validation data; {} without any."""
        if self.score is None:
            return {}
        one_thread()
        self._load(weights, buffers)
        return self.score()

    def _local_steps(self, round_number: int) -> float | None:
        steps = local_steps(self.algorithm, self.trainer.steps_per_epoch)
        proximal = None
        if isinstance(self.algorithm, FedProx):
            anchor = tuple(parameter.detach().clone() for parameter in self.trainer.parameters)
            proximal = Proximal(self.algorithm.mu, anchor)
        return self.trainer.run(
            build_optimiser(self.trainer.parameters, self.optimiser),
            first_step=(round_number - 1) * steps,
            count=steps,
            total_steps=self.rounds * steps,
            proximal=proximal,
        )

    def _told(self, loss: float | None) -> float | None:
        return None if self.silent else loss

    def _load(self, weights: Vector, buffers: Vector) -> None:
        for vector, tensors in ((weights, self.trainer.parameters), (buffers, floating_buffers(self.trainer.model))):
            expected = sum(tensor.numel() for tensor in tensors)
            if len(vector) != expected:
                raise ProtocolError(
                    "The coordinator's weights do not fit this site's model",
                    got=f"{len(vector)} numbers",
                    expected=expected,
                    remedy="run the same plan with the same version of medveil at every site",
                )
            from_vector(vector, tensors)

    def _buffers(self) -> Vector:
        return to_vector(floating_buffers(self.trainer.model))


def local_steps(algorithm: Algorithm, steps_per_epoch: int) -> int:
    """Steps that a site takes in a round."""
    if isinstance(algorithm, FedSgd):
        return 1
    return algorithm.local_steps or (algorithm.local_epochs or 0) * steps_per_epoch


def check_buffers(model: torch.nn.Module, policy: str) -> None:
    """Refuse a model with running statistics unless the plan says what happens to them.

    Raises:
        UnsupportedModelError: the model has floating-point buffers and the policy is "refuse".
    """
    count = len(floating_buffers(model))
    if count and policy == "refuse":
        raise UnsupportedModelError(
            "The model keeps running statistics of the data (batch normalisation, for example)",
            got=f"{count} floating-point buffers",
            expected='none, while federation.buffers = "refuse"',
            remedy='choose a model without batch statistics, or set federation.buffers = "average"',
        )


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
