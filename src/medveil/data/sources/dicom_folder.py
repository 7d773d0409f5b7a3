"""Source "dicom-folder": DICOM files in one folder for each class, or with a table of labels."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medveil.data.sources.assemble import Description, Reading, Record, Refusal, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.sources.files import open_tree
from medveil.data.sources.image_folder import place_files
from medveil.data.sources.rows import attributes_of
from medveil.data.sources.table import Row, check_unique, class_indices, read_table, split_name
from medveil.data.subject import Dataset
from medveil.errors import ImageError, MissingDataError
from medveil.imaging.dicom import dicom_patient_key, read_dicom
from medveil.imaging.dicom_header import dicom_errors, open_dicom
from medveil.imaging.dicom_series import read_dicom_series
from medveil.imaging.preprocess import Preprocess

UNLISTED = ("unlisted", "A file that the table does not name")
OUTSIDE = ("outside", "A file beside the class folders")
MISSING = ("missing", "A file or folder that the table names is not there")


class DicomFolderSource(SourceConfig):
    """DICOM files; whose they are comes from PatientID, which leaves this source as a keyed hash only.

    Attributes:
        path: folder; below it one folder for each class, or any folders where ``table`` is given.
        name: of the data set.
        classes: class names in the order of the indices; () takes all, sorted.
        series: build one volume from the files of a series; False takes each file as an image.
        table: UTF-8 CSV that names files or folders inside ``path``; None takes classes from folders.
        image: column with the path of the file or folder.
        label: column with the class, by name or index.
        site: column that names the site, kept as the attribute "site".
        split: column with train, validation or test.
        attributes: further columns to keep.
    """

    kind: Literal["dicom-folder"] = "dicom-folder"
    path: Path
    name: str = "dicom-folder"
    classes: tuple[str, ...] = ()
    series: bool = True
    table: Path | None = None
    image: str = "image"
    label: str = "label"
    site: str | None = None
    split: str | None = None
    attributes: tuple[str, ...] = ()

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return "a patient, as PatientID of the DICOM header gives it, is one subject"

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return True

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read the folder; as :meth:`medveil.data.sources.contract.Source.load`."""
        folder = root / self.path
        if not folder.is_dir():
            raise MissingDataError(
                "The folder of DICOM files is not there",
                expected="a folder",
                remedy="correct the path; unpack an archive of DICOM files first",
            )
        with open_tree(folder) as tree:
            names = tree.names
        files, refused, classes = self._described(folder, names, root)
        records = [
            Record(
                group[0].patient, _reader(group, series=self.series), group[0].attributes, group[0].split, len(group)
            )
            for group in _grouped(files, refused, series=self.series)
        ]
        description = Description(self.name, "classification", classes)
        # The header reader silences pydicom's loggers, which only one thread at a time may do.
        return assemble(records, description, preprocess, resize=self.resize, refused=refused, threads=1)

    def _described(
        self, folder: Path, names: Sequence[str], root: Path
    ) -> tuple[list["_File"], list[Refusal], tuple[str, ...]]:
        """What folders or table say of each file."""
        if self.table is None:
            return self._by_folders(folder, names)
        wanted = [self.image, self.label, self.site, self.split, *self.attributes]
        rows = read_table(root / self.table, [column for column in wanted if column is not None])
        check_unique([row[self.image] for row in rows], self.image)
        labels, classes = class_indices([row[self.label] for row in rows], self.classes)
        listed = {row[self.image].strip("/"): self._said(row, label) for row, label in zip(rows, labels, strict=True)}
        files: list[_File] = []
        used: set[str] = set()
        for name in names:
            key = _listed_as(name, listed)
            if key is not None:
                used.add(key)
                said = listed[key]
                files.append(_File(folder / name, said.label, said.split, said.attributes))
        refused = [UNLISTED] * (len(names) - len(files)) + [MISSING] * (len(listed) - len(used))
        return files, refused, classes

    def _by_folders(self, folder: Path, names: Sequence[str]) -> tuple[list["_File"], list[Refusal], tuple[str, ...]]:
        # Exports put a DICOMDIR and notes beside the folders: they belong to no class.
        inside = [name for name in names if "/" in name]
        places = place_files(inside)
        labels, classes = class_indices([label for _, label in places], self.classes)
        files = [
            _File(folder / name, label, split) for name, (split, _), label in zip(inside, places, labels, strict=True)
        ]
        return files, [OUTSIDE] * (len(names) - len(inside)), classes

    def _said(self, row: Row, label: int) -> "_Said":
        split = split_name(row[self.split]) if self.split else None
        return _Said(label, split, attributes_of(row, self.site, self.attributes))


@dataclass(frozen=True, eq=False)
class _Said:
    label: int
    split: str | None
    attributes: dict[str, str]


@dataclass(frozen=True, eq=False)
class _File:
    path: Path = field(repr=False)
    label: int
    split: str | None = None
    attributes: dict[str, str] = field(default_factory=dict, repr=False)
    patient: str = field(default="", repr=False)


def _listed_as(name: str, listed: dict[str, _Said]) -> str | None:
    """The row of a file: its own, else that of the nearest folder above it."""
    while name:
        if name in listed:
            return name
        name = name.rpartition("/")[0]
    return None


def _grouped(files: Sequence[_File], refused: list[Refusal], *, series: bool) -> list[list[_File]]:
    """Files that are read together; headers that cannot be read are added to ``refused``."""
    groups: dict[object, list[_File]] = defaultdict(list)
    for number, file in enumerate(files):
        try:
            patient = dicom_patient_key(file.path)
            key = _series_key(file.path) if series else str(number)
        except (ImageError, MissingDataError) as error:
            refused.append((error.reason if isinstance(error, ImageError) else "missing", error.what))
        else:
            known = _File(file.path, file.label, file.split, file.attributes, patient)
            groups[key, file.label, file.split, tuple(file.attributes.items())].append(known)
    return list(groups.values())


def _series_key(path: Path) -> str:
    with dicom_errors("The series of the file cannot be read", "bad-header"):
        return str(open_dicom(path, header_only=True).get("SeriesInstanceUID") or "")


def _reader(group: Sequence[_File], *, series: bool) -> Callable[[], list[Reading | Refusal]]:
    label = group[0].label
    if not series:
        return lambda: [Reading(read_dicom(group[0].path), label)]

    def read() -> list[Reading | Refusal]:
        found = read_dicom_series([file.path for file in group])
        return [*(Reading(item.volume, label) for item in found.volumes), *found.rejected]

    return read
