"""Change the grid of an image or a mask: resize, pad, cut."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

_PLANE = 2


def resize(image: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Scale each spatial axis to a new length; pixel areas stay aligned.

    Args:
        image: shape (channels, *spatial), uint8 or float32.
        shape: new spatial shape.

    Returns:
        Shape (channels, *shape), same dtype. Two axes: Pillow's bilinear filter with antialiasing. Three:
        linear interpolation after a Gaussian that removes what the coarser grid cannot hold.
    """
    if image.shape[1:] == shape:
        return image
    one = _resize_plane if len(shape) == _PLANE else _resize_block
    return np.stack([one(channel, shape) for channel in image])


def _resize_plane(plane: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    size = (shape[1], shape[0])  # Pillow says width first
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))


def _resize_block(block: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    values = block.astype(np.float32)
    factors = [new / old for new, old in zip(shape, block.shape, strict=True)]
    # The usual choice of a blur for a scale factor f: half of the pixels' growth.
    sigma = [max(0.0, (1 / factor - 1) / 2) for factor in factors]
    if any(sigma):
        values = ndimage.gaussian_filter(values, sigma, mode="nearest")
    scaled = ndimage.zoom(values, factors, order=1, mode="nearest", grid_mode=True)
    if block.dtype.kind in "ui":
        scaled = np.rint(scaled)
    return np.asarray(scaled).astype(block.dtype)


def resize_nearest(mask: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Scale a mask; every value of the result stands in the mask.

    Args:
        mask: any number of axes.
        shape: new length of each.

    Returns:
        Shape ``shape``, same dtype. A pixel takes the value of the old pixel that holds its centre.

    >>> resize_nearest(np.array([1, 2, 3, 4]), (2,)).tolist()
    [2, 4]
    """
    for axis, (new, old) in enumerate(zip(shape, mask.shape, strict=True)):
        if new != old:
            mask = np.take(mask, (2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return mask


def fit_centre(array: NDArray[np.generic], shape: tuple[int, ...], *, fill: float = 0) -> NDArray[np.generic]:
    """Cut longer axes and pad shorter ones about the centre.

    Args:
        array: the last ``len(shape)`` axes are fitted.
        shape: their new lengths.
        fill: value of the padding.

    Returns:
        Same dtype. An odd rest goes to the end of the axis, so fitting back undoes a padding exactly.

    >>> fit_centre(np.array([1, 2, 3]), (6,)).tolist(), fit_centre(np.array([0, 1, 2, 3, 0, 0]), (3,)).tolist()
    ([0, 1, 2, 3, 0, 0], [1, 2, 3])
    """
    lead = array.ndim - len(shape)
    cuts: list[slice] = [slice(None)] * lead
    pads: list[tuple[int, int]] = [(0, 0)] * lead
    for new, old in zip(shape, array.shape[lead:], strict=True):
        before = abs(new - old) // 2
        cuts.append(slice(before, before + new) if new < old else slice(None))
        pads.append((before, new - old - before) if new > old else (0, 0))
    array = array[tuple(cuts)]
    if any(pad != (0, 0) for pad in pads):
        array = np.pad(array, pads, constant_values=fill)
    return array


def undo_fit(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Put back what :func:`fit_centre` moved: cut its padding, and give 0 for what it cut.

    Args:
        array: every axis was fitted.
        shape: lengths before the fitting.

    Returns:
        Shape ``shape``, same dtype.

    >>> undo_fit(fit_centre(np.array([1, 2, 3, 4]), (3,)), (4,)).tolist()
    [1, 2, 3, 0]
    """
    back = np.zeros(shape, array.dtype)
    theirs, ours = [], []
    for old, new in zip(shape, array.shape, strict=True):
        before = abs(new - old) // 2
        length = min(new, old)
        theirs.append(slice(before, before + length) if new > old else slice(0, length))
        ours.append(slice(before, before + length) if new < old else slice(0, length))
    back[tuple(ours)] = array[tuple(theirs)]
    return back
