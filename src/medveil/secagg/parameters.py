"""What all parties of a secure aggregation agree on beforehand, refused where it could protect nobody."""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

from medveil.errors import ConfigError, GuaranteeError

_LABEL = b"medveil secagg 1 parameters"
_CONTEXT_BYTES = 32
_KEY_BYTES = 32
_MOST_SITES = 0xFFFF
_LONGEST_NAME = 100
_LARGEST_CHUNK = 1 << 30


def least_threshold(sites: int, colluding: int) -> int:
    """The smallest threshold T with 2 T > sites + colluding.

    Below it a lying server could ask some sites for one kind of share and the others for the other kind.

    >>> least_threshold(3, 0), least_threshold(10, 0), least_threshold(10, 3)
    (2, 6, 7)
    """
    return (sites + colluding) // 2 + 1


@dataclass(frozen=True)
class Parameters:
    """Who takes part, and how many must.

    Args:
        context: 32 bytes that all parties must agree on, such as the hash of the plan.
        sites: (name, Ed25519 public key) of each, in any order. A site's index is its place by name, from 1.
        threshold: T; this many sites are needed to open a sum, and fewer can open nothing.
        colluding: t; up to this many sites may pool what they know with the server.
        min_included: the fewest sites in a sum that opens, in [threshold, sites]; 0 means the threshold.
        chunk_bytes: the longest piece of a masked vector in one message; a multiple of 8.

    Raises:
        GuaranteeError: fewer than two honest sites; a threshold with 2 T <= sites + t or above the number of sites;
            names or keys that are not distinct; min_included out of range.
        ConfigError: a context, name, key or chunk of the wrong length.

    Guarantees:
        With 2 T > n + t no server, together with t sites, ever gathers T shares of both secrets of an honest site in
        one step: an honest site gives for each other site at most one kind of share, so the two kinds together number
        at most (n - t) + 2 t < 2 T.

    Reference:
        Bonawitz et al. 2017, section 6.2 (active adversaries), https://doi.org/10.1145/3133956.3133982
    """

    context: bytes
    sites: tuple[tuple[str, bytes], ...]
    threshold: int
    colluding: int = 0
    min_included: int = 0
    chunk_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(sorted((name, bytes(key)) for name, key in self.sites)))
        if self.min_included == 0:
            object.__setattr__(self, "min_included", self.threshold)
        self._check_form()
        self._check_guarantee()

    def _check_form(self) -> None:
        if len(self.context) != _CONTEXT_BYTES:
            raise ConfigError("The context is a hash", got=f"{len(self.context)} bytes", expected=_CONTEXT_BYTES)
        longest = max((len(name.encode()) for name, _ in self.sites), default=0)
        if longest > _LONGEST_NAME or not all(name for name, _ in self.sites):
            raise ConfigError(
                "A site's name has no fitting length", got=f"up to {longest} bytes", expected=f"1 to {_LONGEST_NAME}"
            )
        if any(len(key) != _KEY_BYTES for _, key in self.sites):
            raise ConfigError("A site's public key has another length", expected=f"{_KEY_BYTES} bytes (Ed25519)")
        if len(self.sites) > _MOST_SITES:
            raise ConfigError("Too many sites for one sum", got=len(self.sites), expected=f"at most {_MOST_SITES}")
        if not (8 <= self.chunk_bytes <= _LARGEST_CHUNK and self.chunk_bytes % 8 == 0):  # noqa: PLR2004 - 64-bit words
            raise ConfigError(
                "Vectors cannot be sent in such pieces",
                got=f"{self.chunk_bytes} bytes",
                expected=f"a multiple of 8 from 8 to {_LARGEST_CHUNK}",
            )

    def _check_guarantee(self) -> None:
        number = len(self.sites)
        if len(set(self.names)) < number or len({key for _, key in self.sites}) < number:
            raise GuaranteeError(
                "Two sites share a name or a key, so that one could count as two",
                got=f"{number} sites, {len(set(self.names))} names, {len({key for _, key in self.sites})} keys",
                expected="all different",
                remedy="give each site its own name and its own identity key",
            )
        if self.colluding < 0 or number - self.colluding < 2:  # noqa: PLR2004 - one honest site is the sum less the rest
            raise GuaranteeError(
                "A sum hides nothing unless two honest sites are in it",
                got=f"{number} sites of which {self.colluding} may collude",
                expected="0 <= colluding <= sites - 2",
                remedy="add sites, or assume fewer that collude",
            )
        least = least_threshold(number, self.colluding)
        if not least <= self.threshold <= number:
            raise GuaranteeError(
                "This threshold does not protect against a server that lies about who is present"
                if self.threshold < least
                else "More sites would be needed than there are",
                got=f"threshold {self.threshold} with {number} sites of which {self.colluding} may collude",
                expected=f"{least} to {number} (twice the threshold exceeds sites + colluding)",
                remedy=f"set the threshold to {min(least, number)}, or assume fewer sites that collude",
            )
        if not self.threshold <= self.min_included <= number:
            raise GuaranteeError(
                "The smallest sum to open is out of range",
                got=f"min_included {self.min_included}",
                expected=f"{self.threshold} (the threshold) to {number} (all sites)",
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All sites by name; the one at place k has index k + 1."""
        return tuple(name for name, _ in self.sites)

    @cached_property
    def indices(self) -> dict[str, int]:
        """Index of each site: its point in secret sharing, from 1."""
        return {name: place for place, name in enumerate(self.names, start=1)}

    def name(self, index: int) -> str:
        """Name of the site with this index."""
        return self.sites[index - 1][0]

    def key(self, index: int) -> bytes:
        """Identity public key of the site with this index."""
        return self.sites[index - 1][1]

    def digest(self) -> bytes:
        """SHA-256 of everything above, 32 bytes: two parties with equal digests agree on all of it.

        Hashed: the label ``medveil secagg 1 parameters``; context; number of sites (u16); per site the length of its
        name (u16), the name (UTF-8) and its key; threshold, colluding, min_included (u16 each) and chunk_bytes (u32).
        Numbers are little-endian.
        """
        known = hashlib.sha256(_LABEL + self.context + struct.pack("<H", len(self.sites)))
        for name, key in self.sites:
            known.update(struct.pack("<H", len(name.encode())) + name.encode() + key)
        known.update(struct.pack("<HHHI", self.threshold, self.colluding, self.min_included, self.chunk_bytes))
        return known.digest()
