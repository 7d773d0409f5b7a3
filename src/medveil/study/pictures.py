"""A few test images with what the model says of them, for the report."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medveil.rng import Seeds
from medveil.training.arrays import ArrayData

_BYTE = 255.0
_PLANE = 2


def save_examples(path: Path, data: ArrayData, predictions: NDArray[Any], *, count: int, seeds: Seeds) -> None:
    """Write ``examples.npz``: ``images`` (n, H, W) in 0..1, ``targets``, ``predictions``.

    Args:
        path: of the file.
        data: test examples.
        predictions: of all of them: probabilities (N, K) or masks (N, *spatial).
        count: how many to show.
        seeds: for the choice.
    """
    rows = _choose(data, count, seeds)
    images = np.stack([_picture(data.images[row].numpy()) for row in rows])
    targets = [data.targets[row].numpy() for row in rows]
    if predictions.ndim > _PLANE:
        shown = np.stack([_plane(predictions[row]) for row in rows])
        truth = np.stack([_plane(target) for target in targets])
    else:
        shown, truth = predictions[rows], np.stack(targets)
    with path.open("wb") as file:
        np.savez_compressed(file, images=images, targets=truth, predictions=shown)


def _choose(data: ArrayData, count: int, seeds: Seeds) -> NDArray[np.int64]:
    """Random examples: all classes in turn, or masks that are not empty, one a subject where there are enough."""
    order = seeds.child("pictures").numpy().permutation(len(data))
    targets = data.targets.numpy()
    if targets.ndim > 1:
        filled = [row for row in order if targets[row].any()] or list(order)
        first = {int(data.subject[row]): row for row in reversed(filled)}
        return np.array(list(first.values())[:count] if len(first) >= count else filled[:count], dtype=np.int64)
    by_class = [[row for row in order if targets[row] == label] for label in np.unique(targets)]
    turns = [rows[turn] for turn in range(count) for rows in by_class if turn < len(rows)]
    return np.array(turns[:count], dtype=np.int64)


def _picture(image: NDArray[Any]) -> NDArray[np.float32]:
    """One grey plane in 0..1 of an image of shape (channels, *spatial)."""
    grey = image.astype(np.float32).mean(0)
    plane = _plane(grey)
    if image.dtype == np.uint8:
        return np.asarray(plane / _BYTE, dtype=np.float32)
    low, high = float(plane.min()), float(plane.max())
    return np.asarray((plane - low) / (high - low or 1.0), dtype=np.float32)


def _plane(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or the middle plane of a volume."""
    return array if array.ndim == _PLANE else array[array.shape[0] // 2]
