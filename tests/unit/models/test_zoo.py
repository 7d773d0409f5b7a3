"""Every network of the zoo: shapes, seeds, structure, refusals and signal propagation."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import fx, nn

from medveil.errors import ConfigError, ModelError
from medveil.models.checks import buffers, describe_hazards, mixes_examples
from medveil.models.cnn import CnnConfig
from medveil.models.layers import ScaledStdConv, ScaledStdConvTranspose, fold
from medveil.models.monet import MonetConfig
from medveil.models.registry import ModelConfig, build
from medveil.models.resnet import ResidualBlock, Resnet9Config, Resnet18Config, Resnet20Config
from medveil.models.unet import UnetConfig
from medveil.rng import Seeds

_CLASSIFIERS = [
    ({"kind": "cnn"}, (1, 28, 28)),
    ({"kind": "cnn", "head": "flat", "down": "max", "channels": [8, 8], "strides": [2, 2]}, (3, 15, 14)),
    ({"kind": "cnn", "channels": [8, 8], "strides": [2, 1]}, (2, 8, 9, 10)),
    ({"kind": "resnet9", "width": 4}, (1, 28, 28)),
    ({"kind": "resnet9", "width": 4, "down": "max"}, (1, 8, 16, 16)),
    ({"kind": "resnet18", "width": 4}, (3, 32, 32)),
    ({"kind": "resnet18", "width": 4, "stem": "large", "activation": "silu"}, (1, 64, 65)),
    ({"kind": "resnet20", "width": 4}, (1, 28, 28)),
]
_SEGMENTERS = [
    ({"kind": "unet", "width": 4, "depth": 2}, (1, 24, 32)),
    ({"kind": "unet", "width": 4, "depth": 2, "up": "nearest", "down": "average"}, (2, 8, 12, 8)),
    ({"kind": "unet", "width": 4, "depth": 1, "convs": 1, "down": "max"}, (1, 8, 8)),
    ({"kind": "monet", "width": 4}, (1, 24, 32)),
    ({"kind": "monet", "width": 4, "depth": 1, "activation": "elu"}, (1, 8, 8, 8)),
]
_ZOO = [(table, shape, "classification") for table, shape in _CLASSIFIERS] + [
    (table, shape, "segmentation") for table, shape in _SEGMENTERS
]
_PLAIN = (
    nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Flatten, nn.Upsample,
    nn.ReLU, nn.SiLU, nn.ELU, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip


def _config(table, norm="ws"):
    return TypeAdapter(ModelConfig).validate_python({**table, "norm": norm})


def _make(table, shape, norm="ws", seed=0, classes=3):
    return build(_config(table, norm), input_shape=shape, num_classes=classes, seed=seed)


def _name(value):
    return value["kind"] if isinstance(value, dict) else None


@pytest.fixture(params=["ws", "group", "instance"])
def norm(request):
    return request.param


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_logits_have_the_shape_of_the_task(table, shape, task, norm):
    model = build(_config(table, norm), input_shape=shape, num_classes=3, seed=0, task=task)
    positions = shape[1:] if task == "segmentation" else ()
    assert model.training
    answer = model(torch.randn(2, *shape))
    assert answer.shape == (2, 3, *positions)
    assert answer.dtype == torch.float32


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_the_wrong_task_is_refused(table, shape, task):
    other = "segmentation" if task == "classification" else "classification"
    with pytest.raises(ModelError, match="does not fit the task"):
        build(_config(table), input_shape=shape, num_classes=3, seed=0, task=other)


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_nothing_in_the_zoo_stands_in_the_way_of_private_training(table, shape, task, norm):
    model = _make(table, shape, norm)
    assert describe_hazards(model) == ()
    assert buffers(model) == {}
    assert not mixes_examples(model, shape)


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_seeds_decide_the_weights_and_nothing_else_does(table, shape, task, norm):
    torch.manual_seed(11)
    first = _make(table, shape, norm, seed=5).state_dict()
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(1)), "the global generator moved"
    second = _make(table, shape, norm, seed=5).state_dict()
    other = _make(table, shape, norm, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [name for name, tensor in first.items() if tensor.unique().numel() > 1]
    assert len(drawn) > 2
    assert all(not torch.equal(first[name], other[name]) for name in drawn)


def test_a_node_of_seeds_is_its_integer():
    node = Seeds(3).child("model")
    by_node = _make({"kind": "cnn"}, (1, 28, 28), seed=node)
    by_integer = _make({"kind": "cnn"}, (1, 28, 28), seed=node.integer())
    pairs = zip(by_node.parameters(), by_integer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_folded_networks_are_equal_and_plain(table, shape, task):
    model = _make(table, shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    plain = fold(model)
    leaves = [module for module in plain.modules() if not list(module.children())]
    assert all(type(leaf) in _PLAIN for leaf in leaves)
    assert any(isinstance(leaf, ScaledStdConv | ScaledStdConvTranspose) for leaf in model.modules())
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(plain(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("table", "shape", "task"), _ZOO, ids=_name)
def test_torch_fx_traces_model_and_folded_model(table, shape, task, norm):
    model = _make(table, shape, norm)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    for candidate in (model, fold(model)):
        traced = fx.symbolic_trace(candidate)
        torch.testing.assert_close(traced(images), model(images), rtol=1e-5, atol=1e-5)


def test_default_cnn_has_the_size_its_docstring_states():
    model = build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 60530


def test_monet_has_the_size_of_the_published_net():
    # Weights of convolutions alone: counted from the published plan (depth 2, 16 filters, no biases).
    model = build(MonetConfig(norm="group"), input_shape=(1, 256, 256), num_classes=2, seed=0)
    ours = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 4 and not n.startswith("head"))
    block = lambda c: 4 * 9 * c * c  # noqa: E731
    encoder = (9 * 16 + block(16) + 16 * 16 * 16) + (9 * 16 * 32 + block(32) + 16 * 32 * 32)
    bottom = 9 * 32 * 64 + block(64)
    decoder = (16 * 64 * 64 + 9 * 96 * 32 + block(32)) + (16 * 32 * 32 + 9 * 48 * 16 + block(16))
    assert ours == encoder + bottom + decoder


def test_global_head_reads_other_sizes_and_flat_head_does_not():
    model = _make({"kind": "cnn"}, (1, 28, 28))
    assert model(torch.zeros(1, 1, 40, 33)).shape == (1, 3)
    flat = _make({"kind": "cnn", "head": "flat"}, (1, 28, 28))
    with pytest.raises(RuntimeError):
        flat(torch.zeros(1, 1, 40, 33))


@pytest.mark.parametrize("kind", ["unet", "monet"])
def test_images_that_do_not_halve_are_refused_with_the_sizes_that_would(kind):
    with pytest.raises(ModelError, match=r"pad or resize to \(32, 36\)"):
        build(_config({"kind": kind, "depth": 2}), input_shape=(1, 30, 33), num_classes=2, seed=0)


@pytest.mark.parametrize(
    ("table", "shape"),
    [
        ({"kind": "cnn", "down": "max", "strides": [2, 2, 2, 2]}, (1, 8, 8)),
        ({"kind": "resnet9", "width": 4, "down": "max"}, (1, 4, 4)),
        # One position left: the mean over it is the value itself, and every answer would be the same.
        ({"kind": "resnet9", "width": 4, "norm": "instance"}, (1, 8, 8)),
    ],
)
def test_images_that_shrink_to_nothing_are_refused(table, shape):
    config = TypeAdapter(ModelConfig).validate_python(table)
    with pytest.raises(ModelError):
        build(config, input_shape=shape, num_classes=3, seed=0)


@pytest.mark.parametrize("shape", [(28, 28), (1, 2, 3, 4, 5), (1, 0, 28), (1,)])
def test_shapes_of_no_image_are_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        build(CnnConfig(), input_shape=shape, num_classes=2, seed=0)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="classes"):
        build(CnnConfig(), input_shape=(1, 28, 28), num_classes=1, seed=0)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "vgg"},
        {"kind": "cnn", "widht": 3},
        {"kind": "cnn", "channels": [8], "strides": [1, 2]},
        {"kind": "cnn", "channels": [0], "strides": [1]},
        {"kind": "cnn", "strides": [3, 1, 1, 1]},
        {"kind": "cnn", "norm": "batch"},
        {"kind": "resnet9", "alpha": 0},
        {"kind": "unet", "depth": 0},
        {"kind": "monai", "name": "os.system"},
        {"kind": "monai"},
    ],
)
def test_tables_that_name_no_network_are_refused(table):
    with pytest.raises(ValidationError):
        TypeAdapter(ModelConfig).validate_python(table)


def test_configurations_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        CnnConfig().norm = "group"


def _variances(model, shape, layers):
    found = []

    def record(module, inputs, answer):
        found.append(float(answer.detach().transpose(0, 1).flatten(1).var(dim=1).mean()))

    for module in model.modules():
        if isinstance(module, layers):
            module.register_forward_hook(record)
    model(torch.randn(4, *shape, generator=torch.Generator().manual_seed(9)))
    return found


@pytest.mark.parametrize(
    "config",
    [
        CnnConfig(),
        CnnConfig(activation="silu"),
        UnetConfig(width=8),
        UnetConfig(width=8, up="nearest"),
        MonetConfig(width=8),
        MonetConfig(width=8, activation="elu"),
    ],
    ids=lambda config: f"{config.kind}-{config.activation}",
)
def test_standardised_nets_start_with_variances_near_one_at_every_depth(config):
    """Between 0.3 (zero padding costs a little at every convolution) and 2, on white images of 48 x 48."""
    shape, layers = (1, 48, 48), (ScaledStdConv, ScaledStdConvTranspose)
    for seed in range(3):
        model = build(config, input_shape=shape, num_classes=2, seed=seed)
        found = _variances(model, shape, layers)
        assert len(found) >= 4
        assert min(found) > 0.3
        assert max(found) < 2


def test_without_the_gain_the_variance_vanishes():
    """The test above must be able to fail: the same nets without the activation's gain leave its range."""
    model = build(UnetConfig(width=8), input_shape=(1, 48, 48), num_classes=2, seed=0)
    for module in model.modules():
        if isinstance(module, ScaledStdConv):
            module.scale = 1.0
    assert min(_variances(model, (1, 48, 48), (ScaledStdConv,))) < 0.05


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (Resnet18Config(width=16), (2, 2, 2, 2)),
        (Resnet20Config(), (3, 3, 3)),
        # With alpha = 1 a block that did not divide by its input's deviation would double its branch.
        (Resnet20Config(alpha=1), (3, 3, 3)),
    ],
    ids=["resnet18", "resnet20", "resnet20-heavy"],
)
def test_residual_streams_grow_by_alpha_squared_a_block(config, stages):
    """Expected variance after block k of a stage: 1 + k * alpha**2; every projection starts again at 1."""
    model = build(config, input_shape=(3, 64, 64), num_classes=2, seed=0)
    found = _variances(model, (3, 64, 64), (ResidualBlock,))
    expected = [1 + (index + 1) * config.alpha**2 for blocks in stages for index in range(blocks)]
    assert found == pytest.approx(expected, rel=0.2)


def test_resnet9_keeps_the_variance_of_its_stream():
    shape = (1, 64, 64)
    model = build(Resnet9Config(), input_shape=shape, num_classes=2, seed=0)
    assert _variances(model, shape, (ResidualBlock,)) == pytest.approx([1.04, 1.04], rel=0.2)
