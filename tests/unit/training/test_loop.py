"""The training step: repeatable, proximal, clipped, and loud when it diverges."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from medveil.errors import ConfigError, DivergedError
from medveil.rng import Seeds
from medveil.training.arrays import ArrayData, InputScale
from medveil.training.augmentation import Augmentation
from medveil.training.device import be_deterministic, choose_device
from medveil.training.loop import Proximal, Trainer
from medveil.training.optimisers import Sgd, build_optimiser
from medveil.training.settings import Training
from medveil.training.validation import validation_scores


def _data(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 6, 6, generator=generator)
    targets = (images.mean((1, 2, 3)) > 0.5).long()
    numbers = np.arange(count)
    return ArrayData(images, targets, numbers, numbers * 0, numbers * 0, (None,) * count, count)


def _trainer(model=None, **settings):
    chosen = Training(**{"batch_size": 4, "optimiser": Sgd(lr=0.1), **settings})
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    return Trainer(
        model,
        _data(),
        chosen,
        scale=InputScale(),
        num_classes=2,
        seeds=Seeds(3),
        device=torch.device("cpu"),
    )


def _gradient(trainer):
    return torch.cat([parameter.grad.flatten() for parameter in trainer.parameters])


def test_a_step_can_be_repeated():
    trainer = _trainer(augmentation=Augmentation(rotate_degrees=10, noise=0.1))
    first = trainer.accumulate_gradient(5), _gradient(trainer).clone()
    trainer.accumulate_gradient(6)
    again = trainer.accumulate_gradient(5), _gradient(trainer).clone()
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_dropout_is_reproducible_and_leaves_the_global_generator_alone():
    trainer = _trainer(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 2)))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = trainer.accumulate_gradient(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(10)
    assert trainer.accumulate_gradient(0) == first


def test_the_proximal_term_adds_mu_times_the_distance():
    trainer = _trainer()
    anchor = tuple(parameter.detach() - 1.0 for parameter in trainer.parameters)
    trainer.accumulate_gradient(0)
    plain = _gradient(trainer).clone()
    trainer.accumulate_gradient(0, Proximal(0.25, anchor))
    torch.testing.assert_close(_gradient(trainer), plain + 0.25)


def test_gradients_are_scaled_to_the_norm():
    trainer = _trainer(max_grad_norm=0.01)
    trainer.accumulate_gradient(0)
    assert float(_gradient(trainer).norm()) == pytest.approx(0.01, rel=1e-3)


def test_training_lowers_the_loss():
    trainer = _trainer(optimiser=Sgd(lr=0.5))
    optimiser = build_optimiser(trainer.parameters, Sgd(lr=0.5))
    first = trainer.run(optimiser, first_step=0, count=3, total_steps=60)
    trainer.run(optimiser, first_step=3, count=54, total_steps=60)
    assert trainer.run(optimiser, first_step=57, count=3, total_steps=60) < first / 2


def test_a_loss_that_is_not_finite_stops_the_training():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        model[1].weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="no longer finite"):
        _trainer(model).accumulate_gradient(0)


def test_validation_scores_match_the_definition():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        model[1].weight[0].fill_(-1.0)
        model[1].weight[1].fill_(1.0)
    scores = validation_scores(
        model,
        _data(),
        task="classification",
        scale=InputScale(),
        loss=Training().loss,
        batch_size=5,
        device=torch.device("cpu"),
    )
    assert scores["auc"] == 1.0  # the mean decides, and the model ranks by the mean


def test_one_class_has_no_auc():
    data = _data()
    data.targets.fill_(1)
    scores = validation_scores(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        data,
        task="classification",
        scale=InputScale(),
        loss=Training().loss,
        batch_size=5,
        device=torch.device("cpu"),
    )
    assert scores["auc"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(ConfigError, match="GPU"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_mixed_precision_trains_on_a_gpu():
    device = torch.device("cuda")
    be_deterministic(device)
    trainer = Trainer(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).to(device),
        _data(),
        Training(batch_size=4, optimiser=Sgd(lr=0.1), amp="bf16"),
        scale=InputScale(),
        num_classes=2,
        seeds=Seeds(3),
        device=device,
    )
    assert np.isfinite(trainer.accumulate_gradient(0))


def test_weights_that_are_not_finite_stop_the_training():
    class Leap(torch.optim.SGD):
        def step(self):
            self.param_groups[0]["params"][0].data.fill_(float("inf"))

    trainer = _trainer()
    with pytest.raises(DivergedError, match="weights"):
        trainer.run(Leap(trainer.parameters, lr=0.1), first_step=0, count=1, total_steps=1)


def test_class_weights_need_one_a_class():
    with pytest.raises(ConfigError, match="one weight per class"):
        _trainer(class_weights=(1.0, 2.0, 3.0))


def test_an_interrupt_ends_the_training_at_the_next_step():
    halt = threading.Event()
    trainer = _trainer()
    trainer._halt = halt
    trainer.accumulate_gradient(0)
    halt.set()
    with pytest.raises(KeyboardInterrupt):
        trainer.accumulate_gradient(1)


def test_mixed_precision_on_a_processor_stays_near_full_precision():
    full = _trainer()
    half = Trainer(
        full.model,
        _data(),
        Training(batch_size=4, optimiser=Sgd(lr=0.1), amp="bf16"),
        scale=InputScale(),
        num_classes=2,
        seeds=Seeds(3),
        device=torch.device("cpu"),
    )
    assert half.accumulate_gradient(0) == pytest.approx(full.accumulate_gradient(0), rel=0.03)
