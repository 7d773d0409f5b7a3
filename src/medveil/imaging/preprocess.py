"""From a :class:`~medveil.imaging.volume.Volume` to the array that a network sees, and back for masks."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medveil.configuration import Config
from medveil.errors import ImageError, LabelError
from medveil.imaging.intensity import Channels, Intensity, convert_channels, scale_intensity
from medveil.imaging.resample import fit_centre, resize, resize_nearest, undo_fit
from medveil.imaging.source import too_large
from medveil.imaging.volume import Volume

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Mask = NDArray[np.uint8]

_MAX_OUTPUT_BYTES = 4 << 30


class Slices(Config):
    """Cut a 3D volume into 2D slices.

    Attributes:
        axis: spatial axis that is cut across (0 = first).
        keep: every slice, or those whose mask holds anything but background.
    """

    axis: int = Field(0, ge=0, le=2)
    keep: Literal["all", "foreground"] = "all"


class Preprocess(Config):
    """What is done to every image; the order is channels, intensity, spacing, size, slices.

    Attributes:
        size: spatial size of the result; None keeps each image's own. Two numbers beside ``slices`` are the
            slice's size.
        fit: how ``size`` is reached. ``"stretch"``: each axis is scaled. ``"pad"``: not scaled, padded about
            the centre; a longer image is refused, so nothing is lost. ``"crop"``: not scaled, longer axes cut
            and shorter ones padded about the centre.
        spacing_mm: resample to this spacing first; the image's own must be known. Two numbers beside
            ``slices`` leave the cut axis alone.
        channels: ``"grey"``, ``"rgb"`` or as they are.
        intensity: as in :func:`~medveil.imaging.intensity.scale_intensity`, measured on the whole volume.
        window: (centre, width), with ``intensity = "window"`` and only then.
        slices: cut a 3D volume into 2D slices, see :func:`cut_slices`.
    """

    size: tuple[int, ...] | None = Field(None, min_length=2, max_length=3)
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    spacing_mm: tuple[float, ...] | None = Field(None, min_length=2, max_length=3)
    channels: Channels = "keep"
    intensity: Intensity = "unit"
    window: tuple[float, float] | None = None
    slices: Slices | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size needs positive lengths")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm needs positive distances")
        if (self.window is not None) != (self.intensity == "window"):
            raise ValueError('window belongs to intensity = "window", and that needs it')
        if self.window is not None and self.window[1] <= 0:
            raise ValueError("window is (centre, width) with a positive width")
        if self.spacing_mm is not None and self.size is not None and self.fit == "stretch":
            raise ValueError('stretching to a size undoes spacing_mm: set fit to "pad" or "crop"')
        return self


@dataclass(frozen=True)
class Grid:
    """The way from an image's grid to the result's.

    Args:
        original: spatial shape of the image.
        scaled: after resampling and stretching.
        fitted: after padding and cutting.
    """

    original: tuple[int, ...]
    scaled: tuple[int, ...]
    fitted: tuple[int, ...]


def plan_grid(shape: tuple[int, ...], config: Preprocess, spacing_mm: tuple[float, ...] | None = None) -> Grid:
    """Work out the grids that ``config`` leads to.

    Args:
        shape: spatial shape of the image.
        config: settings.
        spacing_mm: of the image, or None where unknown.

    Raises:
        ImageError: ``"spacing"`` (needed and unknown), ``"shape"`` (size or spacing with another number of
            axes), ``"size"`` (longer than ``size`` though nothing may be cut), ``"too-large"``.
    """
    target = _per_axis(config.spacing_mm, len(shape), config)
    scaled = shape
    if target is not None:
        if spacing_mm is None:
            raise ImageError(
                "The image does not say how large its pixels are",
                reason="spacing",
                expected="a known spacing, since the images are resampled to one",
                remedy="leave spacing_mm out, or leave the image out",
            )
        scaled = tuple(
            length if step is None else max(1, round(length * own / step))
            for length, own, step in zip(shape, spacing_mm, target, strict=True)
        )
    size = _per_axis(config.size, len(shape), config)
    fitted = scaled
    if size is not None:
        fitted = tuple(length if wanted is None else wanted for wanted, length in zip(size, scaled, strict=True))
        if config.fit == "stretch":
            scaled = fitted
        elif config.fit == "pad" and any(length > wanted for length, wanted in zip(scaled, fitted, strict=True)):
            raise ImageError(
                "The image is larger than the size that it should be padded to",
                reason="size",
                got=scaled,
                expected=f"at most {fitted}",
                remedy='raise size, or set fit = "crop"',
            )
    for grid in (scaled, fitted):
        total = 4 * int(np.prod(np.array(grid, dtype=object)))
        if total > _MAX_OUTPUT_BYTES:
            raise too_large(total, _MAX_OUTPUT_BYTES)
    return Grid(shape, scaled, fitted)


def _per_axis(
    values: tuple[float, ...] | tuple[int, ...] | None, axes: int, config: Preprocess
) -> tuple[Any, ...] | None:
    """One value an axis; None for the axis that slices are cut across when it has none."""
    if values is None or len(values) == axes:
        return values
    if config.slices is not None and len(values) == axes - 1:
        at = config.slices.axis
        return (*values[:at], None, *values[at:])
    raise ImageError(
        "The image has another number of axes than the settings",
        reason="shape",
        got=f"{axes} spatial axes",
        expected=f"{len(values)}",
        remedy="set size and spacing_mm for this kind of image, or cut volumes into slices",
    )


def apply(volume: Volume, config: Preprocess) -> Pixels:
    """Preprocess one image.

    Args:
        volume: the image.
        config: settings.

    Returns:
        Shape (channels, *spatial), C-contiguous: uint8 (0..255 stands for 0..1) when the image is stored as
        uint8 and the intensity is ``"unit"``, else float32. Padding is 0, or the image's minimum where that
        is lower. With ``slices`` the array is still 3D; :func:`cut_slices` cuts it.

    Raises:
        ImageError: as :func:`plan_grid`, and ``"channels"``.
    """
    grid = plan_grid(volume.spatial_shape, config, volume.spacing_mm)
    array = convert_channels(volume.array, config.channels)
    array = scale_intensity(array, config.intensity, config.window)
    array = resize(array, grid.scaled)
    fill = min(0.0, float(array.min()))
    array = np.ascontiguousarray(fit_centre(array, grid.fitted, fill=fill))
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    return array.astype(np.float32, copy=False)


def apply_mask(mask: Mask, config: Preprocess, volume: Volume) -> Mask:
    """Bring a mask to the grid of its preprocessed image.

    Args:
        mask: shape (*spatial) of ``volume``, uint8, class indices.
        config: settings.
        volume: the image that the mask belongs to.

    Returns:
        Shape (*spatial) of :func:`apply`'s result, uint8, C-contiguous; padding is 0 (background).

    Raises:
        LabelError: mask and image differ in shape.
        ImageError: as :func:`plan_grid`.
    """
    if mask.shape != volume.spatial_shape:
        raise LabelError("A mask has another shape than its image", got=mask.shape, expected=volume.spatial_shape)
    grid = plan_grid(volume.spatial_shape, config, volume.spacing_mm)
    scaled = resize_nearest(mask, grid.scaled)
    return np.ascontiguousarray(fit_centre(scaled, grid.fitted)).astype(np.uint8, copy=False)


def restore_mask(
    mask: Mask,
    original_shape: tuple[int, ...],
    config: Preprocess,
    spacing_mm: tuple[float, ...] | None = None,
) -> Mask:
    """Bring a predicted mask back to the grid of the image it was predicted for.

    Args:
        mask: shape of :func:`apply`'s result without channels, uint8.
        original_shape: spatial shape of the image before preprocessing.
        config: the settings that the image was preprocessed with.
        spacing_mm: of the image, where ``config`` resamples.

    Returns:
        Shape ``original_shape``, uint8; what was cut away is 0 (background).

    Raises:
        LabelError: the mask does not have the shape that the settings lead to.
        ImageError: as :func:`plan_grid`.
    """
    grid = plan_grid(original_shape, config, spacing_mm)
    if mask.shape != grid.fitted:
        raise LabelError(
            "The mask does not have the shape of a preprocessed image", got=mask.shape, expected=grid.fitted
        )
    back = resize_nearest(undo_fit(mask, grid.scaled), grid.original)
    return np.ascontiguousarray(back).astype(np.uint8, copy=False)


def output_spacing(volume: Volume, config: Preprocess) -> tuple[float, ...] | None:
    """Spacing of :func:`apply`'s result.

    Returns:
        mm, one a spatial axis (three before the slices are cut), or None where the image's is unknown. It
        differs from ``config.spacing_mm`` by the rounding to whole pixels.

    Raises:
        ImageError: as :func:`plan_grid`.
    """
    if volume.spacing_mm is None:
        return None
    grid = plan_grid(volume.spatial_shape, config, volume.spacing_mm)
    return tuple(step * old / new for step, old, new in zip(volume.spacing_mm, grid.original, grid.scaled, strict=True))


@dataclass(frozen=True, eq=False)
class Slice:
    """One 2D slice of a volume.

    Args:
        position: index along the axis that was cut.
        image: shape (channels, rows, columns).
        mask: shape (rows, columns), or None.
    """

    position: int
    image: Pixels
    mask: Mask | None


def cut_slices(
    image: Pixels, mask: Mask | None, axis: int, keep: Literal["all", "foreground"] = "all"
) -> tuple[Slice, ...]:
    """Cut a preprocessed volume into slices.

    Args:
        image: shape (channels, three spatial axes).
        mask: shape of the spatial axes, or None.
        axis: spatial axis that is cut across, 0 to 2.
        keep: ``"foreground"`` leaves out slices whose mask is background throughout.

    Returns:
        At least one slice, C-contiguous, by position.

    Raises:
        ImageError: ``"shape"``: the image has not three spatial axes.
        LabelError: ``"foreground"`` without a mask, or with one that is background throughout.
    """
    if image.ndim != 4 or not 0 <= axis <= 2:  # noqa: PLR2004 - channels and three spatial axes
        raise ImageError(
            "Only a 3D volume can be cut into slices",
            reason="shape",
            got=image.shape,
            expected="(channels, three spatial axes)",
            remedy="leave slices out of the settings",
        )
    if mask is not None and mask.shape != image.shape[1:]:
        raise LabelError("A mask has another shape than its image", got=mask.shape, expected=image.shape[1:])
    positions = np.arange(image.shape[1 + axis])
    if keep == "foreground":
        if mask is None:
            raise LabelError("Slices with foreground need a mask", remedy='set keep = "all"')
        positions = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if len(positions) == 0:
            raise LabelError(
                "The mask of a volume is background throughout",
                expected="at least one slice with foreground",
                remedy='set keep = "all", or leave the volume out',
            )
    return tuple(_slice(image, mask, axis, int(position)) for position in positions)


def _slice(image: Pixels, mask: Mask | None, axis: int, position: int) -> Slice:
    plane = np.ascontiguousarray(np.take(image, position, axis=1 + axis))
    labels = None if mask is None else np.ascontiguousarray(np.take(mask, position, axis=axis))
    return Slice(position, plane, labels)
