"""The worst-case attack: its posterior against brute force, its success against the bound, and builds that break it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Gaussian
from medveil.attacks import reconstruction, release
from medveil.attacks.noise_levels import breaks, noise_for
from medveil.attacks.reconstruction import Reconstruction
from medveil.attacks.reconstruction_engine import GaussianPrior
from medveil.attacks.reconstruction_images import one_a_subject, pixel_span
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import AutoClipping, FlatClipping, PerLayerClipping
from medveil.dp.noise import NoiseMechanism
from medveil.errors import AttackError
from medveil.rng import Seeds
from medveil.training.arrays import InputScale

SIDE = 10


def pictures(count, seed):
    """Smooth random fields in 0..1, unlike each other."""
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.avg_pool2d(nn.functional.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)
    return (0.5 + 0.4 * smooth).clamp(0, 1)


def protection(noise_multiplier=1.0, clipping=None):
    return Protection(clipping or FlatClipping(l2_clip_norm=2.0), noise_multiplier, 0.1, 10, 1e-5, 8.0)


def scene(patients=300, public=200, **changes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2))
    made = Scene(
        model=model,
        trained=model,
        loss=lambda logits, targets: nn.functional.cross_entropy(logits, targets, reduction="none"),
        scale=InputScale(),
        task="classification",
        num_classes=2,
        images=pictures(patients, 0),
        targets=torch.zeros(patients, dtype=torch.int64),
        subject=np.arange(patients),
        public=pictures(public, 1),
        public_targets=torch.zeros(public, dtype=torch.int64),
        public_subject=np.arange(public),
        protection=protection(),
    )
    return replace(made, **changes)


def attack(where):
    return Reconstruction().run(where, effort="quick", seeds=Seeds(0), tell=lambda _: None)


@pytest.fixture(scope="module")
def report():
    return attack(scene())


def test_without_protection_every_image_comes_back(report):
    assert report.succeeded_unprotected
    assert min(row["psnr_db"] for row in report.unprotected.images) > 60
    assert all(row["rank"] == 1 for row in report.unprotected.images)
    assert report.unprotected.figures["identified_of_256"].value == 1


def test_the_runs_noise_leaves_little_above_the_control(report):
    noisy, control = report.protected.figures, report.control.figures
    assert noisy["median_psnr_db"].value < control["median_psnr_db"].value + 1.5
    assert noisy["rank1_rate"].value < 0.1
    assert report.protected.condition.epsilon == 8.0
    assert report.protected.condition.epsilon_of_release == pytest.approx(4.377, abs=0.01)


def test_the_attack_revives_as_noise_falls(report):
    decibels = [outcome.figures["median_psnr_db"].value for outcome in report.curve]
    rates = [outcome.figures["rank1_rate"].value for outcome in report.curve]
    assert decibels == sorted(decibels)
    assert rates[0] < 0.05
    assert rates[-1] == 1
    epsilons = [outcome.condition.epsilon_of_release for outcome in report.curve]
    assert epsilons == pytest.approx([1, 8, 1e2, 1e3, 1e4, 1e5, 1e6], rel=0.02)


def test_success_stays_within_the_bound_and_comes_close(report):
    for outcome in (report.protected, *report.curve):
        assert outcome.figures["bound_kept"].value == 1
    # A weak attack would keep any bound. The candidates are nearly orthogonal, which no attack uses better than ours.
    assert report.protected.figures["identified_of_16"].value > 0.6 * report.protected.figures["bound_of_16"].value
    assert report.protected.bound == report.protected.figures["bound_of_256"].value
    assert any("At no noise level did it do better" in each for each in report.findings)


def test_the_bound_for_two_candidates_is_the_normal_one(report):
    """1 - f(1/2) of a Gaussian of noise multiplier 1 is Phi(1): Dong, Roth & Su 2022, equation (6)."""
    assert report.protected.figures["bound_of_2"].value == pytest.approx(0.8413447, abs=2e-3)
    assert report.protected.figures["bound_of_2"].value >= 0.8413447


@pytest.fixture
def no_curve(monkeypatch):
    monkeypatch.setitem(reconstruction._EPSILONS, "quick", ())


def _half(**settings):
    return NoiseMechanism(**settings | {"noise_multiplier": settings["noise_multiplier"] / 2})


class _Off:
    def __init__(self, **_settings):
        pass

    def release(self, total, _random):
        return total


def _unclipped(_clipping, gradients, total):
    total += torch.cat([each.flatten(1).double() for each in gradients], 1).sum(0)


@pytest.mark.parametrize(
    ("name", "broken"),
    [("NoiseMechanism", _half), ("NoiseMechanism", _Off), ("clip_and_sum", _unclipped)],
    ids=["half the noise", "no noise", "no clip"],
)
@pytest.mark.usefixtures("no_curve")
def test_a_build_that_protects_less_breaks_the_bound(monkeypatch, name, broken):
    monkeypatch.setattr(release, name, broken)
    found = attack(scene())
    assert found.protected.figures["bound_kept"].value == 0
    assert any("BETTER THAN THEORY ALLOWS" in each for each in found.findings)


@pytest.mark.parametrize(
    "clipping",
    [AutoClipping(l2_clip_norm=0.5), PerLayerClipping(l2_clip_norm=3.0)],
    ids=lambda clipping: clipping.kind,
)
@pytest.mark.usefixtures("no_curve")
def test_other_ways_of_clipping_keep_the_bound(clipping):
    found = attack(scene(protection=protection(clipping=clipping)))
    assert found.protected.figures["bound_kept"].value == 1
    assert found.protected.figures["identified_of_16"].value > 0.1


@pytest.mark.usefixtures("no_curve")
def test_a_hypothetical_protection_is_called_so():
    found = attack(scene(protection=None, reference=protection(3.0)))
    assert found.protected.condition.name == "epsilon 8, hypothetical"


@pytest.mark.usefixtures("no_curve")
def test_equal_seeds_give_equal_reports():
    first, second = attack(scene(100)), attack(scene(100))
    assert first.to_json() | {"seconds": 0} == second.to_json() | {"seconds": 0}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"protection": None}, "none to measure"),
        ({"patients": 15}, "Too few patients"),
        ({"public": 15}, "Too few public images"),
    ],
)
def test_what_cannot_be_tried_is_refused_first(where, words):
    with pytest.raises(AttackError, match=words):
        Reconstruction().check(scene(**where))


def test_patients_count_once():
    assert one_a_subject(np.array([4, 4, 2, 7, 2])).tolist() == [0, 2, 3]


def test_span_of_scored_images():
    assert pixel_span(torch.tensor([0.2, 0.9])) == (0.0, 1.0)
    assert pixel_span(torch.tensor([-2.0, 3.0])) == (-2.0, 3.0)


def test_the_posterior_mean_by_brute_force():
    """Against dense covariances and a fine grid over the scale, by SciPy."""
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0][:2]
    prior = GaussianPrior(torch.arange(4.0).double(), basis, torch.tensor([3.0, 0.5], dtype=torch.float64), 0.1)
    law = (basis.T @ torch.diag(prior.variances) @ basis).numpy() + 0.1 * (np.eye(4) - (basis.T @ basis).numpy())
    std, typical = 0.4, 1.3
    seen, constant = np.array([0.7, -1.2, 2.0, 0.1]), 1.0
    scales = typical * np.exp(np.linspace(-4, 4, 4001))
    weights, means = [], []
    for scale in scales:
        spread = scale**2 * law + std**2 * np.eye(4)
        density = multivariate_normal(np.zeros(4), spread).pdf(seen)
        density *= np.exp(-((constant - scale) ** 2) / (2 * std**2)) * np.exp(-(np.log(scale / typical) ** 2) / 0.5)
        weights.append(density)
        means.append(scale * law @ np.linalg.solve(spread, seen))
    expected = prior.mean.numpy() + np.average(means, axis=0, weights=weights)
    found = prior.reconstruct(
        torch.tensor(seen)[None], torch.tensor([constant]), noise_std=std, typical=torch.tensor([typical])
    )[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)


def test_noise_alone_gives_the_mean_and_no_noise_the_image():
    public, images = pictures(200, 1), pictures(20, 2)
    prior = GaussianPrior.fit(public)
    centred = images.double().flatten(1) - prior.mean
    one = torch.ones(20, dtype=torch.float64)
    drawn = torch.randn(20, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blind = prior.reconstruct(centred + 1e4 * drawn, one, noise_std=1e4, typical=one)
    assert (blind - prior.mean).abs().max() < 0.02
    clear = prior.reconstruct(3 * centred, 3 * one, noise_std=1e-6, typical=2 * one)
    assert (clear - images.double().flatten(1)).abs().max() < 1e-3


def test_the_prior_knows_variance_beyond_its_components():
    """White images of variance 1/12: every direction has that variance, spanned or not."""
    prior = GaussianPrior.fit(torch.rand(120, 300, generator=torch.Generator().manual_seed(0)))
    assert prior.rest == pytest.approx(1 / 12, rel=0.1)
    assert torch.allclose(prior.basis @ prior.basis.T, torch.eye(len(prior.basis)).double(), atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 90), (200, 30)], ids=["more values than images", "more images than values"])
def test_principal_components_are_those_of_a_singular_value_decomposition(shape):
    images = np.random.default_rng(0).normal(size=shape) * np.logspace(0, -3, shape[1])
    prior = GaussianPrior.fit(torch.from_numpy(images))
    _, singular, rows = np.linalg.svd(images - images.mean(0), full_matrices=False)
    kept = len(prior.basis)
    assert kept == min(shape[0] // 4, shape[1])
    np.testing.assert_allclose(prior.variances, singular[:kept] ** 2 / (shape[0] - 1), rtol=1e-8)
    np.testing.assert_allclose(np.abs((prior.basis.numpy() * rows[:kept]).sum(1)), 1, atol=1e-6)


def test_directions_in_which_images_do_not_vary_are_no_components():
    drawn = np.random.default_rng(0)
    flat = drawn.normal(size=(80, 3)) @ drawn.normal(size=(3, 200))
    prior = GaussianPrior.fit(torch.from_numpy(flat))
    assert prior.basis.shape == (3, 200)
    assert prior.rest < 1e-9
    assert len(GaussianPrior.fit(torch.ones(20, 6)).basis) == 0


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 1e2, 1e4, 1e6])
def test_noise_for_an_epsilon_costs_that_epsilon(epsilon):
    assert bound_of(Gaussian(noise_multiplier=noise_for(epsilon, 1e-5)), delta=1e-5) == pytest.approx(epsilon, rel=0.03)


def test_breaks_needs_more_than_luck():
    assert not breaks(hits=5, trials=10, bound=0.3)
    assert breaks(hits=1000, trials=1000, bound=0.98)
    assert not breaks(hits=1000, trials=1000, bound=1.0)
