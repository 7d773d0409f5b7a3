"""Single releases as conditions: how much noise an epsilon takes, and what a noise costs."""

from dataclasses import replace
from typing import Final

import numpy as np

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Gaussian
from medveil.attacks.attack import Condition
from medveil.attacks.measures import rate
from medveil.attacks.scene import Protection, Scene

BROKEN: Final = "THE ATTACKER DID BETTER THAN THEORY ALLOWS: the clip or the noise is not what the plan says."
_SURE: Final = 1 - 1e-6


def noise_for(epsilon: float, delta: float) -> float:
    """The noise multiplier of one Gaussian release that costs ``epsilon`` at ``delta``, for curves.

    From the closed form, which float64 carries up to an epsilon of millions; what a release costs is what
    :func:`medveil.accounting.epsilon_of` says.

    Args:
        epsilon: > 0.
        delta: in (0, 1).

    Reference:
        Balle & Wang 2018, Theorem 8, https://arxiv.org/abs/1805.06530

    >>> round(noise_for(4.3774, 1e-5), 3)
    1.0
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(log_noise: float) -> float:
        signal = float(np.exp(-log_noise))
        first = float(log_ndtr(signal / 2 - epsilon / signal))
        second = epsilon + float(log_ndtr(-signal / 2 - epsilon / signal))
        return first + float(np.log1p(-np.exp(min(second - first, -1e-15)))) - float(np.log(delta))

    return float(np.exp(brentq(excess, np.log(1e-5), np.log(1e4), xtol=1e-9)))


def single_release(protection: Protection, noise: float, prefix: str) -> Condition:
    """One release under that noise multiplier, with what it costs alone; ``prefix`` begins its name."""
    spent = bound_of(Gaussian(noise_multiplier=noise), delta=protection.delta)
    return Condition(
        name=f"{prefix}epsilon {spent:.3g} of this release",
        l2_clip_norm=protection.clipping.l2_clip_norm,
        noise_multiplier=noise,
        epsilon_of_release=spent,
        delta=protection.delta,
        sites=protection.sites,
    )


def whole_training(scene: Scene, shown: Protection) -> Condition:
    """One release under the shown protection's noise, with what the whole training costs beside it."""
    one = single_release(shown, shown.noise_multiplier, "" if scene.protection else "hypothetical: ")
    return replace(one, name=f"{one.name} (epsilon {shown.epsilon:g} in all)", epsilon=shown.epsilon)


def breaks(hits: int, trials: int, bound: float) -> bool:
    """Whether so many hits refute, with probability of error 1e-6, that each trial hits with at most ``bound``.

    >>> breaks(90, 100, 0.5), breaks(60, 100, 0.5)
    (True, False)
    """
    low = rate(hits, trials, _SURE).low
    return low is not None and low > bound
