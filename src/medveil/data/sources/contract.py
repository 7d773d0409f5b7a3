"""What every source keeps to: :class:`Source`."""

from pathlib import Path
from typing import Protocol

from pydantic import Field, field_validator

from medveil.configuration import Config
from medveil.data.subject import Dataset
from medveil.imaging.preprocess import Preprocess

_MAX_LENGTH = 8192


class Source(Protocol):
    """One way images come in.

    Guarantees:
        ``load`` gives the same data set whenever the files are the same; every file is either an example or
        counted as rejected; all examples have one shape; a patient's images belong to one subject in one
        split; no message holds a file name, a patient number or a value of a table.
    """

    @property
    def subject_rule(self) -> str:
        """One sentence that says what counts as a subject: it decides what a privacy claim is about."""
        ...

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is: a claim about patients needs it."""
        ...

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:
        """Read everything.

        Args:
            preprocess: what is done to every image.
            root: folder that relative paths start from.

        Raises:
            DataError: nothing could be used, or the files contradict each other.
            ConfigError: the settings do not fit the files.
        """
        ...


class SourceConfig(Config):
    """Settings that every source has.

    Attributes:
        resize: spatial size (rows, columns, or three axes) that every image is stretched to before the
            preprocessing of the plan; masks keep whole classes.
    """

    resize: tuple[int, ...] | None = Field(None, min_length=2, max_length=3)

    @field_validator("resize")
    @classmethod
    def _has_positive_lengths(cls, size: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if size is not None and not all(1 <= length <= _MAX_LENGTH for length in size):
            message = f"resize needs lengths from 1 to {_MAX_LENGTH}"
            raise ValueError(message)
        return size
