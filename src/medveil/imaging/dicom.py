"""One DICOM file as a :class:`~medveil.imaging.volume.Volume`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medveil.errors import ImageError
from medveil.imaging.dicom_header import check_is_image, dicom_errors, frame_item, numbers, open_dicom
from medveil.imaging.dicom_pixels import MAX_PIXEL_BYTES, decode_pixels, read_layout
from medveil.imaging.dicom_values import Window, fill_padding, modality_values, padding_mask
from medveil.imaging.geometry import Plane, plane_affine, stack_planes
from medveil.imaging.source import MAX_FILE_BYTES
from medveil.imaging.volume import Volume

__all__ = ["Window", "dicom_patient_key", "read_dicom"]

_MAX_MODALITY = 16


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames of one file, or of a series, before they become a volume.

    Args:
        values: shape (frames, rows, columns, channels), larger is brighter.
        padding: same shape, or None.
        planes: one a frame, None where the header gives no plane.
        spacing_mm: (between rows, between columns), or None.
        modality: DICOM code, or "OT".
    """

    values: NDArray[np.generic]
    padding: NDArray[np.bool_] | None
    planes: tuple[Plane | None, ...]
    spacing_mm: tuple[float, float] | None
    modality: str


def read_dicom(
    source: Path | bytes,
    *,
    window: Window | Literal["file"] | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    max_pixel_bytes: int = MAX_PIXEL_BYTES,
) -> Volume:
    """Read one DICOM file.

    Args:
        source: a path, or the file's content.
        window: map these modality values to 0..1; ``"file"`` takes the header's first window; None keeps
            modality units.
        max_bytes: limit of the file, and of what a deflated file inflates to.
        max_pixel_bytes: limit of the decoded image.

    Returns:
        Grey: channels = 1; the stored integer dtype where the rescale is the identity, else float32. Colour
        (RGB, YBR, palette): channels = 3, RGB, uint8. One frame: array (channels, rows, columns). Several:
        (channels, frames, rows, columns), frames sorted along the normal where each states its plane, else
        in file order with ``spacing_mm`` and ``affine`` None (a cine loop has no third spatial axis).
        MONOCHROME1 is inverted, so larger is brighter. Padding pixels take the lowest measured value.
        Overlays and supplemental palettes are not applied.

    Raises:
        MissingDataError: there is no such file.
        ImageError: with one of the reasons ``empty``, ``too-large``, ``not-dicom``, ``truncated``,
            ``bad-header``, ``unsupported-object``, ``segmentation-object``, ``no-pixels``,
            ``unsupported-transfer-syntax``, ``decode``, ``geometry``, ``gap``, ``duplicate-position``,
            ``window``, ``non-finite``.
    """
    dataset = open_dicom(source, max_bytes=max_bytes)
    return assemble(decode_frames(dataset, window=window, max_pixel_bytes=max_pixel_bytes))


def dicom_patient_key(source: Path | bytes) -> str:
    """The PatientID as it stands in the file: identifying, to be hashed at once and never shown.

    Raises:
        MissingDataError: there is no such file.
        ImageError: ``"no-patient"`` when the file names none; else as :func:`read_dicom`.
    """
    return patient_key(open_dicom(source, header_only=True))


def patient_key(dataset: Dataset) -> str:
    """As :func:`dicom_patient_key`, of an opened file."""
    with dicom_errors("The patient id cannot be read", "bad-header"):
        key = str(dataset.get("PatientID") or "").strip()
    if not key:
        raise ImageError(
            "The DICOM file does not say whose it is",
            reason="no-patient",
            expected="a PatientID",
            remedy="give the patient of each file in an index",
        )
    return key


def decode_frames(
    dataset: Dataset,
    *,
    window: Window | Literal["file"] | None = None,
    max_pixel_bytes: int = MAX_PIXEL_BYTES,
) -> Frames:
    """Decode an opened file: pixels, meaning, planes.

    Raises:
        ImageError: as :func:`read_dicom`.
    """
    check_is_image(dataset)
    layout = read_layout(dataset, max_bytes=max_pixel_bytes)
    values = decode_pixels(dataset, layout)
    padding = padding_mask(values, dataset, layout)
    if layout.is_grey:
        values = modality_values(values, dataset, layout, window)
    with dicom_errors("The position of the image cannot be read", "bad-header"):
        planes = tuple(_plane(dataset, frame, layout.frames) for frame in range(layout.frames))
        spacing = _pixel_spacing(dataset, 0)
        modality = str(dataset.get("Modality") or "OT").strip()
    # A code string; anything longer is not a modality, and free text may identify.
    plausible = modality.isascii() and modality.isalnum() and len(modality) <= _MAX_MODALITY
    return Frames(values, padding, planes, spacing, modality if plausible else "OT")


def _plane(dataset: Dataset, frame: int, frames: int) -> Plane | None:
    position_item = frame_item(dataset, frame, "PlanePositionSequence")
    orientation_item = frame_item(dataset, frame, "PlaneOrientationSequence")
    if frames == 1:
        position_item = position_item or dataset
        orientation_item = orientation_item or dataset
    if position_item is None or orientation_item is None:
        return None
    position = numbers(position_item, "ImagePositionPatient", 3)
    orientation = numbers(orientation_item, "ImageOrientationPatient", 6)
    spacing = _pixel_spacing(dataset, frame)
    if position is None or orientation is None or spacing is None:
        return None
    return Plane(np.array(position), np.array(orientation[:3]), np.array(orientation[3:]), spacing)


def _pixel_spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """PixelSpacing; for projection images that lack it, the spacing at the detector."""
    measures = frame_item(dataset, frame, "PixelMeasuresSequence")
    for item, keyword in (
        (measures, "PixelSpacing"),
        (dataset, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
    ):
        found = None if item is None else numbers(item, keyword, 2)
        if found is not None:
            if min(found) <= 0:
                raise ImageError("The pixel spacing is not positive", reason="bad-header", got=found, expected="> 0 mm")
            return found[0], found[1]
    return None


def assemble(frames: Frames, *, tolerance_mm: float = 0.1) -> Volume:
    """Sort frames along their normal, fill the padding and attach the geometry.

    Raises:
        ImageError: ``"geometry"``, ``"gap"``, ``"duplicate-position"`` or ``"non-finite"``.
    """
    values = fill_padding(frames.values, frames.padding)
    planes = [plane for plane in frames.planes if plane is not None]
    if len(values) == 1:
        affine = plane_affine(planes[0]) if planes else None
        array = np.ascontiguousarray(np.moveaxis(values[0], -1, 0))
        return Volume(array, frames.spacing_mm, affine, frames.modality)
    if not planes:
        return Volume(np.ascontiguousarray(np.moveaxis(values, -1, 0)), modality=frames.modality)
    if len(planes) != len(values):
        raise ImageError(
            "Some slices state their position and others do not",
            reason="geometry",
            got=f"{len(planes)} of {len(values)}",
            remedy="export the image again",
        )
    stack = stack_planes(planes, tolerance_mm=tolerance_mm)
    array = np.ascontiguousarray(np.moveaxis(values[list(stack.order)], -1, 0))
    return Volume(array, stack.spacing_mm, stack.affine, frames.modality)
