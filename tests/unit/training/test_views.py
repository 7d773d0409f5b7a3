"""Views: fresh or from a pool, with or without a frozen front."""

import numpy as np
import pytest
import torch
from torch import nn

from medveil.errors import DivergedError
from medveil.rng import Seeds
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.augmentation import Augmentation
from medveil.training.predict import predict_masks, predict_probabilities
from medveil.training.views import FrozenFront, Views

COUNT = 5


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 1, 4, 4, generator=generator)
    numbers = np.arange(COUNT)
    return ArrayData(images, torch.arange(COUNT) % 2, numbers, numbers * 0, numbers * 0, (None,) * COUNT, COUNT)


class Fronted(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 2)
        self.calls = 0

    def front(self, images):
        self.calls += 1
        return 2 * images.flatten(1)

    def forward(self, images):
        return self.head(self.front(images))


def views(model=None, *, pool=0, **augmentation):
    return Views(
        model or nn.Linear(1, 1),
        data(),
        scale=InputScale(),
        augmentation=Augmentation(**augmentation),
        pool=pool,
        seeds=Seeds(1),
        device=torch.device("cpu"),
    )


def test_without_augmentation_a_view_is_the_scaled_image():
    picked = torch.tensor([3, 1])
    images, targets = views().draw(picked, Seeds(0))
    assert torch.equal(images, (data().images[picked] - 0.5) * 4)
    assert targets.tolist() == [1, 1]


def test_several_views_of_an_example_stand_together():
    made = views(shift=0.3).several(torch.tensor([2, 0]), 3, Seeds(0))[1]
    assert made.tolist() == [0, 0, 0, 0, 0, 0]
    images, targets = views().several(torch.tensor([1, 4]), 2, Seeds(0))
    assert targets.tolist() == [1, 1, 0, 0]
    assert torch.equal(images[0], images[1])


def test_a_pool_is_drawn_once():
    made = views(pool=3, noise=0.5)
    one, two = (made.several(torch.tensor([2]), 3, Seeds(seed))[0] for seed in (1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
    single, _ = made.draw(torch.tensor([2] * 50), Seeds(9))
    assert {tuple(view.flatten().tolist()) for view in single} == {tuple(view.flatten().tolist()) for view in one}


def test_fresh_views_differ_each_time():
    made = views(noise=0.5)
    one, two = (made.draw(torch.tensor([2]), Seeds(seed))[0] for seed in (1, 2))
    assert not torch.equal(one, two)


def test_a_frozen_front_runs_once_over_the_pool():
    model = Fronted()
    assert isinstance(model, FrozenFront)
    made = views(model, pool=2, noise=0.1)
    assert made.network is model.head
    features, _ = made.several(torch.arange(COUNT), 2, Seeds(0))
    assert features.shape == (10, 16)
    before = model.calls
    made.draw(torch.arange(COUNT), Seeds(3))
    assert model.calls == before


def test_without_augmentation_a_front_is_remembered_without_a_pool():
    model = Fronted()
    features, _ = views(model).draw(torch.tensor([4]), Seeds(0))
    assert torch.equal(features, model.front((data().images[4:] - 0.5) * 4))


def test_fresh_views_pass_the_whole_network():
    model = Fronted()
    assert views(model, noise=0.1).network is model


def test_masks_move_with_their_images():
    masks = torch.zeros(COUNT, 4, 4, dtype=torch.uint8)
    masks[:, 0] = 1
    plain = data()
    held = ArrayData(
        masks[:, None].float(), masks, plain.subject, plain.volume, plain.position, plain.spacing_mm, COUNT
    )
    made = Views(
        nn.Identity(),
        held,
        scale=InputScale(0.0, 1.0),
        augmentation=Augmentation(flip=(0,)),
        pool=4,
        seeds=Seeds(1),
        device=torch.device("cpu"),
    )
    images, targets = made.several(torch.arange(COUNT), 4, Seeds(0))
    assert torch.equal(images[:, 0].long(), targets)
    assert len({tuple(target.flatten().tolist()) for target in targets}) == 2


def test_answers_that_are_not_finite_are_no_predictions():
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2] * float("nan")

    class BrokenMasks(nn.Module):
        def forward(self, images):
            return images.repeat(1, 2, 1, 1) * float("inf")

    options = {"scale": InputScale(), "batch_size": 2, "device": torch.device("cpu")}
    with pytest.raises(DivergedError):
        predict_probabilities(Broken(), data(), **options)
    with pytest.raises(DivergedError):
        predict_masks(BrokenMasks(), data(), **options)
