"""What the two parties say to each other about signs: ReLU, rescaling, the larger of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.program import NARROW_LIMIT
from medveil.encrypted.protocol.compare import top_bit
from medveil.encrypted.protocol.correlations import Gate, Lift, NarrowGate, Signs
from medveil.encrypted.protocol.ring import Narrow, Packed, Stream, Wide, unpack

# Elements at a time, so that intermediate results stay in the cache.
_BLOCK = 1 << 14
_SIGN = np.uint32(31)
_WORD = 8


class Link(Protocol):
    """The other party: what is sent comes out of its ``receive`` in the same order."""

    @property
    def outstanding(self) -> int:
        """Bytes that may wait to be sent before :meth:`send` waits for the other party to read."""
        ...

    def send(self, data: bytes | NDArray[np.uint8]) -> None:
        """Give bytes; they may wait until this party receives."""
        ...

    def receive(self, size: int) -> memoryview | bytes:
        """The next ``size`` bytes."""
        ...


@dataclass
class Party:
    """One of the two.

    Args:
        link: to the other.
        first: the hospital; public numbers are added to its halves.
        flags: halves of the bits "a value reached its limit", in the order of the program.

    Guarantees:
        Where both send before they receive, large messages go in pieces: neither is ever further ahead of what it has
        received than a quarter of what its link lets wait. So they do not wait for each other.
    """

    link: Link
    first: bool
    flags: list[tuple[Packed, int]] = field(default_factory=list)
    _shown: bool = field(default=False, init=False)
    _unsent: list[NDArray[np.uint8]] = field(default_factory=list, init=False)
    _ahead: int = field(init=False)

    def __post_init__(self) -> None:
        self._ahead = max(self.link.outstanding // 4 // _WORD * _WORD, _WORD)

    def open_sum(self, half: Narrow) -> Narrow:
        """Both halves added up."""
        self._begin([half])
        opened: Narrow = half + np.frombuffer(self._answer(4 * half.size), "<u4", half.size)
        return opened

    def open_bits(self, half: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Both halves XORed."""
        return self.open_each([half])[0]

    def show(self, halves: list[NDArray[np.uint64]]) -> None:
        """Send this party's halves; :meth:`open_each` of the same must follow, and work may lie between."""
        self._begin(halves)
        self._shown = True

    def open_each(self, halves: list[NDArray[np.uint64]]) -> list[NDArray[np.uint64]]:
        """Several at once, as :meth:`open_bits`; what :meth:`show` has sent is not sent again."""
        if not self._shown:
            self.show(halves)
        self._shown = False
        theirs = [np.frombuffer(self._answer(8 * half.size), "<u8", half.size) for half in halves]
        return [half ^ other.reshape(half.shape) for half, other in zip(halves, theirs, strict=True)]

    def _begin(self, halves: Sequence[NDArray[Any]]) -> None:
        """Send as much of these halves as may be ahead of the other party's; the rest goes with its answers."""
        self._unsent = [np.ascontiguousarray(half).view(np.uint8).reshape(-1) for half in halves]
        self._go_on(self._ahead)

    def _go_on(self, room: int) -> None:
        while room and self._unsent:
            first = self._unsent[0]
            self.link.send(first[:room])
            if first.size > room:
                self._unsent[0] = first[room:]
            else:
                del self._unsent[0]
            room -= min(room, first.size)

    def _answer(self, size: int) -> memoryview | bytes:
        """The next bytes of the other party's halves, and as many more of this party's where some are left."""
        if not self._unsent:
            return self.link.receive(size)
        found = np.empty(size, np.uint8)
        for start in range(0, size, self._ahead):
            part = found[start : start + self._ahead]
            part[:] = np.frombuffer(self.link.receive(part.size), np.uint8)
            self._go_on(part.size)
        return found.data


def signs(
    party: Party,
    values: Narrow,
    dealt: Signs,
    limit: int | None,
    meanwhile: Callable[[Narrow], None] | None = None,
) -> tuple[Narrow, NDArray[np.uint8]]:
    """Open z = values + rho and c = [value >= 0] ^ beta.

    Args:
        party: this one.
        values: its halves, shape (count,).
        dealt: for so many.
        limit: values of at least this are noted in ``party.flags``; None notes none.
        meanwhile: what this party does with z while bits are on their way.

    Returns:
        z, shape (count,), and c as zeros and ones, shape (count,).
    """
    count = values.size
    opened = party.open_sum(values + dealt.mask)
    compared = [(opened, dealt.tree)]
    if dealt.over is not None:
        compared.append((opened - np.uint32(limit or 0), dealt.over))
    found = [dealt.tables.look_up(number) for number, _ in compared]
    hidden = [tree.hide(bits) for (_, tree), bits in zip(compared, found, strict=True)]
    party.show(hidden)
    if meanwhile is not None:
        party.link.receive(0)  # which lets what was sent leave
        meanwhile(opened)
    public = party.open_each(hidden)
    halves = [
        _not_negative(party, number, dealt.top, tree.less(bits, said, first=party.first))
        for (number, tree), bits, said in zip(compared, found, public, strict=True)
    ]
    if dealt.over is not None:
        party.flags.append((halves[1], count))
    return opened, unpack(party.open_bits(halves[0] ^ dealt.coin), count)


def _not_negative(party: Party, opened: Narrow, top: Packed, less: Packed) -> Packed:
    half = less ^ top
    return ~(half ^ top_bit(opened)) if party.first else half


def relu(party: Party, values: Narrow, dealt: tuple[Signs, Gate], drop: int, limit: int | None) -> Wide:
    """max(0, value) with ``drop`` bits fewer; one unit of error at most. Shape (count,)."""
    told, gate = dealt
    result, turned = np.empty(values.size, np.uint64), np.empty(values.size, np.uint64)
    parts = [slice(start, start + _BLOCK) for start in range(0, values.size, _BLOCK)]

    def multiply(opened: Narrow) -> None:
        """Halves of beta times the value, and of the value less that."""
        for part in parts:
            public, wrapped = _public(opened[part], drop)
            hidden = np.multiply(public, gate.coin[part], out=result[part])
            hidden -= gate.coin_shifted[part]
            hidden += (wrapped & gate.coin_top[part]) << np.uint64(32 - drop)
            whole = (wrapped & gate.top[part]) << np.uint64(32 - drop)
            whole -= gate.shifted[part]
            if party.first:
                whole += public
            np.subtract(whole, hidden, out=turned[part])

    _, on = signs(party, values, told, limit, multiply)
    for part in parts:  # where c is 0 the sign is beta, elsewhere its opposite
        _choose(result[part], turned[part], on[part])
    return result


def rescale(party: Party, values: Narrow, dealt: Lift, drop: int) -> Wide:
    """The values in the wide ring with ``drop`` bits fewer; one unit of error at most. Shape (count,)."""
    public, wrapped = _public(party.open_sum(values + dealt.mask), drop)
    result = ((wrapped & dealt.top) << np.uint64(32 - drop)) - dealt.shifted
    return result + public if party.first else result


def _public(opened: Narrow, drop: int) -> tuple[Wide, Wide]:
    """Z >> drop and, where z + rho wrapped around if rho's highest bit is set, ones (else 0); both about -2**30."""
    moved = opened + np.uint32(NARROW_LIMIT)
    public = (moved >> np.uint32(drop)).astype(np.uint64)
    public -= np.uint64(NARROW_LIMIT >> drop)
    moved >>= _SIGN
    wrapped = moved.astype(np.uint64)
    wrapped -= np.uint64(1)
    return public, wrapped


def larger(party: Party, one: Narrow, other: Narrow, dealt: tuple[Signs, NarrowGate]) -> Narrow:
    """The larger of two narrow numbers each, in the narrow ring; shape (count,)."""
    told, gate = dealt
    difference = one - other
    opened, on = signs(party, difference, told, None)
    hidden = opened * gate.coin
    hidden -= gate.coin_mask
    difference -= hidden
    _choose(hidden, difference, on)
    hidden += other
    return hidden


def _choose(values: NDArray[Any], others: NDArray[Any], on: NDArray[np.uint8]) -> None:
    """Put the others (overwritten) among the values where a bit is set: faster than a mask of the library."""
    others ^= values
    others &= np.negative(on.astype(values.dtype))
    values ^= others


def parities(flags: list[tuple[Packed, int]], coins: Stream) -> int:
    """64 parities of random halves of all flags, as one word: zero where no flag is set."""
    result = 0
    for packed, count in flags:
        used = packed.copy()
        if count % 64:
            used[-1] &= np.uint64(2 ** (count % 64) - 1)
        for bit in range(64):
            chosen = used & coins.bits(count)
            result ^= (int(np.bitwise_count(chosen).sum()) & 1) << bit
    return result
