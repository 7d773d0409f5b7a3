"""Shared numbers: the wide ring modulo 2**48, the narrow one modulo 2**32, packed bits, and where masks come from."""

from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

from medveil.encrypted.program import WIDE_BITS
from medveil.errors import ConfigError

Narrow = NDArray[np.uint32]
Wide = NDArray[np.uint64]
"""Words modulo 2**64 of which the last 48 bits count."""
Packed = NDArray[np.uint64]
"""Bits, 64 a word, the first in the lowest place; bits behind the last one are anything."""

SEED_BYTES = 32
WORD_BITS = 64
_HIGH = WIDE_BITS - 32
_UNUSED = 64 - WIDE_BITS
_BLOCK = memoryview(bytes(1 << 17))
# The library wants room for one block of the cipher, less a byte, beyond the data.
_ROOM = 15


class Source(Protocol):
    """Hands out one party's halves of what the dealer deals, in the order of the program."""

    def narrow(self, count: int) -> Narrow:
        """Words modulo 2**32, shape (count,)."""
        ...

    def wide(self, count: int) -> Wide:
        """Words modulo 2**48, shape (count,)."""
        ...

    def bits(self, count: int) -> Packed:
        """``count`` bits, shape (words(count),)."""
        ...


class Stream:
    """A seed's key stream (AES-256 in counter mode), read once from its beginning; a :class:`Source`.

    Args:
        seed: 32 bytes, from the operating system, for one purpose and one correlation.
        purpose: what is drawn; other purposes of the same seed are independent.

    Raises:
        ConfigError: a seed of another length.

    Guarantees:
        Without the seed no efficient adversary can tell what is drawn from uniform bits (AES-256 as a pseudorandom
        function). NIST SP 800-38A section 6.5; RFC 5869 section 2.3.
    """

    def __init__(self, seed: bytes, purpose: str) -> None:
        if len(seed) != SEED_BYTES:
            raise ConfigError("A seed has another length", got=f"{len(seed)} bytes", expected=f"{SEED_BYTES} bytes")
        key = HKDFExpand(SHA256(), 32, b"medveil encrypted " + purpose.encode()).derive(seed)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def raw(self, count: int) -> NDArray[np.uint8]:
        """Uniform bytes, shape (count,)."""
        buffer = bytearray(count + _ROOM)
        view, at = memoryview(buffer), 0
        while at < count:
            at += self._cipher.update_into(_BLOCK[: count - at], view[at:])
        return np.frombuffer(buffer, np.uint8, count)

    def narrow(self, count: int) -> Narrow:
        """As :class:`Source`."""
        return self.raw(4 * count).view("<u4")

    def wide(self, count: int) -> Wide:
        """As :class:`Source`; the unused bits are random too."""
        return self.raw(8 * count).view("<u8")

    def bits(self, count: int) -> Packed:
        """As :class:`Source`."""
        return self.raw(8 * words(count)).view("<u8")


def words(count: int) -> int:
    """Words that hold ``count`` bits.

    >>> words(0), words(64), words(65)
    (0, 1, 2)
    """
    return -(-count // WORD_BITS)


def wide_bytes(values: Wide) -> bytes:
    """The low 48 bits of every word: all low halves, then all rest; 6 bytes a number."""
    flat = np.ascontiguousarray(values).ravel()
    return flat.view("<u4")[::2].tobytes() + flat.view("<u2")[2::4].tobytes()


def wide_from(data: bytes | memoryview, count: int) -> Wide:
    """Inverse of :func:`wide_bytes`: words below 2**48, shape (count,)."""
    found = np.empty(count, "<u8")
    halves = found.view("<u4")
    halves[::2] = np.frombuffer(data, "<u4", count)
    halves[1::2] = np.frombuffer(data, "<u2", count, 4 * count)
    return found


def signed(values: Wide) -> NDArray[np.int64]:
    """What words modulo 2**48 stand for, between -2**47 and 2**47."""
    return (values << np.uint64(_UNUSED)).view(np.int64) >> np.int64(_UNUSED)


def pack(bits: NDArray[np.uint8] | NDArray[np.bool_]) -> Packed:
    """Bits (0 or 1, shape (count,)) as words.

    >>> pack(np.array([1, 0, 1], np.uint8)).tolist()
    [5]
    """
    packed = np.zeros(8 * words(bits.size), np.uint8)
    found = np.packbits(bits, bitorder="little")
    packed[: found.size] = found
    return packed.view("<u8")


def unpack(packed: Packed, count: int) -> NDArray[np.uint8]:
    """Inverse of :func:`pack`: zeros and ones, shape (count,)."""
    return np.unpackbits(packed.view(np.uint8), count=count, bitorder="little")
