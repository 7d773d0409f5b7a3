"""From steps to operations on integers: scales, rings, ranges and rounded weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medveil.encrypted import program as ops
from medveil.encrypted.compiler import bounds, graph
from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.compiler.rings import LARGEST_SCALE, NARROWABLE, Rings, Value
from medveil.encrypted.program import FRACTION_BITS, WIDE_BITS, Operation
from medveil.errors import UnsupportedLayer

# Fraction bits of weights: as many as the rings have room for.
_WEIGHT_BITS: Final = (16, 24)
_MOST_SHIFT: Final = 4
_WHOLE: Final = 2.0 ** (WIDE_BITS - 1)
# Weights with more bits, and narrowing, move a bound a little.
_MARGIN: Final = 1 + 1e-3


@dataclass(eq=False)
class Lowering:
    """Builds operations one after the other.

    Args:
        activation_limit: above it, values before a ReLU are checked at run time.
        bits: fraction bits, at most, of what linear layers read: fewer leave more to the weights.
        largest_scale: of a result that is revealed; None where it is compared.
    """

    activation_limit: float
    bits: int = FRACTION_BITS
    largest_scale: int | None = WIDE_BITS
    rings: Rings = field(init=False)
    weights: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    biases: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    narrowed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.rings = Rings(self.activation_limit, self.bits)

    def run(self, steps: Mapping[str, graph.Step], output: str, given: Range) -> Value:
        """Lower all steps.

        Args:
            steps: in order, from :func:`medveil.encrypted.compiler.fold.simplify`.
            output: name of the result.
            given: range of the image.

        Returns:
            The result.

        Raises:
            UnsupportedLayer: a layer whose values may leave the rings.
        """
        uses = graph.count_uses(steps.values())
        self.narrowed = graph.narrowed(steps.values())
        for step in steps.values():
            self.rings.layer = step.layer
            last = self.largest_scale is not None and step.name == output
            self.values[step.name] = self._lower(step, given, last=last)
            if step.name == output:
                return self.values[output]
            for name in step.inputs:
                uses[name] -= 1
                if not uses[name]:
                    self.rings.forget(self.values.pop(name), self.values.values())
        raise AssertionError(output)

    def _lower(self, step: graph.Step, given: Range, *, last: bool) -> Value:
        what = step.what
        if isinstance(what, graph.Image):
            half = 2.0 ** -(FRACTION_BITS + 1)  # that the range has on either side for rounding
            low, high = given.low.min().item() + half, given.high.max().item() - half
            return Value(1.0, wide=self.rings.emit(ops.Input, step.name, (), FRACTION_BITS, given, low=low, high=high))
        source = self.values[step.inputs[0]]
        if isinstance(what, graph.Affine):
            return Value(1.0, wide=self._linear(source, what, step.name, last=last))
        if isinstance(what, graph.Sum | graph.Join):
            return self._combined([self.values[name] for name in step.inputs], step)
        if isinstance(what, graph.Scale):
            return replace(source, factor=source.factor * what.value)
        return self._of_one(source, step)

    def _of_one(self, source: Value, step: graph.Step) -> Value:
        what = step.what
        if isinstance(what, graph.Rectify):
            return Value(source.factor, wide=self._relu(source, step.name))
        if isinstance(what, graph.Maximum):
            return self._maximum(source, what, step.name)
        if isinstance(what, graph.Mean):
            return self._mean(source, what, step.name)
        return self._moved(source, step)

    def _maximum(self, source: Value, what: graph.Maximum, name: str) -> Value:
        narrow = self.rings.narrow(source)
        held = bounds.maximum(self.rings.ranges[narrow.name], what.kernel, what.stride, what.padding, narrow.scale)
        sides = {"kernel": what.kernel, "stride": what.stride, "padding": what.padding}
        pooled = self.rings.emit(ops.MaxPool, name, (narrow.name,), narrow.scale, held, narrow=True, **sides)
        return Value(source.factor, narrow=pooled)

    def _moved(self, source: Value, step: graph.Step) -> Value:
        wide = self.rings.wide(source)
        held, inputs = self.rings.ranges[wide.name], (wide.name,)
        if isinstance(step.what, graph.Repeat):
            factors = step.what.factors
            spread = bounds.repeated(held, factors)
            repeated = self.rings.emit(ops.Upsample, step.name, inputs, wide.scale, spread, factors=factors)
            return Value(source.factor, wide=repeated)
        assert isinstance(step.what, graph.Rearrange)
        moved = bounds.reshaped(held, step.shape)
        return Value(source.factor, wide=self.rings.emit(ops.Reshape, step.name, inputs, wide.scale, moved))

    def _linear(self, source: Value, layer: graph.Affine, name: str, *, last: bool = False) -> Operation:
        exact = replace(layer, weight=layer.weight * source.factor)
        for wide in (source.wide, None):
            given = wide or self.rings.short(source)
            # Left as it is where the result can be narrowed later, or is revealed as it is.
            largest = self._largest(last=last)
            if given.scale <= FRACTION_BITS or given.scale + _WEIGHT_BITS[0] <= largest:
                bits, held = self._rounding(given, exact, name, last=last)
                within = held.bound * 2.0 ** (given.scale + bits) < (_WHOLE if last else NARROWABLE / 2)
                if given.scale <= FRACTION_BITS or within:
                    return self._emit_linear(name, given, exact, held, bits)
        raise AssertionError(name)

    def _largest(self, *, last: bool) -> int:
        return self.largest_scale if last and self.largest_scale is not None else LARGEST_SCALE

    def _rounding(self, source: Operation, layer: graph.Affine, name: str, *, last: bool) -> tuple[int, Range]:
        """Fraction bits of the weights, and what is then known of the result."""
        known, bits = self.rings.ranges[source.name], _WEIGHT_BITS[0]
        if last or name in self.narrowed:
            most = self._largest(last=last) - source.scale
            room = (_WHOLE if last else NARROWABLE) / (bounds.reach(known, layer) * 2.0**source.scale * _MARGIN + 1)
            bits = max(bits, min(_WEIGHT_BITS[1], most, math.floor(math.log2(room))))
        return bits, bounds.linear(known, layer, *_rounded(layer, source.scale, bits))

    def _emit_linear(self, name: str, source: Operation, layer: graph.Affine, held: Range, bits: int) -> Operation:
        scale = source.scale + bits
        weight, bias = _rounded(layer, source.scale, bits)
        self.weights[name] = _integers(weight, bits)
        self.biases[name] = _integers(bias, scale)
        return self.rings.emit(
            ops.Linear,
            name,
            (source.name,),
            scale,
            held,
            kind=layer.kind,
            weight_shape=tuple(layer.weight.shape),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            output_padding=layer.output_padding,
            groups=layer.groups,
        )

    def _relu(self, source: Value, name: str) -> Operation:
        narrow = self.rings.narrow(source)
        held = self.rings.ranges[narrow.name]
        drop = self.rings.dropped(narrow)
        scale = narrow.scale - drop
        most = self.activation_limit / source.factor
        limit = max(1, math.ceil(most * 2.0**narrow.scale)) if held.high.max().item() > most else None
        above = None if limit is None else limit / 2.0**narrow.scale
        rectified = bounds.rectified(held, above, drop, scale)
        return self.rings.emit(ops.Relu, name, (narrow.name,), scale, rectified, drop=drop, limit=limit)

    def _mean(self, source: Value, what: graph.Mean, name: str) -> Value:
        count = math.prod(what.kernel)
        for wide in (self.rings.wide(source), None):
            taken = wide or self.rings.short(source)
            shift = max(0, min(int(math.log2(count)), LARGEST_SCALE - taken.scale))
            held = bounds.summed(self.rings.ranges[taken.name], what.kernel, shift)
            scale = taken.scale + shift
            if held.bound * 2.0**scale < NARROWABLE or taken.scale <= FRACTION_BITS:
                break
        pooled = self.rings.emit(ops.SumPool, name, (taken.name,), scale, held, kernel=what.kernel)
        return Value(source.factor * 2.0**shift / count, wide=pooled)

    def _combined(self, given: list[Value], step: graph.Step) -> Value:
        joined = isinstance(step.what, graph.Join)
        factors = [value.factor for value in given]
        reference = 1.0 if 1.0 in factors else factors[0]
        given = [self._multiplied(value, reference, f"{step.name}.{place}") for place, value in enumerate(given)]
        factor = min(value.factor for value in given)
        lifts = [round(math.log2(value.factor / factor)) for value in given]
        combine = bounds.joined if joined else bounds.added
        for sources in ([self.rings.wide(value) for value in given], None):
            taken = sources or [self.rings.short(value) for value in given]
            scale = max(operation.scale for operation in taken)
            held = combine([self.rings.ranges[each.name] for each in taken], [2.0**lift for lift in lifts])
            if held.bound * 2.0**scale < NARROWABLE:
                break
        shifts = tuple(scale - operation.scale + lift for operation, lift in zip(taken, lifts, strict=True))
        names = tuple(operation.name for operation in taken)
        kind: type[ops.Concat | ops.Add] = ops.Concat if joined else ops.Add
        return Value(factor, wide=self.rings.emit(kind, step.name, names, scale, held, shifts=shifts))

    def _multiplied(self, value: Value, reference: float, name: str) -> Value:
        """The value with a factor that a shift brings to ``reference``, if need be by a layer of its own."""
        power = math.log2(value.factor / reference)
        if power == round(power) and abs(power) <= _MOST_SHIFT:
            return value
        shape = self.rings.wide(value).shape
        ratio = torch.full((shape[0],), 1.0 / reference, dtype=torch.float64)
        layer = graph.channelwise(ratio, torch.zeros(shape[0], dtype=torch.float64), shape)
        if layer is None:
            raise UnsupportedLayer(
                "Encrypted inference cannot bring two branches to one factor",
                layer=self.rings.layer,
                got=f"values of shape {shape}",
                remedy="add values of shape (channels, *spatial) or vectors",
            )
        return Value(reference, wide=self._linear(value, layer, name))


def _rounded(layer: graph.Affine, scale: int, bits: int) -> tuple[Tensor, Tensor]:
    """Weights and bias as their integers stand for them, for an input with ``scale`` fraction bits."""
    weight = (layer.weight * 2.0**bits).round() / 2.0**bits
    return weight, (layer.bias * 2.0 ** (scale + bits)).round() / 2.0 ** (scale + bits)


def _integers(values: Tensor, bits: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (values * 2.0**bits).round().to(torch.int64).contiguous().numpy()
    return found
