"""Gradient inversion on made images: its parts against independent computations, and the whole report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from medveil.attacks import inversion_plan, inversion_trial, release
from medveil.attacks.inversion import Inversion
from medveil.attacks.inversion_engine import Recipe, search, total_variation
from medveil.attacks.inversion_labels import likely_labels
from medveil.attacks.inversion_mask import image_of_mask
from medveil.attacks.inversion_plan import NO_CURVE, Work, plan_work, recipe_distance
from medveil.attacks.inversion_report import worked
from medveil.attacks.inversion_trial import Bench, Tries, Variant
from medveil.attacks.inversion_update import LocalSteps, local_steps, simulator, soft_loss, step_flops
from medveil.attacks.inversion_victims import chance, choose_victims
from medveil.attacks.noise_levels import BROKEN, noise_for, rank1_bound
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
    assert torch.equal(likely_labels(scene, observed, 1, noisy=False), targets)
    assert (likely_labels(scene, observed, 1, noisy=True) == targets).float().mean() > 0.9
    for noisy in (False, True):
        both = likely_labels(scene, observed, 2, noisy=noisy)
        assert torch.equal(both[:, :1], likely_labels(scene, observed, 1, noisy=noisy))
        assert torch.equal(both.sort(1).values, torch.tensor([[0, 1]] * 20))


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
    plain = Tries((Recipe("layer", 120, 0.05),), (1e-4,))
    noisy = Tries((Recipe("layer", 60, 0.05), Recipe("global", 60, 0.1)), (1e-3, 1e-1), 2)
    bench = Bench(scene, choose_victims(scene, 4, Seeds(0)), plain, noisy, Seeds(3))
    plain = bench.run(Variant("single update"), 4)
    noised = bench.run(
        Variant("epsilon 8", clipping=epsilon_8.clipping, noise_multiplier=epsilon_8.noise_multiplier), 4
    )
    control = bench.judge_control(4)
    assert (plain.rank == 1).all()
    assert np.median(plain.psnr) > np.median(control.psnr) + 6
    assert np.median(noised.psnr) < np.median(control.psnr) + 1
    assert [len(row["psnr_db_of_tries"]) for row in (*plain.rows, *noised.rows)] == [1] * 4 + [8] * 4


@pytest.mark.parametrize(
    ("config", "task"),
    [(FLAT, "classification"), (UNET, "segmentation"), (ScatteringConfig(scales=1, angles=4), "classification")],
    ids=["cnn", "unet", "scattering"],
)
def test_report_of_every_kind_of_network(make_scene, epsilon_8, monkeypatch, config, task):
    monkeypatch.setattr("medveil.attacks.inversion.plan_work", _little)
    scene = make_scene(config, task=task, protection=epsilon_8)
    weights = [each.detach().clone() for each in scene.model.parameters()]
    told = []
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=told.append)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["bound"] == pytest.approx(report.protected.bound)
    images = int((scene.targets > 0).flatten(1).any(1).sum()) if task == "segmentation" else 60
    prior = _little(scene, "quick").noisy.count / (images - 3)
    assert content["bound"] == pytest.approx(rank1_bound(1.2, prior, "add-remove"))
    assert content["control"]["bound"] == pytest.approx(1 / (images - 3))
    assert content["protected"]["figures"]["bound_kept"]["value"] == 1
    assert any("no evidence" in each for each in report.findings) == report.succeeded_unprotected
    assert {"single update", "sum of 3 sites"} <= {row["variant"] for row in content["unprotected"]["images"]}
    assert [each.condition.epsilon_of_release for each in report.curve] == pytest.approx([1e2, 1e4, 1e6], rel=0.01)
    assert report.protected.condition.epsilon == 8.0
    assert report.pictures["unprotected"].shape == (2, 16, 16)
    assert told
    for before, after in zip(weights, scene.model.parameters(), strict=True):
        assert torch.equal(before, after)


def _little(scene, effort):
    plain, noisy = inversion_plan.tries(scene, effort, 10)
    return Work(2, plain, noisy, tuple(inversion_plan.variants(scene, effort)))


@pytest.mark.parametrize("beyond", [True, False])
def test_large_networks_on_which_the_attack_fails_have_no_curve(make_scene, epsilon_8, monkeypatch, beyond):
    """Ten steps are too few; what noise the attack bears is then no question, where time is short."""
    monkeypatch.setattr(
        "medveil.attacks.inversion.plan_work", lambda *given: replace(_little(*given), variants=(), beyond=beyond)
    )
    scene = make_scene(UNET, task="segmentation", protection=epsilon_8)
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=lambda _: None)
    assert not report.succeeded_unprotected
    assert report.protected is not None
    assert len(report.curve) == (0 if beyond else 3)
    assert (NO_CURVE in report.findings) == beyond


def test_a_large_network_is_known_to_go_beyond_the_effort(make_scene, monkeypatch):
    scene = make_scene(UNET, task="segmentation")
    assert not plan_work(scene, "quick").beyond
    monkeypatch.setattr(inversion_plan, "step_flops", lambda _: 1e11)
    assert plan_work(scene, "quick").beyond


def test_an_attacker_under_noise_tries_more(make_scene, epsilon_8):
    own, noisy = inversion_plan.tries(make_scene(FLAT), "default", 100)
    assert [each.distance for each in own.recipes] == ["layer"]
    assert {each.distance for each in noisy.recipes} == {"layer", "global"}
    assert (max(noisy.smoothness), noisy.classes) == (0.1, 2)
    assert noisy.count == 2 * 3 * 2
    work = plan_work(make_scene(FLAT, protection=epsilon_8), "quick")
    assert work.noisy.recipes[0].steps < work.plain.recipes[0].steps


def test_every_try_counts_in_the_prior(make_scene):
    scene = make_scene(FLAT)
    tries = Tries((Recipe("layer", 1, 0.1),), (1e-3,))
    bench = Bench(scene, choose_victims(scene, 4, Seeds(0)), tries, tries, Seeds(3))
    assert bench.prior(1) == pytest.approx(1 / 57)
    assert bench.prior(12) == pytest.approx(12 / 57)
    assert bench.prior(100) == 1


def test_the_figures_that_count_in_segmentation_do_not_know_the_mask(make_scene, epsilon_8, monkeypatch):
    monkeypatch.setattr("medveil.attacks.inversion.plan_work", _little)
    given = []
    search_of = inversion_trial.search

    def watched(*arguments, soft_targets, **rest):
        given.append(soft_targets)
        return search_of(*arguments, soft_targets=soft_targets, **rest)

    monkeypatch.setattr(inversion_trial, "search", watched)
    scene = make_scene(UNET, task="segmentation", protection=epsilon_8)
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=lambda _: None)
    assert given.count(False) == 1
    assert all("mask_dice" in row for outcome in (report.protected, *report.curve) for row in outcome.images)
    assert {row["variant"] for row in report.unprotected.images if "mask_dice" in row} == {"single update"}
    assert {"known_mask:rank1_rate", "known_mask:gain_over_mask_alone_db"} <= set(report.unprotected.figures)
    assert "mask_alone:median_psnr_db" in report.control.figures
    assert any(each.startswith("Known mask") and "of the mask alone" in each for each in report.findings)


def test_a_mask_says_what_it_says_and_an_attack_must_beat_it(make_scene):
    seeds = Seeds(5)
    masks = (torch.rand(300, 8, 8, generator=seeds.torch()) > 0.5).long()
    images = 0.2 + 0.5 * masks[:, None].float()
    found = image_of_mask(images[:200], masks[:200], masks[200:], 2)
    assert float((found - images[200:]).abs().max()) < 0.02
    noise = torch.rand(images.shape, generator=seeds.child("noise").torch())
    blind = image_of_mask(noise[:200], masks[:200], masks[200:], 2)
    assert float((blind - noise[:200].mean(0)).abs().mean()) < 0.05

    scene = make_scene(UNET, task="segmentation")
    tries = Tries((Recipe("layer", 1, 0.1),), (1e-3,))
    bench = Bench(scene, choose_victims(scene, 10, Seeds(0)), tries, tries, Seeds(3))
    mean, informed = bench.judge_control(10), bench.judge_mask(10)
    assert np.median(informed.psnr) > np.median(mean.psnr) + 1
    only_better_than_the_mean = replace(informed, psnr=mean.psnr + 4, rank=np.ones(10, np.int64))
    assert worked(only_better_than_the_mean, [mean], "segmentation")
    high = replace(informed, psnr=mean.psnr + 2)
    assert not worked(only_better_than_the_mean, [mean, high], "segmentation")


class _Off:
    """A mechanism whose noise was left out."""

    def __init__(self, **_settings):
        pass

    def release(self, total, _random):
        return total


def test_a_build_without_noise_breaks_the_bound(make_scene, epsilon_8, monkeypatch):
    # Half the noise cannot be seen by this attack: it finds nobody at the full noise, nor at the half. The
    # reconstruction attack, which comes close to the bound, sees that.
    def short(scene, effort):
        plain, noisy = Tries((Recipe("layer", 80, 0.05),), (1e-4,)), Tries((Recipe("layer", 80, 0.05),), (1e-4,), 2)
        return Work(8, plain, noisy, ())

    monkeypatch.setattr("medveil.attacks.inversion.plan_work", short)
    monkeypatch.setattr(inversion_plan, "EPSILONS", {"quick": (1.0,)})
    monkeypatch.setattr("medveil.attacks.inversion.EPSILONS", {"quick": (1.0,)})
    monkeypatch.setattr("medveil.attacks.inversion.curve_images", lambda *_: 8)
    monkeypatch.setattr("medveil.attacks.inversion.pool_size", lambda *_: 8)
    scene = make_scene(FLAT, patients=500, protection=epsilon_8)

    def attacked():
        return Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=lambda _: None)

    honest = attacked()
    assert [each.figures["bound_kept"].value for each in (honest.protected, *honest.curve)] == [1, 1]
    assert BROKEN not in honest.findings
    monkeypatch.setattr(release, "NoiseMechanism", _Off)
    found = attacked()
    assert [each.figures["bound_kept"].value for each in (found.protected, *found.curve)] == [0, 0]
    assert BROKEN in found.findings


def test_too_few_images_to_see_a_broken_bound_are_said_to_be_so(make_scene, epsilon_8, monkeypatch):
    monkeypatch.setattr("medveil.attacks.inversion.plan_work", _little)
    scene = make_scene(FLAT, protection=epsilon_8)
    report = Inversion().run(scene, effort="quick", seeds=Seeds(1), tell=lambda _: None)
    assert any(each.startswith("2 images are too few to see a broken bound") for each in report.findings)


def test_default_effort_tries_every_variant(make_scene, monkeypatch):
    monkeypatch.setattr("medveil.attacks.inversion.plan_work", _little)
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
    monkeypatch.setattr("medveil.attacks.inversion.plan_work", _little)
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


def test_a_patient_with_many_images_is_drawn_as_often_as_any_other(make_scene):
    # Patient 0 has 31 of 60 images: by images it would come first in about half of the draws, by patients in 1 of 30.
    scene: Scene = make_scene(FLAT, subject=np.maximum(np.arange(60) - 30, 0))
    first = [choose_victims(scene, 1, Seeds(number))[0] for number in range(300)]
    assert sum(scene.subject[first] == 0) < 30
    rows = [choose_victims(scene, 30, Seeds(number)) for number in range(20)]
    own = [int(each[scene.subject[each] == 0][0]) for each in rows]
    assert len(set(own)) > 5


def test_the_chance_to_guess_counts_patients_and_the_fewest_images(make_scene):
    pairs: Scene = make_scene(FLAT, subject=np.arange(60) // 2)
    assert chance(pairs, choose_victims(pairs, 10, Seeds(4))) == pytest.approx(1 / (21 * 2))
    uneven: Scene = make_scene(FLAT, subject=np.maximum(np.arange(60) - 30, 0))
    assert chance(uneven, choose_victims(uneven, 10, Seeds(4))) == pytest.approx(1 / 21)


def test_slices_without_foreground_are_no_victims(make_scene):
    scene: Scene = make_scene(UNET, task="segmentation", subject=np.arange(60) // 2)
    scene.targets[1::2] = 0
    chosen = choose_victims(scene, 20, Seeds(4))
    full = (scene.targets > 0).flatten(1).any(1)
    assert bool(full[torch.from_numpy(chosen)].all())
    assert chance(scene, chosen) <= 1 / 11


def test_work_is_counted_in_operations(make_scene):
    small, large = make_scene(FLAT), make_scene(FLAT.model_copy(update={"channels": (16, 16)}))
    assert 2 * step_flops(small) < step_flops(large)
