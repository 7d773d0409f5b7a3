"""Synthetic units: noise images, and units made to have as large or as lopsided a gradient as possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.audit.rig import AuditedStep
from medveil.rng import Seeds
from medveil.training.arrays import ArrayData

_IMAGES_A_PATIENT = 3
_HUGE = 1e4


@dataclass(frozen=True, eq=False)
class Probe:
    """One unit.

    Attributes:
        name: what it is.
        image: shape (channels, *spatial), float32.
        label: its class; of every pixel, in segmentation.
        copies: how many images of a patient; all alike, so that clipping each by itself would add up.
    """

    name: str
    image: torch.Tensor
    label: int
    copies: int


def ordinary(audited: AuditedStep, count: int, seeds: Seeds) -> list[Probe]:
    """Units of one noise image each, classes in turn."""
    images = torch.rand(count, *audited.input_shape, generator=seeds.torch())
    return [Probe("noise", image, number % audited.num_classes, 1) for number, image in enumerate(images)]


def adversarial(audited: AuditedStep, seeds: Seeds) -> Iterator[Probe]:
    """Units that would move the sum far without clipping; a patient has several images, all alike."""
    copies = _IMAGES_A_PATIENT if audited.unit == "patient" else 1
    noise = torch.rand(audited.input_shape, generator=seeds.torch())
    pixel = torch.zeros(audited.input_shape)
    pixel.view(-1)[pixel.numel() // 2] = _HUGE
    shapes = {"noise": noise, "black": torch.zeros_like(noise), "huge": _HUGE * (noise - 0.5), "one pixel": pixel}
    for name, image in shapes.items():
        # Every class once: for one of them the network is wrong, whatever its weights.
        for label in sorted({0, audited.num_classes - 1}):
            yield Probe(f"{name}, class {label}", image, label, copies)
    yield Probe("infinite", torch.full_like(noise, torch.inf), 0, copies)


def not_a_number(audited: AuditedStep) -> Probe:
    """A unit whose gradient is not finite: it must count as absent."""
    return Probe("not a number", torch.full(audited.input_shape, torch.nan), 0, 1)


def arrays(audited: AuditedStep, probes: Sequence[Probe]) -> ArrayData:
    """The units in order, at least one. The last one can be removed without moving anyone else's coins."""
    examples = [(number, probe) for number, probe in enumerate(probes) for _ in range(probe.copies)]
    owner = np.array([number for number, _ in examples], dtype=np.int64)
    images = torch.stack([probe.image for _, probe in examples])
    labels = torch.tensor([probe.label for _, probe in examples], dtype=torch.int64)
    return as_data(images, _targets(audited, labels), owner)


def as_data(images: torch.Tensor, targets: torch.Tensor, owner: NDArray[np.int64]) -> ArrayData:
    """Synthetic examples as a trainer reads them."""
    zeros = np.zeros(len(images), dtype=np.int64)
    return ArrayData(
        images=images,
        targets=targets,
        subject=owner,
        volume=zeros,
        position=zeros,
        spacing_mm=(None,) * len(images),
        num_subjects=int(owner.max(initial=-1)) + 1,
    )


def _targets(audited: AuditedStep, labels: torch.Tensor) -> torch.Tensor:
    if audited.task == "classification":
        return labels
    spatial = audited.input_shape[1:]
    return labels.view(-1, *(1,) * len(spatial)).expand(-1, *spatial).to(torch.uint8)
