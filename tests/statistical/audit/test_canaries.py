"""Lower bounds by canaries: right as often as they say, near the truth, and above the claim where a step is wrong."""

import numpy as np
import pytest
from scipy.stats import binom

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Gaussian, PoissonGaussian, Repeated
from medveil.audit.canaries import audit_one_run, audit_one_step
from medveil.audit.curves import GaussianCurve
from medveil.audit.guesses import epsilon_from_guesses, noise_from_guesses, noise_from_trials
from medveil.errors import AttackError
from medveil.rng import SecureRandom, Seeds

pytestmark = pytest.mark.statistical

ALPHA, CANARIES, GUESSES, DELTA = 0.05, 400, (80, 400), 1e-5
REPEATS = 200
TOO_OFTEN = binom.isf(1e-6, REPEATS, ALPHA)


def _family(noise):
    return GaussianCurve(1 / noise)


def _simulated(mu, rng, size=CANARIES):
    """Scores of the exact Gaussian mechanism, centred, and who was in."""
    members = rng.random(size) < 0.5
    return rng.normal(size=size) + mu * (members - 0.5), members


def _bounds(mu, rng):
    """Noise multipliers and epsilon that one simulated run excludes."""
    scores, members = _simulated(mu, rng)
    right = np.cumsum(((scores > 0) == members)[np.argsort(-np.abs(scores))])
    counts = [(CANARIES, number, int(right[number - 1])) for number in GUESSES]
    alarms, misses = int((scores[~members] > 0).sum()), int((scores[members] <= 0).sum())
    trials = (alarms, int((~members).sum()), misses, int(members.sum()))
    return (
        min(noise_from_guesses(_family, (0.1, 50.0), one, alpha=ALPHA / 2) for one in counts),
        noise_from_trials(_family, (0.1, 50.0), trials, alpha=ALPHA),
        max(epsilon_from_guesses(*one, delta=DELTA, alpha=ALPHA / 2) for one in counts),
    )


@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_bounds_exceed_the_truth_no_more_often_than_they_say(noise):
    rng = np.random.default_rng(1)
    found = np.array([_bounds(1 / noise, rng) for _ in range(REPEATS)])
    truth = bound_of(Gaussian(noise_multiplier=noise), delta=DELTA)
    # The search for the noise ends within a thousandth.
    assert (found[:, 0] < noise * (1 - 2e-3)).sum() <= TOO_OFTEN
    assert (found[:, 1] < noise * (1 - 2e-3)).sum() <= TOO_OFTEN
    assert (found[:, 2] > truth).sum() <= TOO_OFTEN


def test_the_same_bounds_exclude_a_claim_of_a_third_of_the_leak():
    """The power of the test above: scores of three times the mu of a claim of 1."""
    rng = np.random.default_rng(2)
    found = np.array([_bounds(3.0, rng) for _ in range(40)])
    assert (found[:, :2] < 1.0).mean() > 0.9


def test_f_dp_says_more_than_epsilon_and_delta():
    rng = np.random.default_rng(3)
    truth, by_curve, by_epsilon = bound_of(Gaussian(noise_multiplier=0.5), delta=DELTA), [], []
    for _ in range(20):
        noise, _, epsilon = _bounds(2.0, rng)
        by_curve.append(bound_of(Gaussian(noise_multiplier=noise), delta=DELTA))
        by_epsilon.append(epsilon)
    assert np.mean(by_epsilon) < np.mean(by_curve) < truth
    assert np.mean(by_curve) > 0.35 * truth


@pytest.mark.parametrize("clipping", ["flat", "auto-s", "per-layer", "adaptive"])
def test_one_step_is_near_the_claim(step_of, clipping):
    settled = step_of(clipping).settled()
    found = audit_one_step(settled, SecureRandom(), canaries=500, steps=60, delta=DELTA, confidence=0.999)
    assert found.trials == 30_000
    assert found.claimed_epsilon == pytest.approx(bound_of(Gaussian(noise_multiplier=1.3), delta=DELTA), rel=1e-4)
    # 30,000 trials leave about 0.05 of mu = 0.77, and 4 count multipliers cost a tenth of an adaptive step's noise.
    assert 0.8 * found.claimed_epsilon < found.lower_bound <= found.claimed_epsilon


@pytest.mark.parametrize("shares", [None, {"sites": 5, "tolerated": 1, "absent": 1}])
def test_one_run_stays_below_the_claim_and_says_something(step_of, shares):
    settled = step_of(rate=0.5, multiplier=1.0, shares=shares).settled()
    found = audit_one_run(settled, SecureRandom(), canaries=400, steps=20, delta=DELTA, confidence=0.99)
    event = Repeated(event=PoissonGaussian(sampling_rate=0.5, noise_multiplier=1.0), count=20)
    assert found.claimed_epsilon == pytest.approx(bound_of(event, delta=DELTA), rel=1e-4)
    bounds = (found.lower_bound, found.lower_bound_any, found.lower_bound_independent)
    assert max(bounds) <= found.claimed_epsilon
    assert 0.15 * found.claimed_epsilon < found.lower_bound < found.lower_bound_independent


def test_it_repeats_itself_with_known_coins(step_of):
    settled = step_of().settled()
    asked = {"canaries": 100, "steps": 5, "delta": DELTA, "confidence": 0.95}
    first, second = (audit_one_run(settled, SecureRandom.seeded(Seeds(4)), **asked) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "asked",
    [
        {"canaries": 20, "steps": 5, "confidence": 0.9},
        {"canaries": 100, "steps": 0, "confidence": 0.9},
        {"canaries": 100, "steps": 5, "confidence": 1.0},
        {"canaries": 100, "steps": 5, "confidence": 0.4},
        {"canaries": 52, "steps": 5, "confidence": 1 - 2.0**-53},
    ],
)
def test_what_could_show_nothing_is_refused(step_of, asked):
    for audit in (audit_one_run, audit_one_step):
        with pytest.raises(AttackError, match="show nothing"):
            audit(step_of(), SecureRandom(), delta=DELTA, **asked)
