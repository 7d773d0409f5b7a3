"""Vectors of integers modulo 2**32 or 2**64, and the masks that hide them."""

from typing import Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from medveil.errors import ConfigError

RingVector: TypeAlias = NDArray[np.uint32 | np.uint64]
"""A vector of integers modulo 2**32 (uint32) or 2**64 (uint64); sums wrap around."""

Bits: TypeAlias = Literal[32, 64]

KEY_BYTES = 32

# What a block's key stream, its zeros and its part of the vector take stays in the second level of cache: smaller
# blocks pay for calls, larger ones for memory.
_BLOCK_BYTES = 1 << 17
_ZEROS = memoryview(bytes(_BLOCK_BYTES))
# The library wants room for one block of the cipher, less a byte, beyond the data.
_ROOM = 15


def add_mask(vector: RingVector, key: bytes, sign: Literal[1, -1]) -> None:
    """Add (``sign`` 1) or subtract (-1) the mask of a key, in place, modulo 2**32 or 2**64.

    The mask is the key stream of AES-256 in counter mode from counter 0, read as little-endian words of the vector's
    size. The same key with the other sign takes it away.

    Args:
        vector: shape (length,), uint32 or uint64, native byte order.
        key: 32 bytes, used for one vector only.
        sign: 1 or -1.

    Raises:
        ConfigError: a vector of another kind, a key of another length, another sign.

    Guarantees:
        Without the key the result cannot be told from uniform words (AES-256 as a pseudorandom function), whatever the
        vector holds. Two vectors under one key lose that: their difference shows.

    Reference:
        NIST SP 800-38A section 6.5 (counter mode); Bonawitz et al. 2017, CCS, section 4, for masks that cancel.
    """
    _check(vector, key, sign)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_BLOCK_BYTES + _ROOM)
    words = np.frombuffer(buffer, vector.dtype.newbyteorder("<"), _BLOCK_BYTES // vector.itemsize)
    combine = np.add if sign == 1 else np.subtract
    for start in range(0, vector.size, words.size):
        part = vector[start : start + words.size]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        combine(part, words[: part.size], out=part)


def mask(key: bytes, length: int, bits: Bits) -> RingVector:
    """The mask of a key on its own: shape (length,), uint32 or uint64.

    Raises:
        ConfigError: another size of words, a negative length, or a key of another length.

    >>> mask(bytes(32), 2, 32).tobytes().hex()
    'dc95c078a2408989'
    """
    if length < 0:
        raise ConfigError("A mask has no negative length", got=length, expected="at least 0")
    vector: RingVector = np.zeros(length, word(bits))
    add_mask(vector, key, 1)
    return vector


def word(bits: int) -> type[np.uint32 | np.uint64]:
    """NumPy's type for integers modulo 2**bits.

    Raises:
        ConfigError: neither 32 nor 64.
    """
    if bits not in {32, 64}:
        raise ConfigError("There are no rings with words of that size", got=f"{bits} bits", expected="32 or 64")
    return np.uint32 if bits == 32 else np.uint64  # noqa: PLR2004 - as above


def _check(vector: RingVector, key: bytes, sign: int) -> None:
    of_a_ring = vector.dtype in {np.dtype(np.uint32), np.dtype(np.uint64)}
    if vector.ndim != 1 or not of_a_ring or not vector.flags.writeable:
        raise ConfigError(
            "Only vectors of unsigned words that can be written to are masked",
            got=f"{vector.dtype} {vector.shape}, writeable {vector.flags.writeable}",
            expected="uint32 or uint64, one dimension, writeable",
            remedy="encode with medveil.secagg.encoding first",
        )
    if len(key) != KEY_BYTES or sign not in {1, -1}:
        raise ConfigError(
            "No such mask", got=f"a key of {len(key)} bytes, sign {sign}", expected=f"{KEY_BYTES} bytes, sign 1 or -1"
        )
