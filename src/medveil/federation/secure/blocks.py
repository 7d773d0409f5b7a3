"""Block updates: a round sums one block of the coordinates only, so that slow networks carry a part of every model.

Sums stay exact, because which block is summed hangs on nothing but the round. The other coordinates count as unchanged.
"""

from dataclasses import dataclass

import numpy as np

from medveil.secagg.ring import RingVector


@dataclass(frozen=True)
class Blocks:
    """How a packed vector's model part is cut.

    Args:
        count: >= 1, blocks of sizes as equal as can be; round r sums block (r - 1) mod count.
        start: where the model's coordinates begin in a packed vector.
        dimension: how many there are.

    >>> blocks = Blocks(count=2, start=1, dimension=4)
    >>> cut = blocks.cut(np.arange(5, dtype=np.uint32), round_number=2)
    >>> cut, blocks.restore(cut, round_number=2)
    (array([0, 3, 4], dtype=uint32), array([0, 0, 0, 3, 4], dtype=uint32))
    """

    count: int
    start: int
    dimension: int

    def cut(self, vector: RingVector, round_number: int) -> RingVector:
        """What of a packed vector is summed in a round: the round's block and all that is not of the model."""
        first, last = self._block(round_number)
        end = self.start + self.dimension
        return np.concatenate([vector[: self.start], vector[first:last], vector[end:]])

    def restore(self, total: RingVector, round_number: int) -> RingVector:
        """A packed vector again, with zeros for the blocks that were not summed."""
        first, last = self._block(round_number)
        whole = np.zeros(len(total) + self.dimension - (last - first), dtype=total.dtype)
        whole[: self.start] = total[: self.start]
        whole[first:last] = total[self.start : self.start + last - first]
        whole[self.start + self.dimension :] = total[self.start + last - first :]
        return whole

    def length(self, round_number: int) -> int:
        """Coordinates of the model that a round sums."""
        first, last = self._block(round_number)
        return last - first

    def _block(self, round_number: int) -> tuple[int, int]:
        number = (round_number - 1) % self.count
        edges = [self.start + self.dimension * at // self.count for at in (number, number + 1)]
        return edges[0], edges[1]
