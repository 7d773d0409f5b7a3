"""Examples as tensors: what a training loop indexes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.data.subject import Example, Subject, Task
from medveil.errors import LabelError

_BYTE = 255.0


@dataclass(frozen=True)
class InputScale:
    """Public constants that centre the input: ``(x - shift) / scale``.

    They come from the plan, never from data, so they spend no privacy.
    """

    shift: float = 0.5
    scale: float = 0.25

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images that lie in 0..1 (bytes are divided by 255 first); returns float32."""
        if images.dtype == torch.uint8:
            return images.float().mul_(1 / (_BYTE * self.scale)).sub_(self.shift / self.scale)
        return images.float().sub(self.shift).mul_(1 / self.scale)


@dataclass(frozen=True, eq=False)
class ArrayData:
    """One party's examples, in memory.

    Args:
        images: shape (N, channels, *spatial), uint8 or float32.
        targets: shape (N,), int64 class indices, or (N, *spatial), uint8 masks.
        subject: shape (N,), int64: which subject owns the example.
        volume: shape (N,), int64: which of the subject's volumes it belongs to.
        position: shape (N,), int64: slice number in that volume.
        spacing_mm: per example, or None where unknown; for slices the distance between slices stands first.
        num_subjects: number of subjects.
    """

    images: torch.Tensor
    targets: torch.Tensor
    subject: NDArray[np.int64]
    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    spacing_mm: tuple[tuple[float, ...] | None, ...]
    num_subjects: int

    def __len__(self) -> int:
        return int(self.images.shape[0])


def to_arrays(subjects: Sequence[Subject], *, task: Task, num_classes: int) -> ArrayData:
    """Stack the examples of ``subjects`` in order.

    Raises:
        LabelError: a label or mask value outside 0..num_classes-1, or of the wrong kind for the task.
    """
    owned = [(index, example) for index, subject in enumerate(subjects) for example in subject.examples]
    images = torch.from_numpy(np.stack([example.image for _, example in owned]))
    if task == "classification":
        targets = torch.tensor([_class_index(example.target) for _, example in owned], dtype=torch.int64)
    else:
        targets = torch.from_numpy(np.stack([_mask(example.target) for _, example in owned]))
    largest = int(targets.max())
    if largest >= num_classes or int(targets.min()) < 0:
        raise LabelError(
            "A label lies outside the classes of the task",
            got=f"largest class index {largest}",
            expected=f"0 to {num_classes - 1}",
            remedy="correct the labels, or name all classes in the data file",
        )
    return ArrayData(
        images=images,
        targets=targets,
        subject=np.array([index for index, _ in owned], dtype=np.int64),
        volume=np.array([example.volume for _, example in owned], dtype=np.int64),
        position=np.array([example.position for _, example in owned], dtype=np.int64),
        spacing_mm=tuple(_spacing(example) for _, example in owned),
        num_subjects=len(subjects),
    )


def _spacing(example: Example) -> tuple[float, ...] | None:
    if example.spacing_mm is None or example.slice_gap_mm is None:
        return example.spacing_mm
    return (example.slice_gap_mm, *example.spacing_mm)


def _class_index(target: int | NDArray[np.uint8]) -> int:
    if isinstance(target, np.ndarray):
        raise LabelError("A classification example has a mask where its class belongs", expected="a class index")
    return int(target)


def _mask(target: int | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(target, np.ndarray):
        raise LabelError("A segmentation example has no mask", got="a class index", expected="a mask")
    return target
