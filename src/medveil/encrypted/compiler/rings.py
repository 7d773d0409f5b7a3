"""Operations as they are made, with what is known about their results, and the change between the two rings."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from medveil.encrypted import program as ops
from medveil.encrypted.compiler import bounds
from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.program import FRACTION_BITS, NARROW_BITS, NARROW_LIMIT, WIDE_BITS, Operation
from medveil.errors import UnsupportedLayer

_MOST_KEPT: Final = 20
_MOST_DROPPED: Final = WIDE_BITS - NARROW_BITS
# From a larger scale no narrow one can be reached.
LARGEST_SCALE: Final = _MOST_KEPT + _MOST_DROPPED

NARROWABLE: Final = NARROW_LIMIT * 2**_MOST_DROPPED
"""Integers below it can be narrowed, if their scale allows it."""

_Op = TypeVar("_Op", bound=Operation)


@dataclass(eq=False)
class Value:
    """A step's result: ``factor`` times what its operations hold.

    Args:
        factor: > 0.
        wide: the result in the wide ring, where it exists.
        narrow: in the narrow ring.
        short: in the wide ring with 16 fraction bits or fewer, as linear layers read it.
    """

    factor: float
    wide: Operation | None = None
    narrow: Operation | None = None
    short: Operation | None = None

    def held(self) -> list[Operation]:
        """The operations that hold it."""
        return [each for each in (self.wide, self.narrow, self.short) if each is not None]


@dataclass(eq=False)
class Rings:
    """The operations so far.

    Args:
        activation_limit: for messages.
        bits: fraction bits, at most, of what linear layers read.
        operations: in order.
        ranges: of results that are still read, by name.
        layer: that is being lowered, for messages.
    """

    activation_limit: float
    bits: int = FRACTION_BITS
    operations: list[Operation] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    layer: str = ""

    def emit(
        self,
        operation: type[_Op],
        name: str,
        inputs: tuple[str, ...],
        scale: int,
        held: Range,
        /,
        *,
        narrow: bool = False,
        **more: Any,
    ) -> _Op:
        """Append an operation.

        Raises:
            UnsupportedLayer: its result might leave the wide ring.
        """
        if not narrow and held.bound * 2.0**scale >= 2.0 ** (WIDE_BITS - 1):
            raise self.too_large(held.bound, 2.0 ** (WIDE_BITS - 1 - scale))
        shape = tuple(held.low.shape)
        name = self.unused(name)
        emitted = operation(name, inputs, shape, scale, narrow, held.bound, **more)
        self.operations.append(emitted)
        self.ranges[name] = held
        return emitted

    def unused(self, name: str) -> str:
        """The name, or one like it: a value and its multiple may both be narrowed."""
        again = sum(each.name == name or each.name.startswith(f"{name}~") for each in self.operations)
        return f"{name}~{again}" if again else name

    def too_large(self, bound: float, most: float) -> UnsupportedLayer:
        """The error for values that are not certain to be below ``most``."""
        return UnsupportedLayer(
            "Values may leave the range of encrypted inference",
            layer=self.layer,
            got=f"values up to {bound:.6g}, from the declared range of images and the weights",
            expected=f"less than {most:.6g}",
            remedy=f"lower activation_limit (now {self.activation_limit:g}) or the range of images, put a ReLU in "
            "between, or train with weight decay",
        )

    def wide(self, value: Value) -> Operation:
        """The value in the wide ring."""
        return value.wide or self.short(value)

    def short(self, value: Value) -> Operation:
        """The value in the wide ring with 16 fraction bits or fewer."""
        if value.wide and value.wide.scale <= FRACTION_BITS:
            return value.wide
        if value.short is None:
            narrow = self.narrow(value)
            drop = self.dropped(narrow)
            held = bounds.dropped(self.ranges[narrow.name], drop, narrow.scale - drop)
            name = f"{narrow.name.removesuffix('.narrow')}.rescaled"
            value.short = self.emit(ops.Rescale, name, (narrow.name,), narrow.scale - drop, held, drop=drop)
        return value.short

    def dropped(self, narrow: Operation) -> int:
        """Bits that a narrow value has beyond those that linear layers read."""
        return max(0, narrow.scale - self.bits)

    def narrow(self, value: Value) -> Operation:
        """The value in the narrow ring, with as many fraction bits as its range allows."""
        if value.narrow is None:
            wide = value.wide
            assert wide is not None
            for kept in range(min(_MOST_KEPT, wide.scale), min(self.bits, wide.scale) - 1, -1):
                drop = wide.scale - kept
                held = bounds.dropped(self.ranges[wide.name], drop, kept)
                if held.bound * 2.0**kept < NARROW_LIMIT and drop <= _MOST_DROPPED:
                    name = f"{wide.name}.narrow"
                    value.narrow = self.emit(ops.Narrow, name, (wide.name,), kept, held, narrow=True, drop=drop)
                    return value.narrow
            raise self.too_large(wide.bound, NARROW_LIMIT / 2.0**self.bits)
        return value.narrow

    def forget(self, value: Value, others: Iterable[Value]) -> None:
        """Drop the ranges of a value that is read no more, but for results that it shares with others."""
        kept = {held.name for other in others for held in other.held()}
        for held in value.held():
            if held.name not in kept:
                self.ranges.pop(held.name, None)
