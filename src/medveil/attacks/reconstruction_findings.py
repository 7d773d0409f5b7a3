"""What the reconstruction attack found, in words."""

import math
from collections.abc import Sequence

from medveil.attacks.attack import Outcome
from medveil.attacks.noise_levels import BROKEN


def findings(
    size: int,
    unprotected: Outcome,
    protected: Outcome,
    curve: Sequence[Outcome],
    control: Outcome,
    *,
    held: bool,
) -> tuple[str, ...]:
    """Sentences for a reader who knows no statistics; ``size`` candidates were the most that were tried."""
    others = int(unprotected.figures["distractors"].value)

    def rank1(outcome: Outcome) -> float:
        return 100 * outcome.figures["rank1_rate"].value

    noisy = protected.figures
    named, decibels = noisy[f"identified_of_{size}"], noisy["median_psnr_db"].value
    revived = [outcome.condition.epsilon_of_release for outcome in curve if rank1(outcome) > 50]  # noqa: PLR2004 - half
    least = min((each for each in revived if each is not None), default=math.inf)
    told = (
        f"Without protection, the attacker told the patient's image from {others} others in {rank1(unprotected):.0f} % "
        f"of {len(unprotected.images)} trials; from the mean public image alone, in {rank1(control):.1f} %."
    )
    kept = (
        f"Under {protected.condition.name}, in {rank1(protected):.1f} %, at a median of {decibels:.1f} dB against "
        f"{control.figures['median_psnr_db'].value:.1f} dB of the mean image."
    )
    low, high = 100 * (named.low or 0.0), 100 * (1.0 if named.high is None else named.high)
    guessed = (
        f"Given {size} candidates, it named the right one in {100 * named.value:.1f} % of trials ({low:.1f} to "
        f"{high:.1f}). On this release no attack has a chance above {100 * (protected.bound or 1.0):.1f} %; a guess "
        f"has {100 / size:.1f} %."
    )
    back = (
        f"With less noise it revives: half of the images are re-identified from a release of epsilon {least:.3g}."
        if math.isfinite(least)
        else "At no noise level of the curve did the attacker re-identify half of the images."
    )
    kept_to = "At no noise level did it do better than theory allows, within its interval." if held else BROKEN
    return told, kept, guessed, back, kept_to
