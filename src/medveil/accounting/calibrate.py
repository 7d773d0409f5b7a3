"""How much noise, or how many steps, a promised epsilon allows.

Noise is never rounded down: the result's own epsilon, as :func:`medveil.accounting.epsilon_of` reports it, has been
computed and is at most the target.
"""

import math
from collections.abc import Callable

from medveil.accounting.accountants import bound_of, check_delta, check_relation, dp_sgd
from medveil.accounting.events import Event, Relation
from medveil.errors import ConfigError, GuaranteeError

_TOLERANCE = 1e-3
_AIM = 4e-4
_LEAST_NOISE, _MOST_NOISE = 2.0**-7, 2.0**24
_LARGEST_TARGET = 10_000.0
_MOST_STEPS = 10_000_000
_MOST_TRIES = 200


def calibrate_noise(
    *, epsilon: float, delta: float, sampling_rate: float, steps: int, relation: Relation = "add-remove"
) -> float:
    """Least noise multiplier with which DP-SGD stays within epsilon.

    Args:
        epsilon: in (0, 10000], the target.
        delta: in (0, 1).
        sampling_rate: in (0, 1].
        steps: >= 1.
        relation: which data sets are neighbours.

    Returns:
        The noise multiplier; its epsilon lies in [0.999 epsilon, epsilon].

    Raises:
        ConfigError: an argument is out of range, or epsilon is so large that it promises nothing.
        GuaranteeError: no noise reaches the target.

    >>> round(calibrate_noise(epsilon=3.0, delta=1e-5, sampling_rate=0.02, steps=1000), 2)
    1.15
    """

    def training(noise_multiplier: float) -> Event:
        return dp_sgd(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)

    return calibrate_event(training, epsilon=epsilon, delta=delta, relation=relation)


def calibrate_event(
    make_event: Callable[[float], Event], *, epsilon: float, delta: float, relation: Relation = "add-remove"
) -> float:
    """Least noise with which any event stays within epsilon.

    Args:
        make_event: from a noise multiplier > 0 to an event; more noise must not cost more.
        epsilon: in (0, 10000], the target.
        delta: in (0, 1).
        relation: which data sets are neighbours.

    Returns:
        The noise multiplier; the epsilon of its event lies in [0.999 epsilon, epsilon].

    Raises:
        ConfigError: an argument is out of range, or epsilon is so large that it promises nothing.
        GuaranteeError: no noise reaches the target, for example because a fixed part spends more.
    """
    _check_epsilon(epsilon)
    check_delta(delta)
    check_relation(relation)

    def cost(noise: float) -> float:
        return bound_of(make_event(noise), delta=delta, relation=relation)

    return _least_noise(cost, epsilon)


def calibrate_steps(
    *, epsilon: float, delta: float, sampling_rate: float, noise_multiplier: float, relation: Relation = "add-remove"
) -> int:
    """Most steps of DP-SGD that stay within epsilon.

    Args:
        epsilon: in (0, 10000], the target.
        delta: in (0, 1).
        sampling_rate: in (0, 1].
        noise_multiplier: > 0.
        relation: which data sets are neighbours.

    Returns:
        The largest number of steps whose epsilon is at most the target; at most ten million.

    Raises:
        ConfigError: an argument is out of range.
        GuaranteeError: a single step already costs more.
    """
    _check_epsilon(epsilon)
    check_delta(delta)
    check_relation(relation)

    def fits(steps: int) -> bool:
        event = dp_sgd(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)
        return bound_of(event, delta=delta, relation=relation) <= epsilon

    if not fits(1):
        raise GuaranteeError(
            "A single step costs more than the target",
            got=f"noise_multiplier {noise_multiplier:g}, sampling_rate {sampling_rate:g}",
            expected=f"epsilon <= {epsilon:g}",
            remedy="add noise, sample less or raise epsilon",
        )
    within, beyond = 1, 2
    while beyond <= _MOST_STEPS and fits(beyond):
        within, beyond = beyond, 2 * beyond
    beyond = min(beyond, _MOST_STEPS + 1)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if fits(middle) else (within, middle)
    return within


def _least_noise(cost: Callable[[float], float], target: float) -> float:
    """Bracket, then close in by interpolating log epsilon over log noise, by halves where that fails to shrink."""
    low, high = _bracket(cost, target)
    low_cost, high_cost = cost(low), cost(high)
    for attempt in range(_MOST_TRIES):
        if high_cost >= target * (1 - _TOLERANCE):
            return high
        middle = math.sqrt(low * high)
        if high_cost > 0 and attempt % 3 < 2:  # noqa: PLR2004 - every third step halves, so that both ends move
            share = math.log(low_cost / (target * (1 - _AIM))) / math.log(low_cost / high_cost)
            middle = low * (high / low) ** share
        middle_cost = cost(middle)
        if middle_cost <= target:
            high, high_cost = middle, middle_cost
        else:
            low, low_cost = middle, middle_cost
    raise GuaranteeError(
        "No noise gives this epsilon within 0.1 %",
        got=f"{high_cost:g} and {low_cost:g} on either side",
        expected=f"{target:g}",
        remedy="choose another epsilon or delta; the cost of this event jumps over the target",
    )


def _bracket(cost: Callable[[float], float], target: float) -> tuple[float, float]:
    """Two neighbouring powers of two: the lower costs more than the target, the upper at most the target."""
    noise = 1.0
    if cost(noise) <= target:
        while cost(noise / 2) <= target:
            noise /= 2
            if noise <= _LEAST_NOISE:
                raise ConfigError(
                    "epsilon is so large that next to no noise meets it",
                    got=target,
                    expected="a target that calls for a noise multiplier above 0.01",
                    remedy="lower epsilon: at this value it promises nothing",
                )
        return noise / 2, noise
    while cost(2 * noise) > target:
        noise *= 2
        if noise >= _MOST_NOISE:
            raise GuaranteeError(
                "No noise reaches the target",
                got=f"{cost(noise):g} at noise multiplier {noise:g}",
                expected=f"epsilon <= {target:g}",
                remedy="raise epsilon or delta, or spend less on the parts whose noise is fixed",
            )
    return noise, 2 * noise


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon <= _LARGEST_TARGET:
        raise ConfigError(
            "epsilon is out of range",
            got=epsilon,
            expected=f"a number in (0, {_LARGEST_TARGET:g}]",
            remedy="promise a positive epsilon, and a small one: beyond about 10 it promises next to nothing",
        )
