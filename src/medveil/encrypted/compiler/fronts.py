"""Fixed features that a hospital computes in the clear before it encrypts, and the range that they keep to."""

import math
from typing import Final

import torch
from torch import Tensor, nn

from medveil.encrypted.program import Shape
from medveil.models.filterbank import FilterbankFront
from medveil.models.scattering import FEATURE_NORM, ScatteringFront

FRONTS: Final = (ScatteringFront, FilterbankFront)
# Features are computed in float32: what rounding may add.
_SLACK: Final = 1e-3


def feature_range(front: nn.Module, input_shape: Shape, low: float, high: float) -> tuple[Tensor, Tensor, float]:
    """Smallest and largest value of every feature.

    Args:
        front: one of :data:`FRONTS`.
        input_shape: of an image.
        low: smallest pixel.
        high: largest pixel.

    Returns:
        Two tensors of the shape of one image's features, float64, and a bound on the features' L2 norm.
    """
    if isinstance(front, ScatteringFront):
        # Of n numbers with mean 0 and mean square at most 1, none is larger than sqrt(n - 1).
        together = front.num_features // front.groups
        bound = front.factor * math.sqrt(max(together - 1, 0)) + _SLACK
        ones = torch.ones(front.num_features, dtype=torch.float64)
        return -bound * ones, bound * ones, FEATURE_NORM + _SLACK
    assert isinstance(front, FilterbankFront)
    lows, highs = _filterbank(front, input_shape[0], low, high)
    norm = torch.maximum(lows.abs(), highs.abs()).square().sum().sqrt().item()
    return lows, highs, norm


def _filterbank(front: FilterbankFront, channels: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """By channel: what is smoothed stays in the pixels' range, and derivatives do not hear its middle."""
    middle, radius = (low + high) / 2, (high - low) / 2
    size = max(abs(low), abs(high), 1.0)
    location = front.get_buffer("location").double()
    intervals = [(low, high)] * channels
    for scale in range(front.scales):
        rows = [_gain(front.get_buffer(f"rows_{scale}_{order}")) for order in range(3)]
        columns = [_gain(front.get_buffer(f"columns_{scale}_{order}")) for order in range(3)]
        intervals += [(low, high)] * channels
        # No variance about a weighted mean is larger than the square of half the range (Popoviciu 1935).
        intervals += [(0.0, radius + 0.04)] * channels
        for down, right in ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2)):
            reach = 2 * rows[down] * columns[right] * (radius + _SLACK * abs(middle))
            intervals += [(-reach, reach)] * channels
    bounds = torch.tensor(intervals, dtype=torch.float64) + torch.tensor([-_SLACK, _SLACK]) * size
    bounds = torch.cat([bounds, bounds.clamp(min=0)])
    sides = location.shape[1:]
    low_map, high_map = (bounds[:, side, None, None].expand(-1, *sides) for side in (0, 1))
    return torch.cat([low_map, location]), torch.cat([high_map, location])


def _gain(matrix: Tensor) -> float:
    return matrix.double().abs().sum(1).max().item()
