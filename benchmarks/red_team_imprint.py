"""Imprint and worst-case reconstruction on real images: what leaks without protection, and under rising noise.

    MEDVEIL_DATA=... python benchmarks/red_team_imprint.py [--quick] [--plan pneumonia-28] [--plan hippocampus-2d]

The protection is one that the plan does not have: clip norm 1, noise multiplier 1. Public images are those of
validation and test.
"""

import argparse
import time
from dataclasses import replace

from medveil.attacks.imprint import Imprint
from medveil.attacks.reconstruction import Reconstruction
from medveil.attacks.scene import Protection
from medveil.dp.clipping import FlatClipping
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.red_team import build_scene

STEPS = 5
REFERENCE = Protection(FlatClipping(l2_clip_norm=1.0), 1.0, 0.1, 100, 1e-5, 8.0)


def scene(name):
    """A shipped plan's, with a hypothetical protection of noise multiplier 1."""
    plan = load_plan(name)
    return replace(build_scene(plan, prepare(plan), None), optimiser_steps=STEPS, reference=REFERENCE)


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
