"""Lower bounds on epsilon from guesses who took part, for many canaries at once, each in or out by a fair coin.

The first two bounds hold however the canaries influence one another; the third needs trials that are independent.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from medveil.audit.curves import Curve, GaussianCurve
from medveil.audit.statistics import rate_interval
from medveil.errors import ConfigError

MOST_EPSILON: Final = 60.0
"""Beyond it every bound stops: no number of canaries that fits into memory says more."""
_HALVINGS: Final = 40
_SHARES: Final = (0.05, 0.1, 0.2, 0.4, 1.0)
_REPEATS: Final = 20


def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float = 0.0) -> float:
    """At most how likely so many correct guesses are under (epsilon, delta)-DP, add/remove one canary.

    Args:
        canaries: each in or out by a fair coin.
        guesses: of them, the number fixed before anything was seen; the others were passed over.
        correct: guesses that are right.
        epsilon: >= 0.
        delta: in [0, 1].

    Returns:
        In [0, 1]; with delta 0 the tail of a binomial law at e^epsilon / (1 + e^epsilon).

    Raises:
        ConfigError: not 0 <= correct <= guesses <= canaries, or epsilon or delta out of range.

    Reference:
        Steinke, Nasr & Jagielski 2023, Theorem 3.1 and Algorithm 1, https://arxiv.org/abs/2305.08846
    """
    from scipy.special import expit
    from scipy.stats import binom

    _check_counts(canaries, guesses, correct)
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ConfigError("No such guarantee", got=(epsilon, delta), expected="epsilon >= 0 and 0 <= delta <= 1")
    right = float(expit(epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    if correct == 0 or delta == 0.0:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
    steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * canaries * delta * steepest)


def epsilon_from_guesses(canaries: int, guesses: int, correct: int, *, delta: float, alpha: float) -> float:
    """The largest epsilon that so many correct guesses exclude at this delta, except with probability ``alpha``.

    Args:
        canaries: as for :func:`p_value`.
        guesses: as for :func:`p_value`.
        correct: as for :func:`p_value`.
        delta: in [0, 1]; 0 is the pure variant.
        alpha: in (0, 1).

    Returns:
        >= 0; 0 where nothing is excluded.

    Raises:
        ConfigError: an argument out of range.

    Reference:
        As for :func:`p_value`.

    >>> round(epsilon_from_guesses(100, 100, 100, delta=0.0, alpha=0.05), 2)
    3.49
    """
    _check_alpha(alpha)

    def excluded(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon=epsilon, delta=delta) <= alpha

    return _largest(excluded, MOST_EPSILON)


def excludes(curve: Curve, canaries: int, guesses: int, correct: int, *, alpha: float) -> bool:
    """Whether so many correct guesses exclude, at error probability ``alpha``, that ``curve`` holds for every canary.

    With p(i) the probability of i correct guesses, F = 1 - f and any t, f-DP for one canary, averaged over canaries
    and coins with Jensen's inequality, gives

        sum over i >= t of (i / m) p(i)  <=  F( sum over i >= t - 1 of ((r - i) / m) p(i) ).

    A tail of ``alpha`` from ``correct`` on needs, by this for t = correct, correct - 1, ..., some probability at each
    smaller count; where all of it together exceeds 1, the tail was smaller than ``alpha``.

    Args:
        curve: symmetric trade-off function f.
        canaries: m.
        guesses: r, fixed before anything was seen.
        correct: of them.
        alpha: in (0, 1).

    Raises:
        ConfigError: an argument out of range.

    Reference:
        Mahloujifar, Melis & Chaudhuri 2024, "Auditing f-differential privacy in one run",
        https://arxiv.org/abs/2410.22235
    """
    _check_counts(canaries, guesses, correct)
    _check_alpha(alpha)
    right, wrong = correct / canaries * alpha, (guesses - correct) / canaries * alpha
    whole = guesses / canaries
    for count in range(correct, 0, -1):
        # F(x) >= right asks for x >= f(1 - right), as f is its own inverse.
        missing = max(0.0, curve(max(0.0, 1 - right)) - wrong)
        wrong += missing
        right += (count - 1) / (guesses - count + 1) * missing
        if right + wrong > whole:
            return True
    return right + wrong > whole


def noise_from_guesses(
    family: Callable[[float], Curve],
    ends: tuple[float, float],
    counts: tuple[int, int, int],
    *,
    alpha: float,
) -> float:
    """The least noise of a family of mechanisms, ordered by noise, that the guesses do not exclude.

    Args:
        family: a noise multiplier's curve.
        ends: least and most noise that are looked at, both > 0.
        counts: canaries, guesses and correct ones, as for :func:`excludes`.
        alpha: in (0, 1).

    Returns:
        Upper confidence bound on the noise multiplier: infinite where not even the most noise is excluded, and the
        least where that is.
    """
    return _least_noise(lambda noise: excludes(family(noise), *counts, alpha=alpha), ends)


def best_share(canaries: int, mu: float, *, alpha: float) -> float:
    """Which share of canaries to guess, the surest ones first, so that a Gaussian release of ``mu`` shows most.

    Chosen by simulation before anything is seen: a share chosen afterwards would void the confidence.

    Args:
        canaries: how many there are.
        mu: as claimed, signal over noise.
        alpha: of the bound.
    """
    rng = np.random.default_rng(0)
    members = rng.random(canaries * _REPEATS) < 0.5  # noqa: PLR2004 - a fair coin
    scores = rng.normal(size=members.size) + mu * (members - 0.5)
    surest = np.argsort(-np.abs(scores))
    right = np.cumsum((scores > 0)[surest] == members[surest])

    def shown(share: float) -> float:
        guesses = max(1, round(share * canaries))
        counts = (canaries, guesses, int(right[guesses * _REPEATS - 1]) // _REPEATS)
        return noise_from_guesses(lambda noise: GaussianCurve(1 / noise), (0.02, 1e3), counts, alpha=alpha)

    return min(_SHARES, key=shown)


def noise_from_trials(
    family: Callable[[float], Curve],
    ends: tuple[float, float],
    trials: tuple[int, int, int, int],
    *,
    alpha: float,
) -> float:
    """The same from independent trials of one test with a fixed threshold: Clopper-Pearson for both of its errors.

    Args:
        family: a noise multiplier's curve.
        ends: least and most noise that are looked at, both > 0.
        trials: false alarms, trials without the unit, misses, trials with it.
        alpha: in (0, 1), half for each error rate.

    Returns:
        As for :func:`noise_from_guesses`.

    References:
        Jagielski, Ullman & Oprea 2020, https://arxiv.org/abs/2006.07709; Nasr et al. 2023 for the conversion by the
        mechanism's own curve, https://arxiv.org/abs/2302.07956
    """
    _check_alpha(alpha)
    false_alarms, without, misses, together = trials
    if min(without, together) < 1:
        return np.inf
    # rate_interval splits its alpha over two ends, and one of them is used.
    most_alarms = rate_interval(false_alarms, without, alpha).high
    most_misses = rate_interval(misses, together, alpha).high
    return _least_noise(lambda noise: most_misses < family(noise)(most_alarms), ends)


def _least_noise(excluded: Callable[[float], bool], ends: tuple[float, float]) -> float:
    least, most = ends
    if not excluded(most):
        return np.inf
    if excluded(least):
        # Written so that the least noise that was looked at is the answer, not less.
        most = least
    while most / least > 1 + 1e-3:
        middle = float(np.sqrt(least * most))
        least, most = (least, middle) if excluded(middle) else (middle, most)
    return most


def _largest(excluded: Callable[[float], bool], most: float) -> float:
    """The end of the excluded values, which begin at 0 if there are any."""
    if not excluded(0.0):
        return 0.0
    least = 0.0
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if excluded(middle) else (least, middle)
    return least


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ConfigError(
            "These are no guesses",
            got=f"{correct} correct of {guesses} guesses about {canaries} canaries",
            expected="0 <= correct <= guesses <= canaries, and at least one guess",
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ConfigError("No such error probability", got=alpha, expected="0 < alpha < 1")
