"""MedMNIST files (.npz): images and labels of three splits."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from medveil.errors import ArchiveError, ImageError, LabelError
from medveil.imaging.archive import Archive, ArchiveLimits, open_archive
from medveil.imaging.volume import Volume

_LIMITS = ArchiveLimits(max_members=32, max_member_bytes=16 << 30, max_total_bytes=32 << 30)
_RGB = 3
_GREY_AXES, _MORE_AXES = 3, 4
_DAMAGE = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, SyntaxError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class MedMnistSplit:
    """Images and labels of one split.

    Args:
        images: uint8, shape (N, rows, columns), (N, rows, columns, 3) or (N, depth, rows, columns).
        labels: shape (N,), int64, at least 0.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def volume(self, index: int) -> Volume:
        """One image, channels first; MedMNIST states no spacing.

        Returns:
            Shape (1, rows, columns), (3, rows, columns) or (1, depth, rows, columns), uint8.
        """
        image = self.images[index]
        colour = image.ndim == _RGB and image.shape[-1] == _RGB
        return Volume(np.ascontiguousarray(np.moveaxis(image, -1, 0) if colour else image[None]))


@dataclass(frozen=True, eq=False)
class MedMnist:
    """The three splits as published."""

    train: MedMnistSplit
    validation: MedMnistSplit
    test: MedMnistSplit


def read_medmnist(path: Path, *, limits: ArchiveLimits = _LIMITS) -> MedMnist:
    """Read a MedMNIST .npz; pickled content is never loaded.

    Args:
        path: of the file.
        limits: of the archive.

    Returns:
        Splits whose images have one shape.

    Raises:
        MissingDataError: there is no such file.
        ArchiveError: not an .npz, hostile, too large, or an array is missing or damaged.
        ImageError: ``"shape"`` or ``"dtype"``.
        LabelError: not one whole number from 0 an image (multi-label sets such as ChestMNIST).

    Reference:
        Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8
    """
    with open_archive(path, limits) as archive:
        train, validation, test = (_read_split(archive, name) for name in ("train", "val", "test"))
    shapes = {split.images.shape[1:] for split in (train, validation, test)}
    if len(shapes) > 1:
        raise ImageError("The splits hold images of different sizes", reason="shape", got=sorted(shapes))
    return MedMnist(train, validation, test)


def _read_split(archive: Archive, split: str) -> MedMnistSplit:
    images = _read_array(archive, f"{split}_images.npy")
    labels = _read_array(archive, f"{split}_labels.npy")
    _check_images(images)
    return MedMnistSplit(images.astype(np.uint8, copy=False), _checked_labels(labels, len(images)))


def _read_array(archive: Archive, name: str) -> NDArray[np.generic]:
    if name not in archive.names():
        raise ArchiveError(
            "An array of the MedMNIST file is missing",
            expected=name,
            remedy="give a MedMNIST .npz with train, val and test",
        )
    content = archive.read(name)
    try:
        if _is_plain(content):
            return np.asarray(npy.read_array(io.BytesIO(content), allow_pickle=False))
    except _DAMAGE:
        pass  # said below, as for content that is not plain
    raise ArchiveError(
        "An array of the MedMNIST file is damaged, pickled or of another length than it states",
        got=name,
        remedy="download the file again",
    )


def _is_plain(content: bytes) -> bool:
    """NumPy allocates what an array's header claims before it looks at the data: compare both first."""
    stream = io.BytesIO(content)
    read_header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    size = math.prod(shape) * dtype.itemsize
    return not dtype.hasobject and min(shape, default=0) >= 0 and size == len(content) - stream.tell()


def _check_images(images: NDArray[np.generic]) -> None:
    if images.dtype != np.uint8:
        raise ImageError("MedMNIST images are not bytes", reason="dtype", got=images.dtype, expected="uint8")
    if images.ndim not in (_GREY_AXES, _MORE_AXES) or images.size == 0:
        raise ImageError(
            "MedMNIST images have a shape that is not read",
            reason="shape",
            got=images.shape,
            expected="(N, rows, columns), (N, rows, columns, 3) or (N, depth, rows, columns)",
        )


def _checked_labels(labels: NDArray[np.generic], count: int) -> NDArray[np.int64]:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # noqa: PLR2004 - (N, 1)
    if flat.shape != (count,) or flat.dtype.kind not in "ui":
        raise LabelError(
            "MedMNIST labels are not one whole number an image",
            got=f"{labels.dtype} {labels.shape}",
            expected=f"integers, ({count},) or ({count}, 1)",
            remedy="multi-label sets are not supported",
        )
    wide = flat.astype(np.int64)
    if wide.min() < 0:
        raise LabelError("A MedMNIST label is negative", expected="from 0")
    return wide
