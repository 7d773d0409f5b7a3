"""Source "medmnist-npz": one npz file in the layout of MedMNIST."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from medveil.data.sources.assemble import Description, Reading, Record, Refusal, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.subject import Dataset
from medveil.errors import LabelError
from medveil.imaging.medmnist import MedMnist, MedMnistSplit, read_medmnist
from medveil.imaging.preprocess import Preprocess


class MedmnistSource(SourceConfig):
    """A MedMNIST file: images and labels of train, val and test.

    Attributes:
        path: the npz file.
        name: of the data set.
        classes: class names in the order of the indices; () names the indices themselves.
    """

    kind: Literal["medmnist-npz"] = "medmnist-npz"
    path: Path
    name: str = "medmnist"
    classes: tuple[str, ...] = ()

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return "each image is its own subject: the file has no patient numbers"

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return False

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read the file; as :meth:`medveil.data.sources.contract.Source.load`."""
        published = read_medmnist(root / self.path)
        highest = max(int(split.labels.max()) for split in (published.train, published.validation, published.test))
        classes = self.classes or tuple(str(index) for index in range(highest + 1))
        description = Description(self.name, "classification", classes)
        return assemble(medmnist_records(published, len(classes)), description, preprocess, resize=self.resize)


def medmnist_records(published: MedMnist, num_classes: int) -> list[Record]:
    """One record for each image of the three splits.

    Raises:
        LabelError: a label beyond the classes.
    """
    splits = {"train": published.train, "validation": published.validation, "test": published.test}
    wrong = sum(int((split.labels >= num_classes).sum()) for split in splits.values())
    if wrong:
        raise LabelError(
            "Labels of the MedMNIST file lie beyond the classes",
            got=f"{wrong} labels",
            expected=f"0 to {num_classes - 1}",
            remedy="list every class in classes",
        )
    return [
        Record(f"{name}-{index}", _reader(split, index), split=name)
        for name, split in splits.items()
        for index in range(len(split))
    ]


def _reader(split: MedMnistSplit, index: int) -> Callable[[], list[Reading | Refusal]]:
    return lambda: [Reading(split.volume(index), int(split.labels[index]))]
