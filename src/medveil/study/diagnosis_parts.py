"""What a hospital computes in the clear for a vendor's model, made from its description, which nobody vouches for."""

from math import prod
from typing import Final

from torch import nn

from medveil.models.filterbank import FilterbankConfig, FilterbankFront
from medveil.models.registry import ModelConfig
from medveil.models.scattering import ScatteringConfig, ScatteringFront

# Numbers of fixed filters and of intermediate results for one image: a gigabyte as float32.
_MOST_NUMBERS: Final = 1 << 28


def check_clear(model: ModelConfig, input_shape: tuple[int, ...]) -> None:
    """Refuse a description that asks a hospital for more than it can compute; nothing is built.

    Args:
        model: as the vendor tells it.
        input_shape: (channels, rows, columns).

    Raises:
        ValueError: another kind of network than those with fixed features, or too many numbers.
    """
    if not isinstance(model, ScatteringConfig | FilterbankConfig):
        raise ValueError("only networks with fixed features have parts that a hospital computes")  # noqa: TRY004 - a value from outside
    if _numbers(model, input_shape) > _MOST_NUMBERS:
        raise ValueError(f"the features of one image take more than {_MOST_NUMBERS} numbers")


def _numbers(model: ScatteringConfig | FilterbankConfig, input_shape: tuple[int, ...]) -> int:
    channels, sides = input_shape[0], input_shape[1:]
    if isinstance(model, ScatteringConfig):
        coarse = prod(side // model.coarsen + (2 << model.scales) for side in sides)
        filters = model.angles * model.scales**2
        waves = model.angles if model.order == 1 else model.angles**2
        return coarse * (filters + channels * waves) + channels * prod(sides)
    matrices = 6 * model.scales * sum(side**2 for side in sides)
    maps = 2 * channels * (1 + 7 * model.scales) + prod(model.bumps)
    return matrices + maps * prod(sides)


def clear_parts(model: ModelConfig, input_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module | None]:
    """The fixed features of a network, and the interpolation behind it where there is one; no weights.

    Args:
        model: with fixed features.
        input_shape: (channels, rows, columns).

    Raises:
        ValueError: as :func:`check_clear`.
        ModelError: images that have no such features.
    """
    check_clear(model, input_shape)
    if isinstance(model, ScatteringConfig):
        return ScatteringFront(model, input_shape).eval(), None
    assert isinstance(model, FilterbankConfig)
    back = nn.Upsample(scale_factor=model.coarsen, mode="bilinear") if model.coarsen > 1 else None
    return FilterbankFront(model, input_shape).eval(), back
