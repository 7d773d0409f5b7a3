"""Reproducible randomness: one root seed, named children, no global state.

Cryptographic randomness (noise, masks, sampling under a privacy claim) never comes from here.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


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
