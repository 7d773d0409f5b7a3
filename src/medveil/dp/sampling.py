"""Poisson sampling of privacy units, and of each unit's examples.

Amplification by sampling holds for what is drawn here and for nothing else: every unit independently, with the same
probability, from a cryptographic source, and never told to anyone. A shuffled epoch cut into batches is not that: its
batch sizes are fixed and every unit comes up exactly once, so accounting for it as Poisson sampling claims an epsilon
that the training does not have (Chua et al. 2024, arXiv 2403.17673).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError
from medveil.rng import SecureRandom


@dataclass(frozen=True)
class PoissonSampler:
    """Each unit joins each step independently with probability ``sampling_rate``.

    Args:
        num_units: >= 0, units that this site holds.
        sampling_rate: in (0, 1].
        random: cryptographic source of this sampler alone.

    Raises:
        ConfigError: an argument out of range.

    Guarantees:
        The sampling that subsampled-Gaussian accountants assume, for add/remove one unit, as long as neither the
        batch nor its size is released. Sites that sample on their own with one rate sample the pooled units.

    References:
        Abadi et al. 2016, arXiv 1607.00133, section 3.1; Mironov, Talwar & Zhang 2019, arXiv 1908.10530.

    >>> PoissonSampler(5, 1.0, SecureRandom()).draw()
    array([0, 1, 2, 3, 4])
    """

    num_units: int
    sampling_rate: float
    random: SecureRandom

    def __post_init__(self) -> None:
        if self.num_units < 0 or not 0.0 < self.sampling_rate <= 1.0:
            raise ConfigError(
                "Cannot sample such units",
                got=f"num_units {self.num_units}, sampling_rate {self.sampling_rate}",
                expected="num_units >= 0 and 0 < sampling_rate <= 1",
            )

    def draw(self) -> NDArray[np.int64]:
        """One step's units, ascending, shape (sampled,): possibly none, and the step still gets its noise."""
        return np.flatnonzero(self.random.bernoulli(self.sampling_rate, self.num_units)).astype(np.int64)


def choose_examples(
    unit_of_example: NDArray[np.int64],
    units: NDArray[np.int64],
    max_per_unit: int,
    random: SecureRandom,
) -> NDArray[np.int64]:
    """At most ``max_per_unit`` examples of each drawn unit, uniformly without replacement.

    Args:
        unit_of_example: shape (examples,), the unit that each example belongs to, >= 0.
        units: shape (sampled,), drawn units, each once.
        max_per_unit: >= 1; a unit's gradients are averaged and clipped once, so this bounds work, not sensitivity.
        random: cryptographic source.

    Returns:
        Shape (chosen,), ascending indices of examples. A unit with fewer examples gives all that it has.

    Raises:
        ConfigError: max_per_unit below 1, a negative unit, or a unit drawn twice.

    Guarantees:
        What is chosen of one unit does not depend on which others were drawn, nor on what they hold.

    >>> choose_examples(np.array([7, 3, 7, 3]), np.array([7]), 2, SecureRandom())
    array([0, 2])
    """
    if max_per_unit < 1 or np.unique(units).size != units.size or np.any(units < 0):
        raise ConfigError(
            "Cannot choose examples",
            got=f"max_per_unit {max_per_unit}, {units.size} units",
            expected="max_per_unit >= 1, and units that are not negative and not repeated",
        )
    candidates = np.flatnonzero(np.isin(unit_of_example, units))
    owners = unit_of_example[candidates]
    order = np.lexsort((random.keys(candidates.size), owners))
    owners = owners[order]
    # Within a run of one owner, the place minus the place where the run begins.
    rank = np.arange(owners.size) - np.searchsorted(owners, owners)
    return np.sort(candidates[order[rank < max_per_unit]]).astype(np.int64)
