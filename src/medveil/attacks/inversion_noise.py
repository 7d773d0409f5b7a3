"""Noise for a wanted epsilon of one release, up to epsilons that promise nothing, and what such a release means."""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

from medveil.accounting.accountants import check_relation, epsilon_of
from medveil.accounting.events import Gaussian, PoissonGaussian, Repeated
from medveil.accounting.meaning import reconstruction_bound
from medveil.attacks.attack import Condition
from medveil.attacks.scene import Protection

_LEAST, _MOST = 1e-7, 1e4
_PROMISES_SOMETHING = 0.2


def noise_for(epsilon: float, delta: float) -> float:
    """Noise multiplier at which one Gaussian release has this epsilon.

    Args:
        epsilon: > 0, up to 1e9.
        delta: in (0, 1).

    Reference:
        Balle & Wang 2018, Theorem 8, arXiv 1805.06530.

    >>> round(noise_for(1.0, 1e-5), 2)
    3.73
    """

    def excess(log_noise: float) -> float:
        noise = math.exp(log_noise)
        half, shift = 1 / (2 * noise), epsilon * noise
        first, second = float(log_ndtr(half - shift)), epsilon + float(log_ndtr(-half - shift))
        difference = first + math.log(-math.expm1(second - first)) if second < first else -math.inf
        return max(difference, -1e6) - math.log(delta)

    return math.exp(float(brentq(excess, math.log(_LEAST), math.log(_MOST), xtol=1e-10)))


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
        whole = epsilon_of(event, delta=protection.delta, relation=relation).epsilon
    release = epsilon_of(Gaussian(noise_multiplier=noise), delta=protection.delta, relation=relation).epsilon
    return Condition(name, protection.clipping.l2_clip_norm, noise, whole, release, protection.delta, protection.sites)


def rank1_bound(noise_multiplier: float, prior: float, relation: str) -> float:
    """Largest chance to single out the true image from one release, if it was drawn among all candidates alike."""
    event = Gaussian(noise_multiplier=noise_multiplier)
    return reconstruction_bound(event, min(prior, 1.0), relation=check_relation(relation))
