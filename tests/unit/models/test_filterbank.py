"""Filter bank: filters against scipy, locations against the formula, what the features do not react to, the head."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import fx

from medveil.configuration import parse_config
from medveil.dp.engine import Shapes, choose
from medveil.errors import ConfigError, ModelError
from medveil.models.architecture import architecture_hash
from medveil.models.checks import mixes_examples
from medveil.models.filterbank import FilterbankConfig, FilterbankFront, derivative, locations
from medveil.models.registry import build
from medveil.training.objectives import DiceCrossEntropy, per_example_loss
from medveil.training.views import FrozenFront

SHAPE = (1, 24, 16)


def make(shape=SHAPE, classes=3, seed=0, **keys):
    return build(FilterbankConfig(**keys), input_shape=shape, num_classes=classes, seed=seed, task="segmentation")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blockwise(array, side):
    rows, columns = array.shape
    return array.reshape(rows // side, side, columns // side, side).mean((1, 3))


# Filters


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_filters_equal_those_of_scipy(sigma, order):
    signal = np.random.default_rng(0).normal(size=40)
    expected = ndimage.gaussian_filter1d(signal, sigma, order=order, mode="nearest", truncate=3.0) * sigma**order
    ours = derivative(40, sigma, order) @ torch.from_numpy(signal)
    # scipy does not take the constant out of its cut-off second derivative: 2.7 % of the Gaussian at three sigma.
    if order == 2:
        reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
        weights = np.exp(-(reach**2) / (2 * sigma**2))
        leak = float(((reach**2 / sigma**2 - 1) * weights).sum() / weights.sum())
        expected = expected - leak * ndimage.gaussian_filter1d(signal, sigma, mode="nearest", truncate=3.0)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


def test_derivatives_hear_no_constant_and_a_ramp_has_its_slope():
    inside = slice(12, 28)
    ramp = torch.arange(40, dtype=torch.float64)
    for sigma in (1.0, 4.0):
        assert float(derivative(40, sigma, 1).sum(1).abs().max()) < 1e-12
        assert float(derivative(40, sigma, 2).sum(1).abs().max()) < 1e-12
    slope = (derivative(40, 2.0, 1) @ ramp)[inside]
    # Sigma times the slope; cut off after three sigma, the filter hears 97 % of it.
    torch.testing.assert_close(slope, torch.full((16,), 2.0, dtype=torch.float64), rtol=0.04, atol=0)


def test_a_feature_is_the_block_average_of_the_filtered_image():
    image = noise(*SHAPE)[0]
    answers = FilterbankFront(FilterbankConfig(scales=3), SHAPE).filtered(image[None, None])[0].double().numpy()
    pixels = image.double().numpy()

    def filtered(array, sigma, down, right):
        once = derivative(array.shape[0], sigma, down).numpy() @ array
        return once @ derivative(array.shape[1], sigma, right).numpy().T

    np.testing.assert_allclose(answers[0], blockwise(pixels, 2), atol=1e-5)
    for scale in range(3):
        sigma, first = 2.0**scale, 1 + 7 * scale
        smooth = ndimage.gaussian_filter(pixels, sigma, mode="nearest", truncate=3.0)
        np.testing.assert_allclose(answers[first], blockwise(smooth, 2), atol=1e-5)
        for number, (down, right) in enumerate([(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]):
            expected = 2 * blockwise(filtered(pixels, sigma, down, right), 2)
            np.testing.assert_allclose(answers[first + 2 + number], expected, atol=1e-5)


def test_the_contrast_is_the_local_standard_deviation():
    front = FilterbankFront(FilterbankConfig(scales=3, coarsen=1), (1, 64, 64))
    answers = front.filtered(3 * noise(1, 1, 64, 64))[0]
    # White noise of standard deviation 3, measured over some fifty pixels (scale 2).
    assert float(answers[1 + 7 * 2 + 1].mean()) == pytest.approx(3, rel=0.05)
    assert float(front.filtered(torch.full((1, 1, 64, 64), 5.0))[0, 2].max()) < 0.05


def test_channels_are_filtered_one_by_one():
    images = noise(2, 3, 24, 16)
    three = FilterbankFront(FilterbankConfig(), (3, 24, 16)).filtered(images)
    one = FilterbankFront(FilterbankConfig(), SHAPE).filtered(images[:, 1:2])
    torch.testing.assert_close(three[:, 1::3], one)


def test_a_shift_by_one_block_shifts_what_the_filters_answer():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 28:34, 30:33] = noise(6, 3)
    front = FilterbankFront(FilterbankConfig(scales=3), (1, 64, 64))
    moved = front.filtered(image.roll((4, -2), (2, 3))).roll((-2, 1), (2, 3))
    torch.testing.assert_close(moved, front.filtered(image), rtol=0, atol=1e-5)


# Locations


def test_locations_equal_the_formula_at_every_pixel():
    maps = locations((8, 6), 1, (2, 3))
    assert maps.shape == (5 + 6, 8, 6)
    for row in range(8):
        for column in range(6):
            y, x = (row - 3.5) / 4, (column - 2.5) / 4
            bumps = [
                math.exp(-(((row - middle) / (0.7 * 4)) ** 2) / 2 - ((column - centre) / (0.7 * 2)) ** 2 / 2)
                for middle in (1.5, 5.5)
                for centre in (0.5, 2.5, 4.5)
            ]
            np.testing.assert_allclose(maps[:, row, column], [y, x, y * y, x * x, x * y, *bumps], atol=1e-12)


def test_locations_are_averaged_over_blocks():
    fine, coarse = locations((8, 12), 1, (4, 4)), locations((8, 12), 2, (4, 4))
    np.testing.assert_allclose(coarse[7], blockwise(fine[7].numpy(), 2), atol=1e-12)


# Features and head


@pytest.mark.parametrize(("shape", "coarsen"), [((1, 64, 48), 2), ((3, 9, 15), 3), ((2, 5, 7), 1), ((1, 32, 64), 4)])
def test_answers_have_the_size_of_the_image(shape, coarsen):
    model = make(shape, coarsen=coarsen)
    images = noise(2, *shape)
    assert model(images).shape == (2, 3, *shape[1:])
    assert model.front(images).shape == (2, model.front.num_features, shape[1] // coarsen, shape[2] // coarsen)


def test_before_training_every_pixel_has_the_stated_probabilities():
    answer = make(background=0.8, classes=3)(noise(2, *SHAPE)).softmax(1)
    expected = torch.tensor([0.8, 0.1, 0.1])[None, :, None, None].expand(answer.shape)
    torch.testing.assert_close(answer, expected)


def test_an_image_is_answered_whatever_its_neighbours():
    assert not mixes_examples(make(), SHAPE)


def test_only_the_head_is_trained_and_only_it_is_saved():
    model = make()
    names = [name for name, _ in model.named_parameters()]
    assert all(name.startswith("head.") for name in names)
    assert set(model.state_dict()) == set(names)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_head_may_read_features_computed_earlier():
    model = make()
    assert isinstance(model, FrozenFront)
    torch.nn.init.normal_(model.head[2].weight)
    images = noise(3, *SHAPE)
    assert torch.equal(model(images), model.head(model.front(images)))


def test_without_a_hidden_layer_logits_are_linear_in_the_features():
    model = make(hidden=0, coarsen=1)
    torch.nn.init.normal_(model.head[0].weight)
    features = model.front(noise(2, *SHAPE))
    expected = torch.einsum("kf,nfrc->nkrc", model.head[0].weight[:, :, 0, 0], features)
    expected = expected + model.head[0].bias[:, None, None]
    torch.testing.assert_close(model.head(features), expected)


def test_per_example_gradients_go_by_layer():
    model = make()
    loss = lambda logits, targets: per_example_loss(logits, targets, DiceCrossEntropy(ce_weight=0.2))  # noqa: E731
    trials = choose(model.head, loss, Shapes((111, 12, 8), (24, 16))).trials
    assert "layerwise" in {trial.method for trial in trials if not trial.reason}


def test_it_learns_a_place_and_a_texture_with_few_parameters():
    """Bright squares count only in the upper half: location and intensity must be combined."""
    generator = torch.Generator().manual_seed(0)
    images, targets = 0.3 * torch.randn(64, 1, 24, 16, generator=generator), torch.zeros(64, 24, 16, dtype=torch.int64)
    for number, (up, down, right) in enumerate(torch.randint(1, 5, (64, 3), generator=generator).tolist()):
        images[number, 0, up : up + 6, right : right + 6] += 2
        images[number, 0, 12 + down : 18 + down, right : right + 6] += 2
        targets[number, up : up + 6, right : right + 6] = 1
    model = make(classes=2)
    features = model.front(images)
    optimiser = torch.optim.Adam(model.head.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        per_example_loss(model.head(features[:48]), targets[:48], DiceCrossEntropy()).mean().backward()
        optimiser.step()
    predicted, wanted = model(images[48:]).argmax(1), targets[48:]
    dice = 2 * float((predicted * wanted).sum()) / float((predicted + wanted).sum())
    assert dice > 0.85


def test_torch_fx_traces_it_and_the_fingerprint_tells_settings_apart():
    model = make()
    images = noise(2, *SHAPE)
    torch.testing.assert_close(fx.symbolic_trace(model)(images), model(images))
    variants = ({}, {}, {"scales": 2}, {"coarsen": 1}, {"bumps": (3, 3)}, {"hidden": 0}, {"hidden": 8})
    prints = [architecture_hash(make(**keys), SHAPE) for keys in variants]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


def test_the_default_has_the_size_its_docstring_states():
    model = make()
    assert model.front.num_features == 111
    assert sum(parameter.numel() for parameter in model.parameters()) == 1843


# Refusals


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [({}, (1, 16, 16, 16), "two spatial axes"), ({"coarsen": 5}, (1, 24, 20), "divide into blocks")],
)
def test_what_does_not_fit_is_refused(keys, shape, message):
    with pytest.raises(ModelError, match=message):
        make(shape, **keys)


@pytest.mark.parametrize("keys", [{"background": 1.0}, {"scales": 0}, {"hidden": -1}, {"bumps": [0, 3]}])
def test_settings_out_of_range_are_refused(keys):
    with pytest.raises(ConfigError):
        parse_config(FilterbankConfig, {"kind": "filterbank", **keys}, where="model")
