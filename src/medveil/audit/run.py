"""The audit of a claim: components of the step, one run with canaries, single steps with canaries; one verdict.

Not a proof of the guarantee: docs/explanation/audit.md says what it shows and what it cannot see.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from medveil.audit.canaries import OneRun, OneStep, audit_one_run, audit_one_step, check_effort
from medveil.audit.claim import Claim
from medveil.audit.components import audit_components
from medveil.audit.verdict import CAVEAT, Component, ComponentAudit, finite
from medveil.rng import SecureRandom, Seeds

CONFIDENCE: Final = 0.99
Tell = Callable[[str], None]
"""Told in a few words what is done now."""

_GROUPS: Final = {
    "sensitivity": ("sensitivity", "divisor", "count-sensitivity"),
    "noise": ("noise", "noise-by-tensor", "noise-shape", "noise-freshness", "count-noise"),
    "sampling": ("sampling-rate", "batch-sizes", "returns", "steps-apart", "images-of-a-unit"),
}


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Attributes:
        canaries: of each audit.
        run_steps: most steps of the audited training; the claim is worked out for exactly those that are run.
        single_steps: steps in which every canary that is in takes part.
        sampling_steps: in which the component audit watches who joins; None for as many as it takes by itself.
    """

    canaries: int
    run_steps: int
    single_steps: int
    sampling_steps: int | None = None


DEFAULT: Final = Effort(canaries=3000, run_steps=400, single_steps=50)
QUICK: Final = Effort(canaries=500, run_steps=100, single_steps=50)


@dataclass(frozen=True)
class Audit:
    """Whether what was measured is compatible with what is claimed. Not a proof of the guarantee.

    Attributes:
        claim: what is claimed, and by what.
        components: of the step.
        one_run: lower bounds from one training with canaries.
        one_step: lower bound from single steps with canaries.
        confidence: of each lower bound.
        seconds: it took.
    """

    claim: Claim
    components: ComponentAudit
    one_run: OneRun
    one_step: OneStep
    confidence: float
    seconds: float

    @property
    def lower_bound(self) -> float:
        """On the epsilon of the training, by f-DP in one run."""
        return self.one_run.lower_bound

    @property
    def violations(self) -> tuple[str, ...]:
        """What is not compatible with the claim, in sentences."""
        return tuple(self._violations())

    @property
    def verdict(self) -> Literal["consistent", "violated"]:
        """Whether anything is."""
        return "violated" if self.violations else "consistent"

    def _violations(self) -> Iterator[str]:
        for component in self._all():
            if not component.passed:
                yield f"{component.name}: {component.finding}"
        bounds = (
            ("one run", self.one_run.lower_bound, min(self.one_run.claimed_epsilon, self.claim.epsilon)),
            ("one run, any mechanism", self.one_run.lower_bound_any, self.one_run.claimed_epsilon),
            ("one run, independent canaries", self.one_run.lower_bound_independent, self.one_run.claimed_epsilon),
            ("one step", self.one_step.lower_bound, self.one_step.claimed_epsilon),
        )
        for name, bound, claimed in bounds:
            # Written so that NaN is a violation.
            if not bound <= claimed:
                yield f"{name}: epsilon is at least {bound:.3f}, and {claimed:.3f} is claimed"

    def _all(self) -> tuple[Component, ...]:
        accounting = self.claim.accounting
        return self.components.components if accounting is None else (*self.components.components, accounting)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it; an infinite bound is None there, and the verdict says "violated"."""
        claim = self.claim
        return {
            "kind": claim.kind,
            "name": claim.name,
            "plan_hash": claim.plan_hash,
            "claimed_epsilon": claim.epsilon,
            "delta": claim.delta,
            "lower_bound": finite(self.lower_bound),
            "confidence": self.confidence,
            "components": {name: self._group(name) for name in _GROUPS},
            "verdict": self.verdict,
            "violations": list(self.violations),
            "seconds": self.seconds,
            "details": {
                "steps": claim.steps,
                "one_run": _finite_values(asdict(self.one_run)),
                "one_step": _finite_values(asdict(self.one_step)),
                "components": self.components.as_dict(),
                "accounting": None if claim.accounting is None else _finite_values(asdict(claim.accounting)),
            },
            "caveat": CAVEAT,
        }

    def _group(self, name: str) -> dict[str, Any]:
        """What the first component of a group measured, and whether all of the group hold."""
        found = [part for part in self.components.components if part.name in _GROUPS[name]]
        return {
            "claimed": finite(found[0].claimed),
            "measured": finite(found[0].measured),
            "passed": all(part.passed for part in found),
            "failed": [part.name for part in found if not part.passed],
        }


def audit(
    claim: Claim,
    *,
    effort: Effort = DEFAULT,
    confidence: float = CONFIDENCE,
    seeds: Seeds | None = None,
    tell: Tell | None = None,
) -> Audit:
    """Audit a claim. No patient's image is read.

    Args:
        claim: from :func:`medveil.audit.claim.claim_of`.
        effort: how much to run.
        confidence: in (0.5, 1), of each lower bound.
        seeds: makes the audit repeat itself; None takes the operating system's coins, as training does.
        tell: told what is done now.

    Raises:
        AttackError: an effort or confidence that could show nothing.
        GuaranteeError: noise too small to be measured.
    """
    begun = time.perf_counter()
    tell = tell or _silent
    steps = min(claim.steps, effort.run_steps)
    check_effort(effort.canaries, min(steps, effort.single_steps), confidence)
    settled = claim.audited.settled()
    random = SecureRandom() if seeds is None else SecureRandom.seeded(seeds.child("canaries"))
    tell("Components of the step")
    own = None if seeds is None else seeds.child("components")
    components = audit_components(claim.audited, steps=effort.sampling_steps, seeds=own)
    tell(f"One run: {effort.canaries} canaries, {steps} steps")
    one_run = audit_one_run(
        settled,
        random.child("one run"),
        canaries=effort.canaries,
        steps=steps,
        delta=claim.delta,
        confidence=confidence,
        noise_there_is=next(part.measured for part in components.components if part.name == "noise"),
    )
    tell(f"Single steps: {effort.canaries} canaries, {effort.single_steps} steps")
    one_step = audit_one_step(
        settled,
        random.child("one step"),
        canaries=effort.canaries,
        steps=effort.single_steps,
        delta=claim.delta,
        confidence=confidence,
    )
    return Audit(claim, components, one_run, one_step, confidence, time.perf_counter() - begun)


def _silent(text: str) -> None:
    del text


def _finite_values(values: dict[str, Any]) -> dict[str, Any]:
    return {key: finite(value) for key, value in values.items()}
