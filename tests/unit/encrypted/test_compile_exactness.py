"""Compiled programs, evaluated on plain integers, against the networks in float64.

The simulator knows the rules of the operations and nothing of the compiler: integers, with the carries and misread
signs that shares may bring drawn at random. It asserts that no value leaves its stated bound or its ring.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from medveil.encrypted import program as ops
from medveil.encrypted.compiler.main import compile as compile_network
from medveil.models.registry import ModelConfig, build

_POOLS = {2: functional.max_pool2d, 3: functional.max_pool3d}


def simulate(program, weights, images, seed=0):
    """Integers at the program's output; images are integers, shape (N, *input)."""
    rng = np.random.default_rng(seed)
    held = {}
    for one in program.operations:
        values = [held[name] for name in one.inputs]
        result = images if isinstance(one, ops.Input) else _SIMULATED[type(one)](one, values, weights, rng)
        assert result.shape[1:] == one.shape, one.name
        largest = int(result.abs().max())
        assert largest <= one.bound * 2.0**one.scale, one.name
        assert largest < (2**30 if one.narrow else 2**47), one.name
        assert one.name not in held
        held[one.name] = result
    return held[program.output.name]


def _random_bits(rng, shape):
    return torch.from_numpy(rng.integers(0, 2, tuple(shape)))


def _linear(one, values, weights, rng):
    weight = torch.from_numpy(weights.weights[one.name])
    assert tuple(weight.shape) == one.weight_shape
    bias = torch.from_numpy(weights.biases[one.name]).reshape(-1, *(1 for _ in one.shape[1:]))
    if one.kind == "linear":
        return values[0] @ weight.T + bias
    extra = (one.output_padding,) if "transpose" in one.kind else ()
    geometry = (one.stride, one.padding, *extra, one.groups, one.dilation)
    if not extra:
        geometry = (one.stride, one.padding, one.dilation, one.groups)
    return getattr(functional, one.kind)(values[0], weight, None, *geometry) + bias


def _narrow(one, values, weights, rng):
    """One of the two integers around the quotient, at random."""
    assert 0 <= one.drop <= 16
    rest = torch.from_numpy(rng.integers(0, 2**one.drop, tuple(values[0].shape)))
    return (values[0] + rest) >> one.drop


def _dropped(values, drop, rng):
    """floor((y + rho) / 2**t) - floor(rho / 2**t): one of the two integers around the quotient."""
    rho = torch.from_numpy(rng.integers(0, 2**20, tuple(values.shape)))
    return ((values + rho) >> drop) - (rho >> drop)


def _relu(one, values, weights, rng):
    assert 0 <= one.drop <= 8
    given_values = values[0]
    assert one.limit is None or int(given_values.max()) < one.limit, "the image would be refused"
    # Whether a value of at most one unit counts as positive is left to chance.
    sure = given_values.abs() > 1
    chosen = torch.where(sure, (given_values > 0).long(), _random_bits(rng, given_values.shape))
    return chosen * _dropped(given_values, one.drop, rng)


def _rescale(one, values, weights, rng):
    return _dropped(values[0], one.drop, rng)


def _max_pool(one, values, weights, rng):
    axes = len(one.kernel)
    return _POOLS[axes](values[0].double(), one.kernel, one.stride, one.padding).long()


def _sum_pool(one, values, weights, rng):
    for axis, side in enumerate(one.kernel, start=2):
        values = [values[0].unfold(axis, side, side).sum(-1)]
    return values[0]


def _shifted(one, values):
    return [value << shift for value, shift in zip(values, one.shifts, strict=True)]


def _upsample(one, values, weights, rng):
    for axis, factor in enumerate(one.factors, start=2):
        values = [values[0].repeat_interleave(factor, axis)]
    return values[0]


_SIMULATED = {
    ops.Linear: _linear,
    ops.Narrow: _narrow,
    ops.Relu: _relu,
    ops.Rescale: _rescale,
    ops.MaxPool: _max_pool,
    ops.SumPool: _sum_pool,
    ops.Add: lambda one, values, weights, rng: sum(_shifted(one, values)),
    ops.Concat: lambda one, values, weights, rng: torch.cat(_shifted(one, values), 1),
    ops.Upsample: _upsample,
    ops.Reshape: lambda one, values, weights, rng: values[0].reshape(len(values[0]), *one.shape),
}


def reveal(compiled, images, seed=0):
    """What the hospital gets for float64 images."""
    features = images if compiled.front is None else compiled.front(images.float()).double()
    integers = (features * 2**16).round().long()
    found = simulate(compiled.program, compiled.weights, integers, seed).double()
    numbers = found / 2.0**compiled.program.output.scale * compiled.program.factor
    return numbers if compiled.back is None else compiled.back(numbers)


def _images(shape, seed=3, count=2):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _check(module, shape, task, count=2, **options):
    """Compare; returns what was compiled and the errors."""
    compiled = compile_network(module, shape, (0.0, 1.0), task=task, **options)
    images = _images(shape, count=count)
    with torch.no_grad():
        expected = module.double().eval()(images)
        errors = (reveal(compiled, images) - expected).abs()
    assert errors.shape == expected.shape
    assert errors.max() <= compiled.program.error
    assert expected.std() > 0
    return compiled, errors


def _zoo(table, shape, task):
    model = build(TypeAdapter(ModelConfig).validate_python(table), input_shape=shape, num_classes=3, seed=1, task=task)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif not bool(parameter.any()):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


_CLASSIFIERS = [
    ({"kind": "cnn"}, (1, 28, 28)),
    ({"kind": "cnn", "head": "flat", "down": "max", "coarsen": 3, "channels": [8, 8], "strides": [2, 2]}, (3, 29, 27)),
    ({"kind": "cnn", "channels": [8, 8], "strides": [2, 1]}, (2, 8, 9, 10)),
    ({"kind": "resnet9", "width": 8}, (1, 28, 28)),
    ({"kind": "resnet9", "width": 4, "down": "max"}, (1, 8, 16, 16)),
    ({"kind": "resnet18", "width": 16}, (3, 64, 64)),
    ({"kind": "resnet18", "width": 8, "stem": "large"}, (3, 64, 65)),
    ({"kind": "resnet20"}, (1, 64, 64)),
    ({"kind": "scattering"}, (1, 28, 28)),
]
_SEGMENTERS = [
    ({"kind": "unet", "width": 8, "depth": 3}, (1, 32, 32)),
    ({"kind": "unet", "width": 4, "depth": 2, "up": "nearest", "down": "average"}, (2, 8, 12, 8)),
    ({"kind": "unet", "width": 4, "depth": 1, "convs": 1, "down": "max"}, (1, 8, 8)),
    ({"kind": "monet", "width": 4}, (1, 24, 32)),
    ({"kind": "filterbank"}, (1, 48, 32)),
    ({"kind": "filterbank", "coarsen": 1, "hidden": 0}, (1, 24, 32)),
]
_ZOO = [(*each, "classification") for each in _CLASSIFIERS] + [(*each, "segmentation") for each in _SEGMENTERS]


def _name(value):
    return value["kind"] if isinstance(value, dict) else None


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_every_network_of_the_zoo_compiles_and_keeps_its_bounds(table, shape, task):
    compiled, errors = _check(_zoo(table, shape, task), shape, task, count=1 if "resnet" in table["kind"] else 2)
    measured = errors.square().mean().sqrt().item()
    assert errors.max() < 5e-3
    # An estimate: its order of magnitude is what is tested.
    assert measured < 5 * compiled.error_rms
    assert compiled.error_rms < 50 * measured
    assert compiled.error_rms <= compiled.program.error


def _normalised(*layers):
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.weight.copy_(torch.randn(module.num_features, generator=generator))
                module.bias.copy_(torch.randn(module.num_features, generator=generator))
    return model


@pytest.mark.parametrize(
    ("layers", "linears"),
    [
        ([nn.Conv2d(2, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU()], 1),
        ([nn.ConvTranspose2d(2, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6), nn.ReLU()], 1),
        ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6), nn.ReLU()], 2),
        ([nn.BatchNorm2d(2), nn.Conv2d(2, 6, 3, groups=2), nn.ReLU()], 1),
        ([nn.Conv2d(2, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()], 2),
        ([nn.BatchNorm2d(2), nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()], 2),
        ([nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 6, 2, 2), nn.ReLU()], 2),
        ([nn.ReLU(), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 6, 1)], 2),
    ],
)
def test_normalisation_folds_where_that_is_exact(layers, linears):
    torch.manual_seed(1)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3)]
    compiled, errors = _check(_normalised(*layers, *head), (2, 10, 9), "classification", activation_limit=64)
    assert len(compiled.program.linears()) == linears + 1
    assert errors.max() < 2e-3


class Small(nn.Module):
    """A conv net around one function of (features, twin), two activations of the same shape."""

    def __init__(self, function, channels=6):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(channels, 3, 1)
        self.gain = nn.Parameter(torch.tensor([-0.7]))

    def forward(self, images):
        features = functional.relu(self.first(images))
        return self.head(self.function(self, features, self.second(features)))


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda net, x, y: x + 0.2 * y, 6),
        (lambda net, x, y: x * 0.2 + y / 3, 6),
        (lambda net, x, y: torch.relu(x * 0.25 + y), 6),
        (lambda net, x, y: torch.add(x * 2, y), 6),
        (lambda net, x, y: x.mul(-1) + y * net.gain, 6),
        (lambda net, x, y: torch.cat([x, y * 3, functional.avg_pool2d(x, 1)], dim=1), 18),
        (lambda net, x, y: functional.interpolate(functional.max_pool2d(y, 2), scale_factor=2), 6),
        (lambda net, x, y: functional.avg_pool2d(y, 3, 1) + functional.avg_pool2d(x, 3, 1), 6),
        (lambda net, x, y: functional.avg_pool2d(x, 3) + functional.max_pool2d(y, 3), 6),
        (lambda net, x, y: functional.relu(functional.max_pool2d(x + y, 3, 2, 1)), 6),
        (lambda net, x, y: functional.dropout(y, 0.5, net.training).relu(), 6),
        (lambda net, x, y: functional.avg_pool2d(functional.relu(y), 3).relu() * 5, 6),
        (lambda net, x, y: x.view(x.size(0), 3, -1).reshape(x.shape[0], 6, 12, 12), 6),
        (lambda net, x, y: net.second(y), 6),
        (lambda net, x, y: functional.relu(y) + functional.relu(y * 0.3) + functional.max_pool2d(y, 3, 1, 1), 6),
        # In place: what is added afterwards is the changed value.
        (lambda net, x, y: functional.relu(y, inplace=True) + y, 6),
        (lambda net, x, y: x.mul_(0.5).add(x), 6),
    ],
)  # fmt: skip
def test_functions_and_factors(function, channels):
    torch.manual_seed(0)
    _, errors = _check(Small(function, channels), (1, 12, 12), "segmentation")
    assert errors.max() < 1e-3


def test_pooling_goes_before_relu_and_a_shared_stream_is_narrowed_once():
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 25, 2))
    compiled, _ = _check(pooled, (1, 12, 12), "classification")
    kinds = [type(each).__name__ for each in compiled.program.operations]
    assert kinds == ["Input", "Linear", "Narrow", "MaxPool", "Relu", "Reshape", "Linear"]
    shared, _ = _check(Small(lambda net, x, y: y.relu() + net.second(y)), (1, 12, 12), "segmentation")
    # After each of both convolutions, and of the sum; not once for ReLU and once more for the linear layer.
    assert sum(isinstance(each, ops.Narrow) for each in shared.program.operations) == 3


def test_the_module_is_left_as_it_was():
    model = _normalised(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(2 * 36, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_network(model, (1, 8, 8), (0.0, 1.0))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


_LAYERS = st.lists(
    st.sampled_from(
        ["conv", "strided", "grouped", "relu", "max", "mean", "mean3", "up", "norm", "wider", "id", "half"]
    ),
    min_size=1,
    max_size=7,
)


class _Half(nn.Module):
    def forward(self, values):
        return values * 0.3


def _layer(kind, sides):
    """A layer of six channels and what it does to the sides, or None where it does not fit."""
    made = {
        "conv": (lambda: nn.Conv2d(6, 6, 3, padding=1), lambda n: n),
        "strided": (lambda: nn.Conv2d(6, 6, 3, 2, 1, dilation=1), lambda n: (n + 1) // 2),
        "grouped": (lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3), lambda n: n),
        "relu": (nn.ReLU, lambda n: n),
        "max": (lambda: nn.MaxPool2d(2), lambda n: n // 2),
        "mean": (lambda: nn.AvgPool2d(2), lambda n: n // 2),
        "mean3": (lambda: nn.AvgPool2d(3), lambda n: n // 3),
        "up": (lambda: nn.Upsample(scale_factor=2), lambda n: 2 * n),
        "norm": (lambda: nn.BatchNorm2d(6), lambda n: n),
        "wider": (lambda: nn.ConvTranspose2d(6, 6, 4, 2, 1), lambda n: 2 * n),
        "id": (nn.Identity, lambda n: n),
        "half": (_Half, lambda n: n),
    }
    make, change = made[kind]
    after = tuple(change(side) for side in sides)
    return (make(), after) if min(after) > 0 and max(after) <= 24 else None


@given(_LAYERS, st.integers(0, 2**16), st.tuples(st.integers(5, 9), st.integers(5, 9)))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_sequences_stay_within_the_certified_error(kinds, seed, sides):
    torch.manual_seed(seed)
    layers, now = [nn.Conv2d(2, 6, 3, padding=1)], sides
    for kind in kinds:
        found = _layer(kind, now)
        if found:
            layers.append(found[0])
            now = found[1]
    _check(_normalised(*layers), (2, *sides), "segmentation", activation_limit=4096)
