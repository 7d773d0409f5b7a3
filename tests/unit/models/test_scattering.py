"""Scattering: wavelets against the formula, the transform against plain convolution, what it does not react to."""

import cmath
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from medveil.errors import ModelError
from medveil.models.architecture import architecture_hash
from medveil.models.checks import mixes_examples
from medveil.models.registry import build
from medveil.models.scattering import (
    FEATURE_NORM,
    ScatteringConfig,
    ScatteringFront,
    averaging,
    wavelets,
)

SHAPE = (1, 28, 28)


def make(shape=SHAPE, classes=2, **keys):
    return build(ScatteringConfig(**keys), input_shape=shape, num_classes=classes, seed=0, task="classification")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Wavelets


def morlet(row, column, octave, angle, slant):
    """The Morlet wavelet of Bruna and Mallat 2013 at one point, without the term that makes its mean 0."""
    width, frequency = 0.8 * 2**octave, 3 * math.pi / 4 / 2**octave
    along = column * math.cos(angle) + row * math.sin(angle)
    across = row * math.cos(angle) - column * math.sin(angle)
    bump = math.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2)) * slant / (2 * math.pi * width**2)
    return bump, bump * cmath.exp(1j * frequency * along)


def plain_wavelet(reach, octave, angle, slant):
    points = [[morlet(r, c, octave, angle, slant) for c in range(-reach, reach + 1)] for r in range(-reach, reach + 1)]
    bump = np.array([[point[0] for point in row] for row in points])
    wave = np.array([[point[1] for point in row] for row in points])
    return wave - wave.sum() / bump.sum() * bump


def common_factor(bank):
    """What the whole bank is multiplied by: measured at one point of the finest, most upright wavelet."""
    return float(torch.fft.ifft2(bank[0][0])[0, 0].real) / plain_wavelet(12, 0, 0.0, 0.5)[12, 12].real


@pytest.mark.parametrize(("octave", "index"), [(0, 0), (0, 3), (1, 1), (1, 6)])
def test_wavelets_equal_the_formula_at_every_point(octave, index):
    bank = wavelets((96, 80), 2, 8)
    reach = 24
    expected = common_factor(bank) * plain_wavelet(reach, octave, math.pi * index / 8, 0.5)
    rolled = torch.fft.ifft2(bank[octave][index]).roll((reach, reach), (0, 1)).numpy()
    np.testing.assert_allclose(rolled[: 2 * reach + 1, : 2 * reach + 1], expected, atol=1e-9)


@pytest.mark.parametrize(("scales", "angles"), [(1, 4), (2, 8), (3, 6), (4, 8)])
def test_the_bank_hears_no_constant_and_never_amplifies(scales, angles):
    sides = (64, 96)
    bank = torch.cat(wavelets(sides, scales, angles))
    assert float(bank[:, 0, 0].abs().max()) < 1e-12
    opposite = torch.fft.fft2(torch.fft.ifft2(bank).conj()).real
    rows, columns = (2 * math.pi * np.fft.fftfreq(side) for side in sides)
    gaussian = np.exp(-((0.8 * 2 ** (scales - 1)) ** 2) * (rows[:, None] ** 2 + columns**2))
    total = ((bank**2 + opposite**2).sum(0) / 2).numpy() + gaussian
    assert total.max() == pytest.approx(1, abs=1e-9)


def test_small_grids_hold_whole_wavelets():
    """Every period that reaches into a grid as small as the padding allows is added up."""
    small, large = wavelets((12, 12), 2, 8), wavelets((96, 96), 2, 8)
    for octave in range(2):
        folded = torch.fft.ifft2(large[octave]).unflatten(-1, (8, 12)).unflatten(-3, (8, 12)).sum((-4, -2))
        own = torch.fft.ifft2(small[octave])
        own = own * (folded[0, 0, 0] / own[0, 0, 0])
        torch.testing.assert_close(own, folded, rtol=0, atol=1e-9)


# The transform


def moduli(signal, octave, index, factor, reach, slant, step=1):
    """|signal * wavelet| on a periodic grid whose samples are ``step`` pixels apart, in plain sums."""
    wavelet = factor * plain_wavelet(reach * step, octave, math.pi * index / 8, slant)
    wavelet = wavelet[::step, ::step] * step**2
    return np.abs(convolve2d(signal, wavelet, mode="same", boundary="wrap"))


def average(signal, sides, margins, step):
    """Gaussian averages about the middle of blocks of 2**scales pixels, point by point."""
    positions = [-(-side // 2**margin) for side, margin in zip(sides, margins, strict=True)]
    result = np.zeros(positions)
    for place in np.ndindex(*positions):
        weights = np.ones(())
        for axis, index in enumerate(place):
            distance = sides[axis] / positions[axis]
            centre = (index + 0.5) * distance - 0.5 + 2 ** margins[axis]
            line = np.exp(-(((np.arange(signal.shape[axis]) * step - centre) / (0.4 * distance)) ** 2) / 2)
            weights = np.multiply.outer(weights, line / line.sum())
        result[place] = (weights * signal).sum()
    return result


@pytest.mark.parametrize(("scales", "sides"), [(2, (16, 20)), (3, (20, 33))])
def test_coefficients_equal_plain_convolutions(scales, sides):
    front = ScatteringFront(ScatteringConfig(scales=scales), (1, *sides))
    image = noise(1, 1, *sides)
    maps = front.maps(image)[0].numpy()
    margin = 2**scales
    padded = np.pad(image[0, 0].numpy(), [(margin, margin + -side % margin) for side in sides], mode="reflect")
    factor = common_factor(wavelets(padded.shape, scales, 8))
    margins = (scales, scales)
    np.testing.assert_allclose(maps[0], average(padded, sides, margins, 1), atol=1e-5)
    for octave, index in [(0, 0), (0, 5), (scales - 1, 3)]:
        expected = moduli(padded, octave, index, factor, 36, 0.5)[:: 2**octave, :: 2**octave]
        np.testing.assert_allclose(
            maps[1 + 8 * octave + index], average(expected, sides, margins, 2**octave), atol=1e-5
        )
    # Second order follows the first, in order of octaves; within a pair the first angle counts slowest.
    pairs = [(first, second) for first in range(scales) for second in range(first + 1, scales)]
    for (first, second), angles in zip(pairs, [(2, 7), (5, 0), (3, 3)], strict=False):
        step = 2**first
        inner = moduli(padded, first, angles[0], factor, 36, 0.5)[::step, ::step]
        outer = moduli(inner, second, angles[1], factor, 36 // step, 0.5, step)[
            :: 2 ** (second - first), :: 2 ** (second - first)
        ]
        channel = 1 + 8 * scales + 64 * pairs.index((first, second)) + 8 * angles[0] + angles[1]
        np.testing.assert_allclose(maps[channel], average(outer, sides, margins, 2**second), atol=1e-5)


def test_the_averaged_coefficients_of_a_smooth_image_are_the_image():
    front = ScatteringFront(ScatteringConfig(scales=2), SHAPE)
    flat = front.maps(torch.full((1, *SHAPE), 3.0))
    torch.testing.assert_close(flat[:, :1], torch.full((1, 1, 7, 7), 3.0))
    assert float(flat[:, 1:].abs().max()) < 1e-5


def test_a_wave_is_loudest_where_octave_and_angle_match():
    # 3 pi / 8 radians a pixel is the centre of octave 1; the wave runs along 45 degrees, angle 2 of 8.
    place = torch.arange(48.0)
    wave = torch.cos(3 * math.pi / 8 * (place[None] + place[:, None]) / math.sqrt(2))
    front = ScatteringFront(ScatteringConfig(scales=3, order=1), (1, 48, 48))
    energy = front.maps(wave[None, None])[0, 1:].mean((1, 2))
    assert int(energy.argmax()) == 8 * 1 + 2


@pytest.mark.parametrize(("shift", "most"), [(1, 0.25), (2, 0.45)])
def test_small_shifts_move_coefficients_less_than_pixels(shift, most):
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.normal(size=(4, 1, 40, 40)).astype(np.float32))
    front = ScatteringFront(ScatteringConfig(scales=3), (1, 32, 32))
    first, second = front.maps(image[..., 4:36, 4:36]), front.maps(image[..., 4:36, 4 + shift : 36 + shift])
    pixels = (image[..., 4:36, 4:36] - image[..., 4:36, 4 + shift : 36 + shift]).norm() / image[..., 4:36, 4:36].norm()
    # White noise moves by sqrt(2) of its norm under any shift.
    assert float(pixels) > 1.3
    assert float((first[:, 1:] - second[:, 1:]).norm() / first[:, 1:].norm()) < most


def test_a_shift_by_one_position_shifts_the_map():
    image = torch.zeros(1, 1, 48, 48)
    image[..., 18:26, 20:24] = noise(8, 4)
    front = ScatteringFront(ScatteringConfig(scales=2), (1, 48, 48))
    moved = front.maps(image.roll((4, 8), (2, 3))).roll((-1, -2), (2, 3))
    torch.testing.assert_close(moved, front.maps(image), rtol=0, atol=1e-6)


def test_a_mirrored_image_has_mirrored_coefficients_of_mirrored_angles():
    front = ScatteringFront(ScatteringConfig(scales=1, order=1), SHAPE)
    image = noise(1, *SHAPE)
    maps, mirrored = front.maps(image)[0], front.maps(image.flip(-1))[0].flip(-1)
    torch.testing.assert_close(mirrored[0], maps[0], rtol=0, atol=1e-5)
    for index in range(8):
        torch.testing.assert_close(mirrored[1 + (8 - index) % 8], maps[1 + index], rtol=0, atol=1e-5)


def test_the_transform_does_not_expand_distances():
    # Every position averages by weights with sum 1, and the weights that one sample gets from all positions add up to
    # at most 1.2 / 4**scales (1 + 2 exp(-2 pi^2 0.4^2) = 1.085 an axis): so squared distances shrink by that much.
    scales = 2
    front = ScatteringFront(ScatteringConfig(scales=scales), (1, 32, 32))
    pad = nn.ReflectionPad2d(front.padding)
    for seed in range(5):
        one, two = noise(8, 1, 32, 32, seed=seed), noise(8, 1, 32, 32, seed=seed + 50)
        ours = (front.maps(one) - front.maps(two)).square().sum((1, 2, 3)) * 4**scales
        assert bool((ours <= 1.2 * (pad(one) - pad(two)).square().sum((1, 2, 3))).all())


def test_averaging_weights_are_a_partition():
    weights = averaging(27, 4, 36, 7, 2)
    assert weights.shape == (7, 18)
    torch.testing.assert_close(weights.sum(1), torch.ones(7, dtype=torch.float64))
    assert float(weights.min()) >= 0
    smallest = weights[weights > 0].min().float()
    assert float(smallest) > torch.finfo(torch.float32).tiny


# Features and head


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23), (2, 9, 31), (1, 5, 5), (1, 64, 40)])
def test_odd_sizes_and_several_channels(shape):
    model = make(shape, classes=3)
    images = noise(2, *shape)
    assert model(images).shape == (2, 3)
    assert model.front(images).shape == (2, model.front.num_features)
    assert bool(torch.isfinite(model.front(images)).all())


def test_channels_are_transformed_one_by_one():
    images = noise(2, 3, 20, 20)
    three = ScatteringFront(ScatteringConfig(), (3, 20, 20)).maps(images)
    one = ScatteringFront(ScatteringConfig(), (1, 20, 20))
    torch.testing.assert_close(three.unflatten(1, (3, -1))[:, 1], one.maps(images[:, 1:2]))


def test_coarsen_equals_averaging_first():
    coarse = ScatteringFront(ScatteringConfig(coarsen=4), (1, 64, 80))
    plain = ScatteringFront(ScatteringConfig(), (1, 16, 20))
    images = noise(2, 1, 64, 80)
    torch.testing.assert_close(coarse(images), plain(images.reshape(2, 1, 16, 4, 20, 4).mean((3, 5))))


def test_contrast_and_brightness_do_not_change_the_features():
    front = make().front
    images = noise(3, *SHAPE)
    torch.testing.assert_close(front(0.6 * images + 1.7), front(images), rtol=0, atol=1e-3)
    assert float((front(images.square()) - front(images)).norm(dim=1).min()) > 0.5


def test_features_have_the_same_norm_for_every_image():
    front = make().front
    norms = front(noise(5, *SHAPE)).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((5,), FEATURE_NORM), rtol=1e-2, atol=0)
    assert float(front(torch.zeros(1, *SHAPE)).norm()) <= FEATURE_NORM


def test_an_image_is_answered_whatever_its_neighbours():
    model = make().double()
    with torch.no_grad():
        model.head.weight.copy_(noise(*model.head.weight.shape))
    images = noise(4, *SHAPE).double()
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-10)
    assert not mixes_examples(model.float(), SHAPE)


def test_only_the_head_is_trained_and_it_starts_at_zero():
    model = make()
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    assert all(float(parameter.detach().abs().max()) == 0 for parameter in model.parameters())


def test_the_filters_are_neither_sent_nor_saved():
    model = make()
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
    twin = make()
    with torch.no_grad():
        model.head.weight.copy_(noise(*model.head.weight.shape))
    twin.load_state_dict(model.state_dict())
    images = noise(2, *SHAPE)
    assert torch.equal(model(images), twin(images))


def test_the_head_may_read_features_computed_earlier():
    model = make()
    with torch.no_grad():
        model.head.weight.copy_(noise(*model.head.weight.shape))
    images = noise(3, *SHAPE)
    assert torch.equal(model(images), model.head(model.front(images)))


def test_per_example_gradients_are_outer_products():
    model, images, targets = make().double(), noise(4, *SHAPE).double(), torch.tensor([0, 1, 1, 0])
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(weights, image, target):
        return cross_entropy(functional_call(model, weights, (image[None],)), target[None])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, targets)
    # At zero weights both classes have probability 1/2.
    errors = 0.5 - nn.functional.one_hot(targets, 2).double()
    torch.testing.assert_close(gradients["head.bias"], errors)
    torch.testing.assert_close(gradients["head.weight"], errors[:, :, None] * model.front(images)[:, None])


def test_torch_fx_traces_it_and_the_fingerprint_tells_settings_apart():
    model = make()
    images = noise(2, *SHAPE)
    torch.testing.assert_close(fx.symbolic_trace(model)(images), model(images))
    prints = [
        architecture_hash(make(**keys), SHAPE)
        for keys in ({}, {}, {"scales": 1}, {"angles": 4}, {"positions": (5, 5)}, {"coarsen": 2}, {"order": 1})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


def test_the_default_has_the_size_its_docstring_states():
    assert sum(parameter.numel() for parameter in make().parameters()) == 7940


# Refusals


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ({}, (1, 16, 16, 16), "two spatial axes"),
        ({"scales": 3}, (1, 8, 30), "too small"),
        ({"coarsen": 8}, (1, 28, 28), "too small"),
        ({"positions": (29, 7)}, (1, 28, 28), "grid of positions"),
        ({"group": 2}, (1, 28, 28), "divide into groups"),
    ],
)
def test_what_does_not_fit_is_refused(keys, shape, message):
    with pytest.raises(ModelError, match=message):
        make(shape, **keys)
