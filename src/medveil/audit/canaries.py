"""Canaries: patients that can be told apart in every released step, each in or out of the training by a fair coin.

The step is the trainer's own; the network is one linear layer that starts at zero, in which each canary's gradient has
coordinates of its own and is far longer than the clipping bound. No canary can leak more through such a step, and none
disturbs another. The attacker sees every step's noisy sum, as the server does, and knows all settings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Event, Gaussian, PoissonGaussian, Repeated
from medveil.audit.curves import Curve, GaussianCurve, curve_of, gaussian_equivalent
from medveil.audit.guesses import best_share, epsilon_from_guesses, noise_from_guesses, noise_from_trials
from medveil.audit.probes import as_data
from medveil.audit.rig import AuditedStep, on_one_layer, releases, sensitivity_of, with_step
from medveil.dp.plan import net_delta
from medveil.errors import AttackError, GuaranteeError
from medveil.rng import SecureRandom

_LEAST_CANARIES: Final = 50
_LOUD: Final = 100.0
_MIDDLE: Final = 0.5
# Noise that is looked at, against what is claimed: to a sixteenth and a hundredfold.
_ENDS: Final = (1 / 16, 100.0)


@dataclass(frozen=True)
class OneRun:
    """What one training showed of all its canaries.

    Attributes:
        canaries: each in or out by a fair coin.
        steps: that were run and seen.
        guesses: who was in and who was out, the surest ones: numbers that were fixed before, one that shows most of
            what is claimed, one that shows most of twice as much, and all. Each has its share of the error probability.
        correct: of each number of guesses.
        claimed_epsilon: of exactly these steps, by the accountant, add/remove.
        lower_bound: on it, by f-DP; canaries may influence one another as they like.
        lower_bound_any: the same from (epsilon, delta) alone, without the mechanism's own curve (Steinke et al.).
        lower_bound_pure: as if delta were 0.
        lower_bound_independent: by Clopper-Pearson, if the canaries' scores are independent.
        noise_multiplier: that is claimed.
        most_noise: upper bound on it, by f-DP; None where nothing bounds it.
        delta: of the bounds.
        confidence: of each bound.
    """

    canaries: int
    steps: int
    guesses: tuple[int, ...]
    correct: tuple[int, ...]
    claimed_epsilon: float
    lower_bound: float
    lower_bound_any: float
    lower_bound_pure: float
    lower_bound_independent: float
    noise_multiplier: float
    most_noise: float | None
    delta: float
    confidence: float


@dataclass(frozen=True)
class OneStep:
    """What single steps showed of a canary that is drawn: the release itself, without the help of sampling.

    Attributes:
        trials: a canary and a step, independent where the noise is.
        false_alarms: share of trials without the canary in which it was thought to be there.
        misses: share of trials with it in which it was not.
        claimed_epsilon: of one release that the canary takes part in, add/remove.
        lower_bound: on it.
        noise_multiplier: that is claimed.
        most_noise: upper bound on it; None where nothing bounds it.
        delta: of the bounds.
        confidence: of the bound.
    """

    trials: int
    false_alarms: float
    misses: float
    claimed_epsilon: float
    lower_bound: float
    noise_multiplier: float
    most_noise: float | None
    delta: float
    confidence: float


def audit_one_run(
    audited: AuditedStep,
    random: SecureRandom,
    *,
    canaries: int,
    steps: int,
    delta: float,
    confidence: float,
    noise_there_is: float | None = None,
) -> OneRun:
    """One training's steps with all canaries at once, at the plan's sampling rate.

    Args:
        audited: settled.
        random: coins of the trainer and of the canaries.
        canaries: >= 50.
        steps: >= 1.
        delta: of the claim.
        confidence: in (0.5, 1), of each bound.
        noise_there_is: multiplier of the sum's noise that the attacker reckons with, measured elsewhere; the claimed
            one by default. The bounds hold whatever it is, and are weak where it is wrong.

    Raises:
        AttackError: too few canaries or steps, or no such confidence.

    References:
        Steinke, Nasr & Jagielski 2023, https://arxiv.org/abs/2305.08846; Mahloujifar, Melis & Chaudhuri 2024,
        https://arxiv.org/abs/2410.22235. The attacker's score is the likelihood ratio of the sampled Gaussian, summed
        over steps: the best there is.
    """
    check_effort(canaries, steps, confidence)
    event, net, alpha = audited.step.event, net_delta(delta), 1 - confidence
    claimed: Event = Repeated(event=event, count=steps)
    mu = gaussian_equivalent(claimed)
    shares = {best_share(canaries, mu, alpha=alpha), best_share(canaries, 2 * mu, alpha=alpha), 1.0}
    guesses = tuple(sorted(round(share * canaries) for share in shares))
    known = _known(audited.step.noise.noise_multiplier, noise_there_is)
    members = random.child("canaries").bernoulli(0.5, canaries)
    scores = np.zeros(canaries)
    for seen in _seen(audited, members, random.child("training"), steps):
        scores += _log_likelihood_ratio(seen, audited.step.sampling_rate, known)
    right = np.cumsum(((scores > 0) == members)[np.argsort(-np.abs(scores), kind="stable")])
    correct = tuple(int(right[number - 1]) for number in guesses)
    counts = [(canaries, number, hits) for number, hits in zip(guesses, correct, strict=True)]

    def repeated(noise: float) -> Event:
        return Repeated(event=PoissonGaussian(sampling_rate=event.sampling_rate, noise_multiplier=noise), count=steps)

    def family(noise: float) -> Curve:
        return curve_of(repeated(noise))

    ends, each = _ends(event.noise_multiplier), alpha / len(counts)
    noise = min(noise_from_guesses(family, ends, one, alpha=each) for one in counts)
    apart = noise_from_trials(family, ends, _errors(scores > 0, members), alpha=alpha)
    return OneRun(
        canaries=canaries,
        steps=steps,
        guesses=guesses,
        correct=correct,
        claimed_epsilon=bound_of(claimed, delta=net),
        lower_bound=_epsilon(repeated, noise, net),
        lower_bound_any=max(epsilon_from_guesses(*one, delta=net, alpha=each) for one in counts),
        lower_bound_pure=max(epsilon_from_guesses(*one, delta=0.0, alpha=each) for one in counts),
        lower_bound_independent=_epsilon(repeated, apart, net),
        noise_multiplier=event.noise_multiplier,
        most_noise=_finite(noise),
        delta=delta,
        confidence=confidence,
    )


def audit_one_step(
    audited: AuditedStep, random: SecureRandom, *, canaries: int, steps: int, delta: float, confidence: float
) -> OneStep:
    """Single steps with every canary that is in, at sampling rate 1.

    Args:
        audited: settled.
        random: coins of the trainer and of the canaries.
        canaries: >= 50 in every step.
        steps: >= 1, each giving a trial a canary.
        delta: of the claim.
        confidence: in (0.5, 1).

    Raises:
        AttackError: too few canaries or steps, or no such confidence.

    References:
        Nasr et al. 2021, https://arxiv.org/abs/2101.04535 (the adversary); Nasr et al. 2023,
        https://arxiv.org/abs/2302.07956 (the conversion by the Gaussian's own curve).
    """
    check_effort(canaries, steps, confidence)
    always = with_step(audited, rate=1.0)
    net, alpha = net_delta(delta), 1 - confidence
    claimed = audited.step.event.noise_multiplier
    members = random.child("canaries").bernoulli(0.5, canaries)
    errors = np.zeros(4, dtype=np.int64)
    for seen in _seen(always, members, random.child("steps"), steps):
        errors += _errors(seen > _MIDDLE, members)
    trials = (int(errors[0]), int(errors[1]), int(errors[2]), int(errors[3]))
    noise = noise_from_trials(lambda one: GaussianCurve(1 / one), _ends(claimed), trials, alpha=alpha)
    return OneStep(
        trials=trials[1] + trials[3],
        false_alarms=trials[0] / max(1, trials[1]),
        misses=trials[2] / max(1, trials[3]),
        claimed_epsilon=bound_of(Gaussian(noise_multiplier=claimed), delta=net),
        lower_bound=_epsilon(lambda one: Gaussian(noise_multiplier=one), noise, net),
        noise_multiplier=claimed,
        most_noise=_finite(noise),
        delta=delta,
        confidence=confidence,
    )


def check_effort(canaries: int, steps: int, confidence: float) -> None:
    """Refuse an audit that could not show anything.

    Raises:
        AttackError: fewer than 50 canaries, no step, a confidence outside (0.5, 1), or more confidence than so many
            canaries can give.
    """
    # All guesses right under no privacy loss at all has probability 2^-canaries.
    enough = 0.5 < confidence < 1 and 0.5 ** min(canaries, 1000) < 1 - confidence  # noqa: PLR2004 - a coin
    if canaries < _LEAST_CANARIES or steps < 1 or not enough:
        raise AttackError(
            "This audit could show nothing",
            got=f"{canaries} canaries, {steps} steps, confidence {confidence}",
            expected=f"at least {_LEAST_CANARIES} canaries, a step, and a confidence above 0.5 and below 1",
            remedy="ask for more canaries or less confidence",
        )


def _seen(
    audited: AuditedStep, members: NDArray[np.bool_], random: SecureRandom, steps: int
) -> Iterator[NDArray[np.float64]]:
    """Each step's noisy sum along each canary's direction, shape (canaries,): about 1 where it was drawn, else 0."""
    step, pixels = audited.step, members.size
    present = np.flatnonzero(members)
    clipping = step.clipping
    brightness = _LOUD * max(clipping.l2_clip_norm, getattr(clipping, "stability", 0.0))
    images = torch.zeros(present.size, 1, pixels)
    images[torch.arange(present.size), 0, torch.from_numpy(present)] = brightness
    data = as_data(images, torch.zeros(present.size, dtype=torch.int64), np.arange(present.size))
    linear = on_one_layer(audited, pixels)
    for released in releases(linear, data, random, steps):
        # Of class 0: the gradient is half its pixel's brightness, up for class 1 and down for class 0.
        weights = released.total.reshape(2, pixels)
        yield (weights[1] - weights[0]) / (np.sqrt(2) * sensitivity_of(linear.step))


def _known(claimed: float, there_is: float | None) -> float:
    if there_is is None or not np.isfinite(there_is):
        return claimed
    return max(there_is, claimed * _ENDS[0])


def _log_likelihood_ratio(seen: NDArray[np.float64], rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Of a canary that joins with ``rate`` against none."""
    drawn = (seen - _MIDDLE) / noise_multiplier**2
    if rate == 1.0:
        return drawn
    mixed: NDArray[np.float64] = np.logaddexp(np.log1p(-rate), np.log(rate) + drawn)
    return mixed


def _errors(thought: NDArray[np.bool_], members: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """False alarms, trials without, misses, trials with."""
    outside = ~members
    return (
        int((thought & outside).sum()),
        int(outside.sum()),
        int((~thought & members).sum()),
        int(members.sum()),
    )


def _ends(claimed: float) -> tuple[float, float]:
    return claimed * _ENDS[0], claimed * _ENDS[1]


def _epsilon(event: Callable[[float], Event], noise: float, delta: float) -> float:
    """Epsilon at the most noise that may be there: nothing less is compatible with what was seen."""
    if not np.isfinite(noise):
        return 0.0
    try:
        return max(0.0, bound_of(event(noise), delta=delta))
    except GuaranteeError:
        return float(np.inf)


def _finite(noise: float) -> float | None:
    return noise if np.isfinite(noise) else None
