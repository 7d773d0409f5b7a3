"""Which masks hide a site's vector, and which of them are left in the sum when sites have vanished."""

import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from medveil.secagg.keys import derive
from medveil.secagg.ring import RingVector, add_mask

Sign = Literal[1, -1]


def sign(own: int, other: int) -> Sign:
    """With which sign the site ``own`` adds the mask it shares with ``other``; the two signs cancel."""
    return 1 if own < other else -1


def partners(own: int, view: Collection[int]) -> Iterator[tuple[int, Sign]]:
    """The sites that ``own`` shares a mask with, and the sign of each mask in its own vector."""
    return ((other, sign(own, other)) for other in view if other != own)


def left_over(included: Collection[int], dropped: Collection[int]) -> Iterator[tuple[int, int, Sign]]:
    """(included site, dropped site, sign) of each pairwise mask that nothing cancels in the sum of the included."""
    return ((own, other, sign(own, other)) for other in dropped for own in included)


def mask_key(shared: bytes, session: bytes, step: int, view: bytes, context: bytes, one: int, other: int) -> bytes:
    """The key of the mask that two sites share in one step and one view of it, for vectors of one context.

    The same from both ends; the masks of two sites whose contexts differ do not cancel.
    """
    low, high = (struct.pack("<H", index) for index in sorted((one, other)))
    return derive(shared, b"mask", session, struct.pack("<I", step), view, context, low, high)


def hide(vector: RingVector, own: int, seed: bytes, keys: Mapping[int, bytes]) -> None:
    """Mask a site's vector in place.

    Args:
        vector: shape (length,), uint32 or uint64.
        own: the site's index.
        seed: key of its self mask.
        keys: for each other site of the view, the key of the mask shared with it.
    """
    add_mask(vector, seed, 1)
    for other, pair_sign in partners(own, keys):
        add_mask(vector, keys[other], pair_sign)


def uncover(total: RingVector, seeds: Mapping[int, bytes], keys: Mapping[tuple[int, int], bytes]) -> None:
    """Take away in place what is left of the masks in the sum of some sites' masked vectors.

    Args:
        total: the sum, shape (length,).
        seeds: seed of each included site.
        keys: for each (included, dropped) pair of sites, the key of the mask they share.
    """
    for seed in seeds.values():
        add_mask(total, seed, -1)
    for own, other, pair_sign in left_over(seeds, {other for _, other in keys}):
        add_mask(total, keys[own, other], -1 if pair_sign == 1 else 1)
