"""Exact gradients of single examples, layer by layer: which layers have a rule, and the rules beside convolutions.

A rule runs one layer on a whole batch and, from the gradient at the layer's output, gives the gradient at its input
and one gradient an example for each of its trainable parameters. Only layers that treat the entries of dimension 0
one by one have a rule, and only layers of exactly the types named here: a subclass may compute something else.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medveil.dp.conv_rules import ConvRule, StandardisedRule, Wanted
from medveil.models.standardised import ScaledStdConv, ScaledStdConvTranspose


class Rule(Protocol):
    """How one layer is run and differentiated, example by example."""

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's answer for (N, ...), and the tensors that :meth:`backward` needs."""

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradient at the inputs if wanted, and (N, *shape) for each trainable parameter by name."""


class LinearRule:
    """``nn.Linear`` over the last axis; (N, ..., in) -> (N, ..., out)."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :class:`Rule`."""
        return functional.linear(inputs, self._module.weight, self._module.bias), (inputs,)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See :class:`Rule`."""
        module, count = self._module, len(upstream)
        rows = upstream.reshape(count, -1, module.out_features)
        columns = saved[0].reshape(count, -1, module.in_features)
        found: dict[str, Tensor] = {}
        if module.weight.requires_grad:
            found["weight"] = torch.bmm(rows.transpose(1, 2), columns, out=wanted.room(module.weight))
        if module.bias is not None and module.bias.requires_grad:
            found["bias"] = rows.sum(1)
        return upstream @ module.weight if wanted.inputs else None, found


class GroupNormRule:
    """Group normalisation, and instance normalisation as groups of one channel.

    Examples side by side as channels: then torch's own backward keeps the sums of weight and bias apart by example.
    """

    def __init__(self, module: nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        self._module = module
        self._groups = module.num_groups if isinstance(module, nn.GroupNorm) else module.num_features

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :class:`Rule`."""
        module = self._module
        images = inputs.contiguous()
        count, channels, size = *images.shape[:2], images[0, 0].numel()
        if size == 1 and not isinstance(module, nn.GroupNorm):
            functional.instance_norm(images)  # raises: one position has no spread
        answer, mean, deviation = torch.native_group_norm(
            images, module.weight, module.bias, count, channels, size, self._groups, module.eps
        )
        return answer, (images, mean, deviation)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See :class:`Rule`."""
        images, mean, deviation = saved
        weight, bias = self._module.weight, self._module.bias
        count, channels = images.shape[:2]
        groups = count * self._groups
        which = (wanted.inputs, weight.requires_grad, bias.requires_grad)
        before, scales, shifts = torch.ops.aten.native_group_norm_backward(
            upstream.contiguous(),
            images,
            mean.view(1, groups),
            deviation.view(1, groups),
            weight.repeat(count),
            1,
            count * channels,
            images[0, 0].numel(),
            groups,
            which,
        )
        found = {"weight": scales, "bias": shifts}
        rows = {name: rows.view(count, channels) for name, rows in found.items() if rows is not None}
        return before, rows


class LayerNormRule:
    """``nn.LayerNorm`` over the last axes."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self._module = module

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :class:`Rule`."""
        module = self._module
        answer, mean, deviation = torch.native_layer_norm(
            inputs, module.normalized_shape, module.weight, module.bias, module.eps
        )
        return answer, (inputs, mean, deviation)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See :class:`Rule`."""
        images, mean, deviation = saved
        module, count = self._module, len(upstream)
        shape = tuple(module.normalized_shape)
        before = torch.ops.aten.native_layer_norm_backward(
            upstream, images, shape, mean, deviation, module.weight, module.bias, (wanted.inputs, False, False)
        )[0]
        found: dict[str, Tensor] = {}
        if module.weight.requires_grad:
            unit = (images - mean) * deviation
            found["weight"] = (upstream * unit).reshape(count, -1, *shape).sum(1)
        if module.bias is not None and module.bias.requires_grad:
            found["bias"] = upstream.reshape(count, -1, *shape).sum(1)
        return before, found


class PReluRule:
    """``nn.PReLU``: one slope, or one a channel."""

    def __init__(self, module: nn.PReLU) -> None:
        self._module = module

    def run(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :class:`Rule`."""
        return functional.prelu(inputs, self._module.weight), (inputs,)

    def backward(
        self, saved: tuple[Tensor, ...], upstream: Tensor, wanted: Wanted
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See :class:`Rule`."""
        (images,) = saved
        slope, count = self._module.weight, len(images)
        by_channel = slope if slope.numel() == 1 else slope.view(-1, *(1,) * (images.dim() - 2))
        before = upstream * torch.where(images > 0, 1.0, by_channel) if wanted.inputs else None
        return before, {"weight": (upstream * images.clamp(max=0)).reshape(count, slope.numel(), -1).sum(2)}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a layer, or None for a layer that has none.

    >>> rule_of(nn.Conv2d(1, 2, 3)) is None, rule_of(nn.Conv2d(1, 2, 3, padding_mode="reflect")) is None
    (False, True)
    """
    if isinstance(module, _INSTANCE_NORMS) and module.track_running_stats:
        return None
    if isinstance(module, _CONVOLUTIONS) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return None
    make = _RULES.get(type(module))
    return None if make is None else make(module)


_CONVOLUTIONS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RULES: Final[dict[type[nn.Module], Callable[[Any], Rule]]] = {
    ScaledStdConv: StandardisedRule,
    ScaledStdConvTranspose: StandardisedRule,
    nn.Linear: LinearRule,
    nn.GroupNorm: GroupNormRule,
    nn.LayerNorm: LayerNormRule,
    nn.PReLU: PReluRule,
    **dict.fromkeys(_CONVOLUTIONS, ConvRule),
    **dict.fromkeys(_INSTANCE_NORMS, GroupNormRule),
}
