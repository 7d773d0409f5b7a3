"""Clip each unit's gradient and sum, so that adding or removing one unit moves the sum by at most the bound.

"At most" includes floating-point error. Norms, coefficients, products and sums are float64, and the bound aimed at is
``MARGIN`` times the stated one; docs/explanation/noise-and-sampling.md shows that the rest covers every rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from medveil.configuration import Config
from medveil.dp.noise import GRID_BITS, rounded_gaussian
from medveil.dp.rows import matrices, side_by_side
from medveil.errors import ConfigError, GuaranteeError, PrivacyError
from medveil.rng import SecureRandom

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 1.0 - 2.0**-12
MAX_UNITS = 2**19
"""Units in one sum up to which the margin covers the error of adding them."""

_BLOCK_VALUES = 2**20
"""Values that are held in float64 at a time, or one unit's if those are more: about what the cores' caches share."""
_SMALLEST_BOUND = 1e-30


class _Bound(Config):
    """What every way of clipping has: the L2 sensitivity of the sum, in parameter units."""

    l2_clip_norm: float = Field(ge=_SMALLEST_BOUND, le=1e30)


class FlatClipping(_Bound):
    """Scale a unit's gradient down to the bound when it is longer: g * min(1, C / |g|).

    Reference:
        Abadi et al. 2016, Algorithm 1, arXiv 1607.00133.
    """

    kind: Literal["flat"] = "flat"


class AutoClipping(_Bound):
    """Normalise every gradient (AUTO-S): g * C / (|g| + stability), always shorter than C.

    Attributes:
        stability: > 0, in units of the gradient's norm; keeps small gradients small.

    Reference:
        Bu et al. 2022, arXiv 2206.07136 (AUTO-S).
    """

    kind: Literal["auto-s"] = "auto-s"
    stability: float = Field(0.01, gt=0, le=1e30)


class PerLayerClipping(_Bound):
    """Clip every parameter tensor on its own; the bounds' squares add up to the total's.

    Attributes:
        split: "equal" gives each of L tensors C / sqrt(L); "dimension" gives a tensor of d_l of d values
            C sqrt(d_l / d).

    Reference:
        McMahan et al. 2018, arXiv 1710.06963 (per-layer clipping).
    """

    kind: Literal["per-layer"] = "per-layer"
    split: Literal["equal", "dimension"] = "equal"


class AdaptiveClipping(_Bound):
    """Flat clipping whose bound follows a quantile of the norms, through a noisy count that is paid for.

    Attributes:
        l2_clip_norm: the bound now; :func:`adapted` gives the next step's configuration. A training that is resumed
            begins with the plan's bound again: the bound is no part of a checkpoint.
        quantile: in (0, 1), share of units that should lie below the bound.
        learning_rate: > 0, of the logarithm of the bound.
        count_noise_multiplier: > 0, sigma_b: the standard deviation of the noise on the count of units.

    Reference:
        Andrew et al. 2021, arXiv 1905.03871, Algorithm 1 and Theorem 1.
    """

    kind: Literal["adaptive"] = "adaptive"
    quantile: float = Field(0.5, gt=0, lt=1)
    learning_rate: float = Field(0.2, gt=0)
    count_noise_multiplier: float = Field(ge=1e-3, le=1e3)


Clipping = Annotated[FlatClipping | AutoClipping | PerLayerClipping | AdaptiveClipping, Field(discriminator="kind")]


@dataclass(frozen=True)
class ClipCounts:
    """How many units were summed, clipped, or not finite: private, never released or logged as they are.

    Raises:
        PrivacyError: more units than the floating-point margin covers.
    """

    units: int = 0
    clipped: int = 0
    non_finite: int = 0

    def __post_init__(self) -> None:
        if self.units > MAX_UNITS:
            raise PrivacyError(
                "More units in one sum than rounding was bounded for",
                expected=f"at most {MAX_UNITS}",
                remedy="lower the sampling rate",
            )

    @property
    def unclipped(self) -> int:
        """Units whose norm is within the bound; private like the others."""
        return self.units - self.clipped - self.non_finite

    def __add__(self, other: "ClipCounts") -> "ClipCounts":
        return ClipCounts(self.units + other.units, self.clipped + other.clipped, self.non_finite + other.non_finite)


def clip_and_sum(clipping: Clipping, gradients: "Sequence[Tensor]", total: "Tensor") -> ClipCounts:
    """Clip each unit's gradient and add all of them to ``total``, in place.

    Args:
        clipping: how, and the bound.
        gradients: one float32 (or shorter) tensor (units, *parameter.shape) per parameter, in the order of ``total``.
        total: shape (d,), float64; chunks of one step add to the same total.

    Returns:
        Counts of this chunk: private. Add up a step's chunks, which also checks how many units the margin covers.

    Raises:
        ConfigError: shapes or dtypes that do not fit; ``total`` is then unchanged.

    Guarantees:
        Adding or removing one unit changes the step's total by at most ``l2_clip_norm`` in L2, floating-point error
        included, if a unit's own gradient does not depend on the others. 0 -> 0; a unit with a value that is not
        finite adds nothing, is counted, and the sum still gets its noise.
    """
    import torch

    rows = matrices(gradients, total)
    sizes = [row.shape[1] for row in rows]
    if not isinstance(clipping, PerLayerClipping):
        sizes = [sum(sizes)]
    joined, device = side_by_side(rows), rows[0].device
    summed = total if total.device == device else total.new_zeros(total.shape, device=device)
    counts = ClipCounts(rows[0].shape[0])
    size = max(1, min(counts.units, _BLOCK_VALUES // max(1, total.numel())))
    block = torch.empty(size, total.numel(), dtype=torch.float64, device=device)
    for start in range(0, counts.units, size):
        units = block[: min(size, counts.units - start)]
        columns = torch.split(units, [row.shape[1] for row in joined], dim=1)
        for part, row in zip(columns, joined, strict=True):
            part.copy_(row[start : start + size])
        counts += _add(clipping, units, sizes, summed)
    if summed is not total:
        total += summed.to(total.device)
    return counts


def _add(clipping: Clipping, units: "Tensor", sizes: list[int], summed: "Tensor") -> ClipCounts:
    """Clip float64 rows (units, d) and add them to ``summed``; how many were clipped and not finite.

    Every ``sizes`` columns have a norm of their own.
    """
    import torch

    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in torch.split(units, sizes, dim=1)])
    finite = torch.isfinite(norms.sum(0))
    if not finite.all():
        # Zero times NaN is NaN: such units are left out, not scaled.
        units, norms = units[finite], norms[:, finite]
    factors, clipped = _coefficients(clipping, norms, sizes)
    for part, columns, factor in zip(
        torch.split(summed, sizes), torch.split(units, sizes, dim=1), factors, strict=True
    ):
        part.addmv_(columns.T, factor)
    return ClipCounts(0, int(clipped.sum()), finite.numel() - len(units))


def _coefficients(clipping: Clipping, norms: "Tensor", sizes: list[int]) -> "tuple[Tensor, Tensor]":
    """Factors, shape of ``norms`` (parts, units), and which units were shortened, shape (units,)."""
    bound = clipping.l2_clip_norm * MARGIN
    if isinstance(clipping, PerLayerClipping):
        factors = (norms.new_tensor(layer_bounds(clipping, sizes))[:, None] * MARGIN / norms).clamp(max=1.0)
        return factors, (factors < 1.0).any(0)
    whole = norms.square().sum(0).sqrt()
    if isinstance(clipping, AutoClipping):
        return (bound / (whole + clipping.stability)).expand_as(norms), whole > bound
    factors = (bound / whole).clamp(max=1.0)
    return factors.expand_as(norms), factors < 1.0


def layer_bounds(clipping: PerLayerClipping, sizes: Sequence[int]) -> list[float]:
    """Each tensor's bound, in parameter units; their squares add up to ``l2_clip_norm`` squared.

    >>> layer_bounds(PerLayerClipping(l2_clip_norm=2.0), [10, 1, 5, 3])
    [1.0, 1.0, 1.0, 1.0]
    """
    shares = [1.0 / len(sizes)] * len(sizes) if clipping.split == "equal" else [size / sum(sizes) for size in sizes]
    return [clipping.l2_clip_norm * math.sqrt(share) for share in shares]


def sum_noise_multiplier(total_noise_multiplier: float, count_noise_multiplier: float) -> float:
    """The multiplier that the sum needs, so that sum and noisy count together cost ``total_noise_multiplier``.

    Both are one Gaussian mechanism on the pair, with total^-2 = sum^-2 + (2 count)^-2: the count is of +-1/2, whose
    sensitivity is 1/2.

    Args:
        total_noise_multiplier: > 0, what is accounted.
        count_noise_multiplier: > 0, sigma_b of :class:`AdaptiveClipping`.

    Raises:
        GuaranteeError: the count alone spends as much as both together may.

    Reference:
        Andrew et al. 2021, arXiv 1905.03871, Theorem 1.

    >>> round(sum_noise_multiplier(1.0, 10.0), 6)
    1.001252
    """
    if not 0 < total_noise_multiplier < 2 * count_noise_multiplier:
        raise GuaranteeError(
            "The noisy count alone costs more than the whole step may",
            got=f"count_noise_multiplier {count_noise_multiplier}",
            expected=f"more than half of the total noise multiplier {total_noise_multiplier}",
            remedy="raise count_noise_multiplier; a twentieth of the expected units a step is usual",
        )
    spent = total_noise_multiplier / (2 * count_noise_multiplier)
    return total_noise_multiplier / math.sqrt((1 - spent) * (1 + spent))


def encode_count(clipping: AdaptiveClipping, counts: ClipCounts, random: SecureRandom, honest: int = 1) -> int:
    """The noisy count of units below the bound minus those above, in units of 2**-20: a number that may be released.

    Args:
        clipping: with sigma_b.
        counts: of the whole step at this site.
        random: cryptographic source.
        honest: >= 1, sites whose noise is counted on, as in :class:`medveil.dp.noise.NoiseMechanism`; sites' numbers
            are summed.

    Guarantees:
        The Gaussian mechanism with multiplier 2 sigma_b: one unit moves the difference by exactly one.
    """
    std = 2 * clipping.count_noise_multiplier * 2.0**GRID_BITS / math.sqrt(honest)
    return ((2 * counts.unclipped - counts.units) << GRID_BITS) + int(rounded_gaussian(std, 1, random)[0])


def adapted(clipping: AdaptiveClipping, encoded: int, expected_units: float) -> AdaptiveClipping:
    """The next step's clipping: the bound moved towards the quantile, by at most a factor e.

    Args:
        clipping: of the step that was counted.
        encoded: sum of the sites' :func:`encode_count`.
        expected_units: > 0, public: sampling rate times a public number of units, never the batch's own size.

    Raises:
        ConfigError: expected_units not positive.
    """
    if not expected_units > 0:
        raise ConfigError("The expected number of units is public and positive", got=expected_units, expected="> 0")
    share = 0.5 + math.ldexp(encoded, -GRID_BITS) / (2 * expected_units)
    step = max(-1.0, min(1.0, clipping.learning_rate * (share - clipping.quantile)))
    bound = max(_SMALLEST_BOUND, min(1e30, clipping.l2_clip_norm * math.exp(-step)))
    return clipping.model_copy(update={"l2_clip_norm": bound})


def follow_quantile(
    clipping: AdaptiveClipping, counts: ClipCounts, *, expected_units: float, random: SecureRandom
) -> AdaptiveClipping:
    """One step of quantile tracking where one party holds all counts: :func:`encode_count`, then :func:`adapted`.

    Args:
        clipping: of the step that was counted.
        counts: of the whole step, units included: without their number the count's sensitivity would be twice what
            :func:`sum_noise_multiplier` charges.
        expected_units: as in :func:`adapted`.
        random: cryptographic source.

    Guarantees:
        The Gaussian mechanism with multiplier 2 sigma_b.
    """
    return adapted(clipping, encode_count(clipping, counts, random), expected_units)
