"""Source "image-folder": one folder for each class."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from medveil.data.sources.assemble import Description, Reading, Record, Refusal, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.sources.files import RASTER_SUFFIXES, FileTree, open_tree
from medveil.data.sources.table import SPLIT_NAMES, class_indices
from medveil.data.subject import Dataset
from medveil.errors import LabelError
from medveil.imaging.preprocess import Preprocess
from medveil.imaging.raster import read_raster

NOT_AN_IMAGE = ("not-an-image", "A file whose name does not end in .png, .jpg or .jpeg")


class ImageFolderSource(SourceConfig):
    """Pictures in one folder for each class, or a zip of that; folders named train, val and test may stand above.

    Attributes:
        path: folder or zip.
        name: of the data set.
        classes: folder names in the order of the indices; () takes all, sorted.
        patient: regular expression, searched in a file's name without its folders; its first group is the
            patient. None makes each image its own subject.
    """

    kind: Literal["image-folder"] = "image-folder"
    path: Path
    name: str = "image-folder"
    classes: tuple[str, ...] = ()
    patient: str | None = Field(None, max_length=200)

    @field_validator("patient")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                message = f"patient is not a regular expression: {error.msg}"
                raise ValueError(message) from None
            if groups < 1:
                message = "patient needs a group in brackets that holds the patient's key"
                raise ValueError(message)
        return pattern

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        if self.patient is None:
            return "each image is its own subject: no patient pattern was given"
        return "a patient, as the pattern finds it in file names, is one subject"

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return self.patient is not None

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read the folder; as :meth:`medveil.data.sources.contract.Source.load`."""
        with open_tree(root / self.path) as tree:
            names = tree.having(RASTER_SUFFIXES)
            refused = [NOT_AN_IMAGE] * (len(tree.names) - len(names))
            places = place_files(names)
            labels, classes = class_indices([label for _, label in places], self.classes)
            patients = _patients(names, self.patient)
            records = [
                Record(patient, raster_reader(tree, name, label), split=split)
                for name, (split, _), label, patient in zip(names, places, labels, patients, strict=True)
            ]
            description = Description(self.name, "classification", classes)
            return assemble(records, description, preprocess, resize=self.resize, refused=refused)


def raster_reader(tree: FileTree, name: str, label: int) -> Callable[[], list[Reading | Refusal]]:
    """What reads one picture of a tree, later and in another thread."""
    return lambda: [Reading(read_raster(tree.read(name)), label)]


def place_files(names: Sequence[str]) -> tuple[tuple[str | None, str], ...]:
    """Split and class of each file, from its folders.

    One folder that holds everything is passed over; where every folder that is left at the top is named after
    a split, the classes stand below.

    Returns:
        (split or None, class folder) for each name.

    Raises:
        LabelError: a file stands in no class folder.

    >>> place_files(["x/train/sick/1.png", "x/val/well/2.png"])
    (('train', 'sick'), ('validation', 'well'))
    """
    parts = [PurePosixPath(name).parts for name in names]
    while parts and len({part[0] for part in parts}) == 1 and min(len(part) for part in parts) > 2:  # noqa: PLR2004 - folder, class, file
        parts = [part[1:] for part in parts]
    split_first = bool(parts) and all(part[0].lower() in SPLIT_NAMES for part in parts)
    depth = 2 if split_first else 1
    outside = sum(len(part) <= depth for part in parts)
    if outside:
        raise LabelError(
            "Images stand outside the class folders",
            got=f"{outside} of {len(parts)} images",
            expected="one folder for each class, below train, val and test where there are splits",
            remedy='move them into class folders, or use kind = "image-csv"',
        )
    return tuple((SPLIT_NAMES[part[0].lower()] if split_first else None, part[depth - 1]) for part in parts)


def _patients(names: Sequence[str], pattern: str | None) -> list[str]:
    if pattern is None:
        return list(names)
    found = [re.search(pattern, PurePosixPath(name).name) for name in names]
    missing = sum(match is None or not match.group(1) for match in found)
    if missing:
        raise LabelError(
            "File names do not tell the patient",
            got=f"{missing} of {len(names)} names without a match",
            expected="a match of the source's patient pattern in every name",
            remedy="correct the pattern, or leave it out to count each image as a subject",
        )
    return [match.group(1) for match in found if match is not None]
