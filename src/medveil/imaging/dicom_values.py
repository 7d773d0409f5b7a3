"""What stored DICOM values mean: modality, window, inversion, padding."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from medveil.errors import ImageError
from medveil.imaging.dicom_header import dicom_errors, frame_item, numbers
from medveil.imaging.dicom_pixels import Layout

Shape = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
_SHAPES: tuple[Shape, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Window:
    """A window of modality values (Hounsfield units for CT) that becomes 0..1.

    Args:
        centre: in modality units.
        width: > 0; at least 1 for ``"LINEAR"``.
        shape: DICOM's VOI LUT function.

    Raises:
        ImageError: ``"window"``.

    >>> Window(centre=50, width=100, shape="LINEAR_EXACT").apply(np.array([0.0, 25.0, 200.0])).tolist()
    [0.0, 0.25, 1.0]
    """

    centre: float
    width: float
    shape: Shape = "LINEAR"

    def __post_init__(self) -> None:
        smallest = 1.0 if self.shape == "LINEAR" else 0.0
        usable = np.isfinite(self.centre) and np.isfinite(self.width) and self.shape in _SHAPES
        if not usable or self.width < smallest or self.width <= 0:
            raise ImageError(
                "The window is not usable",
                reason="window",
                got=f"centre {self.centre}, width {self.width}",
                expected="finite numbers, a positive width (at least 1 for LINEAR)",
                remedy="give another window",
            )

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float64]:
        """Map modality values to [0, 1]; same shape, float64.

        Reference:
            DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
        """
        x = values.astype(np.float64)
        if self.shape == "SIGMOID":
            # Beyond 700 the exponential overflows and the result is 0 anyway.
            return 1 / (1 + np.exp(np.clip(-4 * (x - self.centre) / self.width, -700, 700)))
        if self.shape == "LINEAR_EXACT":
            return np.clip((x - self.centre) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (x > self.centre - 0.5).astype(np.float64)
        return np.clip((x - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


def padding_mask(stored: NDArray[np.generic], dataset: Dataset, layout: Layout) -> NDArray[np.bool_] | None:
    """Where the stored values are pixel padding, or None when the header names no padding value.

    Returns:
        Same shape as ``stored``.

    Raises:
        ImageError: ``"bad-header"``.
    """
    with dicom_errors("The header's padding value cannot be read", "bad-header"):
        first = numbers(dataset, "PixelPaddingValue", 1)
        last = numbers(dataset, "PixelPaddingRangeLimit", 1)
        if first is None or not layout.is_grey:
            return None
        low, high = sorted((first[0], (last or first)[0]))
        return np.asarray(np.greater_equal(stored, low) & np.less_equal(stored, high))


def modality_values(
    stored: NDArray[np.generic], dataset: Dataset, layout: Layout, window: Window | Literal["file"] | None
) -> NDArray[np.generic]:
    """Apply modality rescale or LUT, window, and MONOCHROME1's inversion, frame by frame.

    Args:
        stored: shape (frames, rows, columns, 1), stored values.
        dataset: of the same file.
        layout: of the same file.
        window: to apply, or ``"file"`` for the one in the header, or None.

    Returns:
        Same shape. Without window: the stored integers where the rescale is the identity, else float32 in
        modality units. With window: float32 in [0, 1]. In each, larger is brighter: MONOCHROME1 is inverted
        within the range that its stored bits span.

    Raises:
        ImageError: ``"bad-header"`` or ``"window"``.
    """
    with dicom_errors("The header's modality values cannot be read", "bad-header"):
        inverted = layout.photometric == "MONOCHROME1"
        if "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence):
            values = np.asarray(apply_modality_lut(stored, dataset))
            bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
            return _present(values, dataset, window, [(0.0, float((1 << bits) - 1))] if inverted else None)
        lines = [_rescale_line(dataset, frame) for frame in range(layout.frames)]
        ends = [
            (slope * layout.stored_range[0] + intercept, slope * layout.stored_range[1] + intercept)
            for slope, intercept in lines
        ]
        return _present(_rescale(stored, lines), dataset, window, ends if inverted else None)


def _rescale_line(dataset: Dataset, frame: int) -> tuple[float, float]:
    item = frame_item(dataset, frame, "PixelValueTransformationSequence")
    source = dataset if item is None else item
    slope = (numbers(source, "RescaleSlope", 1) or (1.0,))[0]
    intercept = (numbers(source, "RescaleIntercept", 1) or (0.0,))[0]
    if slope == 0:
        raise ImageError("The rescale slope is 0, which erases the image", reason="bad-header", got=0)
    return slope, intercept


def _rescale(stored: NDArray[np.generic], lines: list[tuple[float, float]]) -> NDArray[np.generic]:
    if all(line == (1.0, 0.0) for line in lines):
        return stored
    values = np.empty(stored.shape, np.float32)
    # Overflow to infinity is refused by Volume, with a message.
    with np.errstate(over="ignore"):
        for frame, (slope, intercept) in enumerate(lines):
            values[frame] = stored[frame].astype(np.float64) * slope + intercept
    return values


def _present(
    values: NDArray[np.generic],
    dataset: Dataset,
    window: Window | Literal["file"] | None,
    ends: list[tuple[float, float]] | None,
) -> NDArray[np.generic]:
    """Window, then invert where ``ends`` (one range a frame, or one for all) is given."""
    if window is not None:
        shown = np.empty(values.shape, np.float32)
        for frame in range(len(values)):
            chosen = _file_window(dataset, frame) if window == "file" else window
            shown[frame] = chosen.apply(values[frame])
        return shown if ends is None else np.float32(1) - shown
    if ends is None:
        return values
    turned = np.empty_like(values)
    for frame in range(len(values)):
        low, high = ends[frame % len(ends)]
        # 64-bit arithmetic: the sum of two 32-bit ends does not fit 32 bits.
        wide = values[frame].astype(np.float64 if values.dtype.kind == "f" else np.int64)
        turned[frame] = (wide.dtype.type(low) + wide.dtype.type(high) - wide).astype(values.dtype)
    return turned


def _file_window(dataset: Dataset, frame: int) -> Window:
    item = frame_item(dataset, frame, "FrameVOILUTSequence")
    source = dataset if item is None else item
    centre, width = source.get("WindowCenter"), source.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        raise ImageError("The header holds no window", reason="window", remedy="give a centre and a width, or none")
    shape = str(source.get("VOILUTFunction") or "LINEAR")
    if shape not in _SHAPES:
        raise ImageError("The header's window has an unknown function", reason="window", expected=_SHAPES)
    return Window(_first(centre), _first(width), shape)


def _first(value: Any) -> float:
    """A header may offer several windows; the first is the default view (PS3.3 C.11.2.1.2)."""
    values = [value] if isinstance(value, (str, int, float)) else list(value)
    return float(values[0])


def fill_padding(values: NDArray[np.generic], padding: NDArray[np.bool_] | None) -> NDArray[np.generic]:
    """Give padding pixels the lowest value of the pixels that were measured.

    Padding (-2000 outside a CT's circle, say) is no measurement: left in, it would shift every statistic of
    the image. An image that is padding throughout stays as it is.
    """
    if padding is None or not padding.any() or padding.all():
        return values
    filled = values.copy()
    filled[padding] = values[~padding].min()
    return filled
