"""Standardised convolutions against NumPy, and folding against the unfolded layer."""

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from medveil.errors import ModelError
from medveil.models.layers import GAIN, Family, ScaledStdConv, ScaledStdConvTranspose, fold
from medveil.models.standardised import standardise

_FUNCTIONS = {
    "relu": lambda z: max(z, 0.0),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "elu": lambda z: z if z > 0 else np.exp(z) - 1,
}


def _standardised_by_numpy(weight, gain, scale):
    """Filter by filter, in float64, as the docstring's formula reads."""
    rows = []
    for row, factor in zip(weight.astype(np.float64), gain.ravel().astype(np.float64), strict=True):
        rows.append(factor * scale * (row - row.mean()) / np.sqrt(len(row) * row.var() + 1e-4))
    return np.stack(rows)


@pytest.mark.parametrize("activation", sorted(GAIN))
def test_gain_is_the_inverse_standard_deviation_of_the_activation(activation):
    function = _FUNCTIONS[activation]
    mean = quad(lambda z: function(z) * norm.pdf(z), -12, 12, points=[0])[0]
    square = quad(lambda z: function(z) ** 2 * norm.pdf(z), -12, 12, points=[0])[0]
    assert GAIN[activation] == pytest.approx(1 / np.sqrt(square - mean**2), rel=1e-8)


@pytest.mark.parametrize(("out", "fan_in", "scale"), [(1, 2, 1.0), (5, 9, 1.7), (16, 288, 0.3)])
def test_standardise_equals_the_formula(out, fan_in, scale):
    generator = np.random.default_rng(0)
    weight = generator.normal(0.3, 0.2, (out, fan_in)).astype(np.float32)
    gain = generator.uniform(0.5, 2, (out, 1)).astype(np.float32)
    ours = standardise(torch.from_numpy(weight), torch.from_numpy(gain), scale).numpy()
    np.testing.assert_allclose(ours, _standardised_by_numpy(weight, gain, scale), rtol=1e-4, atol=1e-6)


def test_constant_filters_become_zero_and_stay_finite():
    ours = standardise(torch.full((3, 8), 0.7), torch.ones(3, 1), 1.0)
    assert torch.equal(ours, torch.zeros(3, 8))


def test_adding_a_constant_to_the_weights_changes_nothing():
    torch.manual_seed(0)
    layer = ScaledStdConv(2, 3, 4, 3, padding=1).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = layer(images)
    with torch.no_grad():
        layer.weight.add_(0.5)
    torch.testing.assert_close(layer(images), before)


def _brute_force_conv(images, weight, bias, stride, padding, dilation):
    """Convolution by loops, two spatial axes."""
    images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    taps = dilation * (weight.shape[2] - 1) + 1
    rows = (images.shape[2] - taps) // stride + 1
    columns = (images.shape[3] - taps) // stride + 1
    answer = np.empty((len(images), len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            window = images[:, :, top : top + taps : dilation, left : left + taps : dilation]
            answer[:, :, row, column] = np.einsum("nchw,ochw->no", window, weight) + bias
    return answer


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 3, 3)])
def test_convolution_equals_loops_over_numpy_weights(stride, padding, dilation):
    generator = np.random.default_rng(1)
    layer = ScaledStdConv(2, 2, 3, 3, stride=stride, padding=padding, dilation=dilation, scale=1.5).double()
    with torch.no_grad():
        layer.gain.copy_(torch.from_numpy(generator.uniform(0.5, 2, (3, 1))))
        layer.bias.copy_(torch.from_numpy(generator.normal(size=3)))
    images = generator.normal(size=(2, 2, 9, 8))
    flat = _standardised_by_numpy(layer.weight.detach().flatten(1).numpy(), layer.gain.detach().numpy(), layer.scale)
    weight = flat.reshape(layer.weight.shape)
    expected = _brute_force_conv(images, weight, layer.bias.detach().numpy(), stride, padding, dilation)
    np.testing.assert_allclose(layer(torch.from_numpy(images)).detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_transposed_convolution_doubles_axes_and_keeps_unit_variance(dims, kernel):
    torch.manual_seed(0)
    layer = ScaledStdConvTranspose(dims, 24, 32, kernel)
    images = torch.randn(2, 24, *(12,) * dims)
    answer = layer(images).detach()
    assert answer.shape == (2, 32, *(24,) * dims)
    assert 0.85 < float(answer.var()) < 1.1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("make", ["conv", "transposed"])
def test_fold_gives_the_same_answer_from_a_plain_layer(dims, make):
    torch.manual_seed(3)
    layer = (
        ScaledStdConv(dims, 3, 5, 3, stride=2, padding=2, dilation=2, scale=1.3)
        if make == "conv"
        else ScaledStdConvTranspose(dims, 3, 5, 4, scale=1.3)
    )
    with torch.no_grad():
        layer.gain.uniform_(0.5, 2)
        layer.bias.normal_()
    plain = fold(layer)
    assert type(plain).__module__ == "torch.nn.modules.conv"
    images = torch.randn(2, 3, *(9,) * dims)
    torch.testing.assert_close(plain(images), layer(images), rtol=1e-5, atol=1e-5)


def test_fold_leaves_the_model_alone_and_keeps_mode_and_dtype():
    model = nn.Sequential(ScaledStdConv(2, 2, 3, 3), nn.ReLU()).double().eval()
    before = copy.deepcopy(model.state_dict())
    plain = fold(model)
    assert isinstance(model[0], ScaledStdConv)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert plain[0].weight.dtype == torch.float64
    assert not any(module.training for module in plain.modules())
    with torch.no_grad():
        plain[0].weight.zero_()
    assert float(model[0].weight.detach().abs().sum()) > 0


def test_fold_keeps_a_layer_that_stands_in_two_places_one_layer():
    shared = ScaledStdConv(2, 2, 2, 3, padding=1)
    plain = fold(nn.Sequential(shared, nn.ReLU(), shared))
    assert plain[0] is plain[2]
    assert isinstance(plain[0], nn.Conv2d)


def test_a_single_weight_cannot_be_standardised():
    with pytest.raises(ModelError, match="single weight"):
        ScaledStdConv(2, 1, 4, 1)
    with pytest.raises(ModelError, match="single weight"):
        ScaledStdConvTranspose(2, 1, 4, 2)


def test_transposed_convolution_refuses_kernels_that_do_not_double():
    with pytest.raises(ModelError, match="double"):
        ScaledStdConvTranspose(2, 4, 4, 3)
    with pytest.raises(ModelError, match="double"):
        Family(2, "group", "relu").conv_transpose(4, 4, 3)


@pytest.mark.parametrize("norm_name", ["ws", "group", "instance"])
@pytest.mark.parametrize("down", ["stride", "average", "max"])
@pytest.mark.parametrize("dims", [2, 3])
def test_halving_conv_halves_every_axis(norm_name, down, dims):
    block = Family(dims, norm_name, "relu").halving_conv(2, 8, down)
    assert block(torch.zeros(1, 2, *(8,) * dims)).shape == (1, 8, *(4,) * dims)
