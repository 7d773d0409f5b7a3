"""What is audited, and the real private step run on synthetic units with chosen coins.

Nothing of the step is written a second time here: every figure is read from the gradient that
:class:`medveil.training.private.PrivateTrainer` sets. Coins from a known seed are used only where two runs must share
them, so that their noise cancels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.accounting.events import PoissonGaussian
from medveil.data.subject import Task
from medveil.dp.clipping import AdaptiveClipping, sum_noise_multiplier
from medveil.dp.engine import Choice, run
from medveil.dp.gradients import GradientEngine
from medveil.dp.methods import WHAT_AUTOGRAD_RAISES, Method
from medveil.dp.plan import StepPlan
from medveil.dp.settings import Unit
from medveil.errors import GuaranteeError
from medveil.federation.secure.packing import NoisyPacking
from medveil.federation.update import Contribution
from medveil.rng import SecureRandom, Seeds
from medveil.secagg.ring import Bits
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.augmentation import Augmentation
from medveil.training.objectives import per_example_loss
from medveil.training.private import Privately, PrivateTrainer
from medveil.training.settings import Performance, Training
from medveil.training.vectors import trainable
from medveil.training.views import FrozenFront

QUIET_STD_GRID = 16.0
"""Noise of a twin that should have almost none, in grid units: 1.5e-5 of the clipping bound."""

_LEAST_STD_GRID = 2.0**10
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class AuditedStep:
    """One private step, with everything that decides what it does except patients' data.

    Args:
        model: that the step trains; its weights are read and never changed.
        step: the bound step.
        unit: "patient" or "image".
        training: the plan's table. Random views and the limit on the gradient's norm are switched off: the first
            would give two runs different views of the same images, the second is post-processing.
        input_shape: (channels, *spatial) of one image.
        num_classes: of the task, background included.
        task: "classification" or "segmentation".
        performance: how gradients are computed.
        scale: of the input.
        plain_method: of gradients, where their method is not what is looked at; :meth:`settled` finds it.
        modulus_bits: of the secure sum, where sites share the noise.
    """

    model: nn.Module
    step: StepPlan
    unit: Unit
    training: Training
    input_shape: tuple[int, ...]
    num_classes: int
    task: Task = "classification"
    performance: Performance = field(default_factory=Performance)
    scale: InputScale = field(default_factory=InputScale)
    plain_method: Method = "microbatch"
    modulus_bits: Bits = 64

    @property
    def tensors(self) -> list[tuple[str, int]]:
        """Trainable parameter tensors in the order of the released vector: dotted path and number of values."""
        return [(name, tensor.numel()) for name, tensor in self.model.named_parameters() if tensor.requires_grad]

    def settled(self) -> "AuditedStep":
        """The same with what would differ between two runs fixed: method, views, dropout, movement of the bound.

        Raises:
            GuaranteeError: noise below a thousandth of the clipping bound, which protects nobody and cannot be told
                from rounding here.
        """
        if self.step.noise.std_grid < _LEAST_STD_GRID:
            raise GuaranteeError(
                "The noise is too small to be told from rounding",
                got=f"noise_multiplier {self.step.noise.noise_multiplier:g}",
                expected="at least 0.001",
                remedy="such noise protects nobody: raise it",
            )
        training = self.training.model_copy(
            update={"augmentation": Augmentation(), "view_pool": 0, "max_grad_norm": None}
        )
        settled = replace(self, model=without_dropout(self.model), step=frozen_bound(self.step), training=training)
        choice, plain = _methods(settled)
        performance = {"device": "cpu", "dp_method": choice.method, "dp_chunk": choice.chunk_size}
        return replace(settled, performance=self.performance.model_copy(update=performance), plain_method=plain)

    def plainly(self) -> "AuditedStep":
        """The same, gradients by a method that keeps examples apart by construction and needs no trial."""
        return replace(self, performance=self.performance.model_copy(update={"dp_method": self.plain_method}))

    def trainer(self, data: ArrayData, random: SecureRandom) -> PrivateTrainer:
        """The real trainer of these units."""
        return PrivateTrainer(
            self.model,
            data,
            self.training,
            private=Privately(step=self.step, unit=self.unit, random=random),
            performance=self.performance,
            scale=self.scale,
            num_classes=self.num_classes,
            seeds=Seeds(0),
            device=_CPU,
        )


def _methods(audited: AuditedStep) -> tuple[Choice, Method]:
    """What a trainer of this step would take, and a method without trial: "vmap" where torch can."""
    model, weights = audited.model, audited.training.class_weights
    images = torch.zeros(2, *audited.input_shape)
    targets = torch.zeros(2, *(audited.input_shape[1:] if audited.task == "segmentation" else ()), dtype=torch.int64)
    if isinstance(model, FrozenFront):
        with torch.no_grad():
            images, model = model.front(images), model.head
    loss = partial(
        per_example_loss,
        config=audited.training.loss,
        class_weights=None if isinstance(weights, str) else torch.tensor(weights, dtype=torch.float32),
    )
    chunk = audited.performance.dp_chunk or None
    engine = GradientEngine(model, loss, method=audited.performance.dp_method, chunk_size=chunk)
    try:
        run("vmap", model, loss, images, targets)
    except WHAT_AUTOGRAD_RAISES:
        return engine.choice(images, targets), "microbatch"
    return engine.choice(images, targets), "vmap"


@dataclass(frozen=True, eq=False)
class Released:
    """What a step gave, before the learning rate.

    Attributes:
        total: shape (dimension,), float64: the gradient times the public divisor, that is the noisy sum.
        error: bound on the L2 norm of what the float32 gradient lost of it.
    """

    total: NDArray[np.float64]
    error: float


def releases(audited: AuditedStep, data: ArrayData, random: SecureRandom, count: int) -> Iterator[Released]:
    """``count`` successive steps of one trainer; the weights stay as they are.

    Where sites share the noise, the steps are those of as few honest sites as the guarantee counts on: one has the
    data, the others add their noise. Colluding sites' noise is known and absent sites' is not there.
    """
    take = _together(audited, data, random) if audited.step.noise.sites > 1 else _alone(audited, data, random)
    for number in range(count):
        flat = take(number)
        lost = float(np.linalg.norm(np.spacing(np.abs(flat)).astype(np.float64))) / 2
        yield Released(flat.astype(np.float64) * audited.step.divisor, lost * audited.step.divisor)


def _alone(audited: AuditedStep, data: ArrayData, random: SecureRandom) -> Callable[[int], NDArray[np.float32]]:
    trainer = audited.trainer(data, random)

    def take(number: int) -> NDArray[np.float32]:
        trainer.accumulate_gradient(number)
        gradients = [parameter.grad for parameter in trainable(audited.model)]
        return np.concatenate([gradient.numpy().ravel() for gradient in gradients if gradient is not None])

    return take


def _together(audited: AuditedStep, data: ArrayData, random: SecureRandom) -> Callable[[int], NDArray[np.float32]]:
    """The sites' own encoded steps, added up and decoded as the server does; masks, which cancel, are left out."""
    noise = audited.step.noise
    others = [_nobody(data)] * (noise.honest - 1)
    trainers = [audited.trainer(held, random.child(f"site {at}")) for at, held in enumerate([data, *others])]
    packing = NoisyPacking(noise, audited.step.divisor, audited.modulus_bits)

    def take(number: int) -> NDArray[np.float32]:
        vectors = [packing.pack(Contribution(trainer.encoded_step(number), None)) for trainer in trainers]
        total = packing.unpack(sum(vectors[1:], vectors[0]), len(vectors))
        return total.update.mean().astype(np.float32)

    return take


def _nobody(data: ArrayData) -> ArrayData:
    """One unit like those of ``data`` whose gradient is not finite: it adds nothing."""
    return replace(
        data,
        images=torch.full_like(data.images[:1], torch.nan),
        targets=data.targets[:1],
        subject=np.zeros(1, dtype=np.int64),
        volume=data.volume[:1],
        position=data.position[:1],
        spacing_mm=data.spacing_mm[:1],
        num_subjects=1,
    )


def release(audited: AuditedStep, data: ArrayData, coins: Seeds) -> Released:
    """The first step of a fresh trainer with known coins."""
    return next(releases(audited, data, SecureRandom.seeded(coins), 1))


def with_step(audited: AuditedStep, *, rate: float | None = None, quiet: bool = False) -> AuditedStep:
    """The same step at another sampling rate, or with next to no noise, the same coins giving the same noise."""
    step, event = audited.step, audited.step.event
    rate = step.sampling_rate if rate is None else rate
    multiplier = QUIET_STD_GRID / step.noise.sensitivity_grid if quiet else event.noise_multiplier
    summed = multiplier
    if isinstance(step.clipping, AdaptiveClipping):
        summed = sum_noise_multiplier(multiplier, step.clipping.count_noise_multiplier)
    changed = replace(
        step,
        sampling_rate=rate,
        noise=replace(step.noise, noise_multiplier=summed),
        event=PoissonGaussian(sampling_rate=rate, noise_multiplier=multiplier),
    )
    return replace(audited, step=changed)


def on_one_layer(audited: AuditedStep, pixels: int) -> AuditedStep:
    """The same sampling, clipping and noise on one linear layer of two classes that starts at zero.

    A pixel's gradient then lies in two coordinates of its own. For what does not depend on the network.
    """
    layer = nn.Linear(pixels, 2, bias=False)
    nn.init.zeros_(layer.weight)
    return AuditedStep(
        model=nn.Sequential(nn.Flatten(), layer),
        step=replace(audited.step, noise=replace(audited.step.noise, dimension=2 * pixels)),
        unit=audited.unit,
        training=Training(),
        input_shape=(1, pixels),
        num_classes=2,
        performance=Performance(device="cpu", dp_method="vmap", dp_chunk=256),
        scale=InputScale(0.0, 1.0),
    )


def frozen_bound(step: StepPlan) -> StepPlan:
    """An adaptive bound that stays where it is, so that all steps have one unit of noise."""
    if not isinstance(step.clipping, AdaptiveClipping):
        return step
    return replace(step, clipping=step.clipping.model_copy(update={"learning_rate": 1e-300}))


def without_dropout(model: nn.Module) -> nn.Module:
    """A copy in which nothing is dropped: two runs would drop different values."""
    import copy

    twin = copy.deepcopy(model).to(_CPU)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - torch has no public base of its dropout layers
            module.p = 0.0
    return twin


def sensitivity_of(step: StepPlan) -> float:
    """What one unit may move the rounded sum by at most, in parameter units: what the noise is measured against."""
    return step.noise.sensitivity_grid * step.noise.grid


def norm(vector: NDArray[np.float64]) -> float:
    """L2 norm; infinite where a value is not finite."""
    found = float(np.linalg.norm(vector))
    return found if math.isfinite(found) else math.inf
