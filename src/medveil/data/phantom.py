"""Draw phantom anatomy: chest-like pictures and two-structure organs. Nothing here looks at a patient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """How one device turns anatomy into pixels.

    Args:
        gain: factor on the signal.
        offset: added to the signal.
        noise: standard deviation of the additive noise, in units of the full range.
        blur: standard deviation of the Gaussian blur, as a share of the image's shortest side.
        bias: strength of the smooth shading across the field, as a share of the signal.
    """

    gain: float
    offset: float
    noise: float
    blur: float
    bias: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """One device, unlike the next."""
    return Scanner(
        gain=rng.uniform(0.75, 1.2),
        offset=rng.uniform(-0.06, 0.06),
        noise=rng.uniform(0.02, 0.06),
        blur=rng.uniform(0.005, 0.03),
        bias=rng.uniform(0.0, 0.2),
    )


def draw_chest(size: tuple[int, int], strength: float, rng: np.random.Generator) -> Picture:
    """A chest-like projection.

    Args:
        size: rows, columns.
        strength: brightness of the opacity in a lung; 0 draws none.
        rng: every number comes from here.

    Returns:
        Shape ``size``, about 0..1.
    """
    rows, columns = grid(size)
    tilt, wide = rng.normal(0, 0.04, 2)
    body = 0.75 * ellipsoid((rows, columns), (0.1, tilt), (1.15, 0.92 + wide), softness=0.08)
    lungs = [_lung(rows, columns, side, rng) for side in (-1, 1)]
    air = np.maximum(*lungs)
    heart = ellipsoid((rows, columns), (0.25, 0.12 + tilt), (0.4, 0.28 + rng.normal(0, 0.03)), softness=0.15)
    ribs = 0.06 * np.sin((rows + 0.25 * columns**2) * rng.uniform(17, 21) + rng.uniform(0, 6.28)) * air
    vessels = 0.07 * texture(size, 0.05, rng) * air
    picture = body - 0.5 * air + 0.3 * heart + ribs + vessels
    if strength > 0:
        picture = picture + strength * _opacity(rows, columns, air, rng)
    return picture


def draw_organ(size: Sequence[int], contrast: float, rng: np.random.Generator) -> tuple[Picture, NDArray[np.uint8]]:
    """An organ of two parts in a textured surrounding, beside a distractor of like brightness.

    Args:
        size: two or three axes.
        contrast: of the parts against the surrounding.
        rng: every number comes from here.

    Returns:
        The picture (about 0..1) and its mask (0 surrounding, 1 first part, 2 second part), both of ``size``.
    """
    axes = grid(size)
    dims = len(size)
    centre = rng.uniform(-0.25, 0.25, dims)
    radii = rng.uniform(0.3, 0.5, dims)
    distance = sum(((axis - mid) / radius) ** 2 for axis, mid, radius in zip(axes, centre, radii, strict=True))
    # A wavy outline: the shape cannot be learnt as an ellipse.
    inside = np.asarray(distance + 0.35 * texture(size, 0.12, rng)) < 1
    cut = axes[0] - centre[0] + 0.3 * (axes[1] - centre[1]) * rng.uniform(-1, 1)
    mask = np.where(inside, np.where(cut < rng.uniform(-0.08, 0.08), 1, 2), 0).astype(np.uint8)
    levels = np.array([0.35, 0.35 + contrast, 0.35 + 0.6 * contrast])
    picture = levels[mask] + 0.07 * texture(size, 0.04, rng)
    return picture + 0.9 * contrast * _distractor(axes, inside, rng), mask


def scan(picture: Picture, scanner: Scanner, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take a picture with one device.

    Args:
        picture: about 0..1.
        scanner: the device.
        rng: noise and shading come from here.

    Returns:
        The same shape, uint8.
    """
    size = picture.shape
    shaded = picture * (1 + scanner.bias * texture(size, 0.4, rng))
    blurred = ndimage.gaussian_filter(shaded, scanner.blur * min(size))
    signal = scanner.gain * blurred + scanner.offset + rng.normal(0, scanner.noise, size)
    return np.asarray(np.rint(np.clip(signal, 0, 1) * 255), np.uint8)


def grid(size: Sequence[int]) -> list[Picture]:
    """Coordinates from -1 to 1 along every axis."""
    axes = (np.linspace(-1, 1, length) for length in size)
    return [np.asarray(axis) for axis in np.meshgrid(*axes, indexing="ij")]


def ellipsoid(axes: Sequence[Picture], centre: Sequence[float], radii: Sequence[float], *, softness: float) -> Picture:
    """1 inside, 0 outside, with a soft edge."""
    distance = sum(((axis - mid) / radius) ** 2 for axis, mid, radius in zip(axes, centre, radii, strict=True))
    return np.asarray(1 / (1 + np.exp((np.sqrt(distance) - 1) / (softness / 2))))


def texture(size: Sequence[int], grain: float, rng: np.random.Generator) -> Picture:
    """Smooth noise of mean 0 and standard deviation 1; ``grain`` is its scale as a share of the side."""
    smooth = ndimage.gaussian_filter(rng.standard_normal(tuple(size)), grain * min(size))
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-12))


def _lung(rows: Picture, columns: Picture, side: int, rng: np.random.Generator) -> Picture:
    centre = (rng.normal(-0.05, 0.04), side * rng.normal(0.42, 0.03))
    return ellipsoid((rows, columns), centre, (rng.normal(0.68, 0.05), rng.normal(0.3, 0.03)), softness=0.12)


def _opacity(rows: Picture, columns: Picture, air: Picture, rng: np.random.Generator) -> Picture:
    side = rng.choice((-1, 1))
    centre = (rng.uniform(-0.45, 0.4), side * rng.uniform(0.32, 0.52))
    blob = ellipsoid((rows, columns), centre, tuple(rng.uniform(0.15, 0.3, 2)), softness=0.5)
    return np.asarray(blob * air * (0.8 + 0.2 * texture(rows.shape, 0.06, rng)))


def _distractor(axes: Sequence[Picture], inside: NDArray[np.bool_], rng: np.random.Generator) -> Picture:
    centre, radii = rng.uniform(-0.8, 0.8, len(axes)).tolist(), rng.uniform(0.1, 0.22, len(axes)).tolist()
    blob = ellipsoid(axes, centre, radii, softness=0.1)
    return np.asarray(np.where(inside, 0, blob))
