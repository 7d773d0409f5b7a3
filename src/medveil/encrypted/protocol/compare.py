"""Comparison of a public number with a secret one, both below 2**31, by one-time tables and one round of products.

With z = y + rho modulo 2**32 open and rho dealt in halves, the sign of y is msb(z) ^ msb(rho) ^ [z' < rho'], where z'
and rho' are the 31 bits below. The lowest of them is left out, so the answer may be wrong where |y| <= 1. The other
thirty are six chunks of five. For every chunk the dealer deals two tables of 32 bits in XOR halves: bit v of one says
whether v is below the chunk of rho, bit v of the other whether it is equal. A look-up is local. From "less" (l) and
"equal" (e)

    [z' < rho'] = l5 ^ e5 l4 ^ e5 e4 l3 ^ ... ^ e5 e4 e3 e2 e1 l0,

whose products the parties form in one round: each of the ten bits is opened under a mask of its own, of which the
dealer has dealt all products that occur (Beaver's multiplication for more than two factors).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.protocol.ring import Narrow, Packed, Source, Stream, pack, words

CHUNKS: Final = 6
CHUNK_BITS: Final = 5
_SKIPPED = 1
_MASK = np.uint32(2**CHUNK_BITS - 1)
# Elements at a time, a multiple of 64: look-ups of a block stay in the cache.
_BLOCK: Final = 1 << 16

Names = tuple[str, ...]
EQUAL: Final[Names] = tuple(f"e{chunk}" for chunk in range(CHUNKS - 1, 0, -1))
LESS: Final[Names] = tuple(f"l{chunk}" for chunk in range(CHUNKS - 2, -1, -1))
VARIABLES: Final[Names] = EQUAL + LESS
"""Bits that are opened under a mask."""
TERMS: Final[tuple[Names, ...]] = tuple((*EQUAL[: place + 1], less) for place, less in enumerate(LESS))
"""Products whose XOR, with l5, is the comparison."""
PRODUCTS: Final[tuple[Names, ...]] = tuple(
    dict.fromkeys(chosen for term in TERMS for count in range(2, len(term) + 1) for chosen in combinations(term, count))
)
"""Products of masks that are dealt."""
TABLES: Final[Names] = tuple(f"l{chunk}" for chunk in range(CHUNKS)) + tuple(f"e{chunk}" for chunk in range(1, CHUNKS))
"""Tables that are dealt, one word of 32 bits an element each."""


@dataclass(frozen=True, eq=False)
class Tables:
    """One party's halves of the tables of some secret numbers.

    Args:
        content: shape (11, count), uint32, in the order of :data:`TABLES`.
    """

    content: NDArray[np.uint32]

    @classmethod
    def take(cls, dealt: Source, count: int) -> "Tables":
        """The next ones."""
        return cls(dealt.narrow(len(TABLES) * count).reshape(len(TABLES), count))

    def look_up(self, opened: Narrow) -> dict[str, Packed]:
        """Halves of the bits "less" and "equal" of every chunk, for public numbers z, shape (count,)."""
        count = opened.size
        found = {name: np.zeros(words(count), np.uint64) for name in TABLES}
        at_most = min(count, _BLOCK)
        turned, index, moved = (np.empty(at_most, np.uint32) for _ in range(3))
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            np.invert(opened[start : start + size], out=turned[:size])
            for chunk in range(CHUNKS):
                # 31 less the chunk: shifted up by it, the bit of the table is the sign, which is quickly read.
                np.right_shift(turned[:size], np.uint32(_SKIPPED + CHUNK_BITS * chunk), out=index[:size])
                np.bitwise_and(index[:size], _MASK, out=index[:size])
                for kind in "le" if chunk else "l":
                    table = self.content[TABLES.index(f"{kind}{chunk}"), start : start + size]
                    np.left_shift(table, index[:size], out=moved[:size])
                    into = found[f"{kind}{chunk}"].view(np.uint8)[start // 8 : (start + size + 7) // 8]
                    into[:] = np.packbits(moved[:size].view(np.int32) < 0, bitorder="little")
        return found


@dataclass(frozen=True, eq=False)
class Tree:
    """One party's halves of the masks of one comparison, and of their products.

    Args:
        masks: by variable.
        products: by variables multiplied.
    """

    masks: Mapping[str, Packed]
    products: Mapping[Names, Packed]

    @classmethod
    def take(cls, own: Stream, dealt: Source, count: int) -> "Tree":
        """The next one; masks come from the party's own seed."""
        masks = {name: own.bits(count) for name in VARIABLES}
        return cls(masks, {chosen: dealt.bits(count) for chosen in PRODUCTS})

    def hide(self, found: Mapping[str, Packed]) -> NDArray[np.uint64]:
        """What is sent: shape (10, words)."""
        hidden = np.empty((len(VARIABLES), *self.masks[VARIABLES[0]].shape), np.uint64)
        for row, name in zip(hidden, VARIABLES, strict=True):
            np.bitwise_xor(found[name], self.masks[name], out=row)
        return hidden

    def less(self, found: Mapping[str, Packed], opened: NDArray[np.uint64], *, first: bool) -> Packed:
        """Half of [z' < rho'].

        Args:
            found: from :meth:`Tables.look_up`.
            opened: XOR of what both parties sent.
            first: of exactly one of the two parties.
        """
        public = dict(zip(VARIABLES, opened, strict=True))
        total = self._terms(0, (), public, first=first)
        total ^= found[f"l{CHUNKS - 1}"]
        return total

    def _terms(self, place: int, chosen: Names, public: Mapping[str, Packed], *, first: bool) -> Packed:
        """The terms from ``place`` on, without the factors before, of which ``chosen`` are taken as masks.

        Horner's scheme: every (e ^ a)(...) is split into the open e ^ a, a factor of all that follows, and the mask a,
        which joins the products of masks.
        """
        equal = EQUAL[place]
        total = self._behind(place, chosen, public, first=first)
        total &= public[equal]
        total ^= self._behind(place, (*chosen, equal), public, first=first)
        return total

    def _behind(self, place: int, chosen: Names, public: Mapping[str, Packed], *, first: bool) -> Packed:
        less = LESS[place]
        if chosen:
            total = public[less] & self._product(chosen)
            total ^= self._product((*chosen, less))
        elif first:
            total = public[less] ^ self.masks[less]
        else:
            total = self.masks[less].copy()
        if place + 1 < len(LESS):
            total ^= self._terms(place + 1, chosen, public, first=first)
        return total

    def _product(self, chosen: Names) -> Packed:
        return self.masks[chosen[0]] if len(chosen) == 1 else self.products[chosen]


def deal_tables(secret: Narrow, hospital: Stream) -> NDArray[np.uint32]:
    """The vendor's halves of the tables for rho = ``secret``; the hospital's are drawn from its stream."""
    content = hospital.narrow(len(TABLES) * secret.size).reshape(len(TABLES), secret.size).copy()
    for place, name in enumerate(TABLES):
        chunk = (secret >> np.uint32(_SKIPPED + CHUNK_BITS * int(name[1]))) & _MASK
        hot = np.left_shift(np.uint32(1), chunk)
        content[place] ^= hot if name[0] == "e" else hot - np.uint32(1)
    return content


def deal_masks(hospital: Stream, vendor: Stream, count: int) -> dict[str, Packed]:
    """The masks of a comparison in the clear, as the dealer knows them."""
    first = {name: hospital.bits(count) for name in VARIABLES}
    return {name: half ^ vendor.bits(count) for name, half in first.items()}


def deal_products(masks: Mapping[str, Packed], hospital: Stream, count: int) -> NDArray[np.uint64]:
    """The vendor's halves of the products, shape (83, words)."""
    rows = []
    for chosen in PRODUCTS:
        product = masks[chosen[0]]
        for name in chosen[1:]:
            product = product & masks[name]
        rows.append(product ^ hospital.bits(count))
    return np.stack(rows)


def top_bit(values: Narrow) -> Packed:
    """The highest bits, packed."""
    return pack(values.view(np.int32) < 0)
