"""Equal structures share a hash; every change of structure changes it."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from medveil.models.architecture import architecture_hash, describe_architecture
from medveil.models.layers import fold
from medveil.models.registry import ModelConfig, build

_SHAPE = (1, 16, 16)


def _zoo_hash(seed=0, shape=_SHAPE, classes=2, **table):
    config = TypeAdapter(ModelConfig).validate_python(table)
    return architecture_hash(build(config, input_shape=shape, num_classes=classes, seed=seed), shape)


_CNN = {"kind": "cnn", "channels": [4, 8], "strides": [2, 1]}
_UNET = {"kind": "unet", "width": 4, "depth": 2}
_VARIANTS = [
    _CNN,
    _CNN | {"channels": [4, 9]},
    _CNN | {"strides": [1, 2]},
    _CNN | {"norm": "group"},
    _CNN | {"norm": "instance"},
    _CNN | {"activation": "silu"},
    _CNN | {"down": "average"},
    _CNN | {"down": "max"},
    _CNN | {"head": "flat"},
    {"kind": "resnet9", "width": 4},
    {"kind": "resnet9", "width": 4, "alpha": 0.3},
    {"kind": "resnet9", "width": 4, "down": "max"},
    {"kind": "resnet18", "width": 4},
    {"kind": "resnet18", "width": 4, "stem": "large"},
    {"kind": "resnet20", "width": 4},
    _UNET,
    _UNET | {"depth": 1},
    _UNET | {"convs": 1},
    _UNET | {"up": "nearest"},
    {"kind": "monet", "width": 4},
    {"kind": "monai", "name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
    {"kind": "monai", "name": "UNet", "arguments": {"channels": [4, 8], "strides": [2], "dropout": 0.2}},
    {"kind": "monai", "name": "UNet", "arguments": {"channels": [4, 8], "strides": [2], "norm": "BATCH"}},
]


def test_every_configuration_has_a_hash_of_its_own():
    hashes = [_zoo_hash(**table) for table in _VARIANTS]
    for (i, a), (j, b) in itertools.combinations(enumerate(hashes), 2):
        assert a != b, (_VARIANTS[i], _VARIANTS[j])


@pytest.mark.parametrize("table", _VARIANTS[::5])
def test_weights_and_mode_do_not_count(table):
    model = build(TypeAdapter(ModelConfig).validate_python(table), input_shape=_SHAPE, num_classes=2, seed=0)
    assert architecture_hash(model.eval(), _SHAPE) == _zoo_hash(seed=9, **table)


def test_image_shape_and_classes_count():
    assert len({_zoo_hash(**_CNN), _zoo_hash(**_CNN, shape=(1, 16, 18)), _zoo_hash(**_CNN, classes=3)}) == 3


def test_folding_changes_the_hash():
    model = build(TypeAdapter(ModelConfig).validate_python(_CNN), input_shape=_SHAPE, num_classes=2, seed=0)
    assert architecture_hash(fold(model), _SHAPE) != architecture_hash(model, _SHAPE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1)),
        (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, dilation=2)),
        (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, stride=2)),
        (nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
        (nn.GroupNorm(1, 2), nn.GroupNorm(1, 2, eps=1e-3)),
        (nn.ReLU(), nn.GELU()),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.Linear(2, 2), nn.Linear(2, 2).double()),
        (nn.MaxPool2d(2), nn.AvgPool2d(2)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
    ],
)
def test_hyper_parameters_without_weights_count(one, other):
    assert architecture_hash(nn.Sequential(one), _SHAPE) != architecture_hash(nn.Sequential(other), _SHAPE)


class _Forward(nn.Module):
    """Equal modules, another order of operations: only the traced graph tells them apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.second(self.first(x))


def test_the_order_of_operations_counts(monkeypatch):
    seen = {architecture_hash(_Forward(), (2,))}
    for forward in (
        lambda self, x: self.first(self.second(x)),
        lambda self, x: self.second(functional.relu(self.first(x))),
        lambda self, x: self.second(2.0 * self.first(x)),
        lambda self, x: self.second(3.0 * self.first(x)),
        lambda self, x: self.second(self.first(x)) + x,
        lambda self, x: self.second(self.first(x))[:, 0:1],
        lambda self, x: self.second(self.first(x))[:, 1:2],
    ):
        monkeypatch.setattr(_Forward, "forward", forward)
        seen.add(architecture_hash(_Forward(), (2,)))
    assert len(seen) == 8


def test_a_hook_or_another_forward_on_one_instance_counts():
    plain, hooked, replaced = _Forward(), _Forward(), _Forward()
    hooked.first.register_forward_hook(lambda *_: None)
    replaced.first.forward = functional.relu
    assert len({architecture_hash(model, (2,)) for model in (plain, hooked, replaced)}) == 3


class _Untraceable(nn.Module):
    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return x if x.sum() > self.threshold else -x


def test_networks_that_cannot_be_traced_have_a_hash_without_graph():
    assert describe_architecture(_Untraceable(1.0), (2,))["graph"] is None
    assert architecture_hash(_Untraceable(1.0), (2,)) == architecture_hash(_Untraceable(1.0), (2,))
    assert architecture_hash(_Untraceable(1.0), (2,)) != architecture_hash(_Untraceable(2.0), (2,))


def test_another_process_finds_the_same_hash():
    code = (
        "from medveil.models.cnn import CnnConfig; from medveil.models.registry import build;"
        "from medveil.models.architecture import architecture_hash;"
        "print(architecture_hash(build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=4), (1, 28, 28)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == _zoo_hash(kind="cnn", shape=(1, 28, 28))


def test_hashing_draws_no_random_numbers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    architecture_hash(model, (2,))
    assert torch.equal(torch.rand(1), expected)


def test_looking_at_a_network_does_not_change_its_hash():
    """torch.fx leaves the constants that it meets in a module that it traces."""
    config = TypeAdapter(ModelConfig).validate_python({"kind": "scattering"})
    model = build(config, input_shape=(1, 28, 28), num_classes=2, seed=0)
    attributes = set(vars(model))
    hashes = {architecture_hash(model, (1, 28, 28)) for _ in range(3)}
    assert hashes == {architecture_hash(copy.deepcopy(model), (1, 28, 28))}
    assert set(vars(model)) == attributes
