"""Noise for a wanted epsilon of one release, what a release under a noise means, and whether a bound was broken."""

import math
from typing import Final

from medveil.accounting.accountants import bound_of, check_relation
from medveil.accounting.events import Gaussian, PoissonGaussian, Repeated
from medveil.accounting.meaning import reconstruction_bound
from medveil.attacks.attack import Condition
from medveil.attacks.measures import rate
from medveil.attacks.scene import Protection, Scene

BROKEN: Final = "THE ATTACKER DID BETTER THAN THEORY ALLOWS: the clip or the noise is not what the plan says."
_LEAST, _MOST = 1e-7, 1e4
_PROMISES_SOMETHING = 0.2
_SURE: Final = 1 - 1e-6


def noise_for(epsilon: float, delta: float) -> float:
    """Noise multiplier at which one Gaussian release has this epsilon, for curves.

    From the closed form, which float64 carries up to an epsilon of 1e9; what a release costs is what
    :func:`medveil.accounting.accountants.bound_of` says.

    Args:
        epsilon: > 0, up to 1e9.
        delta: in (0, 1).

    Reference:
        Balle & Wang 2018, Theorem 8, arXiv 1805.06530.

    >>> round(noise_for(1.0, 1e-5), 2), round(noise_for(4.3774, 1e-5), 3)
    (3.73, 1.0)
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(log_noise: float) -> float:
        noise = math.exp(log_noise)
        half, shift = 1 / (2 * noise), epsilon * noise
        first, second = float(log_ndtr(half - shift)), epsilon + float(log_ndtr(-half - shift))
        difference = first + math.log(-math.expm1(second - first)) if second < first else -math.inf
        return max(difference, -1e6) - math.log(delta)

    return math.exp(float(brentq(excess, math.log(_LEAST), math.log(_MOST), xtol=1e-10)))


def shown_name(scene: Scene) -> str:
    """What the shown protection is called: by its epsilon for the whole training, and whether the run has it.

    Raises:
        ValueError: nothing is shown.
    """
    shown = scene.shown
    if shown is None:
        raise ValueError("no protection to show")
    return f"epsilon {shown.epsilon:.3g}" + ("" if scene.protection else ", hypothetical")


def shown_condition(scene: Scene, shown: Protection) -> Condition:
    """One release under the shown protection."""
    return condition_of(shown, name=shown_name(scene))


def level_condition(shown: Protection, epsilon: float) -> Condition:
    """One release under the shown clipping, with the noise of an epsilon of its own."""
    return condition_of(shown, noise_for(epsilon, shown.delta), name=f"epsilon {epsilon:g} of one release")


def condition_of(protection: Protection, noise_multiplier: float | None = None, *, name: str) -> Condition:
    """The condition of one release under ``protection``, or under its clipping with other noise.

    Above a noise multiplier of 0.2 the epsilon of the whole training is worked out; below it promises nothing.
    """
    noise = protection.noise_multiplier if noise_multiplier is None else noise_multiplier
    relation = check_relation(protection.relation)
    whole = protection.epsilon if noise_multiplier is None else None
    if whole is None and noise >= _PROMISES_SOMETHING:
        step = PoissonGaussian(sampling_rate=protection.sampling_rate, noise_multiplier=noise)
        event = Repeated(event=step, count=protection.steps)
        whole = bound_of(event, delta=protection.delta, relation=relation)
    release = bound_of(Gaussian(noise_multiplier=noise), delta=protection.delta, relation=relation)
    return Condition(name, protection.clipping.l2_clip_norm, noise, whole, release, protection.delta, protection.sites)


def rank1_bound(noise_multiplier: float, prior: float, relation: str) -> float:
    """Largest chance to single out the true image from one release, if it was drawn among all candidates alike."""
    event = Gaussian(noise_multiplier=noise_multiplier)
    return reconstruction_bound(event, min(prior, 1.0), relation=check_relation(relation))


def breaks(hits: int, trials: int, bound: float) -> bool:
    """Whether so many hits refute, with probability of error 1e-6, that each trial hits with at most ``bound``.

    >>> breaks(90, 100, 0.5), breaks(60, 100, 0.5)
    (True, False)
    """
    low = rate(hits, trials, _SURE).low
    return low is not None and low > bound
