"""What is attacked: a model and its loss, patients' images, and what the attacker has seen of others."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medveil.data.subject import Task
from medveil.dp.clipping import Clipping
from medveil.errors import AttackError
from medveil.training.arrays import InputScale
from medveil.training.settings import Training
from medveil.training.vectors import trainable

Losses = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets) -> the loss of every example, shape (N,)."""


@dataclass(frozen=True)
class Protection:
    """What a run's differential privacy does to one release, and what it promises for the whole.

    Args:
        clipping: of one unit's gradient.
        noise_multiplier: noise over clip norm against the attacker with whom the guarantee counts.
        sampling_rate: of a unit in a step.
        steps: of the training.
        delta: of the guarantee.
        epsilon: of the whole training.
        relation: between neighbouring data sets.
        sites: whose sum is released.
    """

    clipping: Clipping
    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float
    epsilon: float
    relation: str = "add-remove"
    sites: int = 1


@dataclass(frozen=True, eq=False)
class Scene:
    """The setting of all attacks on one run. Images are float32 in 0..1 (z-scored ones as they are), unscaled.

    Args:
        model: as the attacker knows it before the step; attacks leave its weights as they find them.
        trained: the finished model.
        loss: of every example.
        scale: from images to the network's input.
        task: "classification" or "segmentation".
        num_classes: background included.
        images: of training patients, shape (N, channels, *spatial): attacked ones, members, distractors.
        targets: shape (N,) or (N, *spatial), int64.
        subject: whose image it is, shape (N,).
        public: images that no training saw, the attacker's knowledge of what such images look like.
        public_targets: of them.
        public_subject: whose they are.
        training: the plan's table.
        optimiser_steps: local steps of one update of the plan; 1 for FedSGD.
        batch_size: images of one local step.
        sites: of the run.
        protection: of the run; None where it has none.
        reference: what to show protected rows with where the run has none: hypothetical, and said to be so.
    """

    model: nn.Module
    trained: nn.Module
    loss: Losses
    scale: InputScale
    task: Task
    num_classes: int
    images: Tensor
    targets: Tensor
    subject: NDArray[np.int64]
    public: Tensor
    public_targets: Tensor
    public_subject: NDArray[np.int64]
    training: Training = field(default_factory=Training)
    optimiser_steps: int = 1
    batch_size: int = 32
    sites: int = 1
    protection: Protection | None = None
    reference: Protection | None = None

    @property
    def shown(self) -> Protection | None:
        """The run's protection, or the hypothetical one."""
        return self.protection or self.reference

    def gradient(self, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Gradient of the mean loss over ``images`` by every trainable parameter; by images too with ``create_graph``.

        Args:
            images: shape (n, channels, *spatial), unscaled.
            targets: class indices, or probabilities of classes (n, classes, ...) where the loss takes them.
            create_graph: so that the result can be differentiated.
        """
        value = self.loss(self.model(self.scaled(images)), targets).mean()
        return torch.autograd.grad(value, trainable(self.model), create_graph=create_graph)

    def scaled(self, images: Tensor) -> Tensor:
        """The network's input; differentiable."""
        return (images - self.scale.shift) / self.scale.scale


def check_enough(scene: Scene, fewest: int, purpose: str) -> None:
    """Refuse a scene with too few patients or public images.

    Args:
        scene: to be attacked.
        fewest: of either.
        purpose: what they are for, to follow "Too few patients".

    Raises:
        AttackError: fewer than ``fewest``.
    """
    for count, what in ((len(np.unique(scene.subject)), "patients"), (len(scene.public), "public images")):
        if count < fewest:
            raise AttackError(
                f"Too few {what} {purpose}",
                got=count,
                expected=f"at least {fewest}",
                remedy="attack a run with more data, or leave this attack out",
            )
