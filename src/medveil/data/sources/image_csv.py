"""Source "image-csv": pictures and a table that says what they show."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from medveil.data.sources.assemble import Description, Reading, Record, Refusal, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.sources.files import RASTER_SUFFIXES, FileTree, open_tree
from medveil.data.sources.image_folder import raster_reader
from medveil.data.sources.rows import attributes_of, patient_of, subject_rule
from medveil.data.sources.table import Row, check_unique, class_indices, read_table, split_name
from medveil.data.subject import Dataset
from medveil.imaging.preprocess import Preprocess
from medveil.imaging.raster import read_raster, read_raster_mask

MISSING = ("missing", "A file that the table names is not there")
UNLISTED = ("unlisted", "An image that the table does not name")


class ImageCsvSource(SourceConfig):
    """Pictures in a folder or zip, and a table with one row for each.

    Attributes:
        images: folder or zip.
        table: UTF-8 CSV with a header.
        name: of the data set.
        image: column with the picture's path inside ``images``.
        label: column with the class, by name or index.
        mask: column with the path of the picture's mask inside ``images``; makes the task a segmentation.
        mask_values: "index" where masks hold class indices, "binary" where every value above 0 is class 1.
        classes: class names in the order of the indices; required with ``mask`` (the background first).
        patient: column that says whose the picture is; None makes each image its own subject.
        site: column that names the site, kept as the attribute "site".
        split: column with train, validation or test.
        attributes: further columns to keep.
    """

    kind: Literal["image-csv"] = "image-csv"
    images: Path
    table: Path
    name: str = "image-csv"
    image: str = "image"
    label: str = "label"
    mask: str | None = None
    mask_values: Literal["index", "binary"] = "index"
    classes: tuple[str, ...] = ()
    patient: str | None = None
    site: str | None = None
    split: str | None = None
    attributes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _masks_need_classes(self) -> Self:
        if self.mask is not None and len(self.classes) < 2:  # noqa: PLR2004 - background and one structure
            message = "masks need classes: the background first, then one name for each value"
            raise ValueError(message)
        return self

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return subject_rule(self.patient)

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return self.patient is not None

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read table and pictures; as :meth:`medveil.data.sources.contract.Source.load`."""
        target = self.label if self.mask is None else self.mask
        wanted = [self.image, target, self.patient, self.site, self.split, *self.attributes]
        rows = read_table(root / self.table, [column for column in wanted if column is not None])
        check_unique([row[self.image] for row in rows], self.image)
        with open_tree(root / self.images) as tree:
            readers, classes = self._readers(tree, rows)
            records = [
                Record(
                    patient_of(row, self.patient, row[self.image]),
                    reader,
                    attributes_of(row, self.site, self.attributes),
                    split_name(row[self.split]) if self.split else None,
                )
                for row, reader in zip(rows, readers, strict=True)
            ]
            listed = {row[column] for row in rows for column in (self.image, self.mask) if column}
            unlisted = [UNLISTED for name in tree.having(RASTER_SUFFIXES) if name not in listed]
            task: Literal["classification", "segmentation"]
            task = "segmentation" if self.mask else "classification"
            description = Description(self.name, task, classes)
            return assemble(records, description, preprocess, resize=self.resize, refused=unlisted)

    def _readers(self, tree: FileTree, rows: Sequence[Row]) -> tuple[list["Reader"], tuple[str, ...]]:
        if self.mask is not None:
            mask = self.mask
            return [mask_reader(tree, row[self.image], row[mask], self.mask_values) for row in rows], self.classes
        labels, classes = class_indices([row[self.label] for row in rows], self.classes)
        return [
            raster_reader(tree, row[self.image], label) if row[self.image] in tree else missing_reader
            for row, label in zip(rows, labels, strict=True)
        ], classes


Reader = Callable[[], list[Reading | Refusal]]


def mask_reader(tree: FileTree, image: str, mask: str, meaning: Literal["index", "binary"]) -> Reader:
    """What reads a picture and its mask."""
    if image not in tree or mask not in tree:
        return missing_reader
    return lambda: [Reading(read_raster(tree.read(image)), read_raster_mask(tree.read(mask), meaning=meaning))]


def missing_reader() -> list[Reading | Refusal]:
    """What stands for a file that is not there."""
    return [MISSING]
