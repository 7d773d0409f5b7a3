"""The imprint: what the layer is, what its gradient gives away, and what clipping and noise leave of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medveil.attacks import imprint as imprint_attack
from medveil.attacks import release
from medveil.attacks.imprint import Imprint
from medveil.attacks.imprint_engine import Setting, imprint, layer_gradient, local_update, quiet, read, secure_sum
from medveil.attacks.measures import psnr_db
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.errors import AttackError, GuaranteeError
from medveil.models.cnn import CnnConfig
from medveil.models.crafted import check_weights_not_crafted
from medveil.models.registry import build
from medveil.models.unet import UnetConfig
from medveil.rng import Seeds
from medveil.training.arrays import InputScale
from medveil.training.objectives import CrossEntropy, per_example_loss
from medveil.training.optimisers import Adam, Sgd
from medveil.training.settings import Training

SIDE = 12


def pictures(count, seed):
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.avg_pool2d(nn.functional.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)
    return (0.5 + 0.4 * smooth).clamp(0, 1)


def scene(task="classification", patients=200, public=200, **changes):
    if task == "classification":
        config, targets = CnnConfig(channels=(4, 8), strides=(2, 2), norm="group"), torch.arange(patients) % 2
    else:
        config = UnetConfig(width=4, depth=1, convs=1, norm="group", activation="silu")
        targets = (pictures(patients, 0)[:, 0] > 0.5).long()
    model = build(config, input_shape=(1, SIDE, SIDE), num_classes=2, seed=0)
    made = Scene(
        model=model,
        trained=model,
        loss=lambda logits, truth: per_example_loss(logits, truth, CrossEntropy()),
        scale=InputScale(),
        task=task,
        num_classes=2,
        images=pictures(patients, 0),
        targets=targets,
        subject=np.arange(patients),
        public=pictures(public, 1),
        public_targets=targets[torch.arange(public) % patients],
        public_subject=np.arange(public),
        sites=3,
        protection=Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 10, 1e-5, 8.0),
    )
    return replace(made, **changes)


def attack(where):
    return Imprint().run(where, effort="quick", seeds=Seeds(0), tell=lambda _: None)


@pytest.fixture(scope="module", params=["classification", "segmentation"])
def report(request):
    return attack(scene(request.param))


def test_without_protection_images_come_back_exactly(report):
    figures = report.unprotected.figures
    assert report.succeeded_unprotected
    assert figures["exact_rate_batch_8"].value >= 7 / 8
    assert figures["exact_rate_batch_64"].value > 0.8
    assert figures["exact_rate_sum_of_3_sites_of_32"].value > 0.7
    assert figures["rank1_rate"].value >= 7 / 8


def test_clip_and_noise_bring_it_down_to_the_control(report):
    protected, control = report.protected.figures, report.control.figures
    assert protected["exact_rate"].value == 0
    assert protected["rank1_rate"].value < 0.1
    assert protected["median_psnr_db"].value < control["median_psnr_db"].value + 1
    assert protected["bound_kept"].value == 1


def test_it_revives_without_noise_to_speak_of(report):
    last = report.curve[-1]
    assert last.condition.epsilon_of_release == pytest.approx(1e6, rel=0.03)
    assert last.figures["rank1_rate"].value > 0.5
    assert report.curve[0].figures["rank1_rate"].value < 0.1


def test_every_image_of_every_release_is_told(report):
    releases = {row["release"] for row in report.unprotected.images}
    assert releases == {"batch of 8", "batch of 64", "secure sum of 3 sites of 32"}
    assert len(report.unprotected.images) == 8 + 64 + 96
    assert {name: picture.shape for name, picture in report.pictures.items()} == dict.fromkeys(
        ("original", "control", "unprotected", "protected", "sum"), (8, SIDE, SIDE)
    )


@pytest.fixture
def short(monkeypatch):
    """Small batches and no curve."""
    quick = imprint_attack._EFFORTS["quick"]
    monkeypatch.setitem(imprint_attack._EFFORTS, "quick", replace(quick, batches=(8,), bins=512, epsilons=()))


@pytest.mark.usefixtures("short")
def test_a_build_without_noise_breaks_the_bound(monkeypatch):
    class Off:
        def __init__(self, **_settings):
            pass

        def release(self, total, _random):
            return total

    monkeypatch.setattr(release, "NoiseMechanism", Off)
    found = attack(scene(patients=1000))
    assert found.protected.figures["bound_kept"].value == 0
    assert any("BETTER THAN THEORY" in each for each in found.findings)


def test_a_lone_image_is_the_quotient_of_two_gradients():
    """By hand, in float64: for one image every active unit's weight gradient is its bias gradient times the input."""
    where = scene()
    layer = imprint(where, Setting(32, "random"), Seeds(2))
    weight, bias = layer_gradient(where, layer, where.images[:1], where.targets[:1])
    active = int(layer.bins(where.scaled(where.images[:1]))) + 1
    assert bool((bias[:active] != 0).all())
    assert not bias[active:].any()
    by_hand = weight[0].double() / bias[0].double() + layer.centre.double().flatten()
    np.testing.assert_allclose(by_hand, where.scaled(where.images[:1]).double().flatten(), atol=1e-4)


def test_the_bin_of_an_image_is_where_its_measurement_lies():
    where = scene()
    layer = imprint(where, Setting(16, "brightness"), Seeds(0))
    cutoffs = -layer.linear.bias.detach() / layer.linear.weight[0, 0].detach()
    measured = (where.scaled(where.images) - layer.centre).flatten(1).sum(1)
    expected = np.searchsorted(cutoffs.numpy(), measured.numpy()) - 1
    assert (layer.bins(where.scaled(where.images)).numpy() == expected).mean() > 0.99
    # Quantiles of images like these: no bin is much fuller than another.
    assert np.bincount(expected, minlength=16).max() < 3 * len(expected) / 16


def test_amplifying_scales_the_gradient_and_changes_no_answer():
    where = scene()
    layer = imprint(where, Setting(16, "random"), Seeds(0))
    before, answer = layer_gradient(where, layer, where.images[:4], where.targets[:4]), layer(where.images[:4])
    layer.amplify(2.0**10)
    after = layer_gradient(where, layer, where.images[:4], where.targets[:4])
    torch.testing.assert_close(layer(where.images[:4]), answer)
    torch.testing.assert_close(after[0], before[0] * 2**10)


def test_the_secure_sum_is_the_sum_within_its_resolution():
    parts = [[torch.rand(5, 3) - 0.5, torch.rand(5) - 0.5] for _ in range(4)]
    for found, each in zip(secure_sum(parts), zip(*parts, strict=True), strict=True):
        assert (found - torch.stack(each).double().sum(0)).abs().max() <= 4 * 2.0**-28


@pytest.mark.parametrize(
    "optimiser", [Sgd(lr=0.1), Sgd(lr=0.1, momentum=0.9, weight_decay=1e-3), Adam(lr=4e-3)], ids=str
)
def test_local_steps_give_images_away_too(optimiser):
    where = scene(training=Training(optimiser=optimiser))
    layer = quiet(where, imprint(where, Setting(256, "random"), Seeds(0)))
    before = layer.linear.weight.detach().clone()
    images = where.images[:16]
    batches = [(images[part], where.targets[part]) for part in torch.arange(16).split(4)]
    found, _ = read(layer, *local_update(where, layer, batches))
    bins = layer.bins(where.scaled(images))
    decibels = psnr_db(found[bins] * 0.25 + 0.5, images)
    assert (decibels > 40).mean() > 0.5
    assert torch.equal(layer.linear.weight, before)


@pytest.mark.usefixtures("short")
def test_the_plans_local_steps_are_a_row_of_their_own():
    found = attack(scene(optimiser_steps=3, training=Training(optimiser=Adam(lr=1e-3))))
    assert "exact_rate_3_local_steps_of_8" in found.unprotected.figures


@pytest.mark.usefixtures("short")
def test_the_networks_weights_stay_as_they_were():
    where = scene()
    before = {name: value.clone() for name, value in where.model.state_dict().items()}
    attack(where)
    assert all(torch.equal(before[name], value) for name, value in where.model.state_dict().items())
    assert all(parameter.grad is None for parameter in where.model.parameters())


def test_the_defence_catches_the_layer():
    where = scene()
    for measure in ("brightness", "random"):
        layer = imprint(where, Setting(64, measure), Seeds(0))
        with pytest.raises(GuaranteeError, match="look crafted"):
            check_weights_not_crafted(layer, where.scaled(where.public))


@pytest.mark.parametrize(("where", "words"), [({"patients": 10}, "patients"), ({"public": 10}, "public images")])
def test_what_cannot_be_tried_is_refused_first(where, words):
    with pytest.raises(AttackError, match=f"Too few {words}"):
        Imprint().check(scene(**where))


@pytest.mark.usefixtures("short")
def test_without_any_protection_only_the_twin_is_shown():
    found = attack(scene(protection=None))
    assert found.protected is None
    assert found.curve == ()
    assert found.succeeded_unprotected
