"""Many DICOM files as volumes: one a series."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ImageError, MissingDataError
from medveil.imaging.dicom import Frames, assemble, decode_frames, patient_key
from medveil.imaging.dicom_header import check_is_image, dicom_errors, open_dicom
from medveil.imaging.dicom_pixels import MAX_PIXEL_BYTES
from medveil.imaging.source import too_large
from medveil.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A volume and the keys that tell whose it is.

    Args:
        volume: the image.
        patient_key: PatientID as stored: identifying, kept out of ``repr``; hash it at once.
        series_key: SeriesInstanceUID as stored: identifying, kept out of ``repr``.
        files: how many files the volume was made from.
    """

    volume: Volume = field(repr=False)
    patient_key: str = field(repr=False)
    series_key: str = field(repr=False)
    files: int


@dataclass(frozen=True, eq=False)
class SeriesReading:
    """What a set of DICOM files held.

    Args:
        volumes: one a volume, in the order of each one's first file.
        rejected: (reason, detail), one a file that was not used; details name no file and no patient.
    """

    volumes: tuple[DicomSeries, ...]
    rejected: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _Member:
    path: Path = field(repr=False)
    patient: str = field(repr=False)


def read_dicom_series(
    files: Sequence[Path], *, tolerance_mm: float = 0.1, max_pixel_bytes: int = MAX_PIXEL_BYTES
) -> SeriesReading:
    """Read files in any order and build one volume a series.

    Slices are grouped by SeriesInstanceUID and sorted by position along the normal, never by instance number
    or file name. A series whose files state no position (X-ray views) and every multi-frame file give one
    volume a file. A series that does not fit together is refused as a whole.

    Args:
        files: paths; each is read once for its header and once for its pixels, one series at a time.
        tolerance_mm: as in :func:`~medveil.imaging.geometry.stack_planes`.
        max_pixel_bytes: limit of each volume.

    Returns:
        The volumes, and one (reason, detail) a file that was not used: reasons as in
        :func:`~medveil.imaging.dicom.read_dicom`, and ``"missing"``, ``"no-patient"``, ``"no-series"``,
        ``"mixed-patients"``.
    """
    rejected: list[tuple[str, str]] = []
    groups: dict[str, list[_Member]] = defaultdict(list)
    for path in files:
        try:
            key, member = _identify(path)
        except (ImageError, MissingDataError) as error:
            rejected.append(_reason(error))
        else:
            groups[key].append(member)
    series: list[DicomSeries] = []
    for key, members in groups.items():
        try:
            series += _read_group(key, members, tolerance_mm, max_pixel_bytes, rejected)
        except ImageError as error:
            rejected += [_reason(error)] * len(members)
    return SeriesReading(tuple(series), tuple(rejected))


def _reason(error: ImageError | MissingDataError) -> tuple[str, str]:
    return (error.reason if isinstance(error, ImageError) else "missing"), error.what


def _identify(path: Path) -> tuple[str, _Member]:
    dataset = open_dicom(path)
    check_is_image(dataset)
    with dicom_errors("The series of the file cannot be read", "bad-header"):
        key = str(dataset.get("SeriesInstanceUID") or "").strip()
    if not key:
        raise ImageError("The DICOM file does not name its series", reason="no-series")
    return key, _Member(path, patient_key(dataset))


def _read_group(
    key: str,
    members: list[_Member],
    tolerance_mm: float,
    max_pixel_bytes: int,
    rejected: list[tuple[str, str]],
) -> list[DicomSeries]:
    """Volumes of one series; files refused alone are added to ``rejected``, an error refuses all of them."""
    patients = {member.patient for member in members}
    if len(patients) > 1:
        raise ImageError(
            "The files of one series name several patients",
            reason="mixed-patients",
            remedy="correct the patient ids at the source",
        )
    decoded, damaged = _decode_members(members, max_pixel_bytes)
    patient = members[0].patient
    if _is_stack(decoded):
        if damaged:
            # A stack without its last slice would look whole: the damage of one slice refuses all.
            raise ImageError("A slice of the series is damaged", reason=damaged[0][0])
        volume = assemble(_join(decoded), tolerance_mm=tolerance_mm)
        return [DicomSeries(volume, patient, key, len(decoded))]
    rejected += damaged
    series = []
    for frames in decoded:
        try:
            series.append(DicomSeries(assemble(frames, tolerance_mm=tolerance_mm), patient, key, 1))
        except ImageError as error:
            rejected.append(_reason(error))
    return series


def _decode_members(members: list[_Member], max_pixel_bytes: int) -> tuple[list[Frames], list[tuple[str, str]]]:
    decoded: list[Frames] = []
    damaged: list[tuple[str, str]] = []
    held = 0
    for member in members:
        try:
            frames = decode_frames(open_dicom(member.path), max_pixel_bytes=max_pixel_bytes)
        except (ImageError, MissingDataError) as error:
            damaged.append(_reason(error))
            continue
        held += frames.values.nbytes
        if held > max_pixel_bytes:
            raise too_large(f"more than {max_pixel_bytes}", max_pixel_bytes)
        decoded.append(frames)
    return decoded, damaged


def _is_stack(decoded: list[Frames]) -> bool:
    """Several single slices of which at least one says where it lies."""
    single = all(len(frames.values) == 1 for frames in decoded)
    placed = any(plane is not None for frames in decoded for plane in frames.planes)
    return len(decoded) > 1 and single and placed


def _join(decoded: list[Frames]) -> Frames:
    shapes = {frames.values.shape for frames in decoded}
    if len(shapes) > 1:
        raise ImageError(
            "The slices of one series differ in size",
            reason="geometry",
            got=f"{len(shapes)} sizes",
            remedy="take scout views out of the series",
        )
    values = [frames.values for frames in decoded]
    # float32 holds every 16-bit value exactly; NumPy would widen 32-bit integers and float32 to float64.
    dtype = np.float32 if any(array.dtype == np.float32 for array in values) else np.result_type(*values)
    padding = None
    if any(frames.padding is not None for frames in decoded):
        padding = np.concatenate([_padding(frames) for frames in decoded])
    return Frames(
        values=np.concatenate([array.astype(dtype, copy=False) for array in values]),
        padding=padding,
        planes=tuple(plane for frames in decoded for plane in frames.planes),
        spacing_mm=decoded[0].spacing_mm,
        modality=decoded[0].modality,
    )


def _padding(frames: Frames) -> NDArray[np.bool_]:
    return np.zeros(frames.values.shape, np.bool_) if frames.padding is None else frames.padding
