"""Which examples make which batch: a pure function of seeds and the step number.

Because batch ``t`` depends on nothing but (seeds, t), a killed run that starts again draws the same batches,
and one site that takes one step a round draws those of central training.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medveil.rng import Seeds


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Batches in a pass over the data; the last one may be short."""
    return -(-num_examples // batch_size)


def batch_indices(seeds: Seeds, step: int, *, num_examples: int, batch_size: int) -> NDArray[np.int64]:
    """Indices of batch ``step`` (counted over the whole training), shuffled anew each epoch.

    Args:
        seeds: of this party.
        step: >= 0.
        num_examples: > 0.
        batch_size: > 0.

    Returns:
        Shape (b,), 0 < b <= batch_size; every example once an epoch.

    >>> seen = [i for t in range(3) for i in batch_indices(Seeds(0), t, num_examples=5, batch_size=2)]
    >>> sorted(int(i) for i in seen)
    [0, 1, 2, 3, 4]
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    epoch, index = divmod(step, per_epoch)
    return _order(seeds, epoch, num_examples)[index * batch_size : (index + 1) * batch_size].copy()


@lru_cache(maxsize=64)
def _order(seeds: Seeds, epoch: int, num_examples: int) -> NDArray[np.int64]:
    """The examples of an epoch in their order; remembered, because every step of the epoch asks for it."""
    return np.asarray(seeds.child("epoch", epoch).numpy().permutation(num_examples), dtype=np.int64)
