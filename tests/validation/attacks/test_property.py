"""Property inference on real chest X-rays: the class mix shows through noise that hides single patients."""

import numpy as np
import pytest

from medveil.accounting import calibrate_noise
from medveil.attacks.property import PropertyInference
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.models.registry import build
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare
from medveil.training.objectives import per_example_loss

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def test_the_class_mix_of_a_batch_is_not_hidden():
    plan = load_plan("pneumonia-28")
    prepared = prepare(plan)
    train = prepared.pool().train
    model = build(plan.model, input_shape=prepared.input_shape, num_classes=2, seed=1)
    halves = np.arange(len(train)) < len(train) // 2
    noise = calibrate_noise(epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=100)
    scene = Scene(
        model=model,
        trained=model,
        loss=lambda logits, targets: per_example_loss(logits, targets, plan.training.loss),
        scale=input_scale(plan.data.preprocess),
        task=plan.task,
        num_classes=2,
        images=train.images[halves].float() / 255,
        targets=train.targets[halves],
        subject=train.subject[halves],
        public=train.images[~halves].float() / 255,
        public_targets=train.targets[~halves],
        public_subject=train.subject[~halves],
        reference=Protection(FlatClipping(l2_clip_norm=1.0), noise, 0.25, 100, 1e-5, 8.0),
    )
    report = PropertyInference().run(scene, effort="quick", seeds=Seeds(0), tell=lambda _: None)
    assert report.unprotected.figures["class_mix_auc"].low > 0.95
    assert report.protected.figures["class_mix_auc"].low > 0.8
    control = report.control.figures["class_mix_auc"]
    assert control.low < 0.5 < control.high
