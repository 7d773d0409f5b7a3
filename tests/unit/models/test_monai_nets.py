"""MONAI's networks by name: built, tried, and refused with a typed error."""

import socket
import subprocess
import sys

import pytest
import torch

from medveil.errors import ConfigError, ModelError
from medveil.models.checks import describe_hazards, has_batch_statistics, mixes_examples
from medveil.models.monai_nets import MonaiConfig
from medveil.models.registry import build

_SMALL_UNET = {"channels": [4, 8], "strides": [2]}


def _make(name, arguments, shape, task=None, seed=0):
    config = MonaiConfig(name=name, arguments=arguments)
    return build(config, input_shape=shape, num_classes=2, seed=seed, task=task)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "task"),
    [
        ("UNet", _SMALL_UNET, (1, 16, 16), "segmentation"),
        ("UNet", _SMALL_UNET, (2, 8, 8, 8), "segmentation"),
        ("SegResNet", {"init_filters": 8}, (1, 16, 16), "segmentation"),
        ("DenseNet121", {"init_features": 8, "growth_rate": 4, "block_config": [1, 1]}, (1, 32, 32), "classification"),
    ],
)  # fmt: skip
def test_shapes_and_classes_follow_from_the_data(name, arguments, shape, task):
    model = _make(name, arguments, shape, task)
    positions = shape[1:] if task == "segmentation" else ()
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 2, *positions)


def test_weights_follow_the_seed():
    first, second, other = (_make("UNet", _SMALL_UNET, (1, 16, 16), seed=seed) for seed in (1, 1, 2))
    pairs = [(first, second), (first, other)]
    same = [all(map(torch.equal, a.parameters(), b.parameters())) for a, b in pairs]
    assert same == [True, False]


@pytest.mark.parametrize("name", ["UNnet", "system", "nets", "resnet50", "Sequence"])
def test_names_of_no_network_are_refused(name):
    with pytest.raises(ConfigError, match="no network of that name"):
        _make(name, {}, (1, 16, 16))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"channels": [4], "strides": [2]}, {**_SMALL_UNET, "widht": 3}, {**_SMALL_UNET, "norm": "NONE_SUCH"}],
)
def test_arguments_that_the_constructor_refuses_are_typed_errors(arguments):
    with pytest.raises(ConfigError, match="refuses its arguments"):
        _make("UNet", arguments, (1, 16, 16))


def test_an_answer_of_another_shape_is_refused():
    with pytest.raises(ModelError, match="does not fit the task"):
        _make("UNet", {**_SMALL_UNET, "out_channels": 5}, (1, 16, 16))
    with pytest.raises(ModelError, match="does not fit the task classification"):
        _make("UNet", _SMALL_UNET, (1, 16, 16), "classification")


def test_images_that_the_network_cannot_read_are_refused():
    with pytest.raises(ModelError, match="cannot read these images"):
        _make("UNet", {**_SMALL_UNET, "in_channels": 3}, (1, 16, 16))


def test_networks_with_several_answers_are_refused():
    with pytest.raises(ModelError, match="several things"):
        _make("SegResNetVAE", {"input_image_size": [16, 16], "init_filters": 8}, (1, 16, 16))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": True}),
        ("DenseNet121", {"pretrained": True}),
        ("HoVerNet", {"mode": "fast", "pretrained_url": "https://example.org/weights.pt"}),
    ],
)
def test_networks_may_not_fetch_weights(name, arguments, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a network was reached for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConfigError, match="may not fetch weights"):
        _make(name, arguments, (3, 64, 64))


def test_pretrained_by_default_is_switched_off(monkeypatch):
    from monai.networks.nets import efficientnet

    def refuse(*args, **kwargs):
        pytest.fail("pretrained weights were asked for")

    monkeypatch.setattr(efficientnet, "_load_state_dict", refuse)
    model = _make("EfficientNetBN", {"model_name": "efficientnet-b0"}, (3, 64, 64), "classification")
    assert has_batch_statistics(model)


def test_hazards_of_a_net_with_batch_normalisation_are_named():
    model = _make("UNet", {**_SMALL_UNET, "norm": "BATCH", "dropout": 0.1}, (1, 16, 16))
    reasons = {hazard.reason for hazard in describe_hazards(model)}
    assert reasons == {"batch-statistics", "running-statistics", "random"}
    assert mixes_examples(model, (1, 16, 16))
    assert describe_hazards(_make("UNet", _SMALL_UNET, (1, 16, 16))) == ()


def test_monai_is_imported_only_when_asked_for():
    code = "import sys, medveil.models.registry; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
