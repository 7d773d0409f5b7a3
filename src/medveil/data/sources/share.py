"""Source "share": one site's part of a data set that was dealt out, as one npz file of preprocessed images."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from medveil.configuration import Config
from medveil.data.subject import Dataset, Example, Subject
from medveil.errors import ConfigError, DataError, MissingDataError
from medveil.imaging.preprocess import Preprocess

_LAYOUT = 1
_UNKNOWN = np.nan
_DAMAGED = (BadZipFile, EOFError, zlib.error, NotImplementedError, struct.error)


class ShareSource(Config):
    """A part of a data set, as :func:`write_share` wrote it: it keeps the splits that it was dealt with.

    Attributes:
        path: the npz file.
        subject_rule: what counts as a subject, as the data set that was dealt out has it.
        names_patients: whether that data set says whose an image is.
    """

    kind: Literal["share"] = "share"
    path: Path
    subject_rule: str = "as in the data set that was dealt out"
    names_patients: bool = False

    @property
    def resize(self) -> None:
        """The images are preprocessed already."""
        return

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read the file.

        Raises:
            MissingDataError: it is not there.
            DataError: it is damaged.
            ConfigError: it was preprocessed in another way than ``preprocess`` says.
        """
        path = root / self.path
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            about = json.loads(str(arrays["about"]))
            if about["layout"] != _LAYOUT:
                raise DataError("The share has another layout", got=about["layout"], expected=_LAYOUT)
            if about["preprocess"] != preprocess.model_dump(mode="json"):
                raise ConfigError(
                    "The share was preprocessed in another way than the plan asks for",
                    expected="the data.preprocess of the plan that it was dealt out for",
                    remedy="deal the data out again for this plan",
                )
            return _dataset(about, arrays)
        except FileNotFoundError:
            raise MissingDataError(
                "The share is not there", expected="the npz file that the source names", remedy="correct the path"
            ) from None
        except (*_DAMAGED, OSError, KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(
                "The share cannot be read",
                got=type(error).__name__,
                expected="a file that medveil dealt out",
                remedy="deal the data out again",
            ) from None


def write_share(path: Path, dataset: Dataset, subjects: tuple[Subject, ...], preprocess: Preprocess) -> None:
    """Write some subjects of a preprocessed data set, with their splits.

    Args:
        path: of the npz file.
        dataset: whose part it is.
        subjects: each with its split.
        preprocess: what was done to the images.
    """
    about = {
        "layout": _LAYOUT,
        "name": dataset.name,
        "kind": dataset.kind,
        "task": dataset.task,
        "class_names": list(dataset.class_names),
        "citation": dataset.citation,
        "licence": dataset.licence,
        "preprocess": preprocess.model_dump(mode="json"),
        "subjects": [[subject.subject_id, subject.split, dict(subject.attributes)] for subject in subjects],
        "digests": [example.digest for subject in subjects for example in subject.examples],
    }
    owned = [(index, example) for index, subject in enumerate(subjects) for example in subject.examples]
    axes = max(len(example.spacing_mm or ()) for _, example in owned)
    np.savez_compressed(
        path,
        about=np.array(json.dumps(about)),
        images=np.stack([example.image for _, example in owned]),
        targets=np.stack([np.asarray(example.target) for _, example in owned]),
        place=np.array([[index, example.volume, example.position] for index, example in owned], dtype=np.int64),
        spacing=np.array([_padded(example.spacing_mm, axes) for _, example in owned], dtype=np.float64),
        gap=np.array([_UNKNOWN if example.slice_gap_mm is None else example.slice_gap_mm for _, example in owned]),
    )


def _padded(spacing: tuple[float, ...] | None, axes: int) -> tuple[float, ...]:
    return (_UNKNOWN,) * axes if spacing is None else spacing


def _dataset(about: dict[str, Any], arrays: dict[str, Any]) -> Dataset:
    owned: list[list[Example]] = [[] for _ in about["subjects"]]
    masks = arrays["targets"].ndim > 1
    for at, (index, volume, position) in enumerate(arrays["place"].tolist()):
        spacing, gap = arrays["spacing"][at], float(arrays["gap"][at])
        owned[index].append(
            Example(
                image=arrays["images"][at],
                target=arrays["targets"][at] if masks else int(arrays["targets"][at]),
                digest=about["digests"][at],
                spacing_mm=None if not spacing.size or np.isnan(spacing).any() else tuple(spacing.tolist()),
                volume=volume,
                position=position,
                slice_gap_mm=None if np.isnan(gap) else gap,
            )
        )
    subjects = tuple(
        Subject(subject_id, tuple(examples), attributes, split)
        for (subject_id, split, attributes), examples in zip(about["subjects"], owned, strict=True)
    )
    return Dataset(
        name=about["name"],
        kind=about["kind"],
        task=about["task"],
        class_names=tuple(about["class_names"]),
        subjects=subjects,
        citation=about["citation"],
        licence=about["licence"],
    )
