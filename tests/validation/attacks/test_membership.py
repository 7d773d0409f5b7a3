"""Membership inference on real chest X-rays: it works without protection, and stays below the bound with it."""

import copy

import pytest
import torch

from medveil.accounting import calibrate_noise
from medveil.attacks.membership import Membership
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.models.registry import build
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare
from medveil.training.objectives import per_example_loss

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def pneumonia():
    plan = load_plan("pneumonia-28")
    prepared = prepare(plan)
    train = prepared.pool().train
    held = prepared.sites[0].validation
    model = build(plan.model, input_shape=prepared.input_shape, num_classes=2, seed=1)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        next(trained.parameters()).add_(0.1)
    noise = calibrate_noise(epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=100)
    return Scene(
        model=model,
        trained=trained,
        loss=lambda logits, targets: per_example_loss(logits, targets, plan.training.loss),
        scale=input_scale(plan.data.preprocess),
        task=plan.task,
        num_classes=2,
        images=train.images.float() / 255,
        targets=train.targets,
        subject=train.subject,
        public=held.images.float() / 255,
        public_targets=held.targets,
        public_subject=held.subject,
        training=plan.training,
        reference=Protection(FlatClipping(l2_clip_norm=1.0), noise, 0.25, 100, 1e-5, 8.0),
    )


def test_members_are_recognised_without_protection_and_hidden_with_it():
    report = Membership().run(pneumonia(), effort="quick", seeds=Seeds(0), tell=lambda _: None)
    plain, hidden, control = (each.figures for each in (report.unprotected, report.protected, report.control))
    assert plain["auc"].low > 0.5
    assert plain["clipped_offline_auc"].low > 0.5  # so too with the same steps and clipping, noise left out
    assert report.curve[0].figures["auc"] == plain["clipped_auc"]
    assert control["auc"].low < 0.5 < control["auc"].high
    assert hidden["auc"].value < plain["auc"].value
    assert hidden["offline_auc"].value < plain["clipped_offline_auc"].value
    assert hidden["bound_kept"].value == 1
    assert hidden["auc"].low <= hidden["auc_bound"].value
    assert hidden["tpr_at_1e-2"].low <= hidden["tpr_at_1e-2_bound"].value
