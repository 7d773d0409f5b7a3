"""The end of a program that shows less than logits: what is compared with what.

Two classes: the difference d of their logits. The label is d >= log(p / (1 - p)), p the operating threshold; the
probability of class 1 rounded to 1/levels follows from d >= log(t / (1 - t)) for t = 0.5/levels, 1.5/levels, ...
More classes: the distance of every logit from the largest one. The label is the class whose distance is zero; the ratio
of a probability to the largest one, rounded to 1/levels, follows from distance >= log(t).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Final

import torch
from torch import Tensor

from medveil.encrypted.compiler import bounds, graph
from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.compiler.rings import Rings, Value
from medveil.encrypted.program import NARROW_LIMIT, Decide, MaxPool, Operation, Program, Reshape, Reveal
from medveil.errors import ConfigError, UnsupportedLayer

LEVELS: Final = (2, 1000)
TWO: Final = 2
_SLACK: Final = 2
"""Units by which the largest class's comparison stays clear of the values for which a sign may be misread."""


def cuts(reveal: Reveal, classes: int, levels: int, threshold: float | None) -> tuple[float, ...]:
    """With what the difference of two logits, or the distance from the largest, is compared; the label's comes first.

    Args:
        reveal: "label" or "probabilities".
        classes: 2 or more.
        levels: into which probabilities are rounded.
        threshold: of class 1 where there are two; None for 1/2.
    """
    middles = [(level + 0.5) / levels for level in range(levels)] if reveal == "probabilities" else []
    if classes == TWO:
        operating = 0.5 if threshold is None else threshold
        return tuple(_logit(each) for each in (operating, *middles))
    return (0.0, *(math.log(each) for each in middles))


def thresholds(wanted: Sequence[float], classes: int, unit: float) -> tuple[int, ...]:
    """:func:`cuts` in units of the narrow values.

    Raises:
        ConfigError: levels that the values cannot tell apart.
    """
    if classes == TWO:
        most = NARROW_LIMIT - 1  # beyond every value
        return tuple(round(max(-most, min(most, cut / unit))) for cut in wanted)
    found = (-_SLACK, *(round(cut / unit) for cut in wanted[1:]))
    if min(found) <= -NARROW_LIMIT or max(found[1:], default=-classes - _SLACK) > -classes - 1:
        raise ConfigError(
            "Probabilities cannot be rounded to so many levels",
            got=len(wanted) - 1,
            expected="levels that differ by more than the values' last bits",
            remedy="ask for fewer levels",
        )
    return found


def told_thresholds(program: Program, reveal: Reveal, levels: int, threshold: float | None) -> tuple[int, ...] | None:
    """What a program's thresholds must be for such an answer; None where that is logits."""
    if program.decision is None or reveal == "logits":
        return None
    scale = {one.name: one.scale for one in program.operations}[program.decision.inputs[0]]
    wanted = cuts(reveal, len(program.names), levels, threshold)
    return thresholds(wanted, len(program.names), program.factor / 2.0**scale)


def with_difference(steps: dict[str, graph.Step], output: str) -> tuple[dict[str, graph.Step], str]:
    """Steps whose result is the second of two logits less the first, within the last layer where there is one.

    Raises:
        UnsupportedLayer: logits of a shape that no layer reads.
    """
    last = steps[output]
    shape = (1, *last.shape[1:])
    mixing = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    plain = isinstance(last.what, graph.Affine) and last.what.groups == 1
    if plain and not graph.count_uses(steps.values())[output]:
        assert isinstance(last.what, graph.Affine)
        layer = last.what
        axis = 1 if layer.transposed else 0
        weight = torch.tensordot(mixing, layer.weight, dims=([1], [axis])).movedim(0, axis)
        mixed = replace(layer, weight=weight, bias=mixing @ layer.bias)
        return {**steps, output: replace(last, what=mixed, shape=shape)}, output
    ones = graph.channelwise(torch.ones(TWO, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), last.shape)
    if ones is None:
        raise UnsupportedLayer(
            "Encrypted inference cannot compare these logits",
            layer=last.layer,
            got=f"shape {last.shape}",
            remedy='reveal = "logits"',
        )
    weight = mixing.reshape(1, TWO, *(1,) * (ones.weight.ndim - 2))
    name = f"{output}.difference"
    step = graph.Step(name, last.layer, replace(ones, weight=weight, groups=1), (output,), shape)
    return {**steps, name: step}, name


def decided(rings: Rings, value: Value, classes: int, wanted: Sequence[float]) -> tuple[Operation, Range]:
    """Append the comparisons.

    Args:
        rings: the operations so far.
        value: the difference of two logits, or all logits.
        classes: of the task.
        wanted: from :func:`cuts`.

    Returns:
        The last operation, and what is known of the numbers that it compares (their ends are not).
    """
    narrow = rings.narrow(value)
    held = rings.ranges[narrow.name]
    inputs: tuple[str, ...] = (narrow.name,)
    if classes > TWO:
        shape, scale = narrow.shape, narrow.scale
        flat = bounds.reshaped(held, (1, classes, prod(shape[1:])))
        laid = rings.emit(Reshape, "classes", inputs, scale, flat, narrow=True)
        column, none = (classes, 1), (0, 0)
        most = bounds.maximum(flat, column, column, none, scale)
        sides = {"kernel": column, "stride": column, "padding": none}
        pooled = rings.emit(MaxPool, "largest", (laid.name,), scale, most, narrow=True, **sides)
        most = bounds.reshaped(most, (1, *shape[1:]))
        inputs = (narrow.name, rings.emit(Reshape, "largest", (pooled.name,), scale, most, narrow=True).name)
        held = replace(
            held, error=held.error + most.error, probes=held.probes - most.probes, trials=held.trials - most.trials
        )
    unit = value.factor / 2.0**narrow.scale
    # Of a sign's misreading, of the threshold's rounding and of the slack.
    held = replace(held, error=held.error + (_SLACK + 2) * 2.0**-narrow.scale)
    numbers = thresholds(wanted, classes, unit)
    ends = Decide(rings.unused("decision"), inputs, (len(numbers), *narrow.shape), 0, False, 1.0, numbers)
    rings.operations.append(ends)
    return ends, held


def distances(logits: Tensor) -> Tensor:
    """What is compared: the second of two logits less the first, shape (N, 1, ...), or all less the largest."""
    if logits.shape[1] == TWO:
        return logits[:, 1:] - logits[:, :1]
    return logits - logits.amax(1, keepdim=True)


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)
