"""A linear classifier on scattering features: fixed wavelets, so that all of the noise of DP falls on one small layer.

The scattering transform (Bruna and Mallat 2013, https://arxiv.org/abs/1203.1513) convolves an image with Morlet
wavelets, takes the modulus, does so again, and averages. It has nothing to learn; with a linear layer it is the
strongest known classifier at small epsilon (Tramèr and Boneh 2021, https://arxiv.org/abs/2011.11660).
Filters are computed from the configuration: they are no weights, and neither sent nor saved.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medveil.configuration import Config
from medveil.errors import ModelError

FEATURE_NORM: Final = 4.0
"""L2 norm of every image's features (less where a channel is flat); the bias reads a constant 1 beside them."""

_SIGMA: Final = 0.8  # of the finest wavelet's envelope, in pixels
_FREQUENCY: Final = 3 * math.pi / 4  # of the finest wavelet, radians per pixel
_WINDOW: Final = 0.4  # standard deviation of the averaging window, in distances between positions
_EPSILON: Final = 1e-8  # added to a channel's variance: flatter channels count as flat
_NEGLIGIBLE: Final = 1e-9
_SPATIAL: Final = 2


class ScatteringConfig(Config):
    """Scattering features of two-dimensional images, normalised image by image, and one linear layer.

    The defaults give 81 channels at 7 x 7 positions for 28 x 28 images: 7,940 parameters for two classes.

    Args:
        kind: "scattering".
        scales: octaves; the coarsest wavelet spans about 2**scales pixels.
        angles: orientations of the wavelets.
        order: 1 (edges at one scale) or 2 (also how they are arranged at the next).
        coarsen: side of the blocks that are averaged first.
        positions: (rows, columns) of the grid at which features are kept; None means one every 2**scales pixels.
        group: channels that are normalised together, within one image; their number must divide all channels.
    """

    kind: Literal["scattering"] = "scattering"
    scales: int = Field(2, ge=1, le=6)
    angles: int = Field(8, ge=2, le=16)
    order: Literal[1, 2] = 2
    coarsen: int = Field(1, ge=1, le=32)
    positions: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    group: int = Field(1, ge=1)


class ScatteringFront(nn.Module):
    """Images to features; nothing here is trained.

    Args:
        config: of the transform.
        input_shape: (channels, rows, columns).

    Guarantees:
        (N, channels, rows, columns) -> (N, :attr:`num_features`). One image's features depend on no other image,
        do not change when the image is multiplied by a positive number or a constant is added (up to the floor
        under a channel's variance), and have norm at most :data:`FEATURE_NORM`.

    Raises:
        ModelError: images with other than two spatial axes, too small, or a group that does not divide.
    """

    def __init__(self, config: ScatteringConfig, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, sides = input_shape[0], _coarse_sides(config, input_shape)
        grid = config.positions or tuple(-(-side // 2**config.scales) for side in sides)
        _check_positions(grid, sides)
        self.scales, self.order, self.coarsen = config.scales, config.order, config.coarsen
        margins = [_margins(side, config.scales) for side in sides]
        self.padding = [*margins[1], *margins[0]]
        padded = [side + sum(margin) for side, margin in zip(sides, margins, strict=True)]
        for octave, filters in enumerate(wavelets(padded, config.scales, config.angles)):
            for finer in range(octave + 1 if config.order == _SPATIAL else 1):
                # Keeping every n-th sample is the mean over n**2 blocks of frequencies: divided by n**2 here.
                constant = _on_coarser_grid(filters, 2**finer) / 4 ** (octave - finer)
                self._constant(f"filters_{octave}_{finer}", constant)
        for octave in range(config.scales):
            rows, columns = (
                averaging(side, margin[0], length, positions, 2**octave)
                for side, margin, length, positions in zip(sides, margins, padded, grid, strict=True)
            )
            self._constant(f"rows_{octave}", rows)
            self._constant(f"columns_{octave}", columns.T.contiguous())
        pairs = math.comb(config.scales, 2) if config.order == _SPATIAL else 0
        maps = channels * (1 + config.angles * config.scales + config.angles**2 * pairs)
        self.groups = _groups(maps, config.group)
        self.num_features = maps * math.prod(grid)
        self.factor = FEATURE_NORM / math.sqrt(self.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised features, shape (N, num_features)."""
        maps = functional.group_norm(self.maps(images), self.groups, eps=_EPSILON)
        return (maps * self.factor).flatten(1)

    def maps(self, images: Tensor) -> Tensor:
        """Scattering coefficients before normalisation.

        Args:
            images: shape (N, channels, rows, columns).

        Returns:
            Shape (N, channels * maps, grid rows, grid columns): the averaged image, then first order by octave
            and angle, then second order by first octave, second octave, first angle and second angle.
        """
        if self.coarsen > 1:
            images = functional.avg_pool2d(images, self.coarsen)
        images = functional.pad(images, self.padding, mode="reflect")
        first, second = [self._average(images[:, :, None], 0)], []
        spectrum = torch.fft.fft2(images)[:, :, None]
        for octave in range(self.scales):
            moduli = self._moduli(spectrum, octave, 0)
            first.append(self._average(moduli, octave))
            coarser = range(octave + 1, self.scales) if self.order == _SPATIAL else ()
            again = torch.fft.fft2(moduli)[:, :, :, None] if coarser else moduli
            second += [self._average(self._moduli(again, other, octave).flatten(2, 3), other) for other in coarser]
        return torch.cat([*first, *second], dim=2).flatten(1, 2)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    def _moduli(self, spectrum: Tensor, octave: int, grid: int) -> Tensor:
        """Modulus of the wavelet transform at ``octave``, sampled every 2**octave pixels.

        ``spectrum`` belongs to a signal sampled every 2**grid pixels. Sampling folds the product's spectrum; the
        real and the imaginary part are kept apart because torch multiplies real numbers several times faster.
        """
        filters = getattr(self, f"filters_{octave}_{grid}")
        blocks = 2 ** (octave - grid)
        real, imaginary = (_fold(part.contiguous(), filters, blocks) for part in (spectrum.real, spectrum.imag))
        signal: Tensor = torch.fft.ifft2(torch.complex(real, imaginary))
        return signal.abs()

    def _average(self, signal: Tensor, octave: int) -> Tensor:
        """Gaussian averages about the grid's positions of a signal sampled every 2**octave pixels."""
        rows, columns = getattr(self, f"rows_{octave}"), getattr(self, f"columns_{octave}")
        averaged: Tensor = rows @ (signal @ columns)
        return averaged


class ScatteringClassifier(nn.Module):
    """A frozen :attr:`front` (images to features) and a linear :attr:`head` (features to logits).

    ``model(images)`` equals ``model.head(model.front(images))``: where images are not augmented, features may be
    computed once. The head starts at zero, so that no random weights have to be unlearned through the noise.
    """

    def __init__(self, front: ScatteringFront, num_classes: int) -> None:
        super().__init__()
        self.front = front
        self.head = nn.Linear(front.num_features, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, num_classes)."""
        logits: Tensor = self.head(self.front(images))
        return logits


def build_scattering(config: ScatteringConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; it has no random weights.

    Args:
        config: of the net.
        input_shape: (channels, rows, columns).
        num_classes: logits.

    Returns:
        A :class:`ScatteringClassifier`, (N, channels, rows, columns) -> (N, num_classes).

    Raises:
        ModelError: as :class:`ScatteringFront`.
    """
    return ScatteringClassifier(ScatteringFront(config, input_shape), num_classes)


def wavelets(sides: Sequence[int], scales: int, angles: int) -> list[Tensor]:
    """Transfer functions of Morlet wavelets on a periodic grid.

    Args:
        sides: (rows, columns) of the grid, in pixels.
        scales: octaves.
        angles: orientations, pi / angles apart.

    Returns:
        For each octave shape (angles, rows, columns), real, float64. The mean of every wavelet is 0, and one common
        factor makes the sum of their squares (over both directions of every axis, halved) as large as possible such
        that, with the squared transfer function of the coarsest Gaussian, it is nowhere above 1.

    Guarantees:
        Together with that Gaussian the wavelet transform, and so every layer of the scattering transform, does
        not expand distances (Mallat 2012, section 2.1, https://arxiv.org/abs/1101.2286).
    """
    bank = [
        torch.stack([_morlet(sides, octave, math.pi * index / angles, 4 / angles) for index in range(angles)])
        for octave in range(scales)
    ]
    power = torch.stack([(each**2 + _mirrored(each) ** 2).sum(0) / 2 for each in bank]).sum(0)
    frequency = [torch.fft.fftfreq(side, dtype=torch.float64) * 2 * math.pi for side in sides]
    width = _SIGMA * 2 ** (scales - 1)
    gaussian = torch.exp(-(width**2) * (frequency[0][:, None] ** 2 + frequency[1] ** 2))
    heard = power > 1e-9 * power.max()
    factor = torch.sqrt(((1 - gaussian)[heard] / power[heard]).min())
    return [each * factor for each in bank]


def averaging(side: int, margin: int, padded: int, positions: int, step: int) -> Tensor:
    """Weights that average a padded, subsampled axis about evenly spread positions.

    Args:
        side: pixels of the axis.
        margin: pixels of padding before it.
        padded: pixels with the padding on both sides.
        positions: how many averages.
        step: pixels between two samples of the signal.

    Returns:
        Shape (positions, padded / step), float64; no weight is negative and every row adds up to 1. Position k lies
        in the middle of the k-th of ``positions`` equal parts of the axis.
    """
    distance = side / positions
    centres = (torch.arange(positions, dtype=torch.float64) + 0.5) * distance - 0.5 + margin
    samples = torch.arange(0, padded, step, dtype=torch.float64)
    weights = torch.exp(-(((samples - centres[:, None]) / (_WINDOW * distance)) ** 2) / 2)
    # Farther weights become denormal numbers in float32, with which processors multiply ten times slower.
    weights[weights < _NEGLIGIBLE * weights.amax(1, keepdim=True)] = 0.0
    return weights / weights.sum(1, keepdim=True)


def _morlet(sides: Sequence[int], octave: int, angle: float, slant: float) -> Tensor:
    """Transfer function of one wavelet, periodised over the grid; Bruna and Mallat 2013, section 2.1."""
    width = _SIGMA * 2**octave
    frequency = _FREQUENCY / 2**octave
    envelope, wave = torch.zeros(*sides, dtype=torch.float64), torch.zeros(*sides, dtype=torch.complex128)
    # Enough periods that what is cut off lies beyond five widths of the longer axis.
    reach = [math.ceil(5 * width / (min(slant, 1) * side)) for side in sides]
    for down in range(-reach[0], reach[0] + 1):
        for right in range(-reach[1], reach[1] + 1):
            row = torch.arange(sides[0], dtype=torch.float64)[:, None] + down * sides[0]
            column = torch.arange(sides[1], dtype=torch.float64) + right * sides[1]
            along = math.cos(angle) * column + math.sin(angle) * row
            across = math.cos(angle) * row - math.sin(angle) * column
            bump = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2))
            bump = bump * slant / (2 * math.pi * width**2)
            envelope += bump
            wave += bump * torch.exp(1j * frequency * along)
    transfer: Tensor = torch.fft.fft2(wave - wave.sum() / envelope.sum() * envelope)
    return transfer.real


def _mirrored(transfer: Tensor) -> Tensor:
    """The transfer function at the opposite frequency."""
    return transfer.flip(-2, -1).roll((1, 1), (-2, -1))


def _on_coarser_grid(transfer: Tensor, blocks: int) -> Tensor:
    """The filter for a signal that holds every ``blocks``-th pixel: its spectrum, folded."""
    rows, columns = transfer.shape[-2] // blocks, transfer.shape[-1] // blocks
    return transfer.reshape(-1, blocks, rows, blocks, columns).sum((1, 3))


def _fold(spectrum: Tensor, filters: Tensor, blocks: int) -> Tensor:
    """Sum over ``blocks`` x ``blocks`` parts of the product's spectrum, without the whole product."""
    rows, columns = filters.shape[-2] // blocks, filters.shape[-1] // blocks
    folded = torch.zeros((), dtype=filters.dtype, device=filters.device)
    for down in range(blocks):
        for right in range(blocks):
            block = (..., slice(down * rows, (down + 1) * rows), slice(right * columns, (right + 1) * columns))
            folded = folded + spectrum[block] * filters[block]
    return folded


def _coarse_sides(config: ScatteringConfig, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(input_shape) != _SPATIAL + 1:
        raise ModelError(
            "Scattering features are made for images with two spatial axes",
            got=f"{len(input_shape) - 1} spatial axes",
            expected="(channels, rows, columns)",
            remedy="cut volumes into slices in the preprocessing, or choose another network",
        )
    sides = tuple(side // config.coarsen for side in input_shape[1:])
    if min(sides) <= 2**config.scales:
        raise ModelError(
            "The image is too small for this network",
            got=f"{sides} after coarsen = {config.coarsen}, for wavelets over 2**{config.scales} pixels",
            expected=f"more than {2**config.scales} pixels on either axis",
            remedy="use fewer scales, a smaller coarsen, or larger images",
        )
    return sides


def _margins(side: int, scales: int) -> tuple[int, int]:
    """Padding before and after an axis, so that the whole is divisible by 2**scales; less than ``side`` each."""
    margin = 2**scales
    missing = -side % margin
    return margin, margin + missing if margin + missing < side else missing


def _check_positions(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    if any(count > side for count, side in zip(grid, sides, strict=True)):
        raise ModelError(
            "The grid of positions does not fit the image",
            got=f"{grid} positions on {sides} pixels",
            expected="at most one position a pixel on either axis",
            remedy="correct positions, or leave it out",
        )


def _groups(maps: int, size: int) -> int:
    if maps % size:
        raise ModelError(
            "The channels do not divide into groups",
            got=f"{maps} channels in groups of {size}",
            expected="a group size that divides the number of channels",
            remedy="set group = 1, or change scales, angles or order",
        )
    return maps // size
