"""What is refused before training begins, what is handled, and what the message says."""

import pytest
import torch
from monai.losses.dice import DiceLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medveil.dp.checks import check, check_loss
from medveil.errors import ModelError, UnsupportedModelError
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.training.objectives import CrossEntropy, DiceCrossEntropy, per_example_loss

SHAPE = (1, 8, 8)


def _net(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.Flatten(), nn.Linear(72, 2))


def test_a_network_of_the_zoo_passes_with_nothing_to_say():
    model = build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=0)
    checked = check(model, input_shape=(1, 28, 28), loss=cross_entropy)
    assert checked.num_parameters == 60530
    assert checked.tried
    assert not any((checked.frozen, checked.tied, checked.random, checked.buffers, checked.recurrent))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(2), "Batch normalisation"),
        (nn.BatchNorm2d(2, track_running_stats=False), "Batch normalisation"),
        (nn.SyncBatchNorm(2), "Batch normalisation"),
        (nn.InstanceNorm2d(2, track_running_stats=True), "Running statistics"),
    ],
    ids=str,
)
@pytest.mark.parametrize("input_shape", [None, SHAPE])
def test_statistics_of_the_batch_are_refused_with_their_place_and_a_remedy(layer, message, input_shape):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        check(_net(layer), input_shape=input_shape)
    assert caught.value.got == "1"
    assert 'norm = "group"' in caught.value.remedy


def test_many_places_are_named_in_part():
    with pytest.raises(UnsupportedModelError) as caught:
        check(_net(*[nn.BatchNorm2d(2) for _ in range(8)]))
    assert caught.value.got == "1, 2, 3, 4, 5 and 3 more"


class _Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        self.seen += images.mean().detach()
        return images


class _Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.ones(1))

    def forward(self, images):
        return images * self.window


class _Neighbours(nn.Module):
    def forward(self, images):
        return images - images.mean(0)


def test_buffers_that_change_are_refused():
    with pytest.raises(UnsupportedModelError, match="changes buffers") as caught:
        check(_net(_Counting()), input_shape=SHAPE)
    assert caught.value.got == "1.seen"


def test_constant_buffers_are_handled_where_they_can_be_tried():
    assert check(_net(_Constant()), input_shape=SHAPE).buffers == ("1",)
    with pytest.raises(UnsupportedModelError, match="cannot be tried") as caught:
        check(_net(_Constant()))
    assert "input_shape" in caught.value.remedy


def test_mixed_examples_are_refused():
    with pytest.raises(UnsupportedModelError, match="neighbour"):
        check(_net(_Neighbours()), input_shape=SHAPE)


def test_hooks_are_refused_on_modules_and_on_parameters():
    model = _net()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="Hooks"):
        check(model)
    model = _net()
    model[0].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(UnsupportedModelError, match="Hooks") as caught:
        check(model)
    assert caught.value.got == "0.weight"


def test_nothing_to_train_is_refused():
    with pytest.raises(UnsupportedModelError, match="nothing to train"):
        check(_net().requires_grad_(False))


def test_what_is_handled_is_said():
    model = _net(nn.Dropout(0.2))
    model.add_module("rows", nn.LSTM(2, 2))
    model.add_module("head", nn.Linear(2, 2))
    model.head.weight = model.rows.weight_ih_l0 = nn.Parameter(torch.zeros(2, 2))
    model[0].bias.requires_grad_(False)
    checked = check(model)
    assert checked.random == ("1",)
    assert checked.recurrent == ("rows",)
    assert checked.tied == ("rows", "head")
    assert checked.frozen == ("0.bias",)
    assert not checked.tried


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="cannot read"):
        check(_net(), input_shape=(1, 4, 4))


def test_the_network_and_the_random_state_are_left_as_they_were():
    model, state = _net(nn.Dropout(0.5)).eval(), torch.get_rng_state()
    check(model, input_shape=SHAPE, loss=cross_entropy)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


def _dice_ce(outputs, targets):
    return per_example_loss(outputs, targets, DiceCrossEntropy())


def _dice(*, batch):
    dice = DiceLoss(softmax=True, to_onehot_y=True, batch=batch)
    return lambda outputs, targets: dice(outputs, targets[:, None])


@pytest.mark.parametrize(
    ("loss", "output_shape"),
    [
        (cross_entropy, (3,)),
        (cross_entropy, (2, 4, 4)),
        (lambda outputs, targets: cross_entropy(outputs, targets, reduction="sum"), (3,)),
        (lambda outputs, targets: per_example_loss(outputs, targets, CrossEntropy(), torch.tensor([1.0, 5])), (2,)),
        (_dice_ce, (2, 4, 4)),
        (_dice(batch=False), (3, 4, 4, 2)),
        (binary_cross_entropy_with_logits, (1,)),
    ],
)
def test_losses_that_keep_examples_apart_pass(loss, output_shape):
    def double(outputs, targets):
        return loss(outputs.float(), targets.float() if targets.is_floating_point() else targets)

    check_loss(double, output_shape=output_shape)


@pytest.mark.parametrize(
    ("loss", "output_shape"),
    [
        (_dice(batch=True), (3, 8, 8)),
        (lambda outputs, targets: cross_entropy(outputs, targets, torch.tensor([1.0, 5, 2]).to(outputs)), (3,)),
        (lambda outputs, targets: cross_entropy(outputs - outputs.mean(0), targets), (3,)),
        (lambda outputs, targets: cross_entropy(outputs, targets) + 1e-3 * outputs.std(), (3,)),
    ],
    ids=["batch Dice", "divided by the batch's class weights", "centred", "spread of the batch"],
)
def test_losses_that_couple_examples_are_refused(loss, output_shape):
    with pytest.raises(UnsupportedModelError, match="couples the examples"):
        check_loss(loss, output_shape=output_shape)


def test_a_coupling_loss_is_refused_together_with_the_network():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0], dtype=torch.float64))
    with pytest.raises(UnsupportedModelError, match="couples the examples"):
        check(_net(), input_shape=SHAPE, loss=weighted)
    with pytest.raises(UnsupportedModelError, match="couples the examples"):
        check(_net(), num_classes=2, loss=weighted)


def test_a_loss_that_cannot_be_run_is_refused():
    with pytest.raises(UnsupportedModelError, match="cannot be tried"):
        check_loss(lambda outputs, targets: outputs @ targets.new_zeros(7, 7, 7), output_shape=(2,))
