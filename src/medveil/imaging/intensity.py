"""Bring pixel values of any origin to the range that a network is trained on."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ImageError

Intensity = Literal["unit", "zscore", "percentile", "window"]
Channels = Literal["grey", "rgb", "keep"]

_RGB = 3
_PERCENTILES = (0.5, 99.5)
_UINT16_MAX = 65535
# Weights of ITU-R BT.601 luma in 16-bit fixed point, as imaging libraries round them.
_LUMA = (19595, 38470, 7471)


def scale_intensity(
    array: NDArray[np.generic], intensity: Intensity, window: tuple[float, float] | None = None
) -> NDArray[np.generic]:
    """Scale the pixels of one image.

    Args:
        array: shape (channels, *spatial), any real dtype, finite.
        intensity: ``"unit"``: uint8 stays as it is (0..255 stands for 0..1), uint16 is divided by 65535, other
            dtypes go from their minimum..maximum to 0..1. ``"zscore"``: mean 0, standard deviation 1.
            ``"percentile"``: the 0.5th to the 99.5th percentile become 0..1, what lies beyond is clipped
            (where both coincide, minimum and maximum take their place). ``"window"``: ``centre - width / 2``
            to ``centre + width / 2`` become 0..1, clipped.
        window: (centre, width > 0), for ``"window"`` alone.

    Returns:
        Same shape; uint8 for uint8 and ``"unit"``, else float32. A constant image becomes 0 in every mode
        that measures it.

    Raises:
        ImageError: ``"window"``: no window was given.
    """
    if intensity == "unit":
        return _unit(array)
    # Sums over millions of pixels near 1e6 lose digits in float32.
    values = array.astype(np.float64)
    if intensity == "zscore":
        deviation = float(values.std())
        scaled = (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
        return scaled.astype(np.float32)
    if intensity == "percentile":
        low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
        if low == high:
            low, high = float(values.min()), float(values.max())
        return _between(values, low, high)
    if window is None:
        raise ImageError("No window was given", reason="window", remedy="set window = [centre, width]")
    centre, width = window
    return _between(values, centre - width / 2, centre + width / 2)


def _unit(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float64)
    if array.dtype == np.uint16:
        return (values / _UINT16_MAX).astype(np.float32)
    return _between(values, float(values.min()), float(values.max()))


def _between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float32]:
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def convert_channels(array: NDArray[np.generic], channels: Channels) -> NDArray[np.generic]:
    """Grey from colour, or colour from grey.

    Args:
        array: shape (channels, *spatial).
        channels: ``"keep"``; ``"grey"``: one channel, by BT.601 luma; ``"rgb"``: three, grey repeated.

    Returns:
        Same dtype.

    Raises:
        ImageError: ``"channels"``: neither one nor three channels.
    """
    wanted = {"keep": len(array), "grey": 1, "rgb": _RGB}[channels]
    if len(array) == wanted:
        return array
    if len(array) not in (1, _RGB):
        raise ImageError(
            "The image has a number of channels that cannot be converted",
            reason="channels",
            got=len(array),
            expected="1 or 3",
            remedy='set channels = "keep"',
        )
    return np.repeat(array, _RGB, axis=0) if wanted == _RGB else _luma(array)


def _luma(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.dtype.kind == "f":
        weights = np.array(_LUMA, np.float64) / sum(_LUMA)
        return np.tensordot(weights, array.astype(np.float64), axes=1)[None].astype(array.dtype)
    wide = array.astype(np.int64)
    total = sum(weight * channel for weight, channel in zip(_LUMA, wide, strict=True))
    return ((np.asarray(total) + (1 << 15)) >> 16)[None].astype(array.dtype)
