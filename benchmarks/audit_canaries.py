"""How near an audit's lower bounds come to the true epsilon, and what each planted error does to them.

Tightness: the exact Gaussian mechanism, scores simulated, mean over runs of each bound at 95 % confidence over the true
epsilon. Audits: the real step of a shipped plan, healthy and with an error planted in the real code; lower bounds at
the confidence of `medveil audit`.

    python benchmarks/audit_canaries.py [--plans pneumonia-28-private pneumonia-28-private-local] [--quick]
        [--skip-tightness] [--only none ...]
"""

import argparse
import time
from unittest import mock

import numpy as np
import torch

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Gaussian
from medveil.audit.claim import claim_of
from medveil.audit.curves import GaussianCurve
from medveil.audit.guesses import best_share, epsilon_from_guesses, noise_from_guesses, noise_from_trials
from medveil.audit.run import DEFAULT, QUICK, audit
from medveil.dp import clipping, noise
from medveil.dp.sampling import PoissonSampler

DELTA, ALPHA, RUNS = 1e-5, 0.05, 10
GAUSSIAN = noise.rounded_gaussian


def family(multiplier):
    return GaussianCurve(1 / multiplier)


def tightness():
    print(f"Exact Gaussian mechanism, delta {DELTA:g}, 95 % confidence, mean of {RUNS} simulated runs over the truth\n")
    print("| epsilon | canaries | guesses | epsilon and delta alone | f-DP | independent trials |\n" + "|---" * 6 + "|")
    rng = np.random.default_rng(0)
    for multiplier in (2.0, 1.0, 0.5):
        truth = bound_of(Gaussian(noise_multiplier=multiplier), delta=DELTA)
        for canaries in (500, 3000, 20_000):
            guesses = round(best_share(canaries, 1 / multiplier, alpha=ALPHA) * canaries)
            rows = np.mean([bounds(multiplier, canaries, guesses, rng) for _ in range(RUNS)], axis=0) / truth
            print(
                f"| {truth:.2f} | {canaries} | {guesses} | " + " | ".join(f"{row:.2f}" for row in rows) + " |",
                flush=True,
            )


def bounds(multiplier, canaries, guesses, rng):
    members = rng.random(canaries) < 0.5
    scores = rng.normal(size=canaries) + (members - 0.5) / multiplier
    surest = np.argsort(-np.abs(scores))[:guesses]
    counts = (canaries, guesses, int(((scores > 0) == members)[surest].sum()))
    alarms, misses = int((scores[~members] > 0).sum()), int((scores[members] <= 0).sum())
    trials = (alarms, int((~members).sum()), misses, int(members.sum()))
    ends = (0.05, 100.0)
    found = (
        noise_from_guesses(family, ends, counts, alpha=ALPHA),
        noise_from_trials(family, ends, trials, alpha=ALPHA),
    )
    by_curve, apart = (0.0 if np.isinf(one) else bound_of(Gaussian(noise_multiplier=one), delta=DELTA) for one in found)
    return epsilon_from_guesses(*counts, delta=DELTA, alpha=ALPHA), by_curve, apart


def unclipped(_, norms, __):
    return torch.ones_like(norms), torch.zeros(norms.shape[1], dtype=torch.bool)


ERRORS = {
    "none": lambda: mock.patch.object(noise, "rounded_gaussian", GAUSSIAN),
    "noise off": lambda: mock.patch.object(noise, "rounded_gaussian", lambda *given: 0 * GAUSSIAN(*given)),
    "noise halved": lambda: mock.patch.object(noise, "rounded_gaussian", lambda std, *left: GAUSSIAN(std / 2, *left)),
    "clip off": lambda: mock.patch.object(clipping, "_coefficients", unclipped),
    "everyone in every step": lambda: mock.patch.object(PoissonSampler, "draw", lambda self: np.arange(self.num_units)),
}


def audits(plans, effort, only):
    print(
        f"\n{effort.canaries} canaries. A bound of a sixteenth of the noise is the most that is looked for\n\n"
        "| plan | error | verdict | failed components | run: claimed | epsilon and delta alone | f-DP | independent "
        "| one step: claimed | at least | seconds | processor seconds |\n" + "|---" * 12 + "|"
    )
    for plan in plans:
        claim = claim_of(plan)
        for name, planted in ERRORS.items():
            if only and name not in only:
                continue
            busy = time.process_time()
            with planted():
                found = audit(claim, effort=effort)
            busy = time.process_time() - busy
            run, step = found.one_run, found.one_step
            figures = (run.claimed_epsilon, run.lower_bound_any, run.lower_bound, run.lower_bound_independent)
            shown = [f"{figure:.2f}" for figure in (*figures, step.claimed_epsilon, step.lower_bound)]
            failed = ", ".join(found.components.failed) or "-"
            print(
                "|",
                " | ".join([plan, name, found.verdict, failed, *shown, f"{found.seconds:.0f}", f"{busy:.0f}"]),
                "|",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", nargs="*", default=["pneumonia-28-private", "pneumonia-28-private-local"])
    parser.add_argument("--only", nargs="*", default=[], choices=list(ERRORS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip-tightness", action="store_true")
    given = parser.parse_args()
    if not given.skip_tightness:
        tightness()
    audits(given.plans, QUICK if given.quick else DEFAULT, given.only)
