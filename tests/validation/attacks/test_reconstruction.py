"""The worst case on PneumoniaMNIST: from certain re-identification down to the mean image, never beyond the bound."""

import os

import pytest
import torch
from torch import nn

from medveil.attacks.reconstruction import Reconstruction
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets"),
]


@pytest.fixture(scope="module")
def report():
    plan = load_plan("pneumonia-28")
    prepared = prepare(plan)
    pool, test = prepared.pool().train, prepared.test.data
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    where = Scene(
        model=model,
        trained=model,
        loss=lambda logits, targets: nn.functional.cross_entropy(logits, targets, reduction="none"),
        scale=input_scale(plan.data.preprocess),
        task="classification",
        num_classes=2,
        images=pool.images.float() / (255 if pool.images.dtype == torch.uint8 else 1),
        targets=pool.targets.long(),
        subject=pool.subject,
        public=test.images.float() / (255 if test.images.dtype == torch.uint8 else 1),
        public_targets=test.targets.long(),
        public_subject=test.subject,
        protection=Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 100, 1e-5, 8.0),
    )
    return Reconstruction().run(where, effort="quick", seeds=Seeds(1), tell=lambda _: None)


def test_it_rebuilds_every_image_without_noise_to_speak_of(report):
    assert report.succeeded_unprotected
    last = report.curve[-1].figures
    assert last["median_psnr_db"].value > 38
    assert last["rank1_rate"].value > 0.99
    assert last["distractors"].value == 2047


def test_at_noise_of_the_clip_norm_the_mean_image_is_all_there_is(report):
    noisy, control = report.protected.figures, report.control.figures
    assert 17 < control["median_psnr_db"].value < 20
    assert noisy["median_psnr_db"].value < control["median_psnr_db"].value + 1.5
    assert noisy["rank1_rate"].value < 0.02


def test_identification_is_near_the_bound_and_not_beyond(report):
    for outcome in (report.protected, *report.curve):
        assert outcome.figures["bound_kept"].value == 1
    noisy = report.protected.figures
    assert noisy["identified_of_16"].high > 0.8 * noisy["bound_of_16"].value
