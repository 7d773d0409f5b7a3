"""Gradients of privacy units: means over a unit's examples, whole units, and everything torch lets a network do."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from medveil.dp.gradients import GradientEngine, per_unit_gradients
from medveil.errors import ConfigError, UnsupportedModelError

METHODS = ["layerwise", "vmap", "microbatch"]


def oracle(model, loss, images, targets, unit_ids):
    """Autograd on one example after the other, then the mean over each unit: nothing of medveil's."""
    rows = []
    for image, target in zip(images, targets, strict=True):
        model.zero_grad()
        loss(model(image[None]), target[None]).sum().backward()
        trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
        rows.append(
            torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in trained])
        )
    model.zero_grad(set_to_none=True)
    rows = torch.stack(rows)
    return torch.stack([rows[unit_ids == unit].mean(0) for unit in unit_ids.unique(sorted=True)])


def _classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(3 * 36, 3)).double()


def _batch(count, shape=(1, 8, 8), classes=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, classes, (count,), generator=generator)


class _Tied(nn.Module):
    """One linear layer used twice as a module, and its weight once more under another name."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, images):
        hidden = torch.tanh(self.first(images.flatten(1)))
        return self.head(torch.tanh(self.second(torch.tanh(self.first(hidden)))))


def _tied():
    return _Tied().double()


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_a_row_is_the_mean_over_the_units_examples(method, chunk_size):
    model, (images, targets) = _classifier(), _batch(9)
    units = torch.tensor([5, -2, 5, 7, 5, 7, 5, 0, 5])
    rows = per_unit_gradients(model, cross_entropy, (images, targets), units, method=method, chunk_size=chunk_size)
    torch.testing.assert_close(rows, oracle(model, cross_entropy, images, targets, units), rtol=1e-10, atol=1e-12)


def test_the_comparison_rejects_a_sum_instead_of_a_mean():
    model, (images, targets) = _classifier(), _batch(4)
    units = torch.tensor([0, 0, 1, 1])
    rows = per_unit_gradients(model, cross_entropy, (images, targets), units, method="vmap")
    assert not torch.allclose(2 * rows, oracle(model, cross_entropy, images, targets, units))


@pytest.mark.parametrize("method", METHODS)
def test_chunks_hold_whole_units_in_order_and_are_shaped_like_the_parameters(method):
    model, (images, targets) = _classifier().float(), _batch(7)
    engine = GradientEngine(model, cross_entropy, method=method, chunk_size=3)
    chunks = list(engine.chunks(images.float(), targets, torch.tensor([2, 1, 1, 3, 3, 3, 3])))
    assert [len(chunk[0]) for chunk in chunks] == [2, 1]
    for chunk in chunks:
        assert [each.shape[1:] for each in chunk] == [each.shape for each in model.parameters()]
        assert all(each.dtype == torch.float32 and not each.requires_grad for each in chunk)
        assert len({len(each) for each in chunk}) == 1


@pytest.mark.parametrize("make", [_classifier, _tied])
def test_memory_that_is_written_over_holds_each_chunk_while_it_is_used(make):
    torch.manual_seed(0)
    model, (images, targets) = make(), _batch(9)
    engine = GradientEngine(model, cross_entropy, method="layerwise", chunk_size=4, overwrite=True)
    units = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 4])  # a unit that takes several runs, and a last, shorter run
    for _ in range(2):
        rows = [
            torch.cat([each.flatten(1) for each in chunk], 1).clone() for chunk in engine.chunks(images, targets, units)
        ]
        expected = oracle(model, cross_entropy, images, targets, units)
        torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-10, atol=1e-12)
        images = -images


def test_chunks_stay_as_they_are_unless_they_may_be_written_over():
    model, (images, targets) = _classifier(), _batch(4)
    for overwrite, kept in ((False, True), (True, False)):
        engine = GradientEngine(model, cross_entropy, method="layerwise", chunk_size=1, overwrite=overwrite)
        chunks = list(engine.chunks(images, targets, torch.arange(4)))
        expected = oracle(model, cross_entropy, images, targets, torch.arange(4))
        first = torch.cat([each.flatten(1) for each in chunks[0]], 1)
        assert torch.allclose(first, expected[:1]) == kept


@pytest.mark.parametrize("method", METHODS)
def test_no_more_examples_are_run_at_a_time_than_the_chunk_size(method):
    seen = []

    class Counting(nn.Flatten):
        def forward(self, images):
            seen.append(images.shape[0])
            return super().forward(images)

    model, (images, targets) = nn.Sequential(Counting(), nn.Linear(64, 3)).double(), _batch(11)
    engine = GradientEngine(model, cross_entropy, method=method, chunk_size=4)
    engine.choice(images, targets)
    seen.clear()
    list(engine.chunks(images, targets, torch.zeros(11, dtype=torch.int64)))
    assert max(seen) <= 4


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was(method):
    model, (images, targets) = _classifier(), _batch(4)
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method=method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_tied_parameters_have_one_block_with_the_sum_over_their_uses(method):
    torch.manual_seed(0)
    model, (images, targets) = _Tied().double(), _batch(4)
    rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method=method)
    assert rows.shape[1] == sum(each.numel() for each in model.parameters())
    expected = oracle(model, cross_entropy, images, targets, torch.arange(4))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frozen", [["0.weight"], ["0.weight", "0.bias"], ["3.bias"]], ids=str)
def test_frozen_parameters_are_left_out(method, frozen):
    model, (images, targets) = _classifier(), _batch(3)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(3), method=method)
    expected = oracle(model, cross_entropy, images, targets, torch.arange(3))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


class _Extras(nn.Module):
    """A constant buffer that the answer needs, and a layer that no loss reaches."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.linspace(0, 1, 64))
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(64, 3)

    def forward(self, images):
        return self.head(images.flatten(1) * self.window)


@pytest.mark.parametrize("method", METHODS)
def test_constant_buffers_are_read_and_unused_parameters_get_zeros(method):
    model, (images, targets) = _Extras().double(), _batch(3)
    rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(3), method=method)
    expected = oracle(model, cross_entropy, images, targets, torch.arange(3))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)
    assert not rows[:, :20].any()


@pytest.mark.parametrize("method", METHODS)
def test_dropout_falls_differently_for_every_example(method):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
    rows = per_unit_gradients(
        model,
        lambda outputs, _: outputs.sum(),
        (torch.ones(40, 1, 8, 8), torch.zeros(40)),
        torch.arange(40),
        method=method,
    )
    assert {0.0, 2.0} == set(rows.unique().tolist())
    assert len({tuple(row) for row in rows.tolist()}) == 40  # equal by chance: 40**2 / 2**65


def test_in_evaluation_mode_nothing_falls_out():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 1, bias=False)).eval()
    batch = (torch.ones(2, 1, 8, 8), torch.zeros(2))
    rows = per_unit_gradients(model, lambda outputs, _: outputs.sum(), batch, torch.arange(2), method="layerwise")
    assert torch.equal(rows, torch.ones(2, 64))


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_has_no_units(method):
    model, (images, targets) = _classifier(), _batch(0)
    rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.zeros(0, dtype=torch.long), method=method)
    assert rows.shape == (0, sum(each.numel() for each in model.parameters()))


class _Mixing(nn.Module):
    """Subtracts the batch's mean without any layer that says so."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        features = images.flatten(1)
        return self.head(features - features.mean(0))


def test_layerwise_refuses_a_network_that_mixes_examples():
    """Run without its trial, the method would hand out rows that depend on neighbours: that is what it protects."""
    from medveil.dp.layerwise import by_layer

    model, (images, targets) = _Mixing().double(), _batch(4)
    before = by_layer(model, cross_entropy, images, targets)[0][0]
    images[1] *= 5
    assert not torch.allclose(by_layer(model, cross_entropy, images, targets)[0][0], before)
    with pytest.raises(UnsupportedModelError, match="differ from those of a batch of one"):
        per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method="layerwise")
    for method in ("auto", "vmap"):
        rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method=method)
        assert not rows[:, : 3 * 64].any()  # alone, an image minus its own mean is zero


@pytest.mark.parametrize("method", METHODS)
def test_a_units_row_does_not_change_with_its_neighbours(method):
    model, (images, targets) = _classifier(), _batch(6)
    units = torch.tensor([0, 0, 1, 1, 2, 2])
    rows = per_unit_gradients(model, cross_entropy, (images, targets), units, method=method)
    images[2:], targets[2:] = 100 * images[2:], (targets[2:] + 1) % 3
    other = per_unit_gradients(model, cross_entropy, (images, targets), units, method=method)
    torch.testing.assert_close(rows[0], other[0], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(rows[1], other[1])


class _Transformer(nn.Module):
    """Positions as a parameter of the network itself, and attention that reads its weights past their modules."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 8, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, images):
        tokens = images[:, 0] + self.positions
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))


class _Recurrent(nn.Module):
    """The rows of an image as a sequence."""

    def __init__(self):
        super().__init__()
        self.core, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.core(images[:, 0])[0][:, -1])


class _Branching(nn.Module):
    """Another path for bright images: torch cannot vectorise that, one image at a time it is well defined."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        features = images.flatten(1)
        return self.head(features if features.mean() > 0 else -features)


@pytest.mark.parametrize("make", [_Transformer, _Recurrent, _Branching])
def test_auto_takes_networks_that_the_fast_way_cannot(make):
    torch.manual_seed(0)
    model, (images, targets) = make().double(), _batch(5)
    units = torch.tensor([0, 1, 1, 2, 3])
    rows = per_unit_gradients(model, cross_entropy, (images, targets), units)
    expected = oracle(model, cross_entropy, images, targets, units)
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-11)


class _Past(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, images):
        return self.head(images.flatten(1) @ self.inner.weight)


class _Folding(nn.Module):
    """Cuts an image into two entries of dimension 0."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(32, 3)

    def forward(self, images):
        return self.head(images.reshape(-1, 32)).reshape(images.shape[0], 2, 3).sum(1)


@pytest.mark.parametrize("make", [_Past, _Folding])
def test_layerwise_refuses_what_it_cannot_take_apart_and_vmap_takes_it(make):
    from medveil.dp.layerwise import by_layer

    model, (images, targets) = make().double(), _batch(4)
    with pytest.raises(UnsupportedModelError):
        by_layer(model, cross_entropy, images, targets)
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(UnsupportedModelError):
        per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method="layerwise")
    rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(4), method="auto")
    expected = oracle(model, cross_entropy, images, targets, torch.arange(4))
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_with_several_numbers_an_example_is_refused(method):
    model, (images, targets) = _classifier(), _batch(2)
    with pytest.raises((ConfigError, UnsupportedModelError)):
        per_unit_gradients(model, lambda outputs, _: outputs, (images, targets), torch.arange(2), method=method)


@pytest.mark.parametrize(
    ("settings", "message"), [({"method": "ghost"}, "No method"), ({"chunk_size": 0}, "A chunk holds examples")]
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GradientEngine(_classifier(), cross_entropy, **settings)


def test_nothing_to_train_is_refused():
    with pytest.raises(UnsupportedModelError, match="nothing to train"):
        GradientEngine(_classifier().requires_grad_(False), cross_entropy)


@pytest.mark.parametrize("units", [torch.arange(3), torch.arange(4.0), torch.zeros(4, 1, dtype=torch.int64)], ids=str)
def test_units_that_do_not_fit_are_refused(units):
    with pytest.raises(ConfigError, match=r"do not belong together|one integer"):
        per_unit_gradients(_classifier(), cross_entropy, _batch(4), units, method="vmap")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_units_may_be_named_by_a_list_an_array_or_a_tensor(kind):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    batch = (torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    rows = per_unit_gradients(model, nn.functional.cross_entropy, batch, kind([3, 3, 1, 9]))
    alone = per_unit_gradients(model, nn.functional.cross_entropy, batch, torch.arange(4), method="microbatch")
    assert torch.allclose(rows, torch.stack([alone[2], alone[:2].mean(0), alone[3]]), atol=1e-6)
