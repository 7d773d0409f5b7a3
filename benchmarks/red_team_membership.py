"""Membership and property inference on a plan's data: `python benchmarks/red_team_membership.py PLAN [--quick]`.

Prints every figure with its interval, and wall and processor seconds. The scene is the plan's: its network and initial
weights, its training table, its patients; its protection where it has one, else (or with --epsilon) a hypothetical one.
"""

import argparse
import copy
import time
from dataclasses import replace

import numpy as np
import torch

from medveil.accounting import calibrate_noise, epsilon
from medveil.attacks.attack import Attack, Outcome
from medveil.attacks.membership import Membership
from medveil.attacks.property import PropertyInference
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.red_team import build_scene

DELTA = 1e-5


def scene_of(name: str, target: float | None, rate: float, steps: int) -> Scene:
    """The scene of a shipped plan, private or not; with ``target`` a hypothetical protection in place of its own."""
    plan = load_plan(name)
    scene = build_scene(plan, prepare(plan), None)
    trained = copy.deepcopy(scene.model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1e-3)  # no attack here asks what the trained model says
    scene = replace(scene, trained=trained)
    if target is None:
        return scene
    noise = calibrate_noise(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps)
    spent = epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=DELTA)
    clipping = FlatClipping(l2_clip_norm=1.0) if scene.shown is None else scene.shown.clipping
    return replace(scene, protection=None, reference=Protection(clipping, noise, rate, steps, DELTA, spent))


def show(title: str, outcome: Outcome | None) -> None:
    """One condition's figures."""
    if outcome is None:
        return
    condition = outcome.condition
    print(f"{title}: {condition.name}; epsilon {condition.epsilon}, of a release {condition.epsilon_of_release}")
    for name, figure in outcome.figures.items():
        interval = "" if figure.low is None else f" ({figure.low:.4f} to {figure.high:.4f})"
        print(f"  {name:34} {figure.value:.4f}{interval}")


def main() -> None:
    """Run both attacks and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", nargs="?", default="pneumonia-28")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("membership", "property"))
    parser.add_argument("--epsilon", type=float, help="of a hypothetical protection; by default the plan's own")
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scene = scene_of(given.plan, given.epsilon, given.rate, given.steps)
    print(f"{given.plan}: {len(np.unique(scene.subject))} patients, {len(scene.images)} images")
    attacks: list[Attack] = [Membership(), PropertyInference()]
    for attack in attacks:
        if given.only not in (None, attack.name):
            continue
        begun = time.process_time()
        effort = "quick" if given.quick else "default"
        report = attack.run(scene, effort=effort, seeds=Seeds(given.seed), tell=lambda _: None)
        print(f"\n{report.title}: {report.seconds:.0f} s, {time.process_time() - begun:.0f} processor seconds")
        show("unprotected", report.unprotected)
        show("protected", report.protected)
        show("control", report.control)
        for point in report.curve:
            show("curve", point)
        print(f"succeeded unprotected: {report.succeeded_unprotected}")
        print(*report.findings, *report.resisted, sep="\n")


if __name__ == "__main__":
    main()
