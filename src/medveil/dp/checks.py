"""Whether a network and a loss can be trained with gradients of single units at all: :func:`check`.

What makes one example's gradient depend on another example is refused, and so is what a forward pass leaves behind
outside the gradient. The structure is read; mixing, changing buffers and coupling losses are tried on noise, which is
evidence, not a proof.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from medveil.dp.methods import WHAT_AUTOGRAD_RAISES, LossFunction, trainable
from medveil.errors import ModelError, UnsupportedModelError
from medveil.models.checks import Hazard, Reason, describe_hazards, mixes_examples

_NORM_REMEDY: Final = 'use norm = "group", "instance" or "ws", or an argument of the network that replaces the layer'
_REFUSED: Final[dict[Reason, tuple[str, str]]] = {
    "batch-statistics": ("Batch normalisation makes an image's gradient depend on its neighbours", _NORM_REMEDY),
    "running-statistics": ("Running statistics of the images would leave the site without noise", _NORM_REMEDY),
    "hooks": ("Hooks run code that this check cannot read", "remove them, or compute in the forward pass"),
}
_TOLERANCE: Final = 1e-6
_T = TypeVar("_T")


@dataclass(frozen=True)
class Checked:
    """What a network that passed has, and how it is handled.

    Attributes:
        num_parameters: values in one gradient: trainable ones, a tied one counted once.
        frozen: parameters that get no gradient, by dotted path.
        tied: places that share a parameter; its gradient is the sum over its uses.
        random: modules that draw random numbers; every example gets its own draws.
        buffers: modules with constants beside the parameters; they are read, never released.
        recurrent: modules that torch vectorises on some devices only; where it cannot, examples are run one at a
            time ("microbatch").
        tried: whether the network was run on noise (an input shape was given).
    """

    num_parameters: int
    frozen: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()
    tried: bool = False


def check(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    loss: LossFunction | None = None,
    num_classes: int | None = None,
) -> Checked:
    """Refuse what has no gradient of a single unit, and say what else was found.

    Args:
        model: left as it is; copies run in training mode on the processor.
        input_shape: (channels, *spatial) of one image; without it nothing is run.
        loss: also try whether it couples examples; see :func:`check_loss`.
        num_classes: outputs of the network, needed to try a loss when no input shape is given.

    Raises:
        UnsupportedModelError: nothing to train; batch or running statistics; hooks; buffers that change in a forward
            pass, or that cannot be tried without ``input_shape``; examples that mix; a loss that couples examples.

    >>> check(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), input_shape=(1, 2, 2)).num_parameters
    10
    """
    num_parameters = sum(tensor.numel() for tensor in trainable(model).values())
    hazards = describe_hazards(model)
    _refuse_structure(hazards)
    _refuse_tensor_hooks(model)
    outputs: tuple[int, ...] | None = (num_classes,) if num_classes is not None else None
    if input_shape is not None:
        outputs = _try_forward(model, input_shape)
    elif _modules(hazards, "buffers"):
        raise UnsupportedModelError(
            "Buffers may change in training, and without an image's shape that cannot be tried",
            got=_listed(_modules(hazards, "buffers")),
            remedy="give input_shape",
        )
    if loss is not None and outputs is not None:
        check_loss(loss, output_shape=outputs)
    return Checked(
        num_parameters=num_parameters,
        frozen=tuple(name for name, tensor in model.named_parameters() if not tensor.requires_grad),
        tied=_modules(hazards, "shared-parameters"),
        random=_modules(hazards, "random"),
        buffers=_modules(hazards, "buffers"),
        recurrent=_modules(hazards, "recurrent"),
        tried=input_shape is not None,
    )


def check_loss(loss: LossFunction, *, output_shape: tuple[int, ...]) -> None:
    """Refuse a loss in which the gradient of one example depends on the others: batch Dice, weighted means.

    The gradient at the outputs of a batch of noise is compared with those of its examples alone. A sum over the
    batch, a mean over it and one number an example all pass.

    Args:
        loss: ``loss(outputs, targets)``, called here with several examples and with one.
        output_shape: of the network's answer for one example: (classes,) or (classes, *spatial). Targets are tried
            as class numbers, then as fractions of the outputs' shape.

    Raises:
        UnsupportedModelError: a loss that couples examples, or that cannot be run on such outputs.

    >>> check_loss(nn.functional.cross_entropy, output_shape=(3,))
    """
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(_EXAMPLES, *output_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, output_shape[0], (_EXAMPLES, *output_shape[1:]), generator=generator)
    # Examples of unlike size and class content: coupling through shared sums must show.
    labels[0] = 0
    errors: list[str] = []
    for targets in (labels, torch.rand(outputs.shape, generator=generator, dtype=torch.float64)):
        try:
            coupled = _couples(loss, outputs, targets)
        except WHAT_AUTOGRAD_RAISES as error:
            errors.append(type(error).__name__)
            continue
        if coupled:
            raise UnsupportedModelError(
                "The loss couples the examples of a batch, so that no gradient of one example exists",
                got="another gradient in a batch than alone",
                expected="one number an example, or their mean or sum",
                remedy="take Dice per image (batch=False) and do not divide by the class weights of the batch",
            )
        return
    raise UnsupportedModelError(
        "The loss cannot be tried on noise", got=", ".join(errors), expected=f"outputs of shape (N, *{output_shape})"
    )


_EXAMPLES: Final = 4


def _couples(loss: LossFunction, outputs: Tensor, targets: Tensor) -> bool:
    together = _output_gradient(loss, outputs, targets)
    alone = torch.cat(
        [_output_gradient(loss, outputs[index : index + 1], targets[index : index + 1]) for index in range(_EXAMPLES)]
    )
    scale = alone.norm().clamp(min=1e-12)
    # A mean over the batch divides every gradient by the number of examples, a sum does not.
    distances = [(factor * together - alone).norm() / scale for factor in (1, _EXAMPLES)]
    return bool(min(distances) > _TOLERANCE)


def _output_gradient(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf)
    return gradient


def _try_forward(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse changing buffers and mixed examples; the shape of the answer for one image."""
    shape, changed = _on_noise(lambda: _changed_buffers(model, input_shape), input_shape)
    if changed:
        raise UnsupportedModelError(
            "A forward pass in training changes buffers: they would leave the site without noise",
            got=_listed(changed),
            expected="buffers that stay as they are",
            remedy=_NORM_REMEDY,
        )
    # That trial runs on float32.
    if _on_noise(lambda: mixes_examples(copy.deepcopy(model).float(), input_shape), input_shape):
        raise UnsupportedModelError(
            "An image changes the network's answer for its neighbour in the batch",
            got=f"{type(model).__name__} on noise of shape {input_shape}",
            expected="every example on its own",
            remedy="replace the layers that look across the batch",
        )
    return shape


def _changed_buffers(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    twin = copy.deepcopy(model).cpu().train()
    before = {name: tensor.clone() for name, tensor in twin.named_buffers()}
    generator = torch.Generator().manual_seed(0)
    like = next(iter(trainable(twin).values()))
    images = (1 + 2 * torch.randn(2, *input_shape, generator=generator)).to(like.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer: Tensor = twin(images)
    after = dict(twin.named_buffers())
    names = sorted(name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name)))
    return tuple(answer.shape[1:]), tuple(names)


def _same(before: Tensor | None, after: Tensor | None) -> bool:
    return before is not None and after is not None and torch.equal(before, after)


def _on_noise(run: Callable[[], _T], input_shape: tuple[int, ...]) -> _T:
    try:
        return run()
    except (*WHAT_AUTOGRAD_RAISES, AssertionError) as error:
        raise ModelError(
            "The network cannot read these images",
            got=f"noise of shape {input_shape}; {type(error).__name__}",
            expected="a network and images that fit together",
            remedy="change the network's arguments, or pad or resize the images in the preprocessing",
        ) from error


def _refuse_structure(hazards: Sequence[Hazard]) -> None:
    for reason, (what, remedy) in _REFUSED.items():
        paths = _modules(hazards, reason)
        if paths:
            raise UnsupportedModelError(what, got=_listed(paths), expected="no such layer", remedy=remedy)


def _refuse_tensor_hooks(model: nn.Module) -> None:
    hooked = tuple(name for name, tensor in model.named_parameters() if tensor._backward_hooks)  # noqa: SLF001 - torch has no public question for it
    if hooked:
        what, remedy = _REFUSED["hooks"]
        raise UnsupportedModelError(what, got=_listed(hooked), expected="no hook", remedy=remedy)


def _modules(hazards: Sequence[Hazard], reason: Reason) -> tuple[str, ...]:
    return tuple(hazard.module for hazard in hazards if hazard.reason == reason)


def _listed(paths: Sequence[str]) -> str:
    """At most five paths; "" is the network itself."""
    shown = ", ".join(path or "the network itself" for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


_SHOWN: Final = 5
