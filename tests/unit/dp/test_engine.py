"""The choice of a method: what is ruled out and why, what is remembered, and that it touches nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from medveil.dp import engine
from medveil.dp.engine import Shapes, choose, layerwise_refusal
from medveil.errors import UnsupportedModelError

SHAPES = Shapes((1, 6, 6))


def _net(*layers):
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(36, 3))


def _reasons(choice):
    return {trial.method: trial.reason for trial in choice.trials if trial.reason}


def test_a_plain_network_may_use_every_method_and_the_fastest_is_taken():
    choice = choose(_net(), cross_entropy, SHAPES)
    assert _reasons(choice) == {}
    assert {trial.method for trial in choice.trials} == {"layerwise", "vmap", "microbatch"}
    fastest = min(choice.trials, key=lambda trial: trial.seconds_per_example)
    assert (choice.method, choice.chunk_size) == (fastest.method, fastest.chunk_size)


class _Branching(nn.Module):
    def forward(self, images):
        return images if images.mean() > 0 else -images


class _Recurrent(nn.Module):
    """Rows as a sequence."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(6, 36, batch_first=True)

    def forward(self, features):
        return self.core(features.reshape(-1, 6, 6))[0][:, -1]


class _Scaled(nn.Module):
    """A parameter that no rule knows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(36))

    def forward(self, features):
        return features * self.scale


class _Centred(nn.Module):
    def forward(self, features):
        return features - 1e-3 * features.mean(0)


@pytest.mark.parametrize(
    ("layer", "ruled_out"),
    [
        (_Branching(), {"vmap": "cannot vectorise", "layerwise": "control flow"}),
        (_Recurrent(), {"layerwise": "no rule for 1.core"}),
        (_Scaled(), {"layerwise": "no rule for 1"}),
        (_Centred(), {"layerwise": "differ"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_methods_are_ruled_out_with_a_reason(layer, ruled_out):
    choice = choose(_net(layer), cross_entropy, SHAPES)
    reasons = _reasons(choice)
    assert reasons.keys() == ruled_out.keys()
    assert all(part in reasons[method] for method, part in ruled_out.items())
    assert choice.method not in reasons


def test_a_loss_that_torch_cannot_vectorise_rules_out_vmap_alone():
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) if float(outputs.detach().sum()) < 1e9 else outputs.sum()

    assert _reasons(choose(_net(), loss, SHAPES)).keys() == {"vmap"}


def test_nothing_is_changed_by_the_trials():
    model = _net(nn.Dropout(0.5))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    choose(model, cross_entropy, SHAPES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.grad is None for tensor in model.parameters())
    assert model[1].p == 0.5


def test_dropout_alone_does_not_rule_out_layerwise():
    assert layerwise_refusal(_net(nn.Dropout(0.5)), cross_entropy, SHAPES) == ""


def test_the_choice_is_remembered_for_equal_networks_and_not_for_others(monkeypatch):
    calls = []
    honest = engine._choose
    monkeypatch.setattr(engine, "_choose", lambda *arguments: calls.append(1) or honest(*arguments))

    def loss(outputs, targets):
        return cross_entropy(outputs, targets)

    first = choose(_net(), loss, SHAPES)
    assert choose(_net(), loss, SHAPES) is first
    assert len(calls) == 1
    choose(_net(nn.ReLU()), loss, SHAPES)
    choose(_net(), loss, Shapes((1, 6, 6), target_dtype=torch.uint8))
    frozen = _net()
    frozen[1].bias.requires_grad_(False)
    choose(frozen, loss, SHAPES)
    assert len(calls) == 4


def test_a_loss_that_cannot_be_remembered_is_tried_anew():
    class Loss:
        __hash__ = None

        def __call__(self, outputs, targets):
            return cross_entropy(outputs, targets)

    assert choose(_net(), Loss(), SHAPES).method in engine.METHODS


def test_chunks_keep_to_the_room_that_they_are_given():
    model = _net(nn.Linear(36, 36))
    per_example = 2 * 4 * sum(tensor.numel() for tensor in model.parameters())
    choice = choose(model, cross_entropy, SHAPES, room_bytes=6 * per_example)
    timed = [trial.chunk_size for trial in choice.trials if trial.method != "microbatch"]
    assert timed
    assert max(timed) <= 6


def test_targets_with_fractions_are_drawn_as_fractions():
    shapes = Shapes((1, 6, 6), (3,), torch.float32)
    choice = choose(_net(), nn.functional.binary_cross_entropy_with_logits, shapes)
    assert _reasons(choice) == {}


def test_nothing_to_train_is_refused():
    with pytest.raises(UnsupportedModelError, match="nothing to train"):
        choose(_net().requires_grad_(False), cross_entropy, SHAPES)


def test_what_cannot_be_run_at_all_raises_what_the_network_raises():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        choose(_net(), cross_entropy, Shapes((1, 5, 5)))
