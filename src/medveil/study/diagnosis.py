"""A finished run as a model that is served on encrypted images, and an image file as what it is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator
from torch import nn

from medveil.configuration import Config, parse_config
from medveil.encrypted.compiler.decision import LEVELS, TWO
from medveil.encrypted.compiler.main import Compiled
from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.program import Program, Reveal
from medveil.errors import ImageError, ProtocolError
from medveil.imaging.dicom import read_dicom
from medveil.imaging.nifti import read_nifti
from medveil.imaging.preprocess import Preprocess, apply, cut_slices
from medveil.imaging.raster import read_raster
from medveil.imaging.volume import Volume
from medveil.models.registry import ModelConfig, build
from medveil.models.weights import load_weights
from medveil.rng import Seeds
from medveil.study.diagnosis_parts import check_clear, clear_parts
from medveil.study.evaluate import stored_plan, stored_threshold
from medveil.study.folder import RunFolder, read_json
from medveil.study.manifest import verify_manifest
from medveil.study.prepare import input_scale

# What z-scored intensities are cut to; the hospital refuses an image beyond it.
_ZSCORE = 16.0
_RASTER = (".png", ".jpg", ".jpeg")
_MOST_CLASSES = 1 << 12


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name has printable characters")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Length = Annotated[int, Field(ge=1, le=1 << 14)]


class Description(Config):
    """What a vendor tells of its model before anything is sent: all of it public.

    Args:
        name: of the model.
        task: what it answers.
        class_names: of the task.
        input_shape: (channels, *spatial) of an image after preprocessing.
        input_range: of the network's input, after scaling.
        preprocess: how the hospital prepares an image.
        model: architecture, without weights.
        clear: whether the hospital computes fixed features, or an interpolation, in the clear.
        threshold: of class 1 for two classes; the run fixed it.
        reveal: what the hospital learns.
        reveal_bits: fraction bits of every logit, where it learns logits.
        levels: of probabilities, where it learns them rounded.
    """

    name: Name
    task: Literal["classification", "segmentation"]
    class_names: tuple[Name, ...] = Field(min_length=TWO, max_length=_MOST_CLASSES)
    input_shape: tuple[Length, ...] = Field(min_length=3, max_length=4)
    input_range: tuple[float, float]
    preprocess: Preprocess
    model: ModelConfig
    clear: bool
    threshold: float | None = Field(None, ge=0, le=1)
    reveal: Reveal = "logits"
    reveal_bits: int = Field(ge=0)
    levels: int = Field(default=20, ge=LEVELS[0], le=LEVELS[1])

    def parts(self) -> tuple[nn.Module | None, nn.Module | None]:
        """What the hospital computes in the clear: fixed features before, an interpolation behind. No weights.

        Raises:
            ModelError: features that images of this shape do not have.
        """
        return clear_parts(self.model, self.input_shape) if self.clear else (None, None)

    @model_validator(mode="after")
    def _clear_is_known(self) -> Self:
        if self.clear:
            check_clear(self.model, self.input_shape)
        return self


@dataclass(frozen=True, eq=False)
class Served:
    """A run's model, compiled.

    Args:
        compiled: program and weights.
        description: for the hospital.
        module: the network in the clear, for comparison.
    """

    compiled: Compiled
    description: Description
    module: nn.Module


def serve_run(run: Path, *, reveal: Reveal = "logits", reveal_bits: int = 16, levels: int = 20) -> Served:
    """Compile the model of a finished run.

    Args:
        run: its folder.
        reveal: what a hospital learns: logits, probabilities rounded to 1/levels, or the label or mask alone.
        reveal_bits: fraction bits of the logits.
        levels: of the probabilities.

    Raises:
        RunError: not a finished run.
        ManifestError: files of the run changed after it was signed.
        ConfigError: an answer that this network cannot be reduced to, or names or parts that no hospital accepts.
        UnsupportedLayer: a network that cannot be evaluated on encrypted images.
    """
    folder = RunFolder(run)
    content = read_json(folder.record)
    verify_manifest(run)
    plan = stored_plan(folder)
    shape, names = tuple(content["model"]["input_shape"]), tuple(content["data"]["class_names"])
    module = build(plan.model, input_shape=shape, num_classes=len(names), seed=Seeds(plan.seed).child("model"))
    load_weights(module, folder.weights)
    scale = input_scale(plan.data.preprocess)
    low, high = (-_ZSCORE, _ZSCORE) if plan.data.preprocess.intensity == "zscore" else (0.0, 1.0)
    limits = ((low - scale.shift) / scale.scale, (high - scale.shift) / scale.scale)
    threshold = stored_threshold(content).value if plan.task == "classification" else None
    compiled = compile_network(
        module.eval(),
        shape,
        limits,
        task=plan.task,
        names=names,
        reveal=reveal,
        reveal_bits=reveal_bits,
        levels=levels,
        threshold=threshold if reveal != "logits" and len(names) == TWO else None,
    )
    description = parse_config(
        Description,
        {
            "name": content["name"],
            "task": plan.task,
            "class_names": names,
            "input_shape": shape,
            "input_range": limits,
            "preprocess": plan.data.preprocess,
            "model": plan.model,
            "reveal": reveal,
            "reveal_bits": compiled.program.reveal,
            "levels": levels,
            "clear": compiled.front is not None or compiled.back is not None,
            "threshold": threshold,
        },
        where="what a hospital is told of this run",
    )
    return Served(compiled, description, module.eval())


def read_description(content: Any) -> Description:
    """A vendor's description, read without trust.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise ProtocolError(
            "A vendor's description of its model cannot be used",
            got=f"{error.error_count()} parts that do not fit",
            expected="a description of this version of medveil",
        ) from None


def read_image(path: Path, description: Description, *, position: int | None = None) -> torch.Tensor:
    """An image file as the network's input, float32, shape (1, *input shape).

    Args:
        path: DICOM, NIfTI, PNG or JPEG.
        description: of the model.
        position: of a slice, where the model reads slices of a volume; the middle one by default.

    Raises:
        ImageError: a file that cannot be used, or an image of another shape or beyond the range; nothing was sent.
    """
    pixels = apply(_read(path), description.preprocess)
    if description.preprocess.slices is not None:
        found = cut_slices(pixels, None, description.preprocess.slices.axis)
        at = len(found) // 2 if position is None else position
        if not 0 <= at < len(found):
            raise ImageError("The volume has no such slice", reason="shape", got=at, expected=f"0 to {len(found) - 1}")
        pixels = found[at].image
    if pixels.shape != description.input_shape:
        raise ImageError(
            "The image has another shape than the model reads",
            reason="shape",
            got=pixels.shape,
            expected=description.input_shape,
            remedy="give an image of the kind that the model was trained on",
        )
    scaled: torch.Tensor = input_scale(description.preprocess)(torch.from_numpy(pixels.copy())[None])
    low, high = description.input_range
    if not bool(torch.isfinite(scaled).all()) or bool((scaled < low).any()) or bool((scaled > high).any()):
        raise ImageError(
            "The image's values lie beyond the range that the model was compiled for",
            reason="range",
            expected=f"{low:g} to {high:g} after scaling",
        )
    return scaled


def _read(path: Path) -> Volume:
    name = path.name.lower()
    if name.endswith(_RASTER):
        return read_raster(path)
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    return read_dicom(path)


def encode(images: torch.Tensor, program: Program, front: nn.Module | None) -> NDArray[np.int64]:
    """The network's input as the program's, in fixed point."""
    with torch.no_grad():
        values = images if front is None else front(images)
    return np.rint(values.double().numpy() * 2.0**program.input.scale).astype(np.int64)


def decode(result: NDArray[np.float64], back: nn.Module | None) -> torch.Tensor:
    """Logits, float64, from what was revealed; or the bits that were revealed, as they are."""
    found = torch.from_numpy(result)
    with torch.no_grad():
        return found if back is None else back.double()(found)
