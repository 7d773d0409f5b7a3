"""The record's ``secure_aggregation`` as the report reads it; like a claim it has no defaults that could flatter."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medveil.report.parts import Part

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class SecureSums(Part):
    """What was added up in secret, over whom, and what it took.

    Args:
        groups: names of the sites whose vectors are summed together; every site is in one group.
        thresholds: of each group, sites needed to open a sum.
        min_included: of each group, the fewest sites in a sum that opens.
        colluding: sites that may tell the server all they know.
        combine: how the sums of several groups become one.
        blocks: a round sums one of so many parts of the model.
        modulus_bits: sums are taken modulo 2 to this.
        resolution: the step between two values that can be told apart.
        value_range: largest magnitude of a coordinate, or None where the noise decides.
        sums_opened: of all groups, validation included.
        clipped: coordinates beyond the range, or None where nobody may tell.
        refused_groups: group sums beyond the norm bound.
        dropped: in how many opened sums a site was missing; sites that never were are left out.
        server_seconds: that the protocol took at the server.
        site_seconds: that the protocol took at each site.
    """

    groups: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = Field(min_length=1)
    thresholds: tuple[Positive, ...]
    min_included: tuple[Positive, ...]
    colluding: Count
    combine: Literal["mean", "median"]
    blocks: Positive = 1
    modulus_bits: Literal[32, 64]
    resolution: Annotated[float, Field(gt=0)]
    value_range: Annotated[float, Field(gt=0)] | None
    sums_opened: Count
    clipped: Count | None
    refused_groups: Count
    dropped: dict[str, Count]
    server_seconds: Seconds
    site_seconds: dict[str, Seconds]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = [len(group) for group in self.groups]
        if not len(sizes) == len(self.thresholds) == len(self.min_included):
            raise ValueError("groups, thresholds and smallest sums differ in number")
        for size, threshold, least in zip(sizes, self.thresholds, self.min_included, strict=True):
            if not threshold <= least <= size or 2 * threshold <= size + self.colluding:
                raise ValueError("a threshold that does not protect, or a smallest sum out of range")
        return self

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, in the order of the groups."""
        return tuple(name for group in self.groups for name in group)

    @property
    def fewest_honest(self) -> int:
        """Sites that keep their secrets in the smallest sum that opens: each hides behind the others of them."""
        return min(self.min_included) - self.colluding
