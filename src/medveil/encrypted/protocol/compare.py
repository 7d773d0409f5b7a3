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
_TOP = np.uint32(31)
# Elements at a time, a multiple of 64: tables and look-ups of a block stay in the cache.
_BLOCK: Final = 1 << 14

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
        for start in range(0, count, _BLOCK):
            part = opened[start : start + _BLOCK]
            for chunk in range(CHUNKS):
                index = (part >> np.uint32(_SKIPPED + CHUNK_BITS * chunk)) & _MASK
                for kind in "le" if chunk else "l":
                    table = self.content[TABLES.index(f"{kind}{chunk}"), start : start + part.size]
                    bits = (np.right_shift(table, index) & np.uint32(1)).astype(np.uint8)
                    at = start // 64
                    found[f"{kind}{chunk}"][at : at + words(part.size)] = pack(bits)
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
        return np.stack([found[name] ^ self.masks[name] for name in VARIABLES])

    def less(self, found: Mapping[str, Packed], opened: NDArray[np.uint64], *, first: bool) -> Packed:
        """Half of [z' < rho'].

        Args:
            found: from :meth:`Tables.look_up`.
            opened: XOR of what both parties sent.
            first: of exactly one of the two parties.
        """
        public = dict(zip(VARIABLES, opened, strict=True))
        total = found[f"l{CHUNKS - 1}"].copy()
        for term in TERMS:
            for count in range(len(term) + 1):
                if count == 0 and not first:
                    continue
                for chosen in combinations(term, count):
                    total ^= self._part(chosen, [public[name] for name in term if name not in chosen])
        return total

    def _part(self, chosen: Names, public: list[Packed]) -> Packed:
        secret = [self.masks[chosen[0]] if len(chosen) == 1 else self.products[chosen]] if chosen else []
        factors = [*secret, *public]
        product = factors[0]
        for factor in factors[1:]:
            product = product & factor
        return product


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
    return pack((values >> _TOP).astype(np.uint8))
