"""Every layer rule against autograd on single examples, in double precision, over the layer's options."""

import pytest
import torch
from torch import nn

from medveil.dp import conv_rules
from medveil.dp.layer_rules import rule_of
from medveil.dp.layerwise import by_layer
from medveil.dp.rows import side_by_side
from medveil.models.standardised import ScaledStdConv, ScaledStdConvTranspose

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear over tokens": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 7, 6)),
    "conv2d strided": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), bias=False), (2, 8, 9)),
    "conv2d dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2), (2, 9, 7)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (4, 7, 7)),
    "conv2d by channel": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 5)),
    "conv2d 1x1": (lambda: nn.Conv2d(3, 4, 1), (3, 5, 5)),
    "conv2d that leaves pixels over": (lambda: nn.Conv2d(2, 3, 3, stride=3), (2, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (2, 4, 5, 6)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(3, 2, 2, stride=2), (3, 4, 5)),
    "transposed 2d with all": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2),
        (4, 4, 5),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 4, stride=2, padding=1, bias=False), (2, 3, 2, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 5, 4)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 6), (6,)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 5, 4)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(3, affine=True, eps=0.1), (3, 2, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm(5), (4, 5)),
    "layer norm over maps": (lambda: nn.LayerNorm((4, 5)), (3, 4, 5)),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), (5,)),
    "prelu": (nn.PReLU, (3, 5, 4)),
    "prelu by channel": (lambda: nn.PReLU(3), (3, 5, 4)),
    "prelu of vectors": (lambda: nn.PReLU(3), (3,)),
    "standardised": (lambda: ScaledStdConv(2, 2, 3, 3, stride=2, padding=2, dilation=2, scale=1.7), (2, 9, 8)),
    "standardised 3d": (lambda: ScaledStdConv(3, 2, 3, 3, padding=1), (2, 3, 4, 3)),
    "standardised transposed": (lambda: ScaledStdConvTranspose(2, 3, 2, 4, scale=1.3), (3, 4, 5)),
    "standardised transposed 3d": (lambda: ScaledStdConvTranspose(3, 3, 2, 2), (3, 2, 2, 3)),
}


def _case(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    with torch.no_grad():
        for tensor in layer.parameters():  # no special values: biases are not 0, gains not 1
            tensor.add_(0.3 * torch.randn_like(tensor))
    # A layer before it, so that the gradient at the input is tried as well.
    model = nn.Sequential(nn.LayerNorm(shape[-1]).double(), layer)
    images = torch.randn(4, *shape, dtype=torch.float64)
    weights = torch.randn_like(model(images))
    return model, images, weights


def _loss(outputs, weights):
    return (outputs.square() * weights).sum()


def _expected(model, images, weights):
    rows = []
    for image, weight in zip(images, weights, strict=True):
        model.zero_grad()
        _loss(model(image[None]), weight[None]).backward()
        rows.append([tensor.grad.clone() for tensor in model.parameters()])
    return [torch.stack(each) for each in zip(*rows, strict=True)]


@pytest.fixture(params=["by grouping", "by patches", "in blocks of one"])
def _every_way(request, monkeypatch):
    if request.param == "by patches":
        monkeypatch.setattr(conv_rules, "_FEW_POSITIONS", 10**9)
        monkeypatch.setattr(conv_rules, "_MANY_WEIGHTS", 0)
    if request.param == "in blocks of one":
        monkeypatch.setattr(conv_rules, "_BLOCK_BYTES", 1)


@pytest.mark.usefixtures("_every_way")
@pytest.mark.parametrize("name", LAYERS)
def test_a_rule_equals_autograd_on_single_examples(name):
    model, images, weights = _case(name)
    for got, expected in zip(by_layer(model, _loss, images, weights), _expected(model, images, weights), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_a_rule_keeps_the_layers_answer(name):
    model, images, _ = _case(name)
    answer, _ = rule_of(model[1]).run(images)
    torch.testing.assert_close(answer, model[1](images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_each_parameter_can_be_frozen_alone(name):
    model, images, weights = _case(name)
    expected = _expected(model, images, weights)
    for index, frozen in enumerate(model.parameters()):
        frozen.requires_grad_(False)
        rest = [rows for place, rows in enumerate(expected) if place != index]
        for got, wanted in zip(by_layer(model, _loss, images, weights), rest, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
        frozen.requires_grad_(True)


class _OwnConv(nn.Conv2d):
    """May compute anything."""


@pytest.mark.parametrize(
    "layer",
    [
        _OwnConv(1, 2, 3),
        nn.Conv2d(1, 2, 3, padding_mode="circular"),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.BatchNorm2d(2),
        nn.LSTM(2, 2),
        nn.MultiheadAttention(4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_have_no_rule(layer):
    assert rule_of(layer) is None


def test_a_constant_filter_has_a_finite_gradient():
    model = nn.Sequential(ScaledStdConv(2, 1, 2, 3)).double()
    nn.init.constant_(model[0].weight, 0.5)
    images = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    weights = torch.randn_like(model(images))
    got, expected = by_layer(model, _loss, images, weights), _expected(model, images, weights)
    for rows, wanted in zip(got, expected, strict=True):
        assert rows.isfinite().all()
        torch.testing.assert_close(rows, wanted, rtol=1e-8, atol=1e-9)


def test_single_positions_are_refused_by_instance_normalisation_as_in_torch():
    model = nn.Sequential(nn.InstanceNorm2d(2, affine=True))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        by_layer(model, _loss, torch.randn(2, 2, 1, 1), torch.randn(2, 2, 1, 1))


class _Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self._dtype = dtype

    def forward(self, images):
        return images.to(self._dtype)


def test_gradients_of_one_dtype_are_side_by_side_and_dtypes_stay_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), _Cast(torch.float64), nn.Linear(4, 2).double())
    images, weights, pool = torch.randn(5, 3), torch.randn(5, 2, dtype=torch.float64), {}
    for count in (3, 5, 4):
        got = by_layer(model, _loss, images[:count], weights[:count], pool=pool)
        expected = _expected(model, images[:count], weights[:count])
        for rows, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-6)
        assert [rows.shape for rows in side_by_side([rows.flatten(1) for rows in got])] == [(count, 17), (count, 10)]
    assert {held.shape for held in pool.values()} == {(5, 17), (5, 10)}
