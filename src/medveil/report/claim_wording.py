"""The sentences of a privacy claim: what its figures allow an attacker, without adjectives that they do not carry."""

import math
from collections.abc import Mapping
from typing import Any

from medveil.report.claim import Claim
from medveil.study.card import UNITS, delta_text, epsilon_text, one_in, right_text

WEAK_ABOVE = 10.0
"""Epsilon above which the formal guarantee is weak or none: Ponomareva et al. 2023, arXiv 2303.00654, section 5.2."""

VACUOUS_FROM = 0.99
"""Membership advantage from which an attacker may be right at least 99.5 times in 100."""

TIERS = (
    "As a yardstick, Ponomareva et al. (2023, arXiv 2303.00654, section 5.2) count epsilon up to 1 as a strong formal "
    "guarantee, up to 10 as a reasonable one, and above 10 as weak or none. Epsilon is an upper bound on every attack; "
    "it does not say how well an attack of today would do."
)
UNLIMITED_FACTOR = 1e6

_RELATIONS = {
    "add-remove": {
        "patient": "one patient, with all images, is present or absent",
        "image": "one image is present or absent",
        "site": "one hospital, with everything that it holds, is present or absent",
    },
    "replace-one": {
        "patient": "one patient's images are replaced by another's",
        "image": "one image is replaced by another",
        "site": "everything that one hospital holds is replaced",
    },
}
_WHO = {
    "central": "Anyone who sees the model, after every step and at the end, the curator excepted,",
    "local": "Anyone who sees what leaves a patient's hospital, the server and all other hospitals included,",
    "site": "Anyone who sees the model, after every round and at the end, the server excepted,",
}
_TRUSTED = {
    "curator": "the curator, who holds all images and adds the noise",
    "server": "the server, which sees every hospital's change and adds the noise",
    "nobody": "nobody outside the patient's own hospital",
}


def hospitals(count: int, kind: str = "") -> str:
    """A number of hospitals.

    >>> hospitals(1), hospitals(2, "other")
    ('1 hospital', '2 other hospitals')
    """
    noun = "hospital" if count == 1 else "hospitals"
    return f"{count:,} {kind} {noun}" if kind else f"{count:,} {noun}"


def sentence(claim: Claim, colluding: int = 0) -> str:
    """What the claim promises, for a reader who has never met epsilon.

    A stamped claim promises nothing, and the sentence says so.

    Args:
        claim: of the run.
        colluding: in the mode "distributed", hospitals that may tell the server all they know.
    """
    if claim.stamp:
        return "This run promises nothing: read the figures below as a calculation, not as a guarantee."
    return (
        f"{_who(claim, colluding)} can tell {_question(claim)} at most this much better than guessing: right "
        f"{right_text(claim.meaning.membership_advantage)} times in 100, where guessing is right 50 times."
    )


def _who(claim: Claim, colluding: int) -> str:
    if claim.mode != "distributed":
        return _WHO[claim.mode]
    if colluding == 0:
        return "The server, and anyone outside the hospitals who sees the model after every step and at the end,"
    return (
        f"The server with up to {hospitals(colluding)} on its side, and anyone who sees the model after every step and "
        "at the end,"
    )


def reading(claim: Claim) -> str:
    """Epsilon and delta as the definition of differential privacy has them, with numbers in place of letters."""
    other = "without" if claim.relation == "add-remove" else "with another in its place"
    return (
        f"Epsilon {epsilon_text(claim.epsilon)} means: whatever may happen to somebody because of the model may be "
        f"{factor(claim.epsilon)} times as probable with {UNITS[claim.unit]} as {other}, plus {one_in(claim.delta)}; "
        "and the other way round."
    )


def warning(claim: Claim) -> str | None:
    """What to say of an epsilon that promises little; None where the figures speak for themselves."""
    advantage = claim.meaning.membership_advantage
    if advantage >= VACUOUS_FROM:
        return (
            f"The guarantee is vacuous: epsilon {epsilon_text(claim.epsilon)} allows an attacker to be right "
            f"{right_text(advantage)} times in 100. Do not rely on it."
        )
    if claim.epsilon > WEAK_ABOVE:
        return (
            f"Epsilon {epsilon_text(claim.epsilon)} is above {WEAK_ABOVE:g}: the formal guarantee is weak. It allows "
            f"an attacker to be right {right_text(advantage)} times in 100."
        )
    return None


def factor(epsilon: float) -> str:
    """``exp(epsilon)`` as a bound, rounded up to three digits.

    >>> factor(1.0), factor(9.0), factor(61.2)
    ('at most 2.72', 'at most 8,110', 'more than a million')
    """
    if epsilon > math.log(UNLIMITED_FACTOR):
        return "more than a million"
    value = math.exp(epsilon)
    digits = 2 - math.floor(math.log10(value))
    rounded = math.ceil(value * 10**digits) / 10**digits
    return f"at most {rounded:,.{max(digits, 0)}f}"


def neighbours(claim: Claim) -> str:
    """How two data sets differ that the guarantee makes hard to tell apart."""
    return _RELATIONS[claim.relation][claim.unit]


def trusted(claim: Claim) -> str:
    """Who sees more than the guarantee covers."""
    return _TRUSTED[claim.trusted]


def short(claim: Claim, colluding: int = 0) -> str:
    """The claim in one sentence for the head of the page.

    Args:
        claim: of the run.
        colluding: as for :func:`sentence`.
    """
    if claim.stamp:
        return f"{claim.stamp}: noise was added, but this run promises nothing. {' '.join(claim.stamp_reasons)}"
    if claim.mode == "distributed":
        terms = f"for {UNITS[claim.unit]} at delta {delta_text(claim.delta)}"
        return f"Differential privacy {terms}: {_both(claim, colluding)}."
    against = "against everyone outside the patient's own hospital"
    if claim.trusted != "nobody":
        against = f"but not against {trusted(claim)}"
    return (
        f"Differential privacy, epsilon {epsilon_text(claim.epsilon)} for {UNITS[claim.unit]} at delta "
        f"{delta_text(claim.delta)}, {against}."
    )


def _both(claim: Claim, colluding: int) -> str:
    """Epsilon against the server alone and with the hospitals that may be on its side."""
    alone = "not known" if claim.epsilon_server is None else epsilon_text(claim.epsilon_server)
    if colluding == 0:
        return f"epsilon {alone} against the server and everyone outside the hospitals, but not against other hospitals"
    return (
        f"epsilon {alone} against the server alone, {epsilon_text(claim.epsilon)} against the server with "
        f"{hospitals(colluding)} on its side"
    )


def mechanism(event: Mapping[str, Any]) -> str:
    """An event of the accountant in words; one of an unknown kind by its kind alone.

    >>> mechanism({"kind": "repeated", "count": 500, "event": {"kind": "gaussian", "noise_multiplier": 2.0}})
    '500 times: Gaussian noise, multiplier 2'
    """
    match event:
        case {"kind": "gaussian", "noise_multiplier": noise}:
            text = f"Gaussian noise, multiplier {noise:.4g}"
        case {"kind": "poisson_gaussian", "noise_multiplier": noise, "sampling_rate": rate}:
            text = f"Gaussian noise, multiplier {noise:.4g}, sampling rate {rate:g}"
        case {"kind": "laplace", "noise_multiplier": noise}:
            text = f"Laplace noise, multiplier {noise:.4g}"
        case {"kind": "stated", "epsilon": epsilon, "delta": delta}:
            text = f"stated by others: epsilon {epsilon_text(epsilon)}, delta {delta_text(delta)}"
        case {"kind": "repeated", "count": count, "event": inner}:
            text = f"{count:,} times: {mechanism(inner)}"
        case {"kind": "composed", "events": events}:
            text = "; ".join(mechanism(inner) for inner in events) or "nothing"
        case {"kind": "repeat_and_select", "mean_trials": trials, "event": inner}:
            text = f"best of a random number of trials, {trials:g} on average, each: {mechanism(inner)}"
        case _:
            text = str(event.get("kind", "not recorded"))
    return text


def _question(claim: Claim) -> str:
    if claim.relation == "add-remove":
        verb = "was used" if claim.unit == "image" else "took part"
        return f"whether {UNITS[claim.unit]} {verb}"
    return {
        "patient": "which of two patients took part",
        "image": "which of two images was used",
        "site": "which of two hospitals took part",
    }[claim.unit]
