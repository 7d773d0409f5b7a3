"""The imprint on real images: what a malicious server copies without protection, for a classifier and a U-Net."""

import os
from functools import partial

import pytest
import torch

from medveil.attacks.imprint import Imprint
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.errors import GuaranteeError
from medveil.models.crafted import check_weights_not_crafted
from medveil.rng import Seeds
from medveil.study.arms import build_model
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare
from medveil.training.objectives import per_example_loss

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets"),
]


def scene(name):
    plan = load_plan(name)
    prepared = prepare(plan)
    pool, test = prepared.pool().train, prepared.test.data
    model = build_model(plan, prepared.input_shape, prepared.num_classes)
    return Scene(
        model=model,
        trained=model,
        loss=partial(per_example_loss, config=plan.training.loss),
        scale=input_scale(plan.data.preprocess),
        task=plan.task,
        num_classes=prepared.num_classes,
        images=pool.images.float() / (255 if pool.images.dtype == torch.uint8 else 1),
        targets=pool.targets.long(),
        subject=pool.subject,
        public=test.images.float() / (255 if test.images.dtype == torch.uint8 else 1),
        public_targets=test.targets.long(),
        public_subject=test.subject,
        sites=5,
        protection=Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 100, 1e-5, 8.0),
    )


@pytest.fixture(scope="module", params=["pneumonia-28", "hippocampus-2d"])
def where(request):
    return scene(request.param)


def test_every_image_of_eight_and_most_of_a_secure_sum_of_160(where):
    report = Imprint().run(where, effort="quick", seeds=Seeds(1), tell=lambda _: None)
    figures = report.unprotected.figures
    first = [row for row in report.unprotected.images if row["release"] == "batch of 8"]
    assert len(first) == 8
    assert all(row["psnr_db"] > 50 and row["rank"] == 1 for row in first)
    # Five sites of 32 where there are 160 patients, else as many as there are.
    each = min(32, len(set(where.subject)) // 5)
    assert figures[f"exact_rate_sum_of_5_sites_of_{each}"].value > 0.8
    protected, control = report.protected.figures, report.control.figures
    assert protected["exact_rate"].value == 0
    assert protected["rank1_rate"].value <= 0.05
    assert protected["median_psnr_db"].value < control["median_psnr_db"].value + 1
    assert protected["bound_kept"].value == 1
    assert report.curve[-1].figures["rank1_rate"].value > 0.5


def test_the_plans_network_passes_the_check_that_refuses_the_layer(where):
    from medveil.attacks.imprint_engine import Setting, imprint

    inputs = where.scaled(where.public)
    check_weights_not_crafted(where.model, inputs)
    with pytest.raises(GuaranteeError, match="look crafted"):
        check_weights_not_crafted(imprint(where, Setting(512, "random"), Seeds(0)), inputs)
