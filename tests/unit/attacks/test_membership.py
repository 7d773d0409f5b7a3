"""The membership game on a network that learns random labels by heart."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional

from medveil.accounting import calibrate_noise, epsilon
from medveil.attacks import membership, membership_game, membership_shadows
from medveil.attacks.attack import Condition, Figure, Outcome
from medveil.attacks.membership import Membership
from medveil.attacks.membership_game import Size
from medveil.attacks.membership_report import Tried, bounds, keeps_bound, training_epsilon
from medveil.attacks.membership_scores import area, likelihood_ratios
from medveil.attacks.membership_shadows import Answers, Twin, answers_of, choose_pool, draw_members, private_step
from medveil.attacks.noise_levels import BROKEN
from medveil.attacks.scene import Protection, Scene
from medveil.dp import clipping as clipping_code
from medveil.dp.clipping import AdaptiveClipping, FlatClipping
from medveil.dp.noise import NoiseMechanism
from medveil.errors import AttackError
from medveil.rng import Seeds
from medveil.training.arrays import InputScale
from medveil.training.optimisers import Sgd
from medveil.training.settings import Training

RATE, STEPS, DELTA = 0.5, 20, 1e-5
SIZE = Size(patients=80, images=2, models=16, epochs=15, steps=STEPS)


def losses(logits, targets):
    rows = functional.cross_entropy(logits, targets, reduction="none")
    return rows.flatten(1).mean(1) if rows.dim() > 1 else rows


def scene_of(patients=80, images_each=1, task="classification", target=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    count = patients * images_each
    images = torch.rand(count, 1, 12, 12, generator=random)
    if task == "classification":
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
        targets = torch.randint(0, 2, (count,), generator=random)
    else:
        model = nn.Conv2d(1, 2, 3, padding=1)
        targets = torch.randint(0, 2, (count, 12, 12), generator=random)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    trained = copy.deepcopy(model)
    trained.state_dict()[next(iter(trained.state_dict()))].add_(0.1)
    noise = calibrate_noise(epsilon=target, delta=DELTA, sampling_rate=RATE, steps=STEPS)
    protection = Protection(FlatClipping(l2_clip_norm=0.5), noise, RATE, STEPS, DELTA, target)
    return Scene(
        model=model,
        trained=trained,
        loss=losses,
        scale=InputScale(),
        task=task,
        num_classes=2,
        images=images,
        targets=targets,
        subject=np.repeat(np.arange(patients) + 7, images_each),
        public=images,
        public_targets=targets,
        public_subject=np.arange(count),
        training=Training(batch_size=64, optimiser=Sgd(lr=0.1, momentum=0.9)),
        protection=protection,
    )


@pytest.fixture
def small(monkeypatch):
    for key in membership.SIZES:
        monkeypatch.setitem(membership.SIZES, key, SIZE)


@pytest.fixture(scope="module")
def ordinary():
    """The report on the ordinary scene, once for all tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(membership.SIZES, ("classification", "quick"), SIZE)
        return report_of(scene_of())


def report_of(scene, effort="quick"):
    return Membership().run(scene, effort=effort, seeds=Seeds(1), tell=lambda _: None)


def test_the_attack_works_without_protection_and_stays_below_the_bound_with_it(small):
    scene = scene_of()
    before = copy.deepcopy(scene.model.state_dict())
    told = []
    report = Membership().run(scene, effort="quick", seeds=Seeds(1), tell=told.append)
    plain, hidden, control = report.unprotected.figures, report.protected.figures, report.control.figures
    assert report.succeeded_unprotected
    assert plain["auc"].low > 0.8
    assert control["auc"].low < 0.5 < control["auc"].high
    assert hidden["auc"].low < hidden["auc_bound"].value < 0.9
    assert report.success == "auc"  # so few pairs tell no rate of 1 %
    assert report.protected.bound == hidden["auc_bound"].value
    assert hidden["tpr_at_1e-2"].low < hidden["tpr_at_1e-2_bound"].value < 0.5
    assert all(torch.equal(before[key], value) for key, value in scene.model.state_dict().items())
    assert len(told) == 3 * -(-SIZE.models // 4)
    assert hidden["bound_kept"].value == 1
    assert BROKEN not in report.findings
    assert report.protected.condition.epsilon_of_release is None
    assert len(report.unprotected.images) == 80
    assert plain["mean_memorisation"].value > 0.1 > abs(control["mean_memorisation"].value)
    assert "tpr_at_1e-3" not in plain  # 640 others cannot show one in a thousand
    assert report.pictures["roc_unprotected"][-1] == 1
    assert report.to_json()["bound"] == report.protected.bound


@pytest.mark.parametrize("missing", ["noise", "clip"])
def test_a_build_without_the_defence_exceeds_the_bound(small, monkeypatch, missing):
    if missing == "noise":
        monkeypatch.setattr(NoiseMechanism, "release", lambda self, total, random: total)
    else:
        kept = clipping_code._coefficients

        def unclipped(clipping, norms, sizes):
            factors, clipped = kept(clipping, norms, sizes)
            return torch.full_like(factors, 100.0), clipped

        monkeypatch.setattr(clipping_code, "_coefficients", unclipped)
    report = report_of(scene_of())
    hidden = report.protected.figures
    assert hidden["auc"].low > hidden["auc_bound"].value
    assert hidden["tpr_at_1e-2"].low > hidden["tpr_at_1e-2_bound"].value
    assert hidden["bound_kept"].value == 0
    assert BROKEN in report.findings


def test_the_noise_free_twin_is_the_protected_training_without_noise(small, ordinary, monkeypatch):
    """Its figures must equal those of protected shadows whose noise is removed by hand, seeds being the same."""
    report = ordinary
    twin = report.curve[0]
    assert (twin.condition.noise_multiplier, twin.condition.epsilon_of_release, twin.bound) == (0.0, None, None)
    assert twin.condition.l2_clip_norm == 0.5
    assert twin.figures["auc"].low > report.protected.figures["auc"].value
    assert report.unprotected.figures["clipped_auc"] == twin.figures["auc"]
    assert report.unprotected.figures["clipped_tpr_at_1e-2"] == twin.figures["tpr_at_1e-2"]
    monkeypatch.setattr(NoiseMechanism, "release", lambda self, total, random: total)
    by_hand = report_of(scene_of()).curve[0].figures
    assert by_hand["auc"].value == pytest.approx(twin.figures["auc"].value, abs=2e-3)


def test_a_protected_training_that_hides_members_without_noise_shows_nothing(small, monkeypatch):
    """A clip norm of next to nothing: no model learns anything, with or without noise."""
    scene = scene_of()
    protection = replace(scene.protection, clipping=FlatClipping(l2_clip_norm=1e-12), noise_multiplier=1.0)
    report = report_of(replace(scene, protection=protection))
    assert report.unprotected.figures["auc"].low > 0.8
    assert not report.succeeded_unprotected
    assert any("shows nothing about the noise" in each for each in report.findings)


@pytest.mark.parametrize(("plain", "clipped", "worked"), [(0.7, 0.7, True), (0.7, 0.45, False), (0.45, 0.7, False)])
def test_both_twins_must_have_worked(plain, clipped, worked):
    def reached(low):
        return Outcome(Condition("x"), {"auc": Figure(low + 0.05, low, low + 0.1, 0.95)})

    tried = Tried(reached(plain), reached(clipped), None, reached(0.45), (), "auc")
    assert tried.succeeded is worked


def weak_twin(target):
    noise = calibrate_noise(epsilon=target, delta=DELTA, sampling_rate=RATE, steps=STEPS)
    return Twin(Protection(FlatClipping(l2_clip_norm=1.0), noise, RATE, STEPS, DELTA, target), STEPS, noise)


@pytest.mark.parametrize(("patients", "models", "kept"), [(100, 400, True), (10_000, 4, False)])
def test_a_bound_is_broken_by_patients_and_not_by_how_often_they_are_asked(patients, models, kept):
    """As many pairs, 40,000, of an AUC 0.05 above the bound: asking few patients often is no proof."""
    twin, random = weak_twin(1.0), np.random.default_rng(0)
    shift = np.sqrt(2) * norm.ppf(bounds(twin)["auc"] + 0.05)
    members = random.random((models, patients)) < 0.5
    assert keeps_bound(random.normal(0, 1, members.shape) + shift * members, members, twin) is kept
    assert keeps_bound(random.normal(0, 1, members.shape), members, twin)


def test_hits_alone_break_a_bound():
    """Half of the patients named for certain, the others' members below everybody: an AUC of 1/2, and half hit."""
    random = np.random.default_rng(0)
    members = random.random((16, 400)) < 0.5
    named = np.where(np.arange(400) < 200, 1, -1)
    scores = random.random(members.shape) + named * members
    assert np.mean(scores[members][:, None] > scores[~members][:500]) == pytest.approx(0.5, abs=0.05)
    assert not keeps_bound(scores, members, weak_twin(0.5))


def test_findings_name_the_best_variant_the_runs_own_bound_and_what_intervals_leave_out(small):
    scene = scene_of()
    longer = replace(scene, protection=replace(scene.protection, steps=10 * STEPS, epsilon=5.0))
    report = report_of(longer)
    figures, text = report.protected.figures, " ".join(report.findings)
    own = Twin(longer.protection, 10 * STEPS, longer.protection.noise_multiplier)
    assert figures["run_auc_bound"].value == bounds(own)["auc"] > figures["auc_bound"].value
    assert report.protected.bound == figures["auc_bound"].value
    for bound in (figures["tpr_at_1e-2_bound"], figures["run_tpr_at_1e-2_bound"]):
        assert f"{100 * bound.value:.1f} %" in text
    best = max(
        figure.value
        for name, figure in figures.items()
        if name.endswith("tpr_at_1e-2") and not name.startswith("clipped")
    )
    assert f"protected {100 * best:.1f} %" in text
    assert "not the 16 models attacked" in text
    assert "not asked" in report.threat_model.sees


def test_the_same_seeds_give_the_same_figures(small, ordinary):
    first, second = ordinary, report_of(scene_of())
    assert first.unprotected.figures == second.unprotected.figures
    assert first.protected.figures == second.protected.figures


def test_masks_are_attacked_by_pixels_and_by_dice(monkeypatch):
    monkeypatch.setitem(membership.SIZES, ("segmentation", "quick"), replace(SIZE, epochs=3, steps=3))
    report = report_of(scene_of(images_each=3, task="segmentation"))
    assert {"auc", "dice_auc", "online_auc", "offline_auc", "loss_threshold_auc"} <= set(report.unprotected.figures)
    assert "offline LiRA on Dice" in " ".join(report.findings)


def test_the_headline_of_masks_is_offline_and_on_dice():
    """A pool in which Dice alone tells who was in a model, and pixels say nothing."""
    members = draw_members(20, 40, Seeds(1), share=1 / 4)
    noise = np.random.default_rng(0).normal(size=(3, 20, 40))
    answers = Answers(members, noise[0], noise[1] + 4 * members, noise[0], noise[2])
    variants = membership_game._variants(answers)
    assert area(variants[""], members, Seeds(0)).low > 0.9
    np.testing.assert_array_equal(variants[""], likelihood_ratios(answers.overlap, members, "offline"))
    assert area(variants["online_"], members, Seeds(0)).value < 0.6
    classified = membership_game._variants(replace(answers, overlap=None))
    np.testing.assert_array_equal(classified[""], likelihood_ratios(answers.signal, members))


def test_a_hypothetical_protection_is_said_to_be_one(small, ordinary):
    scene = scene_of()
    assumed = replace(scene, protection=None, reference=scene.protection)
    assert "hypothetical" in report_of(assumed).protected.condition.name
    assert "hypothetical" not in ordinary.protected.condition.name
    assert report_of(replace(scene, protection=None)).protected is None


def test_a_network_that_mixes_patients_has_no_hypothetical_row(small):
    scene = scene_of()
    mixing = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assumed = replace(scene, model=mixing, trained=scene.trained, protection=None, reference=scene.protection)
    report = report_of(assumed)
    assert report.protected is None
    assert any("mix patients" in each for each in report.resisted)


def test_epsilon_of_the_shadows_is_that_of_the_steps_they_take(small):
    scene = scene_of()
    longer = replace(scene, protection=replace(scene.protection, steps=10 * STEPS, epsilon=5.0))
    condition = report_of(longer).protected.condition
    wanted = epsilon(sampling_rate=RATE, noise_multiplier=scene.protection.noise_multiplier, steps=STEPS, delta=DELTA)
    assert condition.epsilon == pytest.approx(wanted)
    assert condition.name.startswith("epsilon 5; the shadows' own training ")


def test_bounds_of_one_full_release_are_those_of_two_normals():
    """At sampling rate 1 and one step: the test of N(0, 1) against N(1/sigma, 1), AUC Phi(1 / (sigma sqrt 2))."""
    protection = Protection(FlatClipping(l2_clip_norm=1.0), 0.8, 1.0, 1, DELTA, 5.0)
    found = bounds(Twin(protection, 1, 0.8))
    assert norm.cdf(1 / (0.8 * np.sqrt(2))) <= found["auc"] <= norm.cdf(1 / (0.8 * np.sqrt(2))) + 0.01
    assert found["tpr_at_1e-2"] == pytest.approx(1 - norm.cdf(norm.ppf(0.99) - 1 / 0.8), abs=2e-3)


def test_so_little_noise_promises_nothing():
    protection = Protection(FlatClipping(l2_clip_norm=1.0), 0.001, RATE, STEPS, DELTA, 1e6)
    twin = Twin(protection, STEPS, 0.001)
    assert training_epsilon(twin) is None
    assert set(bounds(twin).values()) == {1.0}


def test_a_step_does_what_the_protection_says():
    scene = scene_of()
    step = private_step(scene.model, Twin(scene.protection, STEPS, 2.0), 40.0, views=1)
    assert (step.noise.noise_multiplier, step.noise.dimension, step.divisor) == (2.0, 290, RATE * 40)
    adaptive = replace(scene.protection, clipping=AdaptiveClipping(l2_clip_norm=1.0, count_noise_multiplier=10.0))
    noisier = private_step(scene.model, Twin(adaptive, STEPS, 2.0), 40.0, views=1)
    assert noisier.noise.noise_multiplier > 2.0
    assert noisier.event.noise_multiplier == 2.0


def test_patients_are_never_split():
    scene = scene_of(patients=30, images_each=3)
    pool = choose_pool(scene, 20, 2, Seeds(0))
    assert pool.patients == 20
    assert len(pool.images) == 40
    members = draw_members(1, 20, Seeds(0))[0]
    part = pool.of(members)
    assert len(part) == 2 * members.sum()
    assert part.num_subjects == members.sum()
    assert np.all(np.bincount(part.subject) == 2)
    inside = {int(each) for each in scene.subject[pool.row[members[pool.owner]]]}
    outside = {int(each) for each in scene.subject[pool.row[~members[pool.owner]]]}
    assert not inside & outside
    assert len(inside | outside) == 20


def test_answers_are_means_over_a_patients_images():
    scene = scene_of(patients=10, images_each=2)
    pool = choose_pool(scene, 10, 2, Seeds(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    signal, _, confidence, loss = answers_of(scene, pool, model)
    probabilities = model(scene.scaled(pool.images)).softmax(1).detach().double()
    for patient in range(10):
        own = np.flatnonzero(pool.owner == patient)
        truth = np.array([float(probabilities[row, pool.targets[row]]) for row in own])
        assert confidence[patient] == pytest.approx(truth.mean(), rel=1e-5)
        assert signal[patient] == pytest.approx(np.mean(np.log(truth / (1 - truth))), rel=1e-4, abs=1e-6)
        assert loss[patient] == pytest.approx(np.mean(-np.log(truth)), rel=1e-4)


def test_overlap_is_the_logit_of_soft_dice():
    scene = scene_of(patients=3, task="segmentation")
    pool = choose_pool(scene, 3, 1, Seeds(0))
    _, overlap, _, _ = answers_of(scene, pool, scene.model)  # weights of zero: every pixel one half
    for patient in range(3):
        wanted = float(pool.targets[patient].double().sum())
        dice = 2 * (0.5 * wanted) / (0.5 * 144 + wanted)
        assert overlap[patient] == pytest.approx(np.log(dice / (1 - dice)), rel=1e-3, abs=1e-4)


def test_coins_are_fair_and_their_own():
    members = draw_members(200, 100, Seeds(0))
    assert abs(members.mean() - 0.5) < 0.01
    assert len({int(each) for each in members.sum(1)}) > 5  # halves of one size would tie patients together


def test_models_of_masks_have_a_quarter_of_the_pool(monkeypatch):
    assert abs(draw_members(200, 100, Seeds(0), share=1 / 4).mean() - 0.25) < 0.01
    size = replace(SIZE, epochs=2, steps=2, models=12, share=1 / 4)
    assert size.others == 80 * 12 * 3 / 4
    monkeypatch.setitem(membership.SIZES, ("segmentation", "quick"), size)
    divisors = []
    step = membership_shadows.private_step

    def watched(model, twin, units, **rest):
        divisors.append(units)
        return step(model, twin, units, **rest)

    monkeypatch.setattr(membership_shadows, "private_step", watched)
    report = report_of(scene_of(task="segmentation"))
    assert divisors
    assert set(divisors) == {20.0}
    assert "about 20 of 80 patients" in report.unprotected.condition.name
    assert any("2 epochs on about 20 patients" in each for each in report.findings)


def test_too_few_patients_are_refused():
    with pytest.raises(AttackError, match="at least 64"):
        Membership().check(scene_of(patients=40))


def test_a_rate_that_cannot_be_measured_is_refused():
    with pytest.raises(AttackError, match="at least 1250"):
        Membership(false_positive_rate=5e-4).check(scene_of(patients=80))


def test_a_trained_start_is_refused():
    scene = scene_of()
    with pytest.raises(AttackError, match="initial weights"):
        Membership().check(replace(scene, trained=copy.deepcopy(scene.model)))
