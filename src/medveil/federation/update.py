"""What a site contributes: :class:`Update`, an additive algebra."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ProtocolError


def _no_buffers() -> NDArray[np.float64]:
    return np.zeros(0, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Update:
    """A weighted sum of changes (or gradients), with the sum of the weights.

    Law: ``(a + b).vector == a.vector + b.vector`` and likewise for ``weight`` and ``buffers``; ``mean()`` of a sum
    is the weighted mean. A secure sum therefore needs nothing but addition.

    Args:
        vector: shape (d,), float64 (or unsigned integers between a quantising stage and its inverse).
        weight: >= 0.
        buffers: shape (b,), float64: weighted sum of running statistics; empty for models without.
    """

    vector: NDArray[np.generic]
    weight: float
    buffers: NDArray[np.float64] = field(default_factory=_no_buffers)

    @classmethod
    def from_mean(
        cls, mean: NDArray[np.floating], weight: float, buffers: NDArray[np.floating] | None = None
    ) -> "Update":
        """One site's contribution: its mean change, counted ``weight`` times."""
        kept = _no_buffers() if buffers is None else np.asarray(buffers, dtype=np.float64)
        return cls(np.asarray(mean, dtype=np.float64) * weight, weight, kept * weight)

    def __add__(self, other: "Update") -> "Update":
        if self.vector.shape != other.vector.shape or self.buffers.shape != other.buffers.shape:
            raise ProtocolError(
                "Two updates do not have the same shape",
                got=f"{other.vector.shape} and {other.buffers.shape}",
                expected=f"{self.vector.shape} and {self.buffers.shape}",
                remedy="run the same plan with the same version of medveil at every site",
            )
        return Update(np.add(self.vector, other.vector), self.weight + other.weight, self.buffers + other.buffers)

    def with_vector(self, vector: NDArray[np.generic]) -> "Update":
        """The same weight and buffers with another vector: what a stage returns."""
        return replace(self, vector=vector)

    def mean(self) -> NDArray[np.float64]:
        """Weighted mean change, shape (d,).

        Raises:
            ProtocolError: the weights sum to zero.
        """
        self._check_weight()
        return np.asarray(self.vector, dtype=np.float64) / self.weight

    def mean_buffers(self) -> NDArray[np.float64]:
        """Weighted mean of the running statistics, shape (b,)."""
        self._check_weight()
        return self.buffers / self.weight

    def _check_weight(self) -> None:
        if not self.weight > 0:
            raise ProtocolError(
                "The sites' weights sum to zero",
                got=self.weight,
                expected="> 0",
                remedy='use weighting = "equal"',
            )


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a site adds to a secure sum.

    Args:
        content: a weighted change, or a clipped sum with a share of the noise (shape (d,), int64, grid units).
        loss: mean training loss, or None where it may not be told.
    """

    content: Update | NDArray[np.int64]
    loss: float | None
