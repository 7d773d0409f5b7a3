"""What a victim would have sent, as a differentiable function of its images: the step that an inversion undoes."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from medveil.attacks.inversion_engine import Simulate
from medveil.attacks.scene import Losses, Scene
from medveil.errors import AttackError
from medveil.training.objectives import CrossEntropy, Loss, balanced_weights
from medveil.training.optimisers import Sgd

_TWIN_RATE = 0.01
_MONAI_SMOOTHING = 1e-5
_PER_ELEMENT = 10.0
# What torch and its vmap raise at operations that they cannot differentiate or batch.
_REFUSALS = (RuntimeError, ValueError, NotImplementedError, TypeError)


@dataclass(frozen=True)
class LocalSteps:
    """Plain gradient descent on one batch, as a site does it before it sends.

    Args:
        count: of steps; one is the gradient itself.
        learning_rate: of them.
    """

    count: int = 1
    learning_rate: float = _TWIN_RATE


def local_steps(scene: Scene, count: int) -> tuple[LocalSteps, bool]:
    """The plan's local steps, and whether they are its own: other optimisers than plain SGD get a twin of plain SGD."""
    optimiser = scene.training.optimiser
    own = isinstance(optimiser, Sgd) and not optimiser.momentum
    return LocalSteps(count, optimiser.lr if own else _TWIN_RATE), own


def simulator(
    scene: Scene, *, steps: LocalSteps | None = None, soft_targets: bool = False, trained: bool = False
) -> Simulate:
    """A function from network inputs and targets of many candidates to the update that each would cause.

    Dropout is off: an attacker who knew its mask could do no better.

    Args:
        scene: of the attack.
        steps: local steps; None is a single gradient.
        soft_targets: whether targets are probabilities of classes, (C, n, classes, *spatial).
        trained: attack the finished model instead of the model before the step.

    Returns:
        (inputs (C, n, channels, *spatial), targets (C, n, ...)) -> one tensor (C, *shape) a parameter: the gradient of
        the mean loss, or for several steps (weights before - weights after) / learning rate.
    """
    model = _without_dropout(scene.trained if trained else scene.model)
    start = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    fixed = {name: each.detach() for name, each in model.named_parameters() if not each.requires_grad}
    fixed |= {name: each.clone() for name, each in model.named_buffers()}
    loss = soft_loss(scene) if soft_targets else scene.loss
    plan = steps or LocalSteps()

    def value(weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(model, {**fixed, **weights}, (inputs,)), targets).mean()

    def update(inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        weights = start
        total = {name: torch.zeros_like(each) for name, each in start.items()}
        for _ in range(plan.count):
            found = grad(value)(weights, inputs, targets)
            total = {name: total[name] + found[name] for name in total}
            weights = {name: weights[name] - plan.learning_rate * found[name] for name in weights}
        return tuple(total.values())

    return _batched(update)


def soft_loss(scene: Scene) -> Losses:
    """The run's loss for probabilities of classes, (N, classes, *spatial); equal to it where they are 0 or 1."""
    config, classes = scene.training.loss, scene.num_classes
    chosen = scene.training.class_weights
    if chosen == "balanced":
        weights = balanced_weights(scene.targets, classes)
    else:
        weights = torch.ones(classes) if chosen == "none" else torch.tensor(chosen, dtype=torch.float32)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return _soft(logits, targets, config, weights)

    return loss


class _Elements(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not type it
    """Counts the elements of all results: the work of transforms and pointwise operations, which have no flops here."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.count = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        parts = found if isinstance(found, tuple | list) else (found,)
        self.count += sum(each.numel() for each in parts if isinstance(each, Tensor))
        return found


def step_flops(scene: Scene) -> float:
    """Operations of one step of the search for one image: those of products, and ten for every element of a result.

    Raises:
        AttackError: the network or its loss cannot be differentiated twice.
    """
    model = _without_dropout(scene.model)
    # No leaf: the counter's hooks do not take one.
    images = scene.scaled(scene.public[:1].float()).requires_grad_(True) + 0.0
    weights = [each for each in model.parameters() if each.requires_grad]
    try:
        with _Elements() as elements, FlopCounterMode(display=False) as counter:
            value = scene.loss(model(images), scene.public_targets[:1]).mean()
            first = torch.autograd.grad(value, weights, create_graph=True)
            second = torch.autograd.grad(sum((each.square().sum() for each in first), torch.zeros(())), images)
    except _REFUSALS as error:
        raise AttackError(
            "Gradient inversion cannot try this network",
            got=f"{type(error).__name__} when its loss is differentiated twice",
            expected="a network and a loss with second derivatives",
            remedy="leave this attack out, or choose another network",
        ) from error
    if not bool(torch.isfinite(second[0]).all()):
        raise AttackError(
            "Gradient inversion cannot try this network",
            got="second derivatives that are not finite",
            expected="finite ones",
            remedy="leave this attack out, or attack a training that has not diverged",
        )
    total: float = counter.get_total_flops() + _PER_ELEMENT * elements.count
    return total


def _batched(update: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Simulate:
    """The update of many candidates: together where torch can, else one after the other."""
    together = vmap(update)
    fits: list[bool] = []

    def one_by_one(inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        rows = [update(own, target) for own, target in zip(inputs, targets, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def simulate(inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        if not fits:
            try:
                found: tuple[Tensor, ...] = together(inputs, targets)
            except _REFUSALS:  # slower, with the same result: an error of another cause comes again one by one
                fits.append(False)
            else:
                fits.append(True)
                return found
        return together(inputs, targets) if fits[0] else one_by_one(inputs, targets)

    return simulate


def _without_dropout(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).train()
    for layer in model.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - torch has no public base of its dropout layers
            layer.eval()
    return model


def _soft(logits: Tensor, targets: Tensor, config: Loss, weights: Tensor) -> Tensor:
    shape = (1, -1, *(1,) * (logits.ndim - 2))
    smoothing = config.label_smoothing if isinstance(config, CrossEntropy) else 0.0
    wanted = (1 - smoothing) * targets + smoothing / logits.shape[1]
    places = -(weights.view(shape) * wanted * functional.log_softmax(logits, 1)).sum(1)
    cross = places.flatten(1).mean(1) if places.ndim > 1 else places
    if isinstance(config, CrossEntropy):
        return cross
    found, true = logits.softmax(1)[:, 1:].flatten(2), targets[:, 1:].flatten(2)
    overlap = (2 * (found * true).sum(2) + _MONAI_SMOOTHING) / (found.sum(2) + true.sum(2) + _MONAI_SMOOTHING)
    return config.dice_weight * (1 - overlap).mean(1) + config.ce_weight * cross
