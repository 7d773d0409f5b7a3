"""Trade-off functions of the mechanisms that an audit tests: the least miss rate at a false-alarm rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medveil.accounting.accountants import delta_of
from medveil.accounting.events import Event

Curve = Callable[[float], float]
"""f: a false-alarm rate in [0, 1] to the least miss rate; convex, not increasing, and its own inverse."""

_LINES: Final = 300
_STEEPEST: Final = 40.0
_NOTHING_LEFT: Final = 1e-9


@dataclass(frozen=True)
class GaussianCurve:
    """f of one Gaussian release: Phi(Phi^-1(1 - a) - mu).

    Args:
        mu: >= 0, sensitivity over the noise's standard deviation.

    Reference:
        Dong, Roth & Su 2022, Definition 2.6, https://arxiv.org/abs/1905.02383
    """

    mu: float

    def __call__(self, false_alarms: float) -> float:
        """The least miss rate."""
        from scipy.special import ndtr, ndtri

        return float(ndtr(-float(ndtri(false_alarms)) - self.mu))


@dataclass(frozen=True, eq=False)
class SupportedCurve:
    """The largest f under which every (epsilon, delta) of a list holds.

    Args:
        epsilons: shape (lines,), each >= 0.
        deltas: shape (lines,), that hold at them.

    Guarantees:
        Never above the mechanism's own f: to exclude this one excludes that.

    Reference:
        Dong, Roth & Su 2022, equation (5), https://arxiv.org/abs/1905.02383
    """

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    def __call__(self, false_alarms: float) -> float:
        """The least miss rate."""
        growth = np.exp(self.epsilons)
        steep = 1 - self.deltas - growth * false_alarms
        shallow = (1 - self.deltas - false_alarms) / growth
        return max(0.0, float(steep.max()), float(shallow.max()))


def curve_of(event: Event) -> SupportedCurve:
    """The trade-off function of anything that an accountant knows, under add/remove.

    Raises:
        GuaranteeError: no accountant knows the event.
    """
    scale = _STEEPEST
    while scale > 1e-6 and delta_of(event, epsilon=scale / 2) < _NOTHING_LEFT:  # noqa: PLR2004 - halving
        scale /= 2
    epsilons = np.unique(np.concatenate([np.linspace(0.0, scale, _LINES), np.linspace(scale, _STEEPEST, 10)]))
    return SupportedCurve(epsilons, np.array([delta_of(event, epsilon=float(each)) for each in epsilons]))


def gaussian_equivalent(event: Event) -> float:
    """The mu of the Gaussian release with the same best membership advantage: 2 Phi^-1((1 + advantage) / 2).

    >>> from medveil.accounting.events import Gaussian
    >>> round(gaussian_equivalent(Gaussian(noise_multiplier=0.5)), 3)
    2.0
    """
    from scipy.special import ndtri

    advantage = min(delta_of(event, epsilon=0.0), 1 - 1e-15)
    return 2 * float(ndtri((1 + advantage) / 2)) if advantage > 0 else 0.0
