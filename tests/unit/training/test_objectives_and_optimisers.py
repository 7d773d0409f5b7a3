"""Losses against their formulas; optimiser state as tensors."""

import math

import pytest
import torch
from torch import nn

from medveil.errors import ResumeError
from medveil.training.objectives import (
    CrossEntropy,
    DiceCrossEntropy,
    balanced_weights,
    per_example_loss,
)
from medveil.training.optimisers import Adam, Schedule, Sgd, build_optimiser, optimiser_state, restore_optimiser


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    loss = per_example_loss(logits, torch.tensor([1]), CrossEntropy())
    torch.testing.assert_close(loss, torch.tensor([math.log(4 / 3)]))


def test_class_weights_scale_an_example_and_do_not_depend_on_the_batch():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 1])
    weights = torch.tensor([1.0, 2.0, 3.0])
    weighted = per_example_loss(logits, targets, CrossEntropy(), weights)
    torch.testing.assert_close(weighted, per_example_loss(logits, targets, CrossEntropy()) * weights[targets])


def test_dice_by_hand():
    """Confident prediction that overlaps half of the reference: Dice 2*2/(2+4)."""
    target = torch.tensor([[[1, 1, 1, 1]]])
    logits = torch.full((1, 2, 1, 4), -20.0)
    logits[0, 1, 0, :2] = 20.0
    logits[0, 0, 0, 2:] = 20.0
    loss = per_example_loss(logits, target, DiceCrossEntropy(ce_weight=0.0))
    torch.testing.assert_close(loss, torch.tensor([1 - 4 / 6]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [CrossEntropy(), DiceCrossEntropy()])
def test_segmentation_loss_of_an_image_does_not_depend_on_its_batch(config):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 3, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (3, 8, 8), generator=generator)
    together = per_example_loss(logits, targets, config)
    apart = torch.cat([per_example_loss(logits[i : i + 1], targets[i : i + 1], config) for i in range(3)])
    torch.testing.assert_close(together, apart)
    assert together.shape == (3,)


def test_balanced_weights_make_classes_count_alike():
    targets = torch.tensor([0, 0, 0, 1])
    weights = balanced_weights(targets, 3)
    assert float(weights[0] * 3) == pytest.approx(float(weights[1] * 1))
    assert float(weights[2]) == 0.0


@pytest.mark.parametrize(
    ("kind", "progress", "factor"),
    [("constant", 0.7, 1.0), ("cosine", 0.0, 1.0), ("cosine", 1.0, 0.1), ("linear", 0.5, 0.55)],
)
def test_schedules(kind, progress, factor):
    assert Schedule(kind=kind, final=0.1).factor(progress) == pytest.approx(factor)


def test_warmup_rises_from_zero():
    schedule = Schedule(kind="constant", warmup=0.2)
    assert schedule.factor(0.0) == 0.0
    assert schedule.factor(0.1) == pytest.approx(0.5)
    assert schedule.factor(0.3) == 1.0


@pytest.mark.parametrize("config", [Sgd(lr=0.1, momentum=0.9), Adam(lr=0.01)])
def test_a_restored_optimiser_goes_on_as_if_nothing_happened(config):
    def steps(parameter, optimiser, count):
        for number in range(count):
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
            optimiser.step()

    straight = nn.Parameter(torch.ones(3))
    one = build_optimiser([straight], config)
    steps(straight, one, 4)
    broken = nn.Parameter(torch.ones(3))
    two = build_optimiser([broken], config)
    for number in range(2):
        broken.grad = torch.full_like(broken, 0.1 * (number + 1))
        two.step()
    saved = optimiser_state(two)
    three = build_optimiser([broken], config)
    restore_optimiser(three, saved)
    for number in (2, 3):
        broken.grad = torch.full_like(broken, 0.1 * (number + 1))
        three.step()
    assert torch.equal(straight, broken)


def test_damaged_optimiser_state_is_refused():
    with pytest.raises(ResumeError, match="damaged"):
        restore_optimiser(build_optimiser([nn.Parameter(torch.ones(1))], Adam(lr=1)), {"nonsense": torch.ones(1)})
