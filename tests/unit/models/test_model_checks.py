"""Hazards planted one by one, and found by name and place."""

import pytest
import torch
from torch import nn

from medveil.models.checks import Hazard, buffers, describe_hazards, has_batch_statistics, mixes_examples


class _CentredOnTheBatch(nn.Module):
    """Batch statistics without any layer that says so."""

    def forward(self, images):
        return images - images.mean(dim=0, keepdim=True)


class _Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, images):
        return images


def _net(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers)


@pytest.mark.parametrize(
    ("layers", "reasons"),
    [
        ([nn.BatchNorm2d(4)], {"batch-statistics", "running-statistics"}),
        ([nn.BatchNorm2d(4, track_running_stats=False)], {"batch-statistics"}),
        ([nn.InstanceNorm2d(4, track_running_stats=True)], {"running-statistics"}),
        ([nn.InstanceNorm2d(4, affine=True)], set()),
        ([nn.GroupNorm(2, 4)], set()),
        ([nn.Dropout(0.5)], {"random"}),
        ([nn.Dropout2d(0.0)], set()),
        ([_Positions()], {"buffers"}),
        ([nn.LSTM(4, 4)], {"recurrent"}),
    ],
)
def test_each_hazard_is_found_and_nothing_else(layers, reasons):
    hazards = describe_hazards(_net(*layers))
    assert {hazard.reason for hazard in hazards} == reasons
    assert all(hazard.module == "1" for hazard in hazards)


def test_shared_parameters_are_found_in_every_place():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    hazards = describe_hazards(nn.Sequential(first, second))
    assert hazards == tuple(Hazard("shared-parameters", place, "weight is used in 2 places") for place in ("0", "1"))


def test_hooks_are_found():
    model = _net(nn.ReLU())
    model[1].register_forward_hook(lambda *_: None)
    assert [(hazard.reason, hazard.module) for hazard in describe_hazards(model)] == [("hooks", "1")]


def test_batch_statistics_are_told_from_others():
    assert has_batch_statistics(_net(nn.SyncBatchNorm(4)))
    assert not has_batch_statistics(_net(nn.InstanceNorm2d(4, track_running_stats=True)))


def test_mixing_is_seen_where_no_layer_tells():
    model = _net(_CentredOnTheBatch())
    assert not has_batch_statistics(model)
    assert mixes_examples(model, (1, 6, 6))


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Dropout(0.5)])
def test_layers_that_keep_images_apart_do_not_mix(layer):
    assert not mixes_examples(_net(layer), (1, 6, 6))


def test_trying_leaves_the_model_and_the_generator_alone():
    model = _net(nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert mixes_examples(model, (1, 6, 6))
    assert torch.equal(torch.rand(1), expected)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_buffers_are_listed_by_path():
    names = {"1.running_mean", "1.running_var", "1.num_batches_tracked", "2.table"}
    assert set(buffers(_net(nn.BatchNorm2d(4), _Positions()))) == names
