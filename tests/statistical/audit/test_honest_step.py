"""A right step passes, with fresh coins each time: a test here fails by chance once in a million runs."""

import json
import math

import pytest
from torch import nn

from medveil.accounting.events import PoissonGaussian
from medveil.audit.components import audit_components
from medveil.audit.rig import AuditedStep
from medveil.dp.clipping import FlatClipping
from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import StepPlan
from medveil.errors import ConfigError, GuaranteeError
from medveil.rng import Seeds
from medveil.training.augmentation import Augmentation
from medveil.training.objectives import DiceCrossEntropy
from medveil.training.settings import Performance, Training

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize("clipping", ["flat", "auto-s", "per-layer", "adaptive"])
def test_every_clipping_and_unit(step_of, clipping, unit):
    found = audit_components(step_of(clipping, unit), steps=100)
    assert found.failed == ()
    reached = next(component for component in found.components if component.name == "sensitivity")
    assert 0.99 < reached.measured <= 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 1.0},
        {"rate": 0.004, "multiplier": 0.6},
        {"max_images": 2, "views": 2},
        {"multiplier": 40.0},
        {"training": Training(augmentation=Augmentation(flip=(1,), noise=0.1), max_grad_norm=0.1)},
        {"training": Training(class_weights=(1.0, 5.0, 0.1))},
        {"performance": Performance()},
        {"performance": Performance(dp_method="microbatch", dp_chunk=3)},
    ],
    ids=["everyone", "rarely", "views", "loud", "augmented", "weighted", "fastest", "plainest"],
)
def test_other_steps(step_of, options):
    assert audit_components(step_of(**options), steps=400 if options.get("rate") == 0.004 else 100).failed == ()


def test_masks_and_dropout():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    dimension = sum(parameter.numel() for parameter in model.parameters())
    step = StepPlan(
        sampling_rate=0.2,
        max_images=None,
        views=1,
        clipping=FlatClipping(l2_clip_norm=3.0),
        noise=NoiseMechanism(l2_clip_norm=3.0, noise_multiplier=1.0, dimension=dimension),
        divisor=20.0,
        event=PoissonGaussian(sampling_rate=0.2, noise_multiplier=1.0),
    )
    audited = AuditedStep(model, step, "patient", Training(loss=DiceCrossEntropy()), (1, 8, 8), 2, task="segmentation")
    assert audit_components(audited, steps=100).failed == ()
    assert model[2].p == 0.5


def test_the_answer_repeats_with_seeds_where_coins_are_seeded(step_of):
    first, second = (audit_components(step_of(), steps=40, seeds=Seeds(3)) for _ in range(2))
    for one, other in zip(first.components, second.components, strict=True):
        if one.name not in {"noise", "noise-by-tensor", "noise-shape", "noise-freshness", "event"}:
            assert one == other


def test_json_and_what_it_says(step_of):
    found = audit_components(step_of(), steps=40)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["passed"]
    assert "not a proof" in content["caveat"]
    assert content["event"] == {"kind": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.3}
    noise = next(line for line in content["components"] if line["name"] == "noise")
    assert math.isclose(noise["claimed"], 1.3)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.0}, {"steps": 1}])
def test_what_is_no_audit(step_of, options):
    with pytest.raises(ConfigError):
        audit_components(step_of(), **options)


def test_noise_that_cannot_be_told_from_rounding(step_of):
    with pytest.raises(GuaranteeError, match="rounding"):
        audit_components(step_of(multiplier=1e-4))
