"""How each public set lays out its files; both the published layout and a repacked one are read."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from medveil.data.sources.assemble import DEFAULT_THREADS, Reading, Record, Refusal
from medveil.data.sources.files import RASTER_SUFFIXES, FileTree
from medveil.data.sources.nifti_pairs import pair_files, read_pair
from medveil.data.sources.table import split_name
from medveil.errors import ImageError
from medveil.imaging.intensity import convert_channels
from medveil.imaging.raster import read_raster, read_raster_mask
from medveil.imaging.resample import resize
from medveil.imaging.volume import Volume

Records = tuple[list[Record], list[Refusal]]

UNKNOWN = ("unknown-file", "A file that does not belong to the published set")


@dataclass(frozen=True)
class SetReader:
    """How one set is read.

    Args:
        records: from the files and the annotator's number.
        threads: as in :func:`~medveil.data.sources.assemble.assemble`.
    """

    records: Callable[[FileTree, int], Records]
    threads: int = DEFAULT_THREADS


def archive_or_folder(folder: Path) -> Path:
    """The one zip in a set's folder, or the folder itself."""
    zips = sorted(folder.glob("*.zip"))
    return zips[0] if len(zips) == 1 else folder


@dataclass(frozen=True)
class ChestFile:
    """What a file name of a chest set says.

    Args:
        split: "train", "test" or None.
        label: 0 normal, 1 pneumonia.
        subtype: "normal", "bacteria", "virus" or "pneumonia".
        patient_key: whose it is.
    """

    split: str | None
    label: int
    subtype: str
    patient_key: str


_NORMAL = re.compile(r"((?:NORMAL\d+-)?IM-\d+)-\d+(?:-\d+)?\.jpe?g")
_PNEUMONIA = re.compile(r"person(\d+)_(bacteria|virus)_\d+(?:_\d+)?\.jpe?g")
_NIH = re.compile(r"(\d{8})_\d{3}\.(?:jpe?g|png)")


def parse_guangzhou(name: str) -> ChestFile | None:
    """Read split, class and patient from a path, or None where it is not of the set.

    >>> parse_guangzhou("train/PNEUMONIA/person9_bacteria_39.jpeg")
    ChestFile(split='train', label=1, subtype='bacteria', patient_key='P_bacteria_9')
    """
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[-3] not in {"train", "test"}:  # noqa: PLR2004 - split, class, file
        return None
    split = split_name(parts[-3])
    if parts[-2] == "NORMAL" and (match := _NORMAL.fullmatch(parts[-1])):
        return ChestFile(split, 0, "normal", f"N_{match[1]}")
    if parts[-2] == "PNEUMONIA" and (match := _PNEUMONIA.fullmatch(parts[-1])):
        return ChestFile(split, 1, match[2], f"P_{match[2]}_{match[1]}")
    return None


def parse_nih(name: str) -> ChestFile | None:
    """Likewise for the NIH subset, which has no splits.

    >>> parse_nih("Pneumonia/00000061_012.png")
    ChestFile(split=None, label=1, subtype='pneumonia', patient_key='00000061')
    """
    parts = PurePosixPath(name).parts
    classes = {"No_findings": (0, "normal"), "Pneumonia": (1, "pneumonia")}
    if len(parts) < 2 or parts[-2] not in classes:  # noqa: PLR2004 - class, file
        return None
    match = _NIH.fullmatch(parts[-1])
    return ChestFile(None, *classes[parts[-2]], match[1]) if match else None


def _chest_records(tree: FileTree, parse: Callable[[str], ChestFile | None], site: str) -> Records:
    records, refused = [], []
    for name in tree.having(RASTER_SUFFIXES):
        told = parse(name)
        if told is None:
            refused.append(UNKNOWN)
            continue
        attributes = {"site": site, "subtype": told.subtype}
        records.append(Record(told.patient_key, _chest_reader(tree, name, told.label), attributes, told.split))
    return records, refused


def _guangzhou(tree: FileTree, _annotator: int) -> Records:
    return _chest_records(tree, parse_guangzhou, "guangzhou")


def _nih(tree: FileTree, _annotator: int) -> Records:
    return _chest_records(tree, parse_nih, "nih")


_CHEST_SIZE = (224, 224)


def _chest_reader(tree: FileTree, name: str, label: int) -> Callable[[], list[Reading | Refusal]]:
    def read() -> list[Reading | Refusal]:
        grey = convert_channels(read_raster(tree.read(name)).array, "grey")
        # The NIH images are published at 1024 x 1024; the set is one of 224 x 224.
        return [Reading(Volume(np.ascontiguousarray(resize(grey, _CHEST_SIZE)), modality="CR"), label)]

    return read


_LARGE = 5000.0


def _hippocampus(tree: FileTree, _annotator: int) -> Records:
    published = any("imagesTr/" in name for name in tree.names)
    pairs, refused = pair_files(tree, *(("imagesTr", "labelsTr") if published else ("images", "labels")))
    return [Record(key, _hippocampus_reader(tree, image, mask)) for key, image, mask in pairs], refused


def _hippocampus_reader(tree: FileTree, image: str, mask: str) -> Callable[[], list[Reading | Refusal]]:
    def read() -> list[Reading | Refusal]:
        volume, labels = read_pair(tree, image, mask, 3)
        volume = Volume(volume.array, volume.spacing_mm, volume.affine, "MR")
        return [Reading(volume, labels, {"intensity_regime": intensity_regime(volume)})]

    return read


def intensity_regime(volume: Volume) -> str:
    """How a hippocampus volume was exported: "uint8", "normal" or "large" (beyond 5000).

    The published files fall into three groups with a gap between; the group is a proxy for a site, not a site.
    """
    if volume.array.dtype == np.uint8:
        return "uint8"
    return "large" if float(volume.array.max()) > _LARGE else "normal"


NUCLEI_DOMAINS = ("256x256_grey", "320x256_colour", "360x360_grey", "696x520_grey")
"""The four largest groups of like images: width x height and colour."""


def _nuclei(tree: FileTree, _annotator: int) -> Records:
    masks: Mapping[str, list[str]] = defaultdict(list)
    images: dict[str, str] = {}
    for name in tree.having(RASTER_SUFFIXES):
        parts = PurePosixPath(name).parts
        if "masks" in parts:
            masks["/".join(parts[: parts.index("masks")])].append(name)
        elif name.endswith("_label.png"):
            masks[name.removesuffix("_label.png")].append(name)
        else:
            images["/".join(parts[:-2]) if parts[-2] == "images" else name.removesuffix(".png")] = name
    records = [Record(key, _nuclei_reader(tree, name, masks[key])) for key, name in images.items() if masks[key]]
    refused = [("no-mask", "An image without nuclei drawn")] * (len(images) - len(records))
    return records, refused


def _nuclei_reader(tree: FileTree, image: str, masks: list[str]) -> Callable[[], list[Reading | Refusal]]:
    def read() -> list[Reading | Refusal]:
        volume = read_raster(tree.read(image))
        grey = bool((volume.array == volume.array[:1]).all())
        rows, columns = volume.spatial_shape
        domain = f"{columns}x{rows}_{'grey' if grey else 'colour'}"
        if domain not in NUCLEI_DOMAINS:
            raise ImageError("An image of a domain that is too small to be a site", reason="other-domain")
        if grey:
            volume = Volume(np.ascontiguousarray(volume.array[:1]))
        return [Reading(volume, _united(tree, masks), {"domain": domain, "site": domain})]

    return read


def _united(tree: FileTree, names: list[str]) -> NDArray[np.uint8]:
    """One mask from one file with numbered nuclei, or from one file a nucleus."""
    first, *others = (read_raster_mask(tree.read(name), meaning="binary") for name in names)
    if any(other.shape != first.shape for other in others):
        raise ImageError("The masks of one image differ in shape", reason="mask-shape")
    for other in others:
        first = np.maximum(first, other)
    return first


_EYE = re.compile(r"Image_(\d+)([LR])\.jpg")


def _retina(tree: FileTree, annotator: int) -> Records:
    drawn = {1: "1stHO", 2: "2ndHO"}[annotator]
    records, refused = [], []
    for name in tree.having((".jpg",)):
        match = _EYE.fullmatch(PurePosixPath(name).name)
        mask = f"{name.removesuffix('.jpg')}_{drawn}.png"
        if match is None or mask not in tree:
            refused.append(UNKNOWN)
            continue
        records.append(Record(match[1], _retina_reader(tree, name, mask)))
    return records, refused


def _retina_reader(tree: FileTree, image: str, mask: str) -> Callable[[], list[Reading | Refusal]]:
    def read() -> list[Reading | Refusal]:
        volume = read_raster(tree.read(image))
        return [Reading(volume, read_raster_mask(tree.read(mask), meaning="binary"))]

    return read


SET_READERS: Mapping[str, SetReader] = {
    "chest-xray-224": SetReader(_guangzhou),
    "chest-xray-nih": SetReader(_nih),
    "hippocampus": SetReader(_hippocampus, threads=1),
    "nuclei": SetReader(_nuclei),
    "retina": SetReader(_retina),
}
"""Reader of each set that lies in single files."""
