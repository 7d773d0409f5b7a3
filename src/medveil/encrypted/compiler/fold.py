"""Simpler steps that compute the same: normalisation and factors go into weights, pooling goes before ReLU."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from medveil.encrypted.compiler.graph import (
    Affine,
    Maximum,
    PerChannel,
    Rectify,
    Same,
    Scale,
    Step,
    channelwise,
    count_uses,
    reachable,
)
from medveil.encrypted.compiler.refusals import refuse


def simplify(steps: dict[str, Step], output: str) -> tuple[dict[str, Step], str]:
    """Fold what can be folded exactly.

    Args:
        steps: in order; left as they are.
        output: name of the result that is revealed.

    Returns:
        Steps without :class:`Same` and :class:`PerChannel`, and with :class:`Scale` only for positive public
        factors that no linear layer before them takes; and the name of the output among them.

    Raises:
        UnsupportedLayer: a normalisation or factor of values without channels.

    Guarantees:
        Equal results in exact arithmetic.
    """
    steps, output = _without_identities(steps, output)
    steps, output = _into_layer_before(steps, output)
    steps = _into_layer_behind(steps, output)
    steps = {name: _own_layer(step) for name, step in steps.items()}
    return _pool_first(steps, output)


def _without_identities(steps: dict[str, Step], output: str) -> tuple[dict[str, Step], str]:
    kept, stands_for = {}, {name: name for name in steps}
    for name, step in steps.items():
        if isinstance(step.what, Same):
            stands_for[name] = stands_for[step.inputs[0]]
        else:
            kept[name] = _reading(step, (stands_for[each] for each in step.inputs))
    return kept, stands_for[output]


def _into_layer_before(steps: dict[str, Step], output: str) -> tuple[dict[str, Step], str]:
    kept: dict[str, Step] = {}
    stands_for = {name: name for name in steps}
    uses = count_uses(steps.values())
    for name, step in steps.items():
        current = _reading(step, (stands_for[each] for each in step.inputs))
        source = kept[current.inputs[0]] if current.inputs else None
        foldable = isinstance(step.what, PerChannel | Scale) and uses[step.inputs[0]] == 1
        if source is not None and foldable and isinstance(source.what, Affine):
            kept[source.name] = dataclasses.replace(source, what=_scaled(source.what, *_factors(step)))
            stands_for[name] = source.name
        else:
            kept[name] = current
    return kept, stands_for[output]


def _into_layer_behind(steps: dict[str, Step], output: str) -> dict[str, Step]:
    uses = count_uses(steps.values())
    kept = dict(steps)
    for name, step in steps.items():
        source = kept[step.inputs[0]] if step.inputs else None
        if source is None or not isinstance(source.what, PerChannel) or uses[source.name] != 1:
            continue
        # Beyond the border are zeros, which a shift would have to reach: only layers without padding take it.
        if isinstance(step.what, Affine) and not step.what.transposed and not any(step.what.padding):
            kept[name] = dataclasses.replace(
                step, what=_reading_scaled(step.what, source.what.scale, source.what.shift), inputs=source.inputs
            )
    return reachable(kept, output)


def _own_layer(step: Step) -> Step:
    lazy = isinstance(step.what, Scale) and step.what.public and step.what.value > 0
    if not isinstance(step.what, PerChannel | Scale) or lazy:
        return step
    scale, shift = _factors(step)
    channels = step.shape[0]
    layer = channelwise(scale.expand(channels), shift.expand(channels), step.shape)
    if layer is None:
        raise refuse(step.layer, f"values of shape {step.shape}", "use it on (channels, *spatial) or on a vector")
    return dataclasses.replace(step, what=layer)


def _pool_first(steps: dict[str, Step], output: str) -> tuple[dict[str, Step], str]:
    """A maximum of ReLUs is the ReLU of the maximum, which compares fewer values."""
    uses = count_uses(steps.values())
    kept: dict[str, Step] = {}
    for name, step in steps.items():
        source = kept.get(step.inputs[0]) if step.inputs else None
        if isinstance(step.what, Maximum) and source and isinstance(source.what, Rectify) and uses[source.name] == 1:
            del kept[source.name]
            # The pair changes places; the result that others read keeps its name.
            kept[source.name] = dataclasses.replace(step, name=source.name, inputs=source.inputs)
            kept[name] = dataclasses.replace(source, name=name, inputs=(source.name,), shape=step.shape)
        else:
            kept[name] = step
    return kept, output


def _reading(step: Step, inputs: Iterable[str]) -> Step:
    return dataclasses.replace(step, inputs=tuple(inputs))


def _factors(step: Step) -> tuple[Tensor, Tensor]:
    what = step.what
    if isinstance(what, PerChannel):
        return what.scale, what.shift
    assert isinstance(what, Scale)
    return torch.tensor([what.value], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def _scaled(layer: Affine, scale: Tensor, shift: Tensor) -> Affine:
    """The layer, then * scale + shift."""
    channels = len(layer.bias)
    scale = scale.expand(channels)
    axes = layer.weight.ndim - 2
    if layer.transposed:
        # (inputs, outputs / groups, *kernel): inputs of one group lie together.
        factors = scale.reshape(layer.groups, 1, -1).expand(-1, layer.weight.shape[0] // layer.groups, -1)
        weight = layer.weight * factors.reshape(*layer.weight.shape[:2], *(1,) * axes)
    else:
        weight = layer.weight * scale.reshape(-1, 1, *(1,) * axes)
    return dataclasses.replace(layer, weight=weight, bias=layer.bias * scale + shift)


def _reading_scaled(layer: Affine, scale: Tensor, shift: Tensor) -> Affine:
    """The layer of values * scale + shift, as a layer of the values; not for transposed convolutions."""
    weight = layer.weight
    channels = layer.groups * weight.shape[1]
    outputs, inputs = len(weight) // layer.groups, weight.shape[1]

    def by_filter(each: Tensor) -> Tensor:
        rows = each.expand(channels).reshape(layer.groups, 1, inputs).expand(-1, outputs, -1)
        return rows.reshape(len(weight), inputs, *(1,) * (weight.ndim - 2))

    bias = layer.bias + (weight * by_filter(shift)).flatten(1).sum(1)
    return dataclasses.replace(layer, weight=weight * by_filter(scale), bias=bias)
