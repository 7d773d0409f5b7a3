"""The component audit: sensitivity, divisor, noise and sampling of the real step, measured in seconds.

Not a privacy guarantee, and no proof of one: it is evidence that the code does what the event says, in the respects
that are measured. docs/explanation/audit.md says what it cannot see.
"""

import math
import time
from collections.abc import Sequence

from medveil.accounting.events import PoissonGaussian, Repeated, compose
from medveil.audit.count import check_count
from medveil.audit.noise import check_noise, num_steps
from medveil.audit.rig import AuditedStep
from medveil.audit.sampling import check_sampling
from medveil.audit.sensitivity import check_divisor, check_sensitivity
from medveil.audit.statistics import Interval
from medveil.audit.verdict import Component, ComponentAudit, Epsilon
from medveil.dp.plan import PrivacyPlan
from medveil.errors import ConfigError, GuaranteeError
from medveil.rng import SecureRandom, Seeds

ALPHA = 1e-6
_TESTS = 10
_SHOWN = 5


def audit_components(
    audited: AuditedStep,
    *,
    promise: PrivacyPlan | None = None,
    steps: int | None = None,
    alpha: float = ALPHA,
    seeds: Seeds | None = None,
) -> ComponentAudit:
    """Measure what a private step does, and compare it with what its event says. Not a proof of the guarantee.

    The step is the trainer's own; units, coins and weights are synthetic. No patient's image is touched.

    Args:
        audited: the step.
        promise: of the whole training, for the epsilon that the measurements leave open.
        steps: in which sampling is watched, >= 2; by default enough to tell shuffling from sampling.
        alpha: in (0, 1), at most how often a right step fails; split over the single tests.
        seeds: makes the audit repeat itself; None takes the operating system's coins, which is what finds a
            generator that repeats itself.

    Raises:
        ConfigError: steps or alpha out of range.
        GuaranteeError: noise too small to be measured.
    """
    if not 0 < alpha < 1 or (steps is not None and steps < 2):  # noqa: PLR2004 - a pair of steps
        raise ConfigError("This is no audit", got=f"alpha {alpha}, steps {steps}", expected="0 < alpha < 1, steps >= 2")
    begun = time.perf_counter()
    settled = audited.settled()
    root = seeds or Seeds(int(SecureRandom().words(1)[0]))
    tests = alpha / _TESTS
    sensitivity, hidden = check_sensitivity(settled, root.child("sensitivity"))
    divisor = check_divisor(settled, root.child("divisor"))
    noise, sigma = check_noise(settled, root.child("noise"), tests=tests)
    count, sigma_count = check_count(settled, root.child("count"), tests=tests)
    coins = SecureRandom() if seeds is None else SecureRandom.seeded(root.child("sampling"))
    sampling, rate, watched = check_sampling(settled, coins, tests=tests, steps=steps)
    components = (sensitivity, divisor, *noise, *count, *sampling)
    multiplier = _together(sigma, sigma_count)
    return ComponentAudit(
        components=(*components, _event(settled.step.event, multiplier, rate, components)),
        event=audited.step.event.model_dump(mode="json"),
        epsilon=None if promise is None else _epsilon(promise, sensitivity, multiplier, rate),
        alpha=alpha,
        scope=_scope(settled, watched, hidden),
        seconds=time.perf_counter() - begun,
    )


def _together(total: Interval, count: Interval | None) -> Interval:
    """The multiplier of sum and count as one mechanism, from what was measured of each.

    Reference:
        Andrew et al. 2021, arXiv 1905.03871, Theorem 1.
    """
    if count is None:
        return total

    def both(one: float, other: float) -> float:
        return 1 / math.hypot(1 / one, 1 / (2 * other)) if one > 0 and other > 0 else 0.0

    return Interval(both(total.low, count.low), both(total.measured, count.measured), both(total.high, count.high))


def _event(event: PoissonGaussian, multiplier: Interval, rate: Interval, others: Sequence[Component]) -> Component:
    """The accountant's own two numbers against what was measured; it holds only if all that it rests on holds."""
    claimed = event.noise_multiplier
    numbers = multiplier.holds(claimed) and rate.holds(event.sampling_rate)
    passed = numbers and all(component.passed for component in others)
    said = "the event that is charged is what was measured"
    if not passed:
        said = "the event that is charged is not what was measured"
    return Component("event", passed, claimed, multiplier.measured, multiplier.low, multiplier.high, said)


def _epsilon(promise: PrivacyPlan, sensitivity: Component, multiplier: Interval, rate: Interval) -> Epsilon:
    # A sensitivity below the bound is no evidence that no unit reaches it.
    farthest = max(1.0, math.inf if sensitivity.measured is None else sensitivity.measured)
    left = _open(promise, rate.high, multiplier.low / farthest)
    return Epsilon(promise.total().epsilon, left, promise.delta, promise.steps)


def _open(promise: PrivacyPlan, rate: float, multiplier: float) -> float | None:
    """Epsilon at these ends of the intervals; None where the accountant has no finite one."""
    if not 0 < multiplier < math.inf:
        return None
    event = PoissonGaussian(sampling_rate=rate, noise_multiplier=multiplier)
    try:
        found = promise.alone(compose([Repeated(event=event, count=promise.steps), *promise.earlier])).epsilon
    except GuaranteeError:
        return None
    return found if math.isfinite(found) else None


def _scope(audited: AuditedStep, watched: tuple[int, int], hidden: tuple[str, ...]) -> tuple[str, ...]:
    steps, units = watched
    dimension = audited.step.noise.dimension
    said = [
        (
            f"Sensitivity, divisor and noise: the trainer's own step on {audited.input_shape} noise images, "
            f"{dimension:,} parameters, {num_steps(dimension)} steps with and without noise."
        ),
        f"Sampling: the trainer's own step, {steps} steps of {units} units told apart by a linear network.",
        (
            f"Gradients by {audited.performance.dp_method} (of units made to be large also by {audited.plain_method}) "
            "on the processor; random views, dropout and training.max_grad_norm off; an adaptive bound held still "
            "except to read its count."
        ),
        "Not looked at: secrets that leave by other ways, other machines, masks and keys of a secure sum, real images.",
    ]
    noise = audited.step.noise
    if noise.sites > 1:
        said.insert(
            1,
            f"Together: the summed steps of {noise.honest} honest sites of {noise.sites}, {noise.tolerated} others "
            f"colluding and {noise.absent} absent; one has the units, all add their share of the noise. Masks cancel "
            "and were left out.",
        )
    if hidden:
        shown = ", ".join(hidden[:_SHOWN]) + (f" and {len(hidden) - _SHOWN} more" if len(hidden) > _SHOWN else "")
        said.append(f"No unit's gradient could be made large in: {shown}. An error in clipping these may pass.")
    return tuple(said)
