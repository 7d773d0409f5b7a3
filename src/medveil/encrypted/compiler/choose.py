"""Which limit and how many fraction bits a program gets."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.compiler.graph import Step
from medveil.encrypted.compiler.lower import Lowering
from medveil.encrypted.compiler.probes import mean_square
from medveil.encrypted.compiler.rings import Rings, Value
from medveil.encrypted.program import Operation
from medveil.errors import UnsupportedLayer

# Fraction bits of what linear layers read, tried in this order until fewer are no better, or the error is small.
_BITS: Final = (16, 15, 14, 13)
# Fewer make room for larger values: a limit that fits with so many is taken.
_WIDEST: Final = 14
_SMALL: Final = 2.0**-13

End = Callable[[Rings, Value], tuple[Operation, Range]]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network as operations.

    Args:
        lowering: operations and weights.
        output: the last operation.
        factor: of what is revealed or compared.
        held: what is known of that.
    """

    lowering: Lowering
    output: Operation
    factor: float
    held: Range

    @property
    def error_rms(self) -> float:
        """Of the synthetic image with the largest error."""
        return math.sqrt(mean_square(self.held)) * self.factor


def lowered(
    steps: Mapping[str, Step],
    output: str,
    given: Range,
    *,
    limits: Sequence[float],
    largest_scale: int | None,
    end: End,
) -> Lowered:
    """With the first limit with which every layer fits, and the bits with which synthetic images err least.

    Args:
        steps: from :func:`medveil.encrypted.compiler.fold.simplify`.
        output: name of their result.
        given: range of the image.
        limits: to be tried.
        largest_scale: as of :class:`~medveil.encrypted.compiler.lower.Lowering`.
        end: appends what comes behind the network.

    Raises:
        UnsupportedLayer: a layer whose values may leave the rings with the last limit.
    """

    def attempt(limit: float, given: Range, bits: int) -> Lowered:
        lowering = Lowering(limit, bits, largest_scale)
        value = lowering.run(steps, output, given)
        last, held = end(lowering.rings, value)
        return Lowered(lowering, last, value.factor, held)

    limit = _fitting(lambda each: attempt(each, _bare(given), _WIDEST), limits)
    best: Lowered | None = None
    for bits in _BITS:
        try:
            found = attempt(limit, given, bits)
        except UnsupportedLayer:
            if best is not None:
                break
            if bits > _WIDEST:
                continue
            raise
        if best is not None and found.error_rms >= best.error_rms:
            break
        best = found
        if best.error_rms < _SMALL:
            break
    assert best is not None
    return best


def _fitting(attempt: Callable[[float], Lowered], limits: Sequence[float]) -> float:
    """The first limit with which every layer fits, or the last one."""
    for limit in limits[:-1]:
        try:
            attempt(limit)
        except UnsupportedLayer:
            continue
        return limit
    return limits[-1]


def _bare(given: Range) -> Range:
    """Without synthetic images."""
    return replace(given, probes=given.probes[:0], trials=given.trials[:0])
