"""Shamir's secret sharing of 32-byte secrets, nine limbs at once over the field of 2**31 - 1 elements."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, GuaranteeError, MessageError, TooFewSitesError
from medveil.rng import SecureRandom

PRIME = 2**31 - 1
"""The field: a prime above every limb and every point, whose products fit 64 bits."""

SECRET_BYTES = 32
SHARE_BYTES = 36
"""Nine limbs as little-endian 32-bit words."""

_LIMBS = 9
_LIMB_BITS = 30
_P = np.uint64(PRIME)


def split(secret: bytes, threshold: int, xs: Sequence[int], random: SecureRandom) -> dict[int, bytes]:
    """Shares of a secret, one for each point, any ``threshold`` of which give it back.

    The secret, as a little-endian number, is cut into nine limbs of 30 bits (the last has 16). Each limb is the value
    at 0 of its own random polynomial of degree ``threshold - 1``; a share holds the nine values at one point.

    Args:
        secret: 32 bytes.
        threshold: in [2, number of points].
        xs: the holders' points, distinct, in [1, 2**31 - 2].
        random: cryptographic source of the coefficients.

    Returns:
        36 bytes for each point.

    Raises:
        ConfigError: a secret of another length; points that are equal, none or out of range; a threshold above their
            number.
        GuaranteeError: a threshold below 2, with which every share is the secret.

    Guarantees:
        Fewer than ``threshold`` shares are independent of the secret (information-theoretic, given uniform
        coefficients). Not verifiable: a wrong share is noticed only by what the secret is checked against.

    Reference:
        Shamir 1979, How to share a secret, https://doi.org/10.1145/359168.359176

    >>> shares = split(bytes(range(32)), 2, [1, 2, 3], SecureRandom())
    >>> combine({1: shares[1], 3: shares[3]}, 2) == bytes(range(32))
    True
    """
    return split_many([secret], threshold, xs, random)[0]


def split_many(
    secrets: Sequence[bytes], threshold: int, xs: Sequence[int], random: SecureRandom
) -> list[dict[int, bytes]]:
    """As :func:`split` for several secrets and the same points: one dictionary for each secret, in their order."""
    _check(threshold, xs)
    limbs = np.array([_limbs(secret) for secret in secrets], np.uint64).reshape(-1)
    points = np.array(xs, np.uint64)[:, None]
    coefficients = (
        random.below(PRIME, (threshold - 1) * limbs.size).astype(np.uint64).reshape(threshold - 1, limbs.size)
    )
    # Horner's rule for all points and limbs together; a product and a sum stay below 2**63.
    values = np.zeros((len(xs), limbs.size), np.uint64)
    for row in (*coefficients, limbs):
        values = (values * points + row) % _P
    shares = values.astype("<u4").reshape(len(xs), len(secrets), _LIMBS)
    return [{int(x): shares[row, column].tobytes() for row, x in enumerate(xs)} for column in range(len(secrets))]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that shares were made from.

    Args:
        shares: point to share; of more than ``threshold`` those with the smallest points are used, and the others
            are not looked at.
        threshold: as at :func:`split`.

    Returns:
        32 bytes. A wrong share gives a wrong secret: check it against a commitment or a public key.

    Raises:
        TooFewSitesError: fewer shares than the threshold.
        MessageError: a share of another length or with a limb outside the field, or shares that fit no 32-byte secret.
        ConfigError: a point out of range.
        GuaranteeError: a threshold below 2.
    """
    return combine_many([shares], threshold)[0]


def combine_many(batch: Sequence[Mapping[int, bytes]], threshold: int) -> list[bytes]:
    """As :func:`combine` for several secrets; the work that depends on the points alone is done once for equal points.

    Raises:
        TooFewSitesError, MessageError, ConfigError, GuaranteeError: as :func:`combine`, if any of them cannot be
            combined.
    """
    return [_combined(shares, threshold) for shares in batch]


def _combined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    if len(shares) < threshold:
        raise TooFewSitesError(
            "Too few shares to open a secret",
            got=f"{len(shares)} shares",
            expected=f"at least {threshold}",
            remedy="nothing can be opened in this step; wait for more sites",
        )
    points = tuple(sorted(shares)[: max(threshold, 0)])
    weights = _weights(points)
    # Limbs are summed after one reduction each: far below 2**64 for every number of points there can be.
    products = _values([shares[x] for x in points]) * weights % _P
    return _secret((products.sum(axis=0) % _P).tolist())


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> NDArray[np.uint64]:
    """Lagrange's coefficients at 0, shape (points, 1): products of x / (x - y) over the other points x."""
    _check(len(points), points)
    weights = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    column = np.array(weights, np.uint64)[:, None]
    column.setflags(write=False)
    return column


def _check(threshold: int, xs: Sequence[int]) -> None:
    if threshold < 2:  # noqa: PLR2004 - one share would be the secret
        raise GuaranteeError(
            "With this threshold every share is the secret itself", got=threshold, expected="a threshold of at least 2"
        )
    if len(set(xs)) != len(xs) or not all(1 <= x < PRIME for x in xs) or threshold > len(xs):
        raise ConfigError(
            "A secret cannot be shared among these points",
            got=f"threshold {threshold}, {len(xs)} points of which {len(set(xs))} differ, "
            f"from {min(xs, default=0)} to {max(xs, default=0)}",
            expected=f"at least {threshold} points that all differ, each from 1 to {PRIME - 1}",
        )


def _limbs(secret: bytes) -> list[int]:
    if len(secret) != SECRET_BYTES:
        raise ConfigError("A secret of this length cannot be shared", got=f"{len(secret)} bytes", expected=SECRET_BYTES)
    number = int.from_bytes(secret, "little")
    return [number >> _LIMB_BITS * place & (1 << _LIMB_BITS) - 1 for place in range(_LIMBS)]


def _values(shares: Sequence[bytes]) -> NDArray[np.uint64]:
    for share in shares:
        if len(share) != SHARE_BYTES:
            raise MessageError("A share has the wrong length", got=f"{len(share)} bytes", expected=SHARE_BYTES)
    values = np.frombuffer(b"".join(shares), "<u4").reshape(-1, _LIMBS).astype(np.uint64)
    if values.max() >= _P:
        raise MessageError("A share holds a number outside the field", expected=f"every limb below {PRIME}")
    return values


def _secret(limbs: list[int]) -> bytes:
    number = sum(limb << _LIMB_BITS * place for place, limb in enumerate(limbs))
    if max(limbs) >> _LIMB_BITS or number >> 8 * SECRET_BYTES:
        raise MessageError(
            "The shares fit no secret of 32 bytes",
            expected="shares of one secret, unchanged",
            remedy="one of them is wrong: try another set of shares",
        )
    return number.to_bytes(SECRET_BYTES, "little")
