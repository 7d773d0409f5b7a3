"""The plan's ``[privacy.secure_aggregation]`` table, and what follows from it for a number of sites."""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.errors import GuaranteeError
from medveil.rng import Seeds
from medveil.secagg import least_threshold

# A group of three with one absent still hides each of two sites behind the other.
SMALLEST_GROUP = 3
_FEWEST_HONEST = 2


class SecureAggregation(Config):
    """The server learns sums over sites and nothing else about any of them.

    Attributes:
        colluding: sites that may tell the server all they know; the others stay hidden from them.
        dropouts: sites that may vanish in a round; None is as many as the threshold allows. Noise is made for that
            many, and a round with more of them missing is not opened.
        threshold: sites needed to open a sum; None is the least that protects: more than half of sites + colluding.
        value_range: largest magnitude of one coordinate of a site's mean change; larger ones are clipped and counted.
            Not used for noisy sums, whose range follows from the clip norm.
        largest_site: no site has more training examples; only with ``federation.weighting = "size"``.
        modulus_bits: 32 or 64, or "auto": 32 where the sum and its error allow it.
        groups: the sites are dealt into so many groups, each with a sum of its own, which the server then combines.
            Fewer sites hide each other, and each sum needs the whole noise; what one site can do is bounded better.
        combine: of group sums: "mean", or the coordinate-wise "median", which less than half of the groups cannot move
            far.
        l2_norm: a group's mean change beyond this L2 norm is refused; None accepts any.
        chunk_bytes: longest piece of a message; a multiple of 8.
        statistics: before the training, classes are counted and intensities measured (mean, variance, histogram) over
            all sites' training images together; exact, so only without a privacy claim over these patients.
    """

    colluding: int = Field(0, ge=0)
    dropouts: int | None = Field(None, ge=0)
    threshold: int | None = Field(None, ge=1)
    value_range: float = Field(1.0, gt=0, le=2.0**20)
    largest_site: int = Field(65_536, ge=1, le=2**31)
    modulus_bits: Literal[32, 64, "auto"] = "auto"
    groups: int = Field(1, ge=1)
    combine: Literal["mean", "median"] = "mean"
    l2_norm: float | None = Field(None, gt=0)
    blocks: int = Field(1, ge=1, le=4096)
    chunk_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, multiple_of=8)
    statistics: bool = False

    @model_validator(mode="after")
    def _a_median_of_several(self) -> Self:
        if self.combine == "median" and self.groups < SMALLEST_GROUP:
            raise ValueError('privacy.secure_aggregation.combine = "median" needs at least 3 groups')
        return self

    def threshold_of(self, sites: int) -> int:
        """Sites of a group of ``sites`` that are needed to open its sum."""
        return self.threshold or least_threshold(sites, self.colluding)

    def dropouts_of(self, sites: int) -> int:
        """Sites of a group of ``sites`` that may be missing."""
        return max(sites - self.threshold_of(sites), 0) if self.dropouts is None else self.dropouts

    def smallest_group(self, sites: int) -> int:
        """Size of the smallest group.

        Raises:
            GuaranteeError: a sum over so few sites hides none of them.
        """
        size = sites // self.groups
        if size < (_FEWEST_HONEST if self.groups == 1 else SMALLEST_GROUP):
            raise GuaranteeError(
                "A secure sum over so few sites hides none of them",
                got=f"{sites} sites in {self.groups} groups",
                expected="at least 2 sites, and 3 in every group where there are several",
                remedy="lower privacy.secure_aggregation.groups, or let more sites take part",
            )
        for number in {size, math.ceil(sites / self.groups)}:  # a threshold may be too low for the larger groups
            self._check(number)
        return size

    def _check(self, size: int) -> None:
        threshold, dropouts = self.threshold_of(size), self.dropouts_of(size)
        least = least_threshold(size, self.colluding)
        if not least <= threshold <= size - dropouts or size - self.colluding < _FEWEST_HONEST:
            raise GuaranteeError(
                "The threshold of the secure sum cannot protect, or cannot be reached",
                got=f"threshold {threshold}, a group of {size} sites, colluding {self.colluding}, dropouts {dropouts}",
                expected=f"threshold from {least} (more than half of sites + colluding) to {size - dropouts} "
                "(sites that are sure to stay), and two sites that do not collude",
                remedy="lower privacy.secure_aggregation.colluding, .dropouts or .groups, or let more sites take part",
            )

    def deal(self, sites: Sequence[str], seeds: Seeds) -> list[tuple[str, ...]]:
        """The groups, of sizes as equal as can be; who is in which is drawn from the plan's public seed.

        Raises:
            GuaranteeError: as in :meth:`smallest_group`.
        """
        self.smallest_group(len(sites))
        names = sorted(sites)
        order = seeds.child("groups").numpy().permutation(len(names)) if self.groups > 1 else range(len(names))
        return [tuple(sorted(names[at] for at in order[group :: self.groups])) for group in range(self.groups)]
