"""The built-in data set: phantoms drawn from a seed, so that everything runs without a patient's image."""

from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medveil.data.phantom import draw_chest, draw_organ, draw_scanner, scan
from medveil.data.sources.assemble import Description, Reading, Record, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.subject import Dataset
from medveil.imaging.preprocess import Preprocess
from medveil.imaging.volume import Volume
from medveil.rng import Seeds

_MAX_PIXELS = 1 << 24
_EXTRA_IMAGES = (1, 2)


class PhantomSource(SourceConfig):
    """A data set drawn from a seed.

    Attributes:
        task: "classification" draws chest-like pictures with or without an opacity; "segmentation" an organ of
            two parts.
        subjects: how many patients.
        size: rows and columns, or three axes (segmentation only); each >= 16.
        scanners: how many devices; a patient belongs to one, and each device is a site.
        seed: root of every draw.
        difficulty: 0 (plain to see) to 1 (hidden in the noise).
        prevalence: share of patients with an opacity.
        repeated: share of patients with two or three images in place of one.
    """

    kind: Literal["phantom"] = "phantom"
    task: Literal["classification", "segmentation"] = "classification"
    subjects: int = Field(600, ge=1, le=100_000)
    size: tuple[int, ...] = Field((32, 32), min_length=2, max_length=3)
    scanners: int = Field(4, ge=1, le=64)
    seed: int = 0
    difficulty: float = Field(0.5, ge=0, le=1)
    prevalence: float = Field(0.5, gt=0, lt=1)
    repeated: float = Field(0.15, ge=0, le=1)

    @model_validator(mode="after")
    def _size_fits_task(self) -> Self:
        if min(self.size) < 16:  # noqa: PLR2004 - below that the anatomy is smaller than a pixel
            message = "each axis of size must be at least 16"
            raise ValueError(message)
        if self.task == "classification" and len(self.size) != 2:  # noqa: PLR2004 - a projection is flat
            message = "classification phantoms have two axes"
            raise ValueError(message)
        if int(np.prod(self.size)) > _MAX_PIXELS:
            message = f"size asks for more than {_MAX_PIXELS} pixels an image"
            raise ValueError(message)
        return self

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return "each phantom patient, with all images drawn of it, is one subject"

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return True

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:  # noqa: ARG002 - no file is read
        """Draw the data set; as :meth:`medveil.data.sources.contract.Source.load`."""
        classes = ("clear", "opacity") if self.task == "classification" else ("background", "upper", "lower")
        description = Description(
            f"phantom-{self.task}", self.task, classes, kind="phantom", licence="none needed: drawn, not taken"
        )
        return assemble(_records(self), description, preprocess, resize=self.resize)


def _records(source: PhantomSource) -> list[Record]:
    return [
        _record(source, number, image)
        for number in range(source.subjects)
        for image in range(_images_of(source, number))
    ]


def _images_of(source: PhantomSource, number: int) -> int:
    rng = Seeds(source.seed).child("images", number).numpy()
    return 1 + int(rng.choice(_EXTRA_IMAGES)) if rng.random() < source.repeated else 1


def _record(source: PhantomSource, number: int, image: int) -> Record:
    device = int(Seeds(source.seed).child("device", number).numpy().integers(source.scanners)) + 1

    def read() -> list[Reading]:
        return [_draw(source, number, image, device)]

    attributes = {"scanner": f"scanner-{device}", "site": f"site-{device}"}
    return Record(f"phantom-{number}", read, attributes)


def _draw(source: PhantomSource, number: int, image: int, device: int) -> Reading:
    seeds = Seeds(source.seed)
    scanner = draw_scanner(seeds.child("scanner", device).numpy())
    rng = seeds.child("picture", number, image).numpy()
    if source.task == "segmentation":
        # From 0.5 (plain) to 0.15 (about twice the texture) of the full range.
        picture, mask = draw_organ(source.size, 0.5 - 0.35 * source.difficulty, rng)
        return Reading(Volume(scan(picture, scanner, rng)[None], (1.0,) * len(source.size)), mask)
    sick = seeds.child("disease", number).numpy().random() < source.prevalence
    strength = float(rng.uniform(0.6, 1.0)) * (0.9 - 0.8 * source.difficulty) if sick else 0.0
    picture = draw_chest((source.size[0], source.size[1]), strength, rng)
    return Reading(Volume(scan(picture, scanner, rng)[None], (1.0, 1.0)), int(sick))
