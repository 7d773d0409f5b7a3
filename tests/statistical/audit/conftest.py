"""A small private step to audit."""

import pytest
import torch
from torch import nn

from medveil.accounting.events import PoissonGaussian
from medveil.audit.rig import AuditedStep
from medveil.dp.clipping import (
    AdaptiveClipping,
    AutoClipping,
    FlatClipping,
    PerLayerClipping,
    sum_noise_multiplier,
)
from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import StepPlan
from medveil.training.settings import Performance, Training

MULTIPLIER = 1.3
RATE = 0.1
BOUND = 0.7

CLIPPINGS = {
    "flat": FlatClipping(l2_clip_norm=BOUND),
    "auto-s": AutoClipping(l2_clip_norm=BOUND),
    "per-layer": PerLayerClipping(l2_clip_norm=BOUND, split="dimension"),
    "adaptive": AdaptiveClipping(l2_clip_norm=BOUND, count_noise_multiplier=4.0),
}


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))


def make_step(
    clipping="flat",
    unit="patient",
    *,
    rate=RATE,
    multiplier=MULTIPLIER,
    max_images=None,
    views=1,
    shares=None,
    **options,
):
    """A bound step of a small network; ``clipping`` by name, ``shares`` of the noise as a mechanism has them."""
    model = small_network()
    kind = CLIPPINGS[clipping]
    summed = (
        sum_noise_multiplier(multiplier, kind.count_noise_multiplier)
        if isinstance(kind, AdaptiveClipping)
        else multiplier
    )
    dimension = sum(parameter.numel() for parameter in model.parameters())
    step = StepPlan(
        sampling_rate=rate,
        max_images=max_images,
        views=views,
        clipping=kind,
        noise=NoiseMechanism(
            l2_clip_norm=kind.l2_clip_norm, noise_multiplier=summed, dimension=dimension, **shares or {}
        ),
        divisor=rate * 120,
        event=PoissonGaussian(sampling_rate=rate, noise_multiplier=multiplier),
    )
    chosen = {"training": Training(), "performance": Performance(dp_method="vmap"), **options}
    return AuditedStep(model=model, step=step, unit=unit, input_shape=(1, 6, 6), num_classes=3, **chosen)


@pytest.fixture
def step_of():
    return make_step
