"""Sites refuse another structure than the approved one, and weights that were made to copy images."""

import copy

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from medveil.errors import GuaranteeError, ModelError
from medveil.models.architecture import architecture_hash
from medveil.models.crafted import check_architecture, check_weights_not_crafted
from medveil.models.registry import ModelConfig, build

SHAPE = (1, 16, 16)
_ZOO = [
    {"kind": "cnn"},
    {"kind": "cnn", "head": "flat"},
    {"kind": "cnn", "norm": "group", "activation": "silu"},
    {"kind": "resnet9", "width": 4},
    {"kind": "resnet18", "width": 4},
    {"kind": "resnet20", "width": 4},
    {"kind": "scattering"},
    {"kind": "filterbank"},
    {"kind": "unet", "width": 4, "depth": 2},
    {"kind": "monet", "width": 4},
]


def _make(table, shape=SHAPE, classes=10):
    return build(TypeAdapter(ModelConfig).validate_python(table), input_shape=shape, num_classes=classes, seed=0)


def images(count=64, seed=0):
    """Bright discs at random places."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    places = torch.rand(count, 3, 1, 1, generator=draw)
    distance = (rows - places[:, 0] + 0.5) ** 2 + (columns - places[:, 1] + 0.5) ** 2
    return (torch.exp(-8 * distance) * (0.5 + places[:, 2]))[:, None] + 0.05 * torch.rand(count, *SHAPE, generator=draw)


class Ladder(nn.Module):
    """The published imprint, written anew: equal rows, cut-offs at quantiles of the brightness."""

    def __init__(self, model, units=64):
        super().__init__()
        self.model = model
        self.first = nn.Linear(256, units)
        brightness = images(500, seed=9).flatten(1).mean(1)
        with torch.no_grad():
            self.first.weight.fill_(1 / 256)
            self.first.bias.copy_(-torch.quantile(brightness, torch.linspace(0, 1, units + 2)[1:-1]))

    def forward(self, inputs):
        active = torch.relu(self.first(inputs.flatten(1))).sum(1)
        return self.model(inputs + active.view(-1, 1, 1, 1))


def mlp(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def traps():
    """A first layer each of whose units fires for few images: random rows under very negative biases."""
    made = mlp()
    with torch.no_grad():
        answers = images(500, seed=9).flatten(1) @ made[1].weight.T
        made[1].bias.copy_(-torch.quantile(answers, 0.97, dim=0))
    return made


@pytest.mark.parametrize("units", [16, 64, 512])
def test_the_imprint_is_refused(units):
    model = Ladder(_make({"kind": "cnn"}), units)
    with pytest.raises(GuaranteeError, match="layer first of"):
        check_weights_not_crafted(model, images())


def test_it_is_refused_with_scaled_and_slightly_noisy_rows_too():
    model = Ladder(_make({"kind": "cnn"}))
    with torch.no_grad():
        factors = torch.linspace(0.01, 5, 64)
        model.first.weight.mul_(factors[:, None]).add_(torch.randn_like(model.first.weight) * 1e-6)
        model.first.bias.mul_(factors)
    with pytest.raises(GuaranteeError):
        check_weights_not_crafted(model, images())


def test_trap_weights_are_refused():
    with pytest.raises(GuaranteeError, match="layer 1 of 64 units"):
        check_weights_not_crafted(traps(), images())


def test_noise_in_place_of_images_finds_the_ladder_too():
    with pytest.raises(GuaranteeError):
        check_weights_not_crafted(Ladder(_make({"kind": "cnn"})), torch.rand(64, *SHAPE))


@pytest.mark.parametrize("table", _ZOO, ids=str)
def test_the_zoo_passes_at_its_first_weights(table):
    for layer in check_weights_not_crafted(_make(table), images()):
        assert not layer.suspicious


@pytest.mark.parametrize("make", [mlp, lambda: _make({"kind": "cnn", "head": "flat"})], ids=["mlp", "cnn"])
def test_trained_weights_pass(make):
    model, data = make(), images(256, seed=3)
    targets = (data.flatten(1).mean(1) > data.mean()).long() * 9  # two of ten classes: one direction in the last layer
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(data), targets)
        loss.backward()
        optimiser.step()
    assert loss < 0.3
    layers = check_weights_not_crafted(model, images())
    assert all(layer.parallel < 0.9 and layer.single < 0.5 for layer in layers)


def test_what_is_measured_of_independent_and_of_equal_rows():
    """Independent rows: each of k singular values explains about 1/k. Equal rows: one explains all."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(256)[:16])
    (layer,) = check_weights_not_crafted(model, torch.rand(256, *SHAPE))
    assert layer.path == "1"
    assert layer.units == 16
    assert 1 / 16 <= layer.parallel < 2 / 16


def test_the_model_is_left_as_it_was():
    model = mlp()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    check_weights_not_crafted(model, images())
    assert [module.training for module in model] == [True, True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_a_refusal():
    model = Ladder(_make({"kind": "cnn"}))
    with pytest.raises(GuaranteeError):
        check_weights_not_crafted(model, images())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("inputs", "words"), [(torch.rand(15, *SHAPE), "Too few"), (torch.ones(32, *SHAPE), "all the same")]
)
def test_inputs_that_tell_nothing(inputs, words):
    with pytest.raises(ModelError, match=words):
        check_weights_not_crafted(mlp(), inputs)


def test_weights_that_answer_nan_are_refused():
    model = mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        check_weights_not_crafted(model, images())


def test_only_the_approved_structure_passes():
    approved = architecture_hash(_make({"kind": "cnn"}), SHAPE)
    check_architecture(
        build(TypeAdapter(ModelConfig).validate_python({"kind": "cnn"}), input_shape=SHAPE, num_classes=10, seed=5),
        SHAPE,
        approved,
    )
    for other in (
        _make({"kind": "cnn", "head": "flat"}),
        _make({"kind": "cnn"}, classes=3),
        Ladder(_make({"kind": "cnn"})),
    ):
        with pytest.raises(GuaranteeError, match="not the one that was approved"):
            check_architecture(other, SHAPE, approved)
