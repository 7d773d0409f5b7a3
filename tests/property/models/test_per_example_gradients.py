"""One image, one gradient: vmap(grad) equals a batch of one, and no image sees its neighbours."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from medveil.errors import ModelError
from medveil.models.registry import ModelConfig, build

_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
_DOWN = st.sampled_from(["stride", "average", "max"])
_FAMILY = {"norm": st.sampled_from(["ws", "group", "instance"]), "activation": st.sampled_from(["relu", "silu", "elu"])}
_SEGMENTERS = ("unet", "monet")


def _table(kind, **fields):
    return st.fixed_dictionaries({"kind": st.just(kind), **_FAMILY, **fields})


_TABLES = st.one_of(
    _table(
        "cnn",
        channels=st.just([4, 6]),
        strides=st.sampled_from([[2, 1], [1, 2], [2, 2]]),
        down=_DOWN,
        head=st.sampled_from(["global", "flat"]),
    ),
    _table("resnet9", width=st.just(2), down=st.sampled_from(["stride", "max"])),
    # The large stem leaves one position of such small images, which instance normalisation refuses.
    _table("resnet18", width=st.just(2), stem=st.sampled_from(["small", "large"])).filter(
        lambda table: (table["norm"], table["stem"]) != ("instance", "large")
    ),
    _table("resnet20", width=st.just(2)),
    _table(
        "unet",
        width=st.just(3),
        depth=st.integers(1, 2),
        convs=st.integers(1, 2),
        down=_DOWN,
        up=st.sampled_from(["transposed", "nearest"]),
    ),
    _table("monet", width=st.just(3), depth=st.integers(1, 2)),
)


@st.composite
def _cases(draw):
    """A network in float64, images and targets; two or three spatial axes, unequal lengths."""
    table = draw(_TABLES)
    shortest = 3 if table["norm"] == "instance" else 2
    spatial = tuple(4 * draw(st.integers(shortest, 3)) for _ in range(draw(st.integers(2, 3))))
    shape = (draw(st.integers(1, 3)), *spatial)
    config = TypeAdapter(ModelConfig).validate_python(table)
    seed = draw(st.integers(0, 2**32))
    try:
        model = build(config, input_shape=shape, num_classes=3, seed=seed).double()
    except ModelError:
        assume(table["norm"] != "instance")  # instance normalisation refuses maps that shrink to one position
        raise
    batch = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randn(batch, *shape, dtype=torch.float64, generator=generator)
    positions = spatial if table["kind"] in _SEGMENTERS else ()
    return model, images, torch.randint(0, 3, (batch, *positions), generator=generator)


def _by_vmap(model, images, targets):
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(weights, image, target):
        return cross_entropy(functional_call(model, weights, (image[None],)), target[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, targets)


def _by_batch_of_one(model, image, target):
    model.zero_grad()
    cross_entropy(model(image[None]), target[None]).backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters()}


def _difference(model, images, targets):
    """Largest distance between the two ways, relative to the gradient's norm."""
    together = _by_vmap(model, images, targets)
    worst = 0.0
    for index in range(len(images)):
        alone = _by_batch_of_one(model, images[index], targets[index])
        distance = torch.stack([(together[name][index] - alone[name]).norm() for name in alone]).norm()
        size = torch.stack([tensor.norm() for tensor in alone.values()]).norm()
        worst = max(worst, float(distance / size))
    return worst


@_SETTINGS
@given(_cases())
def test_vectorised_gradients_equal_those_of_a_batch_of_one(case):
    assert _difference(*case) < 1e-9


def test_the_comparison_rejects_batch_statistics():
    """The test above must be able to fail: batch normalisation over single images is another function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).double()
    images, targets = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 0])
    model.zero_grad()
    cross_entropy(model(images), targets).backward()
    mean = {name: tensor.grad.clone() for name, tensor in model.named_parameters()}
    alone = [_by_batch_of_one(model, image, target) for image, target in zip(images, targets, strict=True)]
    distances = [(torch.stack([each[name] for each in alone]).mean(0) - mean[name]).norm() for name in mean]
    assert float(torch.stack(distances).norm()) > 1e-2


@_SETTINGS
@given(_cases())
def test_a_batch_is_answered_image_by_image(case):
    model, images, _ = case
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)


@_SETTINGS
@given(_cases())
def test_the_mean_of_per_example_gradients_is_the_gradient_of_the_mean(case):
    model, images, targets = case
    together = _by_vmap(model, images, targets)
    model.zero_grad()
    cross_entropy(model(images), targets).backward()
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(together[name].mean(0), tensor.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("norm", ["ws", "group", "instance"])
@pytest.mark.parametrize(
    ("table", "shape"),
    [
        ({"kind": "cnn"}, (1, 28, 28)),
        ({"kind": "resnet9", "width": 8}, (1, 28, 28)),
        ({"kind": "unet", "width": 8}, (1, 16, 16)),
        ({"kind": "monet", "width": 8}, (1, 16, 16)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_single_precision_agrees_to_four_digits_and_needs_no_slow_path(table, shape, norm):
    # A smooth activation: of 15,000 ReLUs an image, one sits within rounding of its kink now and then.
    config = TypeAdapter(ModelConfig).validate_python({**table, "norm": norm, "activation": "silu"})
    model = build(config, input_shape=shape, num_classes=2, seed=0)
    generator = torch.Generator().manual_seed(4)
    positions = shape[1:] if table["kind"] in _SEGMENTERS else ()
    targets = torch.randint(0, 2, (4, *positions), generator=generator)
    with warnings.catch_warnings():
        # torch warns when an operation has no batching rule and falls back to a loop.
        warnings.simplefilter("error")
        assert _difference(model, torch.randn(4, *shape, generator=generator), targets) < 1e-4
