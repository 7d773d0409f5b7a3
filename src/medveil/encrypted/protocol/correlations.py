"""What the dealer deals for one comparison, one change of rings: both halves, and how they are read.

Every ``deal_...`` draws both parties' own halves from their seeds in the order in which ``take`` reads them, and
returns the bytes that the vendor needs beside its seed. The hospital needs its seed only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medveil.encrypted.protocol.compare import Tables, Tree, deal_masks, deal_products, deal_tables, top_bit
from medveil.encrypted.protocol.ring import Narrow, Packed, Source, Stream, Wide, unpack, wide_bytes, wide_from, words


@dataclass(frozen=True, eq=False)
class Signs:
    """One party's half of what tells the signs of ``count`` narrow numbers.

    Args:
        mask: half of rho, shape (count,).
        tables: for rho.
        tree: for the comparison with zero.
        over: for the comparison with the limit, or None.
        top: half of the highest bits of rho.
        coin: half of the bits that hide the signs (beta).
    """

    mask: Narrow
    tables: Tables
    tree: Tree
    over: Tree | None
    top: Packed
    coin: Packed

    @classmethod
    def take(cls, own: Stream, dealt: Source, count: int, *, limited: bool) -> "Signs":
        """The next one."""
        mask, coin = own.narrow(count), own.bits(count)
        tables, top = Tables.take(dealt, count), dealt.bits(count)
        tree = Tree.take(own, dealt, count)
        return cls(mask, tables, tree, Tree.take(own, dealt, count) if limited else None, top, coin)


def deal_signs(hospital: Stream, vendor: Stream, count: int, *, limited: bool) -> tuple[list[bytes], Narrow, Packed]:
    """The vendor's part of a :class:`Signs`, and rho and beta for what comes with it."""
    secret = hospital.narrow(count)
    coin = hospital.bits(count)
    secret = secret + vendor.narrow(count)
    coin = coin ^ vendor.bits(count)
    parts = [deal_tables(secret, hospital).tobytes(), (top_bit(secret) ^ hospital.bits(count)).tobytes()]
    for _ in range(2 if limited else 1):
        masks = deal_masks(hospital, vendor, count)
        parts.append(deal_products(masks, hospital, count).tobytes())
    return parts, secret, coin


@dataclass(frozen=True, eq=False)
class Decision:
    """One party's half of what tells the hospital alone the signs of ``count`` narrow numbers: there is no coin.

    Args:
        mask: half of rho, shape (count,).
        tables: for rho.
        tree: for the comparison with zero.
        top: half of the highest bits of rho.
    """

    mask: Narrow
    tables: Tables
    tree: Tree
    top: Packed

    @classmethod
    def take(cls, own: Stream, dealt: Source, count: int) -> "Decision":
        """The next one."""
        mask = own.narrow(count)
        tables, top = Tables.take(dealt, count), dealt.bits(count)
        return cls(mask, tables, Tree.take(own, dealt, count), top)


def deal_decision(hospital: Stream, vendor: Stream, count: int) -> list[bytes]:
    """The vendor's part of a :class:`Decision`."""
    secret = hospital.narrow(count)
    secret = secret + vendor.narrow(count)
    parts = [deal_tables(secret, hospital).tobytes(), (top_bit(secret) ^ hospital.bits(count)).tobytes()]
    masks = deal_masks(hospital, vendor, count)
    return [*parts, deal_products(masks, hospital, count).tobytes()]


@dataclass(frozen=True, eq=False)
class Lift:
    """One party's half of what turns narrow numbers into wide ones with fewer fraction bits.

    Args:
        mask: half of rho, shape (count,).
        shifted: half of rho >> drop.
        top: half of the highest bit of rho, as a number.
    """

    mask: Narrow
    shifted: Wide
    top: Wide

    @classmethod
    def take(cls, own: Stream, dealt: Source, count: int) -> "Lift":
        """The next one."""
        return cls(own.narrow(count), dealt.wide(count), dealt.narrow(count).astype(np.uint64))


def deal_lift(hospital: Stream, vendor: Stream, count: int, drop: int) -> list[bytes]:
    """The vendor's part of a :class:`Lift`."""
    secret = hospital.narrow(count)
    secret = secret + vendor.narrow(count)
    return _lifted(secret, hospital, drop)


def _lifted(secret: Narrow, hospital: Stream, drop: int) -> list[bytes]:
    shifted = (secret >> np.uint32(drop)).astype(np.uint64)
    first = wide_bytes(shifted - hospital.wide(secret.size))
    return [first, ((secret >> np.uint32(31)) - hospital.narrow(secret.size)).tobytes()]


@dataclass(frozen=True, eq=False)
class Gate:
    """One party's half of what multiplies lifted numbers by their signs.

    Args:
        shifted: half of rho >> drop.
        top: half of the highest bit of rho, as a number.
        coin: half of beta, as a number.
        coin_shifted: half of beta (rho >> drop).
        coin_top: half of beta times the highest bit.
    """

    shifted: Wide
    top: Wide
    coin: Wide
    coin_shifted: Wide
    coin_top: Wide

    @classmethod
    def take(cls, dealt: Source, count: int) -> "Gate":
        """The next one."""
        shifted, top = dealt.wide(count), dealt.narrow(count).astype(np.uint64)
        coin, coin_shifted = dealt.wide(count), dealt.wide(count)
        return cls(shifted, top, coin, coin_shifted, dealt.narrow(count).astype(np.uint64))


def deal_gate(secret: Narrow, coin: Packed, hospital: Stream, drop: int) -> list[bytes]:
    """The vendor's part of a :class:`Gate`."""
    parts = _lifted(secret, hospital, drop)
    on = unpack(coin, secret.size)
    parts.append(wide_bytes(on.astype(np.uint64) - hospital.wide(secret.size)))
    parts.append(wide_bytes(on * (secret >> np.uint32(drop)).astype(np.uint64) - hospital.wide(secret.size)))
    parts.append((on * (secret >> np.uint32(31)) - hospital.narrow(secret.size)).tobytes())
    return parts


@dataclass(frozen=True, eq=False)
class NarrowGate:
    """One party's half of what multiplies narrow numbers by their signs, in the narrow ring.

    Args:
        coin: half of beta, as a number.
        coin_mask: half of beta rho.
    """

    coin: Narrow
    coin_mask: Narrow

    @classmethod
    def take(cls, dealt: Source, count: int) -> "NarrowGate":
        """The next one."""
        return cls(dealt.narrow(count), dealt.narrow(count))


def deal_narrow_gate(secret: Narrow, coin: Packed, hospital: Stream) -> list[bytes]:
    """The vendor's part of a :class:`NarrowGate`."""
    on = unpack(coin, secret.size).astype(np.uint32)
    first = (on - hospital.narrow(secret.size)).tobytes()
    return [first, (on * secret - hospital.narrow(secret.size)).tobytes()]


class Dealt:
    """The vendor's halves, read from what the dealer wrote; a :class:`~medveil.encrypted.protocol.ring.Source`.

    Args:
        read: gives the next so many bytes.
    """

    def __init__(self, read: Callable[[int], bytes | memoryview]) -> None:
        self._read = read

    def narrow(self, count: int) -> Narrow:
        """As :class:`~medveil.encrypted.protocol.ring.Source`."""
        return np.frombuffer(self._read(4 * count), "<u4", count)

    def wide(self, count: int) -> Wide:
        """As :class:`~medveil.encrypted.protocol.ring.Source`."""
        return wide_from(self._read(6 * count), count)

    def bits(self, count: int) -> Packed:
        """As :class:`~medveil.encrypted.protocol.ring.Source`."""
        return np.frombuffer(self._read(8 * words(count)), "<u8", words(count))
