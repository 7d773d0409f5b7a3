"""What a program costs for one image: bytes, messages one after the other, comparisons.

Bytes count what operations send, without the headers of frames. Online bytes are sent once the image is there.
"""

from dataclasses import dataclass
from math import prod
from typing import Final

from medveil.encrypted.program import Decide, Linear, MaxPool, Operation, Program, Relu, Rescale, Shape

WORD_BYTES: Final = 8
"""Single bits travel packed, 64 elements a word."""

WIDE_BYTES: Final = 6
NARROW_BYTES: Final = 4
COINS_BYTES: Final = 32

TABLES: Final = 11
"""Look-up tables of 32 bits an element: "less" for six chunks of a number, "equal" for all but the lowest."""

TREE_BITS: Final = 10
"""Masked bits opened an element: "equal" for five chunks, "less" for five."""

PRODUCTS: Final = 83
"""Products of masks dealt an element.

The comparison is l5 ^ e5 l4 ^ e5 e4 l3 ^ ... ^ e5 e4 e3 e2 e1 l0, and a product of masked bits expands into the
products of all sets of two masks and more: 57 sets with one l, 26 without.
"""


@dataclass(frozen=True)
class Cost:
    """What an operation costs.

    Args:
        to_vendor: bytes online, hospital to vendor.
        to_hospital: bytes online, vendor to hospital.
        sends: messages online from the hospital alone.
        exchanges: messages online in both directions at once.
        dealt: bytes ahead of time, dealer to vendor.
        comparisons: elements that go through a comparison.
        limits: elements that are also compared with a limit.
    """

    to_vendor: int = 0
    to_hospital: int = 0
    sends: int = 0
    exchanges: int = 0
    dealt: int = 0
    comparisons: int = 0
    limits: int = 0


def packed(size: int) -> int:
    """Bytes of one bit an element."""
    return WORD_BYTES * -(-size // 64)


def linear_cost(operation: Linear, given: Shape) -> Cost:
    """The masked input online; ahead of time the dealer's term of every output."""
    return Cost(to_vendor=WIDE_BYTES * prod(given), sends=1, dealt=WIDE_BYTES * operation.size)


def relu_cost(operation: Relu) -> Cost:
    """Opening, tree (two with a limit), one masked bit; dealt: the comparison, beta, rho's bits and their products."""
    size, trees = operation.size, 1 if operation.limit is None else 2
    each_way, dealt = _comparison(size, trees)
    numbers = (3 * WIDE_BYTES + 2 * NARROW_BYTES) * size
    return Cost(each_way, each_way, 0, 3, dealt + numbers, size, 0 if operation.limit is None else size)


def rescale_cost(operation: Rescale) -> Cost:
    """Opening; two numbers dealt."""
    opened = NARROW_BYTES * operation.size
    return Cost(opened, opened, 0, 1, (WIDE_BYTES + NARROW_BYTES) * operation.size)


def max_pool_cost(operation: MaxPool, given: Shape) -> Cost:
    """Axis by axis, last first, one comparison after the other for all windows of an axis; two numbers dealt."""
    shape = list(given)
    each_way = dealt = exchanges = comparisons = 0
    for axis in reversed(range(len(operation.kernel))):
        shape[1 + axis] = operation.shape[1 + axis]
        size, times = prod(shape), operation.kernel[axis] - 1
        one_way, compared = _comparison(size, 1)
        each_way += times * one_way
        dealt += times * (compared + 2 * NARROW_BYTES * size)
        exchanges += 3 * times
        comparisons += times * size
    return Cost(each_way, each_way, 0, exchanges, dealt, comparisons)


def decide_cost(operation: Decide) -> Cost:
    """Opening and tree; dealt: the comparison. The bits themselves are the result."""
    size = operation.size
    one_way, dealt = _comparison(size, 1)
    one_way -= packed(size)  # no coin
    return Cost(one_way, one_way, 0, 2, dealt, size)


def operation_cost(operation: Operation, given: Shape) -> Cost:
    """What one operation costs; local ones nothing.

    Args:
        operation: any.
        given: shape of its (first) input.
    """
    if isinstance(operation, Linear):
        return linear_cost(operation, given)
    if isinstance(operation, Relu):
        return relu_cost(operation)
    if isinstance(operation, Rescale):
        return rescale_cost(operation)
    if isinstance(operation, MaxPool):
        return max_pool_cost(operation, given)
    if isinstance(operation, Decide):
        return decide_cost(operation)
    return Cost()


@dataclass(frozen=True)
class Total:
    """What a program costs; fields as :class:`Cost`, but for one.

    Args:
        latencies: one-way message latencies from the start to the hospital's result.
    """

    to_vendor: int
    to_hospital: int
    latencies: int
    dealt: int
    comparisons: int
    limits: int


def program_cost(program: Program) -> Total:
    """The whole program for one image, the result and the check of the limits included."""
    shapes = {one.name: one.shape for one in program.operations}
    costs = [operation_cost(one, shapes[(one.inputs or (one.name,))[0]]) for one in program.operations]
    limits = sum(one.limits for one in costs)
    return Total(
        to_vendor=sum(one.to_vendor for one in costs) + (COINS_BYTES + WORD_BYTES if limits else 0),
        to_hospital=sum(one.to_hospital for one in costs)
        + (WIDE_BYTES * program.output.size if program.decision is None else packed(program.output.size))
        + (2 * WORD_BYTES if limits else 0),
        latencies=_latencies(costs, coins=limits > 0),
        dealt=sum(one.dealt for one in costs) + (WORD_BYTES if limits else 0),
        comparisons=sum(one.comparisons for one in costs),
        limits=limits,
    )


def _comparison(size: int, trees: int) -> tuple[int, int]:
    """Bytes each way and bytes dealt of the comparison of ``size`` elements."""
    each_way = NARROW_BYTES * size + (trees * TREE_BITS + 1) * packed(size)
    return each_way, 4 * TABLES * size + (trees * PRODUCTS + 1) * packed(size)


def _latencies(costs: list[Cost], *, coins: bool) -> int:
    """By both parties' clocks. One that receives goes on one latency after the other has sent."""
    hospital = vendor = 0
    for one in costs:
        for _ in range(one.sends):
            vendor = max(vendor, hospital + 1)
        for _ in range(one.exchanges):
            hospital, vendor = max(hospital, vendor + 1), max(vendor, hospital + 1)
    if coins:
        vendor = max(vendor, hospital + 1)
    return max(hospital, vendor + 1)
