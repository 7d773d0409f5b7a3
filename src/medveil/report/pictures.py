"""Test images as PNG inside the page, with the model's answer beside the truth."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medveil.report.blocks import Gallery, LegendItem, Panel, Picture
from medveil.report.reading import Examples

MAX_CLASSIFIED = 12
MAX_SEGMENTED = 6
_SHORT_SIDE = 224
_TINT = 0.38
# Okabe and Ito's palette: told apart by readers with any colour vision, on dark and light tissue.
_CLASS_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))


def classified(examples: Examples, class_names: Sequence[str], threshold: float | None) -> Gallery:
    """Images with the true class and the model's answer.

    Args:
        examples: of a classification run.
        class_names: index -> name; missing names become "class 3".
        threshold: for two classes, from which probability class 1 is called; None means the most probable class.

    Returns:
        At most :data:`MAX_CLASSIFIED` pictures.
    """
    rows = zip(examples.images, examples.targets, examples.predictions, strict=True)
    items = []
    for image, target, probabilities in list(rows)[:MAX_CLASSIFIED]:
        called = _called(probabilities, threshold)
        right = called == int(target)
        truth, answer = _name(class_names, int(target)), _name(class_names, called)
        panel = Panel(_png(_grey(image)), f"Test image; truth: {truth}; model: {answer}")
        verdict = f"{'✓ Right' if right else '✗ Wrong'}: {answer}"
        lines = (verdict, f"probability {probabilities[called]:.2f}", f"Truth: {truth}")
        items.append(Picture((panel,), lines, tone="good" if right else "bad"))
    return Gallery(tuple(items))


def segmented(examples: Examples, class_names: Sequence[str]) -> Gallery:
    """Images beside the reference mask and the model's.

    Args:
        examples: of a segmentation run.
        class_names: index -> name, index 0 is the background.

    Returns:
        At most :data:`MAX_SEGMENTED` pictures of three panels.
    """
    rows = zip(examples.images, examples.targets, examples.predictions, strict=True)
    items = tuple(
        Picture(
            (
                Panel(_png(_grey(image)), "Test image", "Image"),
                Panel(_png(overlay(image, target)), "Test image with the reference mask", "Reference"),
                Panel(_png(overlay(image, drawn)), "Test image with the model's mask", "Model"),
            ),
            (_overlap(target, drawn),),
        )
        for image, target, drawn in list(rows)[:MAX_SEGMENTED]
    )
    foreground = range(1, max(len(class_names), 2))
    legend = tuple(
        LegendItem(_name(class_names, index), f"class-{(index - 1) % len(_CLASS_COLOURS)}") for index in foreground
    )
    return Gallery(items, legend)


def overlay(image: NDArray[np.float64], mask: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Tint each class of a mask and draw its outline.

    Args:
        image: shape (H, W), 0..1.
        mask: shape (H, W), class indices, 0 is left as it is.

    Returns:
        Shape (h, w, 3), enlarged so that the shorter side has at least 224 pixels.
    """
    factor = _factor(image)
    picture = np.repeat(_grey(image)[..., None], 3, axis=2).astype(np.float64)
    large = np.kron(mask, np.ones((factor, factor), dtype=mask.dtype))
    for index in range(1, int(large.max()) + 1):
        region, colour = large == index, np.asarray(_CLASS_COLOURS[(index - 1) % len(_CLASS_COLOURS)])
        edge = region & ~ndimage.binary_erosion(region, iterations=2)
        picture[region] = (1 - _TINT) * picture[region] + _TINT * colour
        picture[edge] = colour
    return picture.round().astype(np.uint8)


def grey_png(image: NDArray[np.floating]) -> str:
    """One image, shape (H, W), 0..1, as a ``data:`` address, enlarged."""
    return _png(_grey(image.astype(np.float64)))


def _called(probabilities: NDArray[np.float64], threshold: float | None) -> int:
    if threshold is not None and probabilities.size == 2:  # noqa: PLR2004 - two classes
        return int(probabilities[1] >= threshold)
    return int(probabilities.argmax())


def _name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if index < len(class_names) else f"class {index}"


def _overlap(target: NDArray[np.integer], drawn: NDArray[np.integer]) -> str:
    """Dice of all foreground in this one picture: to read the picture by, not a result."""
    total = int((target > 0).sum() + (drawn > 0).sum())
    if total == 0:
        return "Nothing to find, nothing found"
    return f"Overlap in this picture: {2 * int(((target > 0) & (target == drawn)).sum()) / total:.2f}"


def _factor(image: NDArray[np.float64]) -> int:
    return max(1, -(-_SHORT_SIDE // int(min(image.shape))))


def _grey(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    grey = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    factor = _factor(image)
    return np.asarray(grey.resize((grey.width * factor, grey.height * factor), Image.Resampling.BICUBIC))


def _png(pixels: NDArray[np.uint8]) -> str:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode("ascii")
