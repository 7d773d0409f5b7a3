"""The end of an evaluation: what the hospital learns, numbers or bits, and what the vendor says for it."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.program import WIDE_BITS, Decide, Program
from medveil.encrypted.protocol.activation import Party
from medveil.encrypted.protocol.compare import top_bit
from medveil.encrypted.protocol.correlations import Decision
from medveil.encrypted.protocol.ring import Narrow, Packed, Wide, pack, signed, unpack, wide_bytes, wide_from, words

Values = NDArray[Any]


def decide(party: Party, operation: Decide, given: list[Values], dealt: Decision) -> Packed:
    """Half of the bits [value >= threshold]; nothing opened tells either party any of them.

    Args:
        party: this one.
        operation: with its thresholds.
        given: its halves of the inputs, narrow, shapes (N, *shape).
        dealt: for all bits.

    Returns:
        Packed, shape (words(N * operation.size),), with zeros behind the last bit.
    """
    values = _distances(operation, given, first=party.first)
    opened = party.open_sum(values + dealt.mask)
    found = dealt.tables.look_up(opened)
    said = party.open_bits(dealt.tree.hide(found))
    half = dealt.tree.less(found, said, first=party.first) ^ dealt.top
    if party.first:
        half = ~(half ^ top_bit(opened))
    return pack(unpack(half, values.size))


def _distances(operation: Decide, given: list[Values], *, first: bool) -> Narrow:
    """The values, from the largest class's where that is given too, less every threshold; shape (N * size,)."""
    values: Values = given[0] if len(given) == 1 else given[0] - given[1]
    # Thresholds are public: the hospital takes them off its half.
    taken = np.array(operation.thresholds, np.int64).astype(np.uint32) * np.uint32(first)
    less: Values = values[:, None] - taken.reshape(-1, *(1,) * (values.ndim - 1))
    return less.ravel()


def say(program: Program, half: Values) -> bytes:
    """What the vendor sends of its half of the result: of numbers not the lowest bits."""
    if program.decision is not None:
        return half.tobytes()
    return wide_bytes(_shown(program, half).ravel())


def said_bytes(program: Program, images: int) -> int:
    """Bytes of :func:`say`."""
    count = images * program.output.size
    return 6 * count if program.decision is None else 8 * words(count)


def reveal(program: Program, half: Values, said: bytes | memoryview, images: int) -> NDArray[np.float64]:
    """The result, from the hospital's half and what the vendor said.

    Returns:
        Shape (N, *output shape): numbers, or bits as zeros and ones.
    """
    shape = (images, *program.output.shape)
    if program.decision is not None:
        bits = unpack(half ^ np.frombuffer(said, "<u8"), prod(shape))
        return bits.reshape(shape).astype(np.float64)
    theirs = wide_from(said, half.size).reshape(shape)
    total = signed((_shown(program, half) + theirs) << np.uint64(program.hidden)) >> np.int64(program.hidden)
    # What the two carries lack is one unit on average.
    centre = 1 if program.hidden else 0
    return (total + centre) / 2.0**program.reveal * program.factor


def _shown(program: Program, half: Wide) -> Wide:
    """A half without its lowest bits: exact to one unit in a ring that is smaller by as many bits."""
    shown: Wide = (half & np.uint64(2**WIDE_BITS - 1)) >> np.uint64(program.hidden)
    return shown
