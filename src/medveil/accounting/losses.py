"""Privacy loss distributions of events: the grid, the composition, and what floating point may hide."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, assert_never

from medveil.accounting.events import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    PoissonGaussian,
    Relation,
    RepeatAndSelect,
    Repeated,
    Stated,
    flatten,
)
from medveil.errors import GuaranteeError

# Grid step over the standard deviation of one convolved loss: 0.03 keeps epsilon within 0.1 % of its limit.
_STEP_FRACTION = 0.03
# Connecting the dots is exact to second order only while exp(step) is close to 1 + step.
_COARSEST = 0.03
# A single loss is never put on more points than this: it bounds the time, and coarser is still pessimistic.
_MOST_POINTS = 150_000
# Rare large losses stretch a distribution far beyond its spread; few convolutions blur them little.
_FEW_POINTS = 30_000
# Above this, dp-accounting's inversion runs out of floating point (exp(-loss) is no longer a normal number).
_LARGEST_INVERTED = 600.0
# Where dp-accounting cuts Gaussian noise: mass exp(-50) beyond it, which it counts as an infinite loss.
_TAIL_SIGMAS = 9.8
# What one convolution may lose of delta: unit round-off times log2 of a long transform. At 50 000 convolutions the
# closed form of the Gaussian shows 1.3e-17 each; this is 300 times more.
_ROUNDING = 4e-15

_Mechanism = PoissonGaussian | Laplace | Stated


@dataclass(frozen=True)
class Losses:
    """A pessimistic privacy loss distribution.

    Args:
        distribution: dp-accounting's object.
        slack: the delta that the floating point of its Fourier transforms may hide; always charged.
    """

    distribution: Any
    slack: float

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon at ``delta``; infinite where there is none."""
        import numpy as np

        with np.errstate(over="ignore", divide="ignore"):
            epsilon = float(self.distribution.get_epsilon_for_delta(delta - self.slack))
        return epsilon if epsilon < _LARGEST_INVERTED else self._large_epsilon(delta)

    def delta(self, epsilon: float) -> float:
        """Smallest delta at ``epsilon``."""
        return min(1.0, max(0.0, float(self.distribution.get_delta_for_epsilon(epsilon))) + self.slack)

    def _large_epsilon(self, delta: float) -> float:
        if self.delta(math.inf) > delta:
            return math.inf
        low, high = 0.0, 2 * _LARGEST_INVERTED
        while self.delta(high) > delta:
            low, high = high, 2 * high
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high


@dataclass(frozen=True)
class _Part:
    """A mechanism, how often it is convolved, and the shape of its loss: spread, range, and a value with real mass."""

    mechanism: _Mechanism
    count: int
    deviation: float
    extent: float
    atom: float = 0.0


@lru_cache(maxsize=16)
def losses_of(event: Event, relation: Relation) -> Losses:
    """The privacy loss distribution of an event.

    Args:
        event: without tuning.
        relation: which data sets are neighbours.

    Raises:
        GuaranteeError: tuning inside, or a stated release that says nothing about this relation.

    Guarantees:
        The distribution's hockey-stick divergence, plus the slack, is at least the event's at every epsilon.

    Reference:
        Zhu, Dong & Wang 2022, Theorem 10 (composition of dominating pairs), https://arxiv.org/abs/2106.08567;
        for add/remove sampling their Theorem 11; for replace-one the mixtures of Lebeda et al. 2024,
        https://arxiv.org/abs/2405.20769
    """
    from dp_accounting.pld import privacy_loss_distribution

    parts = [_part(mechanism, count, relation) for mechanism, count in _mechanisms(event, relation)]
    if not parts:
        return Losses(privacy_loss_distribution.identity(), 0.0)
    step = _grid_step(parts)
    total = _composed(parts[0], step, relation)
    for part in parts[1:]:
        total = total.compose(_composed(part, step, relation))
    convolutions = sum(part.count for part in parts) - 1
    return Losses(total, _ROUNDING * convolutions)


def stated_for(event: Stated, relation: Relation) -> Stated:
    """A stated guarantee under the relation that is asked for.

    Group privacy carries add/remove over to replace-one: (2 epsilon, (1 + e^epsilon) delta).

    Raises:
        GuaranteeError: stated for replace-one and asked for add/remove.

    Reference:
        Dwork & Roth 2014, Theorem 2.2 and Lemma 2.2 of Vadhan 2017 for delta, https://privacytools.seas.harvard.edu
    """
    if event.relation == relation:
        return event
    if event.relation == "replace-one":
        raise GuaranteeError(
            "A release stated for replace-one says nothing about adding or removing a unit",
            expected="a guarantee stated for add-remove",
            remedy="account under replace-one, or obtain the release's add-remove guarantee",
        )
    delta = event.delta * (1 + math.exp(event.epsilon))
    # A guarantee lost to group privacy stays an event; no target delta can be met with it.
    return Stated(epsilon=min(2 * event.epsilon, 700.0), delta=min(delta, 1 - 2**-53), relation="replace-one")


def _mechanisms(event: Event, relation: Relation) -> Iterator[tuple[_Mechanism, int]]:
    """The parts of an event; all full-batch Gaussians are one, because their precisions add exactly."""
    precision = 0.0
    for simple, count in flatten(event):
        match simple:
            case Gaussian() | PoissonGaussian(sampling_rate=1.0):
                precision += count / simple.noise_multiplier**2
            case PoissonGaussian() | Laplace():
                yield simple, count
            case Stated():
                yield stated_for(simple, relation), count
            case RepeatAndSelect() | Repeated() | Composed():
                raise GuaranteeError("Tuning has no privacy loss distribution", remedy="account for it by Renyi DP")
            case _:
                assert_never(simple)
    if precision > 0:
        yield PoissonGaussian(sampling_rate=1.0, noise_multiplier=1 / math.sqrt(precision)), 1


def _part(mechanism: _Mechanism, count: int, relation: Relation) -> _Part:
    """The mechanism with the scale of its loss, which chooses a grid and does not enter the guarantee."""
    width = 2.0 if relation == "replace-one" else 1.0
    atom = 0.0
    match mechanism:
        case PoissonGaussian():
            deviation, extent = _gaussian_scale(mechanism.sampling_rate, mechanism.noise_multiplier)
            deviation, extent = width * deviation, width * extent
        case Laplace():
            largest = width / mechanism.noise_multiplier
            deviation, extent, atom = 0.02 * min(1.0, largest), 2 * largest, largest
        case Stated():
            atom = mechanism.epsilon
            deviation, extent = max(0.02 * atom, 1e-6), 2 * atom
        case _:
            assert_never(mechanism)
    return _Part(mechanism, count, deviation, extent, atom)


def _gaussian_scale(rate: float, sigma: float) -> tuple[float, float]:
    chi_square = math.expm1(min(sigma**-2, 50.0))
    variance = min(rate**2 * chi_square, rate / sigma**2 + rate * (1 - rate) / (4 * sigma**4))
    reach = _TAIL_SIGMAS / sigma + 0.5 / sigma**2
    lowest = reach if rate == 1.0 else min(reach, -math.log1p(-rate))
    highest = max(reach + math.log(rate), 0.0) + rate
    return math.sqrt(variance), lowest + highest


def _grid_step(parts: Sequence[_Part]) -> float:
    """Spacing of the losses: fine against the spread that each convolution blurs, but never endless."""
    count = sum(part.count for part in parts)
    extent = max(part.extent for part in parts)
    spread = math.sqrt(sum(part.count * part.deviation**2 for part in parts) / count)
    step = max(min(_STEP_FRACTION * spread, _COARSEST), extent / min(_MOST_POINTS, _FEW_POINTS * math.sqrt(count)))
    atom = max(part.atom for part in parts)
    return atom / math.ceil(atom / step) if atom > step else step


def _composed(part: _Part, step: float, relation: Relation) -> Any:
    single = _distribution(part.mechanism, step, relation)
    return single.self_compose(part.count) if part.count > 1 else single


def _distribution(mechanism: _Mechanism, step: float, relation: Relation) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    replace = relation == "replace-one"
    match mechanism:
        case PoissonGaussian():
            return privacy_loss_distribution.from_gaussian_mechanism(
                mechanism.noise_multiplier,
                sampling_prob=mechanism.sampling_rate,
                value_discretization_interval=step,
                neighboring_relation=NeighboringRelation.REPLACE_ONE
                if replace
                else NeighboringRelation.ADD_OR_REMOVE_ONE,
            )
        case Laplace():
            # Replacing a unit removes one and adds one, so the L1 sensitivity is twice as large.
            scale = mechanism.noise_multiplier / (2 if replace else 1)
            return privacy_loss_distribution.from_laplace_mechanism(scale, value_discretization_interval=step)
        case Stated():
            return _worst_pair(mechanism, step)
        case _:
            assert_never(mechanism)


def _worst_pair(stated: Stated, step: float) -> Any:
    """Randomised response with a leak: it dominates every (epsilon, delta)-DP mechanism.

    Kairouz, Oh & Viswanath 2015, Section 3.1, https://arxiv.org/abs/1311.0776
    """
    from dp_accounting.pld import privacy_loss_distribution

    truth = 1 / (1 + math.exp(-stated.epsilon))
    # The largest stated epsilon is a multiple of the step; the tolerance keeps its quotient from becoming one more.
    masses = {math.ceil(stated.epsilon / step - 1e-9): (1 - stated.delta) * truth}
    down = -math.floor(stated.epsilon / step)
    masses[down] = masses.get(down, 0.0) + (1 - stated.delta) * (1 - truth)
    return privacy_loss_distribution.PrivacyLossDistribution.create_from_rounded_probability(masses, stated.delta, step)
