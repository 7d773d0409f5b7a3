"""Any network of the zoo, any shape, any units: every method gives the rows of plain autograd on single examples."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from medveil.dp.gradients import per_unit_gradients
from medveil.dp.layerwise import by_layer, without_rule
from medveil.errors import ModelError
from medveil.models.registry import ModelConfig, build
from medveil.training.objectives import CrossEntropy, DiceCrossEntropy, per_example_loss

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
        coarsen=st.sampled_from([1, 2]),
    ),
    _table("resnet9", width=st.just(2), down=st.sampled_from(["stride", "max"])),
    _table("resnet18", width=st.just(2), stem=st.sampled_from(["small", "large"])),
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


def _loss(masks):
    objective = DiceCrossEntropy() if masks else CrossEntropy(label_smoothing=0.1)
    return lambda outputs, targets: per_example_loss(outputs, targets, objective)


@st.composite
def _cases(draw):
    """A network in float64, its loss, images, targets and units; two or three axes of unequal lengths."""
    table = draw(_TABLES)
    spatial = tuple(4 * draw(st.integers(2, 3)) for _ in range(draw(st.integers(2, 3))))
    shape = (draw(st.integers(1, 2)), *spatial)
    config = TypeAdapter(ModelConfig).validate_python(table)
    try:
        model = build(config, input_shape=shape, num_classes=3, seed=draw(st.integers(0, 2**32))).double()
    except ModelError:
        assume(False)  # too small for instance normalisation
    units = torch.tensor(draw(st.lists(st.integers(-2, 2), min_size=1, max_size=5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randn(len(units), *shape, dtype=torch.float64, generator=generator)
    masks = table["kind"] in _SEGMENTERS
    targets = torch.randint(0, 3, (len(units), *(spatial if masks else ())), generator=generator)
    return model, _loss(masks), images, targets, units


def _alone(model, loss, images, targets, units):
    rows = []
    for image, target in zip(images, targets, strict=True):
        model.zero_grad()
        loss(model(image[None]), target[None]).backward()
        rows.append(torch.cat([tensor.grad.flatten() for tensor in model.parameters()]))
    rows = torch.stack(rows)
    return torch.stack([rows[units == unit].mean(0) for unit in units.unique(sorted=True)])


def _far(rows, oracle):
    return float(((rows - oracle).norm(dim=1) / oracle.norm(dim=1).clamp(min=1e-9)).max())


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(_cases(), st.integers(1, 6))
def test_every_method_gives_the_rows_of_single_examples(case, chunk_size):
    model, loss, images, targets, units = case
    oracle = _alone(*case)
    assert without_rule(model) == ()  # the zoo's nets all take the fast way
    assert _far(torch.cat([rows.flatten(1) for rows in by_layer(model, loss, images, targets)], 1), _each(case)) < 1e-8
    plain = torch.nn.functional.cross_entropy
    for method, objective in (("microbatch", loss), ("vmap", plain)):
        rows = per_unit_gradients(model, objective, (images, targets), units, method=method, chunk_size=chunk_size)
        expected = oracle if objective is loss else _alone(model, objective, images, targets, units)
        assert _far(rows, expected) < 1e-8


def _each(case):
    model, loss, images, targets, _ = case
    return _alone(model, loss, images, targets, torch.arange(len(images)))


@pytest.mark.parametrize("norm", ["ws", "group", "instance"])
@pytest.mark.parametrize(
    ("table", "shape"),
    [
        ({"kind": "cnn"}, (1, 28, 28)),
        ({"kind": "resnet20", "width": 8}, (1, 16, 16)),
        ({"kind": "unet", "width": 8}, (1, 16, 16)),
        ({"kind": "monet", "width": 8}, (1, 16, 16)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_single_precision_agrees_to_three_digits_at_real_sizes(table, shape, norm):
    # A smooth activation: of many thousand ReLUs an image, one sits within rounding of its kink now and then.
    config = TypeAdapter(ModelConfig).validate_python({**table, "norm": norm, "activation": "silu"})
    model = build(config, input_shape=shape, num_classes=2, seed=0)
    generator = torch.Generator().manual_seed(4)
    masks = table["kind"] in _SEGMENTERS
    images = torch.randn(3, *shape, generator=generator)
    targets = torch.randint(0, 2, (3, *(shape[1:] if masks else ())), generator=generator)
    units = torch.tensor([0, 1, 1])
    rows = per_unit_gradients(model, _loss(masks), (images, targets), units, method="layerwise", chunk_size=2)
    assert rows.dtype == torch.float32
    exact = _alone(model.double(), _loss(masks), images.double(), targets, units)
    assert _far(rows.double(), exact) < 1e-3


def test_the_comparison_rejects_a_gain_left_out():
    """The tests above must be able to fail: a net without the pull-back of its gains has other rows."""
    config = TypeAdapter(ModelConfig).validate_python({"kind": "cnn", "channels": [4], "strides": [1]})
    model = build(config, input_shape=(1, 8, 8), num_classes=3, seed=0).double()
    images, targets = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    oracle = _alone(model, _loss(masks=False), images, targets, torch.arange(3))
    rows = by_layer(model, _loss(masks=False), images, targets)
    rows[1].zero_()
    assert _far(torch.cat([each.flatten(1) for each in rows], 1), oracle) > 1e-3
