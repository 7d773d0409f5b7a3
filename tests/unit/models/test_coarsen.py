"""Averaging blocks before the first convolution."""

import pytest
import torch

from medveil.errors import ModelError
from medveil.models.cnn import CnnConfig
from medveil.models.registry import build


def test_it_equals_averaging_the_image_first():
    coarse = build(CnnConfig(coarsen=4), input_shape=(1, 32, 48), num_classes=2, seed=0)
    plain = build(CnnConfig(), input_shape=(1, 8, 12), num_classes=2, seed=0)
    images = torch.rand(3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    averaged = images.reshape(3, 1, 8, 4, 12, 4).mean((3, 5))
    torch.testing.assert_close(coarse(images), plain(averaged))


def test_it_has_no_weights_of_its_own():
    sizes = [
        sum(p.numel() for p in build(CnnConfig(coarsen=k), input_shape=(1, 64, 64), num_classes=2, seed=0).parameters())
        for k in (1, 4)
    ]
    assert sizes[0] == sizes[1]


def test_an_image_that_vanishes_is_refused():
    with pytest.raises(ModelError, match="coarsen = 16"):
        build(CnnConfig(coarsen=16), input_shape=(1, 8, 8), num_classes=2, seed=0)
