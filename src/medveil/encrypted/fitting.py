"""Whether the operations of a program fit together: names, rings and shapes; for programs that another party sent."""

from collections.abc import Iterable
from functools import singledispatch
from math import prod

import torch

from medveil.encrypted.program import (
    FRACTION_BITS,
    NARROW_BITS,
    NARROW_LIMIT,
    WIDE_BITS,
    Add,
    Concat,
    Decide,
    Input,
    Linear,
    MaxPool,
    Narrow,
    Operation,
    Program,
    Relu,
    Rescale,
    Reshape,
    Shape,
    SumPool,
    Upsample,
)
from medveil.encrypted.protocol.linear import convolved
from medveil.encrypted.protocol.pooling import passes
from medveil.errors import MessageError

# Of all results of one image together: what a party must be able to hold.
_MOST_NUMBERS = 1 << 28
_MOST_DROPPED = 8
_FEWEST_BITS = 8
LARGEST_SCALE = 64
# So that a revealed number keeps eight bits at least.
MOST_HIDDEN = WIDE_BITS - 8
_MOST_THRESHOLDS = 1 << 10
_LARGEST_FACTOR = 2.0**64
LARGEST_ERROR = 2.0**1000
"""More than any bound that says something, and rounded up still a number."""
_MOST_AXES = 5
# Of a layer's or a window's kernel, stride, padding and dilation, an axis.
_LARGEST_STEP = 1024
_LONGEST_NAME = 200
_MOST_NAMES = 1 << 12


def refused(got: str, expected: str = "a program that this version of medveil can evaluate") -> MessageError:
    """What is raised about bytes that are no program."""
    return MessageError("Bytes are not a program", got=got, expected=expected)


def check(program: Program) -> None:
    """Refuse a program whose operations do not fit together.

    Raises:
        MessageError: as said.
    """
    known: dict[str, Operation] = {}
    held = 0
    for place, one in enumerate(program.operations):
        middle = isinstance(one, Decide) and one is not program.output
        if middle or isinstance(one, Input) != (place == 0) or one.name in known:
            raise refused("an input or a decision in the middle, or a name twice")
        if not all(name in known for name in one.inputs) or (not one.inputs) != (place == 0):
            raise refused("an operation without its inputs")
        given = [known[name] for name in one.inputs]
        if not _numbers_fit(one) or not _steps_fit(one):
            raise refused(f"{one.name}: a scale, limit, range or step that no number has")
        if not _rings_fit(one, [item.narrow for item in given]):
            raise refused(f"{one.name}: an operation in the wrong ring")
        held += _fitted(one, [item.shape for item in given])
        if held > _MOST_NUMBERS:
            raise refused("results, weights or comparisons that are too many together", f"at most {_MOST_NUMBERS}")
        known[one.name] = one
    if not known or not _result_fits(program):
        raise refused("no result in the wide ring, bits to reveal that it does not have, or names that nobody can read")


def _fitted(one: Operation, given: list[Shape]) -> int:
    """How many numbers a party holds for an operation whose shapes fit; for any other one an error."""
    for shape in (one.shape, one.weight_shape if isinstance(one, Linear) else one.shape):
        if not 1 <= len(shape) <= _MOST_AXES or not 1 <= min(shape) <= max(shape) <= _MOST_NUMBERS:
            raise refused("an empty shape, or one that is too large")
    try:
        shape, held = result_shape(one, given), _held(one, given)
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError):
        raise refused(f"{one.name}: numbers that do not fit its input") from None
    if shape != one.shape:
        raise refused(f"{one.name}: shape {one.shape}", f"shape {shape}")
    return held


def numbers(program: Program) -> int:
    """What a party holds for one image: numbers of all results, of weights, and of comparisons within windows."""
    shapes = {one.name: one.shape for one in program.operations}
    return sum(_held(one, [shapes[name] for name in one.inputs]) for one in program.operations)


def _held(one: Operation, given: list[Shape]) -> int:
    inside = 0
    if isinstance(one, Linear):
        inside = prod(one.weight_shape)
    elif isinstance(one, MaxPool):
        inside = sum(each.size * each.kernel for each in passes(one, given[0]))
    return one.size + inside


def _result_fits(program: Program) -> bool:
    compared = program.decision is None or 1 / _LARGEST_FACTOR <= program.factor <= _LARGEST_FACTOR
    certain = 0 <= program.error <= LARGEST_ERROR
    names = program.names
    readable = len(names) <= _MOST_NAMES and all(len(each) <= _LONGEST_NAME and each.isprintable() for each in names)
    return compared and certain and readable and not program.output.narrow and 0 <= program.hidden <= MOST_HIDDEN


def _numbers_fit(one: Operation) -> bool:
    if isinstance(one, Input):
        largest = max(abs(one.low), abs(one.high)) * 2.0**FRACTION_BITS
        return one.scale == FRACTION_BITS and one.low < one.high and largest < 2 ** (WIDE_BITS - 1)
    if isinstance(one, Decide):
        least, most = (-NARROW_LIMIT, NARROW_LIMIT) if len(one.inputs) == 1 else (-NARROW_LIMIT, 0)
        return one.scale == 0 and all(least < each < most for each in one.thresholds)
    limit = one.limit if isinstance(one, Relu) else None
    shifts = one.shifts if isinstance(one, Add | Concat) else ()
    fits = 0 <= one.scale <= LARGEST_SCALE and all(0 <= shift <= LARGEST_SCALE for shift in shifts)
    return fits and (limit is None or 1 <= limit <= NARROW_LIMIT)


def _steps_fit(one: Operation) -> bool:
    if isinstance(one, Linear):
        return one.groups <= _MOST_NUMBERS and _bounded((one.stride, one.padding, one.dilation, one.output_padding))
    return not isinstance(one, MaxPool) or _bounded((one.kernel, one.stride, one.padding))


def _bounded(steps: Iterable[Shape]) -> bool:
    return all(len(each) < _MOST_AXES and all(0 <= step <= _LARGEST_STEP for step in each) for each in steps)


def _rings_fit(one: Operation, narrow: list[bool]) -> bool:
    if isinstance(one, Relu | Rescale):
        dropped = 0 <= one.drop <= _MOST_DROPPED and _FEWEST_BITS <= one.scale <= FRACTION_BITS
        return narrow == [True] and not one.narrow and dropped
    if isinstance(one, Narrow):
        return narrow == [False] and one.narrow and 0 <= one.drop <= WIDE_BITS - NARROW_BITS
    if isinstance(one, MaxPool):
        return narrow == [True] and one.narrow
    if isinstance(one, Decide):
        return narrow in ([True], [True, True]) and not one.narrow
    if isinstance(one, Linear | SumPool):
        return narrow == [False] and not one.narrow
    return all(item == one.narrow for item in narrow)


@singledispatch
def result_shape(one: Operation, given: list[Shape]) -> Shape:
    """The shape of an operation's result, from those of its inputs.

    Raises:
        ValueError: numbers that make no sense, as do the errors of torch.
    """
    return given[0] if given else one.shape


@result_shape.register
def _(one: Linear, given: list[Shape]) -> Shape:
    axes = len(one.weight_shape) - 2
    numbers = [one.stride, one.padding, one.dilation, *([one.output_padding] if "transpose" in one.kind else [])]
    if any(len(each) != axes for each in numbers):
        raise ValueError("axes")
    x, w = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in ((1, *given[0]), one.weight_shape))
    return tuple(convolved(one, x, w).shape[1:])


@result_shape.register
def _(one: MaxPool, given: list[Shape]) -> Shape:
    axes = list(zip(one.kernel, one.stride, one.padding, given[0][1:], strict=True))
    if any(min(kernel, stride) < 1 or not 0 <= 2 * padding <= kernel for kernel, stride, padding, _ in axes):
        raise ValueError("windows")
    return passes(one, given[0])[-1].shape


@result_shape.register
def _(one: SumPool, given: list[Shape]) -> Shape:
    return (given[0][0], *(length // kernel for length, kernel in zip(given[0][1:], one.kernel, strict=True)))


@result_shape.register
def _(one: Upsample, given: list[Shape]) -> Shape:
    return (given[0][0], *(length * factor for length, factor in zip(given[0][1:], one.factors, strict=True)))


@result_shape.register
def _(one: Concat, given: list[Shape]) -> Shape:
    if len(one.shifts) != len(given) or any(shape[1:] != given[0][1:] for shape in given) or min(one.shifts) < 0:
        raise ValueError("parts")
    return (sum(shape[0] for shape in given), *given[0][1:])


@result_shape.register
def _(one: Add, given: list[Shape]) -> Shape:
    if len(one.shifts) != len(given) or set(given) != {given[0]} or min(one.shifts) < 0:
        raise ValueError("terms")
    return given[0]


@result_shape.register
def _(one: Decide, given: list[Shape]) -> Shape:
    if not 1 <= len(one.thresholds) <= _MOST_THRESHOLDS or any(shape != (1, *given[0][1:]) for shape in given[1:]):
        raise ValueError("thresholds, or the largest of something else")
    return (len(one.thresholds), *given[0])


@result_shape.register
def _(one: Reshape, given: list[Shape]) -> Shape:
    if prod(given[0]) != one.size:
        raise ValueError("size")
    return one.shape
