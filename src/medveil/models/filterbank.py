"""Segmentation by fixed filters and a very small trained head: little for the noise of DP to fall on.

Every pixel is described by Gaussian derivatives at a few scales, their positive parts, the local contrast, and where
it lies in the image; 1 x 1 convolutions, which alone are trained, turn the description into logits. Nothing about the
description is learned, so it costs no privacy. It suits images whose content lies at much the same place in all.
Filters are computed from the configuration: they are no weights, and neither sent nor saved.

Reference: Koenderink and van Doorn 1987, https://doi.org/10.1007/BF00318371 (derivatives of Gaussians as a complete
local description); Tramèr and Boneh 2021, https://arxiv.org/abs/2011.11660 (fixed features under DP).
"""

import math
from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medveil.configuration import Config
from medveil.errors import ModelError

_ORDERS: Final = ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
_GAIN: Final = 2.0  # brings derivatives, multiplied by sigma to their order, to about the size of the intensities
_REACH: Final = 3  # a filter ends after so many sigma
_CONTRAST_FLOOR: Final = 1e-3  # variance; the root has a finite slope there
_WIDTH: Final = 0.7  # standard deviation of a location's bump, in distances between bumps
_SPATIAL: Final = 2


class FilterbankConfig(Config):
    """Fixed features of every pixel of two-dimensional images, and a head of 1 x 1 convolutions.

    The defaults give 111 features and 1,843 parameters for one channel and three classes.

    Args:
        kind: "filterbank".
        scales: how many; the k-th Gaussian (from 0) has standard deviation 2**k pixels.
        coarsen: side of the blocks that share one description; the logits are interpolated in between.
        bumps: (rows, columns) of a grid of smooth bumps that tell where in the image a pixel lies.
        hidden: channels of the hidden layer; 0 makes the head linear.
        background: probability of class 0, everywhere, before training. A public guess, never counted on the data.
    """

    kind: Literal["filterbank"] = "filterbank"
    scales: int = Field(4, ge=1, le=6)
    coarsen: int = Field(2, ge=1, le=16)
    bumps: tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]] = (8, 6)
    hidden: int = Field(16, ge=0, le=256)
    background: float = Field(0.9, gt=0, lt=1)


class FilterbankFront(nn.Module):
    """Images to features of their pixels; nothing here is trained.

    Args:
        config: of the features.
        input_shape: (channels, rows, columns).

    Guarantees:
        (N, channels, rows, columns) -> (N, :attr:`num_features`, rows / coarsen, columns / coarsen). One image's
        features depend on no other image.

    Raises:
        ModelError: images with other than two spatial axes, or an axis that ``coarsen`` does not divide.
    """

    def __init__(self, config: FilterbankConfig, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        _check_shape(config, input_shape)
        channels, sides = input_shape[0], input_shape[1:]
        self.scales = config.scales
        for name, side in zip(("rows", "columns"), sides, strict=True):
            blocks = _blocks(side, config.coarsen)
            self._constant(f"{name}_block", blocks)
            for scale in range(config.scales):
                for order in range(3):
                    self._constant(f"{name}_{scale}_{order}", blocks @ derivative(side, 2.0**scale, order))
        self._constant("location", locations(sides, config.coarsen, config.bumps))
        described = channels * (1 + (2 + len(_ORDERS)) * config.scales)
        self.num_features = 2 * described + len(self.get_buffer("location"))

    def forward(self, images: Tensor) -> Tensor:
        """Features: filters, their positive parts, location; shape (N, num_features, coarse rows, coarse columns)."""
        described = self.filtered(images)
        # A sum, not expand(): torch.fx cannot trace a batch size that is handed to a tensor's method.
        location = torch.zeros_like(described[:, :1]) + self.get_buffer("location")
        return torch.cat([described, functional.relu(described), location], dim=1)

    def filtered(self, images: Tensor) -> Tensor:
        """What the filters answer.

        Args:
            images: shape (N, channels, rows, columns).

        Returns:
            Shape (N, channels * (1 + 7 * scales), coarse rows, coarse columns): the block averages of all channels;
            then for each scale, for all channels each, the smoothed image, the local standard deviation, and the
            derivatives down, right, down-down, down-right and right-right, multiplied by sigma to their order.
        """
        found = [self.get_buffer("rows_block") @ images @ self.get_buffer("columns_block").T]
        squares = images.square()
        for scale in range(self.scales):
            smooth = self._filter(images, scale, 0, 0)
            variance = self._filter(squares, scale, 0, 0) - smooth.square()
            found += [smooth, (functional.relu(variance) + _CONTRAST_FLOOR).sqrt()]
            found += [_GAIN * self._filter(images, scale, down, right) for down, right in _ORDERS]
        return torch.cat(found, dim=1)

    def _filter(self, images: Tensor, scale: int, down: int, right: int) -> Tensor:
        rows, columns = self.get_buffer(f"rows_{scale}_{down}"), self.get_buffer(f"columns_{scale}_{right}")
        return rows @ images @ columns.T

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)


class FilterbankSegmenter(nn.Module):
    """A frozen :attr:`front` (images to features) and a small :attr:`head` (features to logits at every pixel).

    ``model(images)`` equals ``model.head(model.front(images))``: where images are not augmented, features may be
    computed once. The last layer's weights start at zero, so that no random answers have to be unlearned.
    """

    def __init__(self, front: FilterbankFront, head: nn.Sequential) -> None:
        super().__init__()
        self.front = front
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, num_classes, rows, columns)."""
        logits: Tensor = self.head(self.front(images))
        return logits


def build_filterbank(config: FilterbankConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make the net; the hidden layer's weights come from torch's global generator.

    Args:
        config: of the net.
        input_shape: (channels, rows, columns).
        num_classes: logits at every pixel, background included.

    Returns:
        A :class:`FilterbankSegmenter`, (N, channels, rows, columns) -> (N, num_classes, rows, columns).

    Raises:
        ModelError: as :class:`FilterbankFront`.
    """
    front = FilterbankFront(config, input_shape)
    layers: list[nn.Module] = []
    if config.hidden:
        hidden = nn.Conv2d(front.num_features, config.hidden, 1)
        nn.init.normal_(hidden.weight, std=front.num_features**-0.5)
        nn.init.zeros_(_bias(hidden))
        layers += [hidden, nn.ReLU()]
    layers.append(_last(config, config.hidden or front.num_features, num_classes))
    if config.coarsen > 1:
        layers.append(nn.Upsample(scale_factor=config.coarsen, mode="bilinear"))
    return FilterbankSegmenter(front, nn.Sequential(*layers))


def derivative(side: int, sigma: float, order: int) -> Tensor:
    """The filter along one axis as a matrix; beyond either end the last pixel is repeated.

    Args:
        side: pixels.
        sigma: standard deviation of the Gaussian, > 0, in pixels.
        order: 0, 1 or 2.

    Returns:
        Shape (side, side), float64. Multiplied with an image's axis it gives the Gaussian average, or its first or
        second derivative in the direction of growing index, multiplied by sigma**order. Rows add up to 1 for
        order 0 and to 0 otherwise: derivatives do not hear a constant.
    """
    reach = math.ceil(_REACH * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    gaussian = torch.exp(-(offset**2) / (2 * sigma**2))
    gaussian = gaussian / gaussian.sum()
    weights = (gaussian, offset / sigma * gaussian, (offset**2 / sigma**2 - 1) * gaussian)[order]
    if order:
        weights = weights - weights.sum() * gaussian
    matrix = torch.zeros(side, side, dtype=torch.float64)
    place = torch.arange(side)
    for distance, weight in zip(range(-reach, reach + 1), weights.tolist(), strict=True):
        matrix[place, (place + distance).clamp(0, side - 1)] += weight
    return matrix


def locations(sides: tuple[int, ...], coarsen: int, bumps: tuple[int, int]) -> Tensor:
    """Where in the image a pixel lies.

    Args:
        sides: (rows, columns), in pixels.
        coarsen: side of the blocks that are averaged.
        bumps: (rows, columns) of the grid of bumps, spread evenly.

    Returns:
        Shape (5 + bumps, coarse rows, coarse columns), float64: with y and x from the image's middle, in halves of
        its longer side, the maps y, x, y**2, x**2 and x * y; then the bumps row by row, each a Gaussian of height 1.
    """
    places = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in sides]
    down, right = (place / (max(sides) / 2) for place in places)
    plane = torch.stack(torch.meshgrid(down, right, indexing="ij"))
    powers = torch.stack([*plane, *plane.square(), plane.prod(0)])
    profiles = [_profiles(place, count) for place, count in zip(places, bumps, strict=True)]
    grid = torch.einsum("ar,bc->abrc", *profiles).flatten(0, 1)
    return functional.avg_pool2d(torch.cat([powers, grid]), coarsen)


def _profiles(place: Tensor, count: int) -> Tensor:
    """Gaussians about the middles of ``count`` equal parts of an axis, shape (count, side)."""
    distance = len(place) / count
    middles = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * distance
    return torch.exp(-(((place - middles[:, None]) / (_WIDTH * distance)) ** 2) / 2)


def _blocks(side: int, coarsen: int) -> Tensor:
    """Averages over blocks, shape (side / coarsen, side)."""
    return torch.eye(side // coarsen, dtype=torch.float64).repeat_interleave(coarsen, dim=1) / coarsen


def _last(config: FilterbankConfig, inputs: int, num_classes: int) -> nn.Conv2d:
    last = nn.Conv2d(inputs, num_classes, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(_bias(last))
    with torch.no_grad():
        _bias(last)[0] = math.log(config.background / (1 - config.background) * (num_classes - 1))
    return last


def _bias(layer: nn.Conv2d) -> Tensor:
    bias = layer.bias
    assert bias is not None
    return bias


def _check_shape(config: FilterbankConfig, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != _SPATIAL + 1:
        raise ModelError(
            "The filter bank reads images with two spatial axes",
            got=f"{len(input_shape) - 1} spatial axes",
            expected="(channels, rows, columns)",
            remedy="cut volumes into slices in the preprocessing, or choose another network",
        )
    if any(side % config.coarsen for side in input_shape[1:]):
        raise ModelError(
            "The image does not divide into blocks",
            got=f"{input_shape[1:]} pixels in blocks of {config.coarsen}",
            expected=f"either axis divisible by {config.coarsen}",
            remedy="choose another coarsen, or pad or resize in the preprocessing",
        )
