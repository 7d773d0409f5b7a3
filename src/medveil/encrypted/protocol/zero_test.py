"""Whether a shared word is zero, and nothing else about it: it is multiplied by a random one before it is opened.

A word p in XOR halves is an element of GF(2**64). With a and r random and a r dealt in halves, the parties open
d = p ^ a, which is uniform; then d r ^ a r = p r in halves, which is zero where p is (or r is, with probability
2**-64), and otherwise uniform among the other elements.
"""

from dataclasses import dataclass
from typing import Final

from medveil.encrypted.protocol.ring import Packed, Source, Stream

WORD_BYTES: Final = 8
_BITS = 64
# x**64 + x**4 + x**3 + x + 1
_POLYNOMIAL = 0b11011


def multiply(one: int, other: int) -> int:
    """The product in GF(2**64).

    >>> multiply(2, 2**63) == 0b11011, multiply(1, 77)
    (True, 77)
    """
    product = 0
    for _ in range(_BITS):
        if other & 1:
            product ^= one
        other >>= 1
        carry = one >> (_BITS - 1)
        one = (one << 1) & (2**_BITS - 1)
        if carry:
            one ^= _POLYNOMIAL
    return product


@dataclass(frozen=True)
class ZeroTest:
    """One party's half of what one test needs.

    Args:
        mask: of a.
        factor: of r.
        product: of a r.
    """

    mask: int
    factor: int
    product: int

    @classmethod
    def take(cls, own: Stream, dealt: Source) -> "ZeroTest":
        """The next one."""
        mask, factor = _word(own.bits(_BITS)), _word(own.bits(_BITS))
        return cls(mask, factor, _word(dealt.bits(_BITS)))

    def hide(self, word: int) -> int:
        """What is opened first: this party's half of d."""
        return word ^ self.mask

    def blur(self, opened: int) -> int:
        """This party's half of p r, from d."""
        return multiply(opened, self.factor) ^ self.product


def deal_zero_test(hospital: Stream, vendor: Stream) -> bytes:
    """The vendor's part of a :class:`ZeroTest`."""
    mask, factor = _word(hospital.bits(_BITS)), _word(hospital.bits(_BITS))
    mask, factor = mask ^ _word(vendor.bits(_BITS)), factor ^ _word(vendor.bits(_BITS))
    return to_bytes(multiply(mask, factor) ^ _word(hospital.bits(_BITS)))


def to_bytes(word: int) -> bytes:
    """A word as it is sent."""
    return word.to_bytes(WORD_BYTES, "little")


def from_bytes(data: bytes | memoryview) -> int:
    """Inverse of :func:`to_bytes`."""
    return int.from_bytes(data, "little")


def _word(packed: Packed) -> int:
    return int(packed[0])
