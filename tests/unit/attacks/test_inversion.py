"""Gradient inversion on made images: its parts against independent computations, and the whole report."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from medveil.attacks import inversion
from medveil.attacks.inversion import Inversion, choose_victims, recipe_distance
from medveil.attacks.inversion_engine import Recipe, search, total_variation
from medveil.attacks.inversion_trial import Bench, Variant, recover_labels
from medveil.attacks.inversion_update import LocalSteps, local_steps, simulator, soft_loss, step_flops
from medveil.attacks.noise_levels import noise_for
from medveil.attacks.scene import Scene
from medveil.errors import AttackError
from medveil.models.cnn import CnnConfig
from medveil.models.scattering import ScatteringConfig
from medveil.models.unet import UnetConfig
from medveil.rng import Seeds
from medveil.training.optimisers import Sgd
from medveil.training.settings import Training

FLAT = CnnConfig(channels=(8, 8), strides=(2, 1), head="flat", activation="silu")
UNET = UnetConfig(depth=1, width=4, activation="silu")


def test_simulated_update_is_the_gradient_of_every_candidate(make_scene):
    scene = make_scene(FLAT)
    images, targets = scene.images[:6].unflatten(0, (3, 2)), scene.targets[:6].unflatten(0, (3, 2))
    found = simulator(scene)(scene.scaled(images), targets)
    for candidate in range(3):
        expected = scene.gradient(images[candidate], targets[candidate])
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[candidate], theirs)


def test_local_steps_are_those_of_torchs_sgd(make_scene):
    scene = make_scene(FLAT)
    images, targets = scene.images[:2], scene.targets[:2]
    found = simulator(scene, steps=LocalSteps(3, 0.05))(scene.scaled(images)[None], targets[None])
    before = [each.detach().clone() for each in scene.model.parameters()]
    optimiser = torch.optim.SGD(scene.model.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        scene.loss(scene.model(scene.scaled(images)), targets).mean().backward()
        optimiser.step()
    for mine, old, new in zip(found, before, scene.model.parameters(), strict=True):
        torch.testing.assert_close(mine[0], (old - new.detach()) / 0.05, rtol=1e-3, atol=1e-4)


def test_only_plain_sgd_is_the_plans_own(make_scene):
    plain = make_scene(FLAT, training=Training(optimiser=Sgd(lr=0.3)))
    assert local_steps(plain, 5) == (LocalSteps(5, 0.3), True)
    assert not local_steps(make_scene(FLAT), 5)[1]
    assert not local_steps(make_scene(FLAT, training=Training(optimiser=Sgd(lr=0.3, momentum=0.9))), 5)[1]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_soft_loss_equals_the_loss_where_targets_are_hard(make_scene, task):
    scene = make_scene(UNET if task == "segmentation" else FLAT, task=task)
    logits = scene.model(scene.scaled(scene.images[:5]))
    hard = nn.functional.one_hot(scene.targets[:5], 2).movedim(-1, 1).float()
    torch.testing.assert_close(soft_loss(scene)(logits, hard), scene.loss(logits, scene.targets[:5]))


def test_labels_come_from_the_bias_gradient_and_without_bias_from_likeness(make_scene):
    scene = make_scene(FLAT)
    images, targets = scene.images[:20, None], scene.targets[:20, None]
    observed = simulator(scene)(scene.scaled(images), targets)
    assert torch.equal(recover_labels(scene, observed, noisy=False), targets)
    assert (recover_labels(scene, observed, noisy=True) == targets).float().mean() > 0.9


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0], [3.0, 1.0]])[None, None, None]
    assert total_variation(image).item() == pytest.approx((3 + 0) / 2 + (1 + 2) / 2)


@given(epsilon=st.floats(0.5, 60), delta=st.floats(1e-8, 1e-2))
def test_noise_for_an_epsilon_gives_its_delta(epsilon, delta):
    noise = noise_for(epsilon, delta)
    half, shift = 1 / (2 * noise), epsilon * noise
    found = norm.cdf(half - shift) - np.exp(epsilon + norm.logcdf(-half - shift))
    assert found == pytest.approx(delta, rel=1e-4)


def test_search_finds_the_image_whose_linear_answer_was_seen():
    weights = torch.randn(40, 16, generator=Seeds(1).torch())

    def simulate(images, targets):
        return ((images.flatten(1) @ weights.T),)

    true = torch.rand(3, 1, 1, 4, 4, generator=Seeds(2).torch())
    found, _, distance = search(
        simulate,
        [each.detach() for each in simulate(true, None)],
        torch.full_like(true, 0.5),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.zeros(3),
        Recipe("global", 400, 0.05),
        limits=(0.0, 1.0),
    )
    assert float(distance.max()) < 1e-4
    cosine = nn.functional.cosine_similarity(found.flatten(1), true.flatten(1))
    assert float(cosine.min()) > 0.999


def test_an_unprotected_update_gives_the_image_and_epsilon_8_does_not(make_scene, epsilon_8):
    scene = make_scene(FLAT)
    bench = Bench(scene, choose_victims(scene, 4, Seeds(0)), Recipe("layer", 120, 0.05), (1e-4,), Seeds(3))
    plain = bench.run(Variant("single update"), 4)
    noised = bench.run(
        Variant("epsilon 8", clipping=epsilon_8.clipping, noise_multiplier=epsilon_8.noise_multiplier), 4
    )
    control = bench.judge_control(4)
    assert (plain.rank == 1).all()
    assert np.median(plain.psnr) > np.median(control.psnr) + 6
    assert np.median(noised.psnr) < np.median(control.psnr) + 1


@pytest.mark.parametrize(
    ("config", "task"),
    [(FLAT, "classification"), (UNET, "segmentation"), (ScatteringConfig(scales=1, angles=4), "classification")],
    ids=["cnn", "unet", "scattering"],
)
def test_report_of_every_kind_of_network(make_scene, epsilon_8, monkeypatch, config, task):
    monkeypatch.setattr("medveil.attacks.inversion._plan_work", _little)
    scene = make_scene(config, task=task, protection=epsilon_8)
    weights = [each.detach().clone() for each in scene.model.parameters()]
    told = []
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=told.append)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["bound"] == pytest.approx(report.protected.bound)
    assert 1 / 60 < content["bound"] < 0.5
    assert {"single update", "sum of 3 sites"} <= {row["variant"] for row in content["unprotected"]["images"]}
    assert [each.condition.epsilon_of_release for each in report.curve] == pytest.approx([1e2, 1e4, 1e6], rel=0.01)
    assert report.protected.condition.epsilon == 8.0
    assert report.pictures["unprotected"].shape == (2, 16, 16)
    assert told
    for before, after in zip(weights, scene.model.parameters(), strict=True):
        assert torch.equal(before, after)


def _little(scene, effort, _):
    return inversion._Work(2, 10, (1e-3,), tuple(inversion._variants(scene, effort)))


def test_default_effort_tries_every_variant(make_scene, monkeypatch):
    monkeypatch.setattr("medveil.attacks.inversion._plan_work", _little)
    report = Inversion().run(make_scene(FLAT), effort="default", seeds=Seeds(1), tell=lambda _: None)
    assert report.protected is None
    assert not report.curve
    variants = {row["variant"] for row in report.unprotected.images}
    assert variants == {
        "single update",
        "sum of 3 sites",
        "5 local steps of plain SGD",
        "finished model",
        "batch of 4",
        "batch of 8",
    }


def test_a_hypothetical_protection_is_said_to_be_so(make_scene, epsilon_8, monkeypatch):
    monkeypatch.setattr("medveil.attacks.inversion._plan_work", _little)
    scene = make_scene(FLAT, reference=epsilon_8)
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=lambda _: None)
    assert "hypothetical" in report.protected.condition.name


def test_too_few_patients_are_refused_before_work(make_scene):
    with pytest.raises(AttackError, match="too few patients"):
        Inversion().check(make_scene(FLAT, patients=12))


def test_a_network_without_second_derivatives_is_refused(make_scene):
    class Net(nn.Module):
        """Its answers cannot be differentiated by the image."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(256, 2)

        def forward(self, images):
            return self.head(images.detach().round().flatten(1))

    with pytest.raises(AttackError, match="differentiated twice"):
        Inversion().check(make_scene(FLAT, model=Net()))


def test_distance_follows_task_and_activation(make_scene):
    assert recipe_distance(make_scene(FLAT)) == "layer"
    assert recipe_distance(make_scene(FLAT.model_copy(update={"activation": "relu"}))) == "global"
    assert recipe_distance(make_scene(UNET, task="segmentation")) == "layer"
    assert recipe_distance(make_scene(ScatteringConfig(scales=1, angles=4))) == "global"


def test_victims_are_one_image_a_patient(make_scene):
    scene: Scene = make_scene(FLAT, subject=np.arange(60) // 2)
    chosen = choose_victims(scene, 20, Seeds(4))
    assert len(set(scene.subject[chosen].tolist())) == 20


def test_work_is_counted_in_operations(make_scene):
    small, large = make_scene(FLAT), make_scene(FLAT.model_copy(update={"channels": (16, 16)}))
    assert 2 * step_flops(small) < step_flops(large)
