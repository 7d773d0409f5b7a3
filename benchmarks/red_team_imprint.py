"""Imprint and worst-case reconstruction on real images: what leaks without protection, and under rising noise.

    MEDVEIL_DATA=... python benchmarks/red_team_imprint.py [--quick] [--plan pneumonia-28] [--plan hippocampus-2d]

The protection is one that the plan does not have: clip norm 1, noise multiplier 1. Public images are the test set.
"""

import argparse
import time
from functools import partial

import torch

from medveil.attacks.imprint import Imprint
from medveil.attacks.reconstruction import Reconstruction
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.rng import Seeds
from medveil.study.arms import build_model
from medveil.study.plan import load_plan
from medveil.study.prepare import input_scale, prepare
from medveil.training.objectives import per_example_loss

STEPS = 5
REFERENCE = Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 100, 1e-5, 8.0)


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
        images=pixels(pool.images),
        targets=pool.targets.long(),
        subject=pool.subject,
        public=pixels(test.images),
        public_targets=test.targets.long(),
        public_subject=test.subject,
        training=plan.training,
        optimiser_steps=STEPS,
        batch_size=plan.training.batch_size,
        sites=len(prepared.sites),
        reference=REFERENCE,
    )


def pixels(images):
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def show(report):
    print(f"\n{report.title}: {report.seconds:.1f} s")
    for outcome in (report.unprotected, report.protected, *report.curve, report.control):
        print(f"  {outcome.condition.name}")
        bound = "" if outcome.bound is None else f"  bound of {report.success} {outcome.bound:.4f}"
        print("    " + "  ".join(f"{name} {figure.value:.4g}" for name, figure in outcome.figures.items()) + bound)
    for sentence in (*report.findings, *report.resisted):
        print("  -", sentence)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plan", action="append")
    options = parser.parse_args()
    for name in options.plan or ("pneumonia-28", "hippocampus-2d"):
        print(f"\n== {name}")
        setting = scene(name)
        for attack in (Imprint(), Reconstruction()):
            begun = time.process_time()
            show(
                attack.run(setting, effort="quick" if options.quick else "default", seeds=Seeds(1), tell=lambda _: None)
            )
            print(f"  processor seconds {time.process_time() - begun:.1f}")


if __name__ == "__main__":
    main()
