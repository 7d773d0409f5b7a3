"""Gradients of single examples from one ordinary forward and backward pass over the batch.

The network runs once on the whole batch. Each layer with trainable parameters keeps its input and, when the gradient
at its output arrives, turns the two into one gradient an example instead of their sum. That costs little more than
plain training, and less than vectorising the whole network: everything between those layers runs as in training.

What it needs: every trainable parameter belongs to a layer with a rule (:mod:`medveil.dp.layer_rules`), and dimension
0 is the example everywhere. The first is checked before a run, the size of dimension 0 in it. That nothing between
the layers mixes examples cannot be seen here: :mod:`medveil.dp.checks` and :mod:`medveil.dp.engine` try it.

Reference: Goodfellow 2015, https://arxiv.org/abs/1510.01799; Rochette et al. 2019, https://arxiv.org/abs/1912.06015.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import vmap

from medveil.dp.conv_rules import Wanted
from medveil.dp.layer_rules import Rule, rule_of
from medveil.dp.methods import WHAT_AUTOGRAD_RAISES, LossFunction, single_loss, trainable
from medveil.errors import UnsupportedModelError

_REMEDY = 'use method "vmap" or "microbatch"'


def without_rule(model: nn.Module) -> tuple[str, ...]:
    """Dotted paths of the modules whose trainable parameters no rule covers; empty if this method fits.

    >>> without_rule(nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2)))
    ('1',)
    """
    return tuple(path for path, module in model.named_modules() if _owned(module) and rule_of(module) is None)


Kind = tuple[torch.dtype, torch.device]
Pool = dict[Kind, Tensor]
"""Memory, shape (examples, values of the parameters of one kind); fresh pages cost as much as the arithmetic."""


def by_layer(
    model: nn.Module, loss: LossFunction, images: Tensor, targets: Tensor, *, pool: Pool | None = None
) -> list[Tensor]:
    """One pass over the batch, gradients taken apart layer by layer.

    Args:
        model: in the mode it shall have; nothing about it changes. One call at a time for each network.
        loss: see :data:`medveil.dp.methods.LossFunction`.
        images: shape (N, channels, *spatial).
        targets: shape (N, ...).
        pool: memory that may be written over and handed out again; it grows as needed.

    Returns:
        Per trainable parameter, in registration order, a tensor (N, *shape): views of one matrix, an example a line,
        for all parameters of one dtype and device.

    Raises:
        UnsupportedModelError: a parameter outside the layers with rules, a parameter used past its layer, or a
            layer that sees another number of examples than the batch has.
    """
    parameters = trainable(model)
    missing = without_rule(model)
    if missing:
        raise UnsupportedModelError(
            "Layers without a rule for gradients of single examples",
            got=", ".join(missing),
            expected="convolutions, linear layers, group, instance and layer normalisation, PReLU",
            remedy=_REMEDY,
        )
    sink = _Sink(len(images), list(parameters.values()), {} if pool is None else pool)
    with _captured(model, sink):
        outputs = model(images)
        total = _sum_of_losses(loss, outputs, targets)
        past = torch.autograd.grad(total, [sink.anchor, *parameters.values()], allow_unused=True)[1:]
    used = [name for name, gradient in zip(parameters, past, strict=True) if gradient is not None]
    if used:
        raise UnsupportedModelError(
            "A parameter is used past the layer that owns it", got=", ".join(used), remedy=_REMEDY
        )
    return [sink.take(tensor) for tensor in parameters.values()]


class _Sink:
    """Gradients of single examples as they arrive; the uses of a tied parameter are summed."""

    def __init__(self, count: int, parameters: Sequence[Tensor], pool: Pool) -> None:
        self.count = count
        # Makes torch differentiate through a layer even where neither images nor weights ask for it.
        self.anchor = torch.zeros((), requires_grad=True)
        self._places = _places(count, parameters, pool)
        self._handed_out: set[int] = set()
        self._filled: set[int] = set()

    def room(self, parameter: Tensor) -> Tensor:
        """Memory for the parameter's gradients: its place for its first use in a pass, fresh for further ones."""
        key = id(parameter)
        if key in self._handed_out or key not in self._places:
            return parameter.new_empty((self.count, *parameter.shape), requires_grad=False)
        self._handed_out.add(key)
        return self._places[key]

    def add(self, parameter: Tensor, rows: Tensor) -> None:
        key = id(parameter)
        place = self._places[key]
        if key in self._filled:
            place.add_(rows)
        elif rows is not place:
            place.copy_(rows.view(place.shape))
        self._filled.add(key)

    def take(self, parameter: Tensor) -> Tensor:
        place = self._places[id(parameter)]
        return place if id(parameter) in self._filled else place.zero_()


def _places(count: int, parameters: Sequence[Tensor], pool: Pool) -> dict[int, Tensor]:
    """Where each parameter's gradients go, by its ``id``: one after the other in the lines of the pool's matrices."""
    kinds: dict[Kind, list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    found: dict[int, Tensor] = {}
    for kind, members in kinds.items():
        sizes, held = [parameter.numel() for parameter in members], pool.get(kind)
        if held is None or len(held) < count or held.shape[1] != sum(sizes):
            held = pool[kind] = members[0].new_empty((count, sum(sizes)), requires_grad=False)
        for parameter, columns in zip(members, torch.split(held[:count], sizes, dim=1), strict=True):
            found[id(parameter)] = columns.view(count, *parameter.shape)
    return found


class _Layer(torch.autograd.Function):
    """One layer under its rule; weights are constants to torch and their gradients go to the sink."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, inputs: Tensor, module: nn.Module, rule: Rule, sink: _Sink) -> Tensor:  # noqa: ARG004 - autograd's signature
        outputs, saved = rule.run(inputs)
        ctx.module, ctx.rule, ctx.sink = module, rule, sink
        ctx.save_for_backward(*saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        before, found = ctx.rule.backward(ctx.saved_tensors, upstream, Wanted(ctx.needs_input_grad[1], ctx.sink.room))
        for name, rows in found.items():
            ctx.sink.add(getattr(ctx.module, name), rows)
        return torch.zeros_like(upstream[(0,) * upstream.dim()]), before, None, None, None


@contextmanager
def _captured(model: nn.Module, sink: _Sink) -> Iterator[None]:
    """Route the layers through their rules for one pass."""
    layers = [(module, rule) for module in model.modules() if _owned(module) and (rule := rule_of(module)) is not None]
    try:
        for module, rule in layers:
            module.__dict__["forward"] = _routed(module, rule, sink)
        yield
    finally:
        for module, _ in layers:
            module.__dict__.pop("forward", None)


def _routed(module: nn.Module, rule: Rule, sink: _Sink) -> Any:
    def forward(inputs: Tensor) -> Tensor:
        if len(inputs) != sink.count:
            raise UnsupportedModelError(
                "A layer sees another number of examples than the batch has",
                got=f"{len(inputs)} in {type(module).__name__}",
                expected=sink.count,
                remedy=_REMEDY,
            )
        return cast("Tensor", _Layer.apply(sink.anchor, inputs, module, rule, sink))  # type: ignore[no-untyped-call] # torch

    return forward


def _sum_of_losses(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum over the examples, each taken as a batch of one."""

    def value(output: Tensor, target: Tensor) -> Tensor:
        return single_loss(loss, output[None], target[None])

    try:
        losses = vmap(value, randomness="different")(outputs, targets)
    except WHAT_AUTOGRAD_RAISES:
        losses = torch.stack([value(output, target) for output, target in zip(outputs, targets, strict=True)])
    return losses.sum()


def _owned(module: nn.Module) -> list[nn.Parameter]:
    return [tensor for tensor in module.parameters(recurse=False) if tensor.requires_grad]
