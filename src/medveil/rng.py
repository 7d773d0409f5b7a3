"""Two kinds of randomness, never interchangeable, no global state.

:class:`Seeds` repeats: splits, initial weights, synthetic data. :class:`SecureRandom` must not: noise, masks, keys and
sampling under a privacy claim.
"""

import hashlib
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.ciphers import CipherContext


@dataclass(frozen=True)
class Seeds:
    """A tree of seeds: the same root and names give the same numbers, on every machine.

    Not a privacy guarantee: anyone who knows the root can repeat every draw.

    Args:
        root: any integer.
        path: names from the root to this node.

    >>> Seeds(7).child("partition").integer() == Seeds(7).child("partition").integer()
    True
    >>> Seeds(7).child("a", 1).integer() == Seeds(7).child("a", 2).integer()
    False
    """

    root: int
    path: tuple[str, ...] = field(default=())

    def child(self, *names: str | int) -> "Seeds":
        """The node below this one that ``names`` lead to."""
        return Seeds(self.root, (*self.path, *(str(name) for name in names)))

    def integer(self) -> int:
        """This node's seed, in [0, 2**63)."""
        # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
        text = "".join(f"{len(name)}:{name}" for name in (str(self.root), *self.path))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator (PCG64) for this node."""
        return np.random.Generator(np.random.PCG64(self.integer()))

    def torch(self) -> "torch.Generator":
        """A fresh CPU torch generator for this node."""
        import torch

        return torch.Generator().manual_seed(self.integer())


class _Process:
    """Marks the process that a stream belongs to; a fork replaces the mark."""

    def __init__(self) -> None:
        self.renewal = threading.Lock()


_process = _Process()


def _mark_new_process() -> None:
    global _process  # noqa: PLW0603 - one process has one mark
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_new_process)


class SecureRandom:
    """Cryptographic randomness: 32 bytes from the operating system, expanded with AES-256 in counter mode.

    No stream is ever repeated: every instance has its own key, every child its own (HKDF-Expand with SHA-256 over the
    purpose and how often that purpose was asked for), and a forked process starts afresh from the operating system.
    Instances can be neither copied nor pickled, and never print their key. Threads may share one: each draw takes a
    lock, so no two draws overlap, though who gets which words is up to the scheduler.

    Guarantees:
        Words that no efficient adversary can tell from uniform ones, as long as the operating system's generator and
        AES-256 hold and the process's memory stays private. A privacy guarantee built on it is computational (Mironov
        et al. 2009, SIM-CDP). A restored snapshot of a virtual machine repeats its streams: nothing here can see that.

    References:
        NIST SP 800-38A section 6.5 (counter mode), RFC 5869 section 2.3 (HKDF-Expand).

    >>> random = SecureRandom()
    >>> random.secure, len(random.bytes(5)), random.words(3).shape
    (True, 5, (3,))
    >>> random.child("noise").bytes(16) == random.child("noise").bytes(16)
    False
    """

    __slots__ = ("_asked", "_key", "_lock", "_pid", "_process", "_secure", "_stream")

    def __init__(self) -> None:
        self._secure = True
        self._begin(os.urandom(32))

    @classmethod
    def seeded(cls, seeds: Seeds) -> "SecureRandom":
        """The same interface from a known key, for debugging: NOT PRIVATE, and :attr:`secure` says so."""
        return cls._from_key(_derived(seeds.integer().to_bytes(32, "big"), "seeded"), secure=False)

    @classmethod
    def _from_key(cls, key: bytes, *, secure: bool) -> "SecureRandom":
        made = cls.__new__(cls)
        made._secure = secure  # noqa: SLF001 - its own class
        made._begin(key)  # noqa: SLF001 - as above
        return made

    def _begin(self, key: bytes) -> None:
        self._key = key
        self._asked: Counter[str] = Counter()
        self._stream = _counter_mode(key)
        self._lock = threading.Lock()
        self._process, self._pid = _process, os.getpid()

    @property
    def secure(self) -> bool:
        """False when the key is known: what was drawn then protects nobody, and the plan is stamped NOT PRIVATE."""
        return self._secure

    def child(self, purpose: str) -> "SecureRandom":
        """An independent stream for ``purpose``; asking again gives another one, never the same."""
        with self._owned():
            self._asked[purpose] += 1
            key = _derived(self._key, f"child {self._asked[purpose]} {purpose}")
        return SecureRandom._from_key(key, secure=self._secure)

    def replay(self, purpose: str) -> "SecureRandom":
        """The stream for ``purpose``, the same whenever it is asked for: for debugging, from a seeded source only.

        Raises:
            PrivacyError: the source is secure, and a secret stream must never come twice.
        """
        if self._secure:
            raise PrivacyError(
                "A secure stream cannot be replayed", remedy="use child(), or a seeded source for debugging"
            )
        with self._owned():
            return SecureRandom._from_key(_derived(self._key, f"replay {purpose}"), secure=False)

    def bytes(self, count: int) -> bytes:
        """``count`` >= 0 uniform bytes."""
        zeros = bytes(_size(count, "bytes"))
        with self._owned():
            return self._stream.update(zeros)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words, shape (count,), read-only."""
        return np.frombuffer(self.bytes(8 * _size(count, "words")), dtype="<u8").astype(np.uint64, copy=False)

    def bernoulli(self, rate: float, count: int) -> NDArray[np.bool_]:
        """``count`` independent coins, shape (count,), each True with probability ``rate``.

        Args:
            rate: in [0, 1]; 0 and 1 are exact. In between it is rounded down to a multiple of 2**-64, which changes
                no float64 of at least 2**-11; a smaller rate shrinks by less than 2**-64, so never more is sampled
                than was accounted for.
            count: >= 0.

        Raises:
            ConfigError: rate outside [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise ConfigError("A probability lies between 0 and 1", got=rate, expected="0 <= rate <= 1")
        if rate == 1.0:
            return np.ones(_size(count, "coins"), dtype=np.bool_)
        return self.words(count) < np.uint64(int(Fraction(rate) * 2**64))

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """Uniform integers in [0, limit), shape (count,), unbiased: words beyond a multiple of ``limit`` are redrawn.

        Raises:
            ConfigError: limit outside [1, 2**63].
        """
        if not 1 <= limit <= 2**63:
            raise ConfigError("There is nothing to draw from", got=limit, expected="1 <= limit <= 2**63")
        last = np.uint64(2**64 - 2**64 % limit - 1)
        words = self.words(count).copy()
        while (beyond := np.flatnonzero(words > last)).size:
            words[beyond] = self.words(beyond.size)
        return (words % np.uint64(limit)).astype(np.int64)

    def keys(self, count: int) -> NDArray[np.uint64]:
        """Words that all differ, shape (count,): sorting by them gives every order the same probability, exactly."""
        while True:
            words = self.words(count)
            if np.unique(words).size == count:
                return words

    def permutation(self, count: int) -> NDArray[np.int64]:
        """The numbers 0..count-1 in an order drawn uniformly, shape (count,)."""
        return np.argsort(self.keys(count)).astype(np.int64)

    def choose(self, count: int, chosen: int) -> NDArray[np.int64]:
        """``chosen`` of the numbers 0..count-1 without replacement, ascending; every subset has the same probability.

        Raises:
            ConfigError: chosen outside [0, count].
        """
        if not 0 <= chosen <= _size(count, "numbers"):
            raise ConfigError("Cannot choose that many without replacement", got=chosen, expected=f"0 to {count}")
        return np.sort(self.permutation(count)[:chosen])

    def _owned(self) -> threading.Lock:
        """The lock around a draw, after starting afresh if this process is not the one that holds the stream.

        The mark catches ``os.fork`` even where process numbers repeat (containers); the number catches forks made
        below Python.
        """
        if self._process is not _process or self._pid != os.getpid():
            with _process.renewal:
                if self._process is not _process or self._pid != os.getpid():
                    self._begin(os.urandom(32) if self._secure else _derived(self._key, f"fork {os.getpid()}"))
        return self._lock

    def __repr__(self) -> str:
        return f"<SecureRandom secure={self._secure}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "A stream of secure random numbers cannot be copied: two copies would draw the same noise",
            remedy="give each user its own child, and create a new SecureRandom in another process",
        )


def _derived(key: bytes, purpose: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    return HKDFExpand(SHA256(), 32, b"medveil random " + purpose.encode()).derive(key)


def _counter_mode(key: bytes, first: bytes = bytes(16)) -> "CipherContext":
    """The key stream of AES-256-CTR from block ``first``; encrypting zeros yields it."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(key), modes.CTR(first)).encryptor()


def _size(count: int, what: str) -> int:
    if count < 0:
        raise ConfigError(f"Cannot draw a negative number of {what}", got=count, expected="at least 0")
    return int(count)
