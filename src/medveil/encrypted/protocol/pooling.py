"""Largest values of windows, axis by axis, and operations that every party does to its halves alone."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.program import (
    Add,
    Concat,
    MaxPool,
    Narrow,
    Operation,
    Reshape,
    Shape,
    SumPool,
    Upsample,
)
from medveil.encrypted.protocol.ring import Wide

Values = NDArray[Any]
"""Halves of narrow or wide numbers."""

# Below every value, and so little below zero that differences do not leave the ring.
LOWEST = 2**32 - 2**30


@dataclass(frozen=True)
class Pass:
    """Maxima along one axis.

    Args:
        axis: of the array with its batch in front.
        kernel: window.
        stride: of the window.
        padding: on both sides.
        shape: of the result, without the batch.
    """

    axis: int
    kernel: int
    stride: int
    padding: int
    shape: Shape

    @property
    def size(self) -> int:
        """Numbers in the result, for one image."""
        return prod(self.shape)


def passes(pool: MaxPool, given: Shape) -> list[Pass]:
    """The passes of a pooling of values of shape ``given``, last axis first."""
    shape, found = list(given), []
    for place in reversed(range(len(pool.kernel))):
        kernel, stride, padding = pool.kernel[place], pool.stride[place], pool.padding[place]
        shape[1 + place] = (shape[1 + place] + 2 * padding - kernel) // stride + 1
        found.append(Pass(2 + place, kernel, stride, padding, tuple(shape)))
    return found


def windows(values: NDArray[np.uint32], one: Pass, *, first: bool) -> list[NDArray[np.uint32]]:
    """The candidates of every window along the axis, as ``kernel`` arrays of the result's shape."""
    if one.padding:
        edges = [(0, 0)] * values.ndim
        edges[one.axis] = (one.padding, one.padding)
        values = np.pad(values, edges, constant_values=np.uint32(LOWEST if first else 0))
    length = one.shape[one.axis - 1]
    found = []
    for offset in range(one.kernel):
        taken = slice(offset, offset + (length - 1) * one.stride + 1, one.stride)
        found.append(np.ascontiguousarray(values[(slice(None),) * one.axis + (taken,)]))
    return found


def alone(operation: Operation, given: list[Values], *, first: bool) -> Values | None:
    """What a party does to its halves without the other; None where that is not enough.

    Args:
        operation: which.
        given: its inputs' halves, shapes (N, *shape).
        first: of exactly one of the two parties, which rounds up where the other rounds down.
    """
    result: Values | None = None
    if isinstance(operation, Narrow):
        half = given[0] + np.uint64(2**operation.drop - 1) if first else given[0]
        result = (half >> np.uint64(operation.drop)).astype(np.uint32)
    elif isinstance(operation, Add):
        result = sum(_shifted(given, operation.shifts), start=np.zeros_like(given[0]))
    elif isinstance(operation, Concat):
        result = np.concatenate(_shifted(given, operation.shifts), axis=1)
    elif isinstance(operation, SumPool):
        result = _sums(given[0], operation)
    elif isinstance(operation, Upsample):
        result = given[0]
        for place, factor in enumerate(operation.factors):
            result = np.repeat(result, factor, axis=2 + place)
    elif isinstance(operation, Reshape):
        result = given[0].reshape(len(given[0]), *operation.shape)
    return result


def _shifted(given: list[Values], shifts: tuple[int, ...]) -> list[Values]:
    return [value << value.dtype.type(shift) for value, shift in zip(given, shifts, strict=True)]


def _sums(values: Wide, pool: SumPool) -> Values:
    """Windows that do not fit whole are left out, as torch does."""
    lengths = list(zip(values.shape[2:], pool.kernel, strict=True))
    whole = (slice(None), slice(None), *(slice(0, length // kernel * kernel) for length, kernel in lengths))
    split = [part for length, kernel in lengths for part in (length // kernel, kernel)]
    axes = tuple(range(3, 3 + 2 * len(lengths), 2))
    total: Values = values[whole].reshape(*values.shape[:2], *split).sum(axis=axes, dtype=np.uint64)
    return total
