"""Preprocess one image and its target into examples."""

import numpy as np
from numpy.typing import NDArray

from medveil.data.subject import Example
from medveil.errors import ImageError
from medveil.imaging.preprocess import Preprocess, apply, apply_mask, cut_slices, output_spacing
from medveil.imaging.resample import resize as resize_array
from medveil.imaging.resample import resize_nearest
from medveil.imaging.volume import Volume

Target = int | NDArray[np.uint8]


def prepare(
    volume: Volume,
    target: Target,
    num_classes: int,
    preprocess: Preprocess,
    resize: tuple[int, ...] | None = None,
) -> tuple[Example, ...]:
    """Check, resize, preprocess and, where asked, cut one image.

    Args:
        volume: the image as stored.
        target: class index, or mask of the volume's spatial shape with classes 0..num_classes - 1.
        num_classes: background included.
        preprocess: of the plan.
        resize: stretch to this size before.

    Returns:
        One example, or one for each slice kept; all share the digest of the stored image.

    Raises:
        ImageError: a mask does not fit (``"mask-shape"``, ``"mask-range"``), or preprocessing failed.
        LabelError: slices with foreground are wanted and the mask has none, or there is no mask.
    """
    digest = volume.digest()
    if not isinstance(target, int):
        _check_mask(target, volume, num_classes)
    if resize is not None:
        volume, target = _stretch(volume, target, resize)
    image = apply(volume, preprocess)
    spacing = output_spacing(volume, preprocess)
    if not isinstance(target, int):
        target = apply_mask(target, preprocess, volume)
    if preprocess.slices is None:
        return (Example(image, target, digest, spacing),)
    return _slices(Example(image, target, digest, spacing), preprocess)


def _slices(whole: Example, preprocess: Preprocess) -> tuple[Example, ...]:
    if preprocess.slices is None:
        return (whole,)
    axis = preprocess.slices.axis
    mask = None if isinstance(whole.target, int) else whole.target
    spacing = None if whole.spacing_mm is None else whole.spacing_mm[:axis] + whole.spacing_mm[axis + 1 :]
    gap = None if whole.spacing_mm is None else whole.spacing_mm[axis]
    return tuple(
        Example(
            piece.image,
            whole.target if piece.mask is None else piece.mask,
            whole.digest,
            spacing,
            position=piece.position,
            slice_gap_mm=gap,
        )
        for piece in cut_slices(whole.image, mask, axis, preprocess.slices.keep)
    )


def _stretch(volume: Volume, target: Target, size: tuple[int, ...]) -> tuple[Volume, Target]:
    """Another grid for the image and its mask; the affine is dropped, since it belongs to the old grid."""
    old = volume.spatial_shape
    if len(size) != len(old):
        raise ImageError(
            "The image has another number of axes than the source's resize",
            reason="shape",
            got=f"{len(old)} spatial axes",
            expected=f"{len(size)}",
            remedy="give resize one length for each axis of the images",
        )
    spacing = volume.spacing_mm and tuple(
        step * before / after for step, before, after in zip(volume.spacing_mm, old, size, strict=True)
    )
    array = volume.array if volume.array.dtype == np.uint8 else volume.array.astype(np.float32)
    stretched = Volume(np.ascontiguousarray(resize_array(array, size)), spacing, None, volume.modality)
    return stretched, target if isinstance(target, int) else resize_nearest(target, size).astype(np.uint8)


def _check_mask(mask: NDArray[np.uint8], volume: Volume, num_classes: int) -> None:
    if mask.shape != volume.spatial_shape:
        raise ImageError(
            "A mask has another shape than its image",
            reason="mask-shape",
            got=mask.shape,
            expected=volume.spatial_shape,
        )
    if int(mask.max()) >= num_classes:
        raise ImageError(
            "A mask holds values that stand for no class",
            reason="mask-range",
            got=f"values up to {int(mask.max())}",
            expected=f"0 to {num_classes - 1}",
            remedy="list every class of the masks in classes",
        )
