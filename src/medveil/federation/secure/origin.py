"""What a vector of a secure sum was computed from, so that vectors of different origin are never opened together."""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Purpose = Literal["round", "scores"]


def fingerprint(*vectors: NDArray[np.generic]) -> str:
    """SHA-256 of the weights that a contribution starts from."""
    digest = hashlib.sha256()
    for vector in vectors:
        digest.update(f"{vector.dtype.str} {vector.shape} ".encode())
        digest.update(np.ascontiguousarray(vector).data)
    return digest.hexdigest()


def sum_context(purpose: Purpose, round_number: int, start: str) -> bytes:
    """What the vectors of one sum are computed from: SHA-256 of ``PURPOSE ROUND START``, 32 bytes.

    Args:
        purpose: "round" for contributions to the model, "scores" for validation scores.
        round_number: counted from 1.
        start: :func:`fingerprint` of the weights that this site was sent.
    """
    return hashlib.sha256(f"{purpose} {round_number} {start}".encode()).digest()
