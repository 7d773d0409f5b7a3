"""Source "nifti-pairs": volumes and their masks, in two folders, under the same names."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medveil.data.sources.assemble import Description, Reading, Record, Refusal, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.sources.files import NIFTI_SUFFIXES, FileTree, open_tree
from medveil.data.sources.rows import attributes_of, patient_of, subject_rule
from medveil.data.sources.table import Row, check_unique, read_table, split_name
from medveil.data.subject import Dataset
from medveil.errors import ImageError
from medveil.imaging.geometry import same_geometry
from medveil.imaging.nifti import mask_labels, read_nifti
from medveil.imaging.preprocess import Preprocess
from medveil.imaging.volume import Volume

NO_MASK = ("no-mask", "A volume without a mask of the same name")
NO_IMAGE = ("no-image", "A mask without a volume of the same name")
UNLISTED = ("unlisted", "A volume that the table does not name")


class NiftiPairsSource(SourceConfig):
    """NIfTI volumes with masks of the same file names.

    Attributes:
        path: folder or zip that holds both folders.
        images: folder of the volumes inside ``path``.
        labels: folder of the masks inside ``path``.
        classes: class names in the order of the values in the masks, the background first.
        name: of the data set.
        table: UTF-8 CSV with one row for each volume; None takes every pair.
        image: column with the volume's file name.
        patient: column that says whose the volume is; None makes each volume its own subject.
        site: column that names the site, kept as the attribute "site".
        split: column with train, validation or test.
        attributes: further columns to keep.
    """

    kind: Literal["nifti-pairs"] = "nifti-pairs"
    path: Path
    images: str = "images"
    labels: str = "labels"
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    name: str = "nifti-pairs"
    table: Path | None = None
    image: str = "image"
    patient: str | None = None
    site: str | None = None
    split: str | None = None
    attributes: tuple[str, ...] = ()

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return subject_rule(self.patient)

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return self.patient is not None

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read the pairs; as :meth:`medveil.data.sources.contract.Source.load`."""
        rows = self._rows(root)
        with open_tree(root / self.path) as tree:
            pairs, refused = pair_files(tree, self.images, self.labels)
            records = []
            for key, image, mask in pairs:
                if rows is not None and key not in rows:
                    refused.append(UNLISTED)
                    continue
                row = rows.get(key, {}) if rows else {}
                records.append(self._record(tree, key, image, mask, row))
            missing = set(rows or ()) - {key for key, _, _ in pairs}
            refused += [("missing", "A volume that the table names is not there")] * len(missing)
            description = Description(self.name, "segmentation", self.classes)
            return assemble(records, description, preprocess, resize=self.resize, refused=refused, threads=1)

    def _rows(self, root: Path) -> dict[str, Row] | None:
        if self.table is None:
            return None
        wanted = [self.image, self.patient, self.site, self.split, *self.attributes]
        rows = read_table(root / self.table, [column for column in wanted if column is not None])
        check_unique([row[self.image] for row in rows], self.image)
        return {row[self.image]: row for row in rows}

    def _record(self, tree: FileTree, key: str, image: str, mask: str, row: Row) -> Record:
        return Record(
            patient_of(row, self.patient if row else None, key),
            pair_reader(tree, image, mask, len(self.classes)),
            attributes_of(row, self.site, self.attributes) if row else {},
            split_name(row[self.split]) if row and self.split else None,
        )


def pair_files(tree: FileTree, images: str, labels: str) -> tuple[list[tuple[str, str, str]], list[Refusal]]:
    """Match volumes and masks by name.

    Returns:
        (name below the folder, volume, mask) for each pair, and one refusal for each file left over.
    """
    volumes = _below(tree, images)
    masks = _below(tree, labels)
    pairs = [(key, volumes[key], masks[key]) for key in volumes if key in masks]
    left = [NO_MASK] * (len(volumes) - len(pairs)) + [NO_IMAGE] * (len(masks) - len(pairs))
    return pairs, left


def pair_reader(tree: FileTree, image: str, mask: str, num_classes: int) -> Callable[[], list[Reading | Refusal]]:
    """What reads a volume and its mask."""

    def read() -> list[Reading | Refusal]:
        return [Reading(*read_pair(tree, image, mask, num_classes))]

    return read


def read_pair(tree: FileTree, image: str, mask: str, num_classes: int) -> tuple[Volume, NDArray[np.uint8]]:
    """Read a volume and its mask.

    Raises:
        ImageError: as :func:`~medveil.imaging.nifti.read_nifti`, and ``"geometry"`` where they lie differently.
        LabelError: values that are no classes.
    """
    volume, labels = read_nifti(tree.read(image)), read_nifti(tree.read(mask))
    if volume.spatial_shape == labels.spatial_shape and not same_geometry(volume, labels):
        raise ImageError(
            "A mask lies elsewhere in space than its volume",
            reason="geometry",
            expected="one affine for both",
            remedy="resample the mask to its volume",
        )
    return volume, mask_labels(labels, num_classes)


def _below(tree: FileTree, folder: str) -> dict[str, str]:
    prefix = folder.strip("/") + "/"
    return {name.removeprefix(prefix): name for name in tree.having(NIFTI_SUFFIXES) if name.startswith(prefix)}
