"""Gradients of single examples: the contract of a method, and the two that work for any network.

``by_vmap`` vectorises a batch of one over the batch: no operation sees two examples, by construction.
``by_microbatch`` runs plain autograd on one example after the other: slow, works with everything, and the oracle
that the other methods are held to. A third method, :mod:`medveil.dp.layerwise`, is faster.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from medveil.errors import ConfigError, UnsupportedModelError

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)`` for a batch of one: (1, ...), (1, ...) -> a single number, shape () or (1,)."""

PerExample = Callable[[nn.Module, LossFunction, Tensor, Tensor], list[Tensor]]
"""``method(model, loss, images, targets)``: one tensor (examples, *parameter.shape) per trainable parameter."""

Method = Literal["layerwise", "vmap", "microbatch"]

WHAT_AUTOGRAD_RAISES: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What a network, a loss or torch raises when a method does not fit them."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with a gradient, by dotted path, in registration order; a tied one once, under its first path.

    Raises:
        UnsupportedModelError: there is none.
    """
    found = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if not found:
        raise UnsupportedModelError(
            "The network has nothing to train",
            got="no parameter with requires_grad",
            expected="at least one trainable parameter",
            remedy="unfreeze the layers that training shall change",
        )
    return found


def single_loss(loss: LossFunction, outputs: Tensor, target: Tensor) -> Tensor:
    """Loss of a batch of one as a scalar.

    Args:
        loss: see :data:`LossFunction`.
        outputs: shape (1, ...).
        target: shape (1, ...).

    Raises:
        ConfigError: the loss answers with more than one number.
    """
    value = loss(outputs, target)
    if value.numel() != 1:
        raise ConfigError(
            "The loss of one example must be one number",
            got=f"shape {tuple(value.shape)} for a batch of one",
            expected="shape () or (1,)",
            remedy="average over pixels and classes inside the loss",
        )
    return value.reshape(())


def by_microbatch(model: nn.Module, loss: LossFunction, images: Tensor, targets: Tensor) -> list[Tensor]:
    """Plain autograd on one example after the other.

    Args:
        model: in the mode it shall have; its ``.grad`` fields are left alone.
        loss: see :data:`LossFunction`.
        images: shape (N, channels, *spatial).
        targets: shape (N, ...).

    Returns:
        Per trainable parameter, in registration order, a tensor (N, *shape) in the parameter's dtype. A parameter
        that the loss does not reach has gradient 0.
    """
    parameters = list(trainable(model).values())
    rows = [tensor.new_zeros((len(images), *tensor.shape)) for tensor in parameters]
    for index in range(len(images)):
        value = single_loss(loss, model(images[index : index + 1]), targets[index : index + 1])
        for row, gradient in zip(rows, _gradients(value, parameters), strict=True):
            if gradient is not None:
                row[index] = gradient
    return rows


def by_vmap(model: nn.Module, loss: LossFunction, images: Tensor, targets: Tensor) -> list[Tensor]:
    """The gradient of a batch of one, vectorised over the examples.

    Args:
        model: in the mode it shall have. Dropout falls differently for every example.
        loss: see :data:`LossFunction`.
        images: shape (N, channels, *spatial).
        targets: shape (N, ...).

    Returns:
        As :func:`by_microbatch`.

    Raises:
        RuntimeError: torch cannot vectorise the network or the loss: control flow that depends on the data,
            recurrent layers, buffers that change.

    Reference:
        https://pytorch.org/docs/stable/func.html (``vmap``, ``grad``).
    """
    parameters = trainable(model)
    weights = {name: tensor.detach() for name, tensor in parameters.items()}

    def value(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return single_loss(loss, functional_call(model, weights, (image[None],)), target[None])

    gradient = vmap(grad(value), in_dims=(None, 0, 0), randomness="different")
    rows: dict[str, Tensor] = gradient(weights, images, targets)
    return [rows[name] for name in parameters]


def _gradients(value: Tensor, parameters: list[nn.Parameter]) -> Iterator[Tensor | None]:
    if not value.requires_grad:  # a loss that reaches no parameter at all
        return iter([None] * len(parameters))
    return iter(torch.autograd.grad(value, parameters, allow_unused=True))
