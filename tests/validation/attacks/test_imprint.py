"""The imprint on real images: what a malicious server copies without protection, for a classifier and a U-Net."""

import os
from dataclasses import replace

import pytest

from medveil.attacks.imprint import Imprint
from medveil.attacks.scene import Protection
from medveil.dp.clipping import FlatClipping
from medveil.errors import GuaranteeError
from medveil.models.crafted import check_weights_not_crafted
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.red_team import build_scene

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets"),
]


def scene(name):
    plan = load_plan(name)
    protection = Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 100, 1e-5, 8.0)
    return replace(build_scene(plan, prepare(plan), None), protection=protection, reference=None, optimiser_steps=1)


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
