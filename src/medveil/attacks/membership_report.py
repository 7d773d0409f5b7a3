"""What membership figures mean: bounds beside them, whether the attack worked, and sentences for a reader."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from medveil.accounting.accountants import bound_of, check_relation, dp_sgd
from medveil.accounting.events import Event
from medveil.accounting.meaning import trade_off, true_positive_rate
from medveil.attacks.attack import Figure, Outcome
from medveil.attacks.measures import rate
from medveil.attacks.membership_scores import Members, Scores
from medveil.attacks.membership_shadows import Twin
from medveil.attacks.noise_levels import BROKEN, breaks
from medveil.dp.plan import LARGEST_CLAIM

RATES: Final = (1e-2, 1e-3)
"""False-positive rates at which true positives are counted."""
_LEAST_NOISE: Final = 0.1
_REFINED: Final = 200
_CHANCE: Final = 0.5
_SURE: Final = 1 - 1e-6
_VARIANTS: Final = {
    "": "online LiRA",
    "offline_": "offline LiRA",
    "loss_threshold_": "a threshold on the loss",
}
_VARIANTS_OF_MASKS: Final = _VARIANTS | {
    "": "offline LiRA on Dice",
    "dice_": "online LiRA on Dice",
    "online_": "online LiRA on pixels",
    "offline_": "offline LiRA on pixels",
}


@dataclass(frozen=True)
class Setting:
    """What was trained, in numbers.

    Args:
        models: shadow models.
        epochs: of an unprotected one.
        members: about so many patients a model.
        run_patients: of the run.
    """

    models: int
    epochs: int
    members: int
    run_patients: int


def rate_name(rate: float) -> str:
    """Name of the figure of true positives at a false-positive rate.

    >>> rate_name(0.001)
    'tpr_at_1e-3'
    """
    return f"tpr_at_{rate:.0e}".replace("e-0", "e-")


def training_epsilon(twin: Twin) -> float | None:
    """Of the shadows' training; None where there is so little noise that it promises nothing."""
    if twin.noise_multiplier < _LEAST_NOISE:
        return None
    protection = twin.protection
    return bound_of(_event(twin), delta=protection.delta, relation=check_relation(protection.relation))


def _event(twin: Twin) -> Event:
    rate_of = twin.protection.sampling_rate
    return dp_sgd(sampling_rate=rate_of, noise_multiplier=twin.noise_multiplier, steps=twin.steps)


def bounds(twin: Twin) -> dict[str, float]:
    """The most that any attack on the shadows' training reaches.

    By addition and removal, whatever relation the run promises under: that is the game here (see
    :func:`medveil.attacks.membership_shadows.draw_members`). 1 where epsilon promises nothing.
    """
    keys = ["auc", *(rate_name(each) for each in RATES)]
    epsilon = training_epsilon(twin)
    if epsilon is None or epsilon > LARGEST_CLAIM:
        return dict.fromkeys(keys, 1.0)
    event = _event(twin)
    grid = np.unique(np.concatenate([[0.0], np.logspace(-6, 0, _REFINED), np.linspace(0, 1, _REFINED)]))
    # The best true-positive rate never falls: its values at the right ends make an upper sum.
    most = 1 - trade_off(event, list(grid[1:]))
    values = [float(np.sum(most * np.diff(grid))), *(true_positive_rate(event, each) for each in RATES)]
    return dict(zip(keys, values, strict=True))


def keeps_bound(scores: Scores, members: Members, twin: Twin) -> bool:
    """Whether neither AUC nor hits at 1 % false alarms refute the bounds of the shadows' training, beyond doubt.

    A patient counts as one trial however many models were asked about it: the mean over its models is a share of one
    hit, rounded down in the sum. The threshold of 1 % is set by the others' scores themselves; the bound of the hits is
    therefore taken at the largest false-positive rate that these scores leave possible.

    Args:
        scores: shape (models, patients).
        members: likewise.
        twin: how the models were trained.
    """
    most = bounds(twin)
    if most["auc"] == 1:
        return True
    wins, patients = _wins(scores, members)
    if breaks(int(wins), patients, most["auc"]):
        return False
    others = np.sort(scores[~members])[::-1]
    alarms = int(RATES[0] * len(others))
    hits = np.where(members, scores > others[min(alarms, len(others) - 1)], False)
    present = members.any(0)
    shares = hits.sum(0)[present] / members.sum(0)[present]
    largest = rate(alarms, len(others), _SURE).high
    bound = 1.0 if largest is None else true_positive_rate(_event(twin), largest)
    return not breaks(int(shares.sum()), len(shares), bound)


def _wins(scores: Scores, members: Members) -> tuple[float, int]:
    """Sum over patients of how often a model with them scores above one without, and how many patients that is."""
    total, patients = 0.0, 0
    for own, inside in zip(scores.T, members.T, strict=True):
        if inside.any() and not inside.all():
            first, second = own[inside][:, None], own[~inside]
            total += float((first > second).mean() + (first == second).mean() / 2)
            patients += 1
    return total, patients


def works(reached: Outcome, control: Outcome, headline: str) -> bool:
    """Whether the AUC, and the headline's hits where it is not the AUC, lie above guessing, intervals included."""
    figures = reached.figures
    ranked = (figures["auc"].low or 0.0) > max(_CHANCE, control.figures["auc"].value)
    return ranked and (headline == "auc" or (figures[headline].low or 0.0) > RATES[0])


@dataclass(frozen=True)
class Tried:
    """All outcomes of the attack.

    Args:
        unprotected: the plan's ordinary training.
        clipped: the protected training with its noise left out; None where nothing is protected.
        protected: likewise with its noise.
        control: the same answers against coins.
        curve: under other noise.
        headline: the figure that counts.
    """

    unprotected: Outcome
    clipped: Outcome | None
    protected: Outcome | None
    control: Outcome
    curve: tuple[Outcome, ...]
    headline: str

    @property
    def plain_works(self) -> bool:
        """Whether the attack works on ordinary training."""
        return works(self.unprotected, self.control, self.headline)

    @property
    def clipped_works(self) -> bool:
        """Whether it works on the protected training without its noise; so too where there is none."""
        return self.clipped is None or works(self.clipped, self.control, self.headline)

    @property
    def succeeded(self) -> bool:
        """Whether a failure under protection means anything."""
        return self.plain_works and self.clipped_works

    @property
    def broken(self) -> bool:
        """Whether a bound was broken, in the protected row or the curve."""
        outcomes = self.curve if self.protected is None else (self.protected, *self.curve)
        return any(each.figures["bound_kept"].value == 0 for each in outcomes if "bound_kept" in each.figures)


def resisted_by(unprotected: Outcome) -> tuple[str, ...]:
    """Variants that find nobody."""
    key = rate_name(RATES[0])
    return tuple(
        f"{title} finds {_percent(unprotected.figures[prefix + key])} of the members at 1 % false alarms: guessing "
        "lies within its interval."
        for prefix, title in _titles(unprotected).items()
        if prefix and prefix + key in unprotected.figures and (unprotected.figures[prefix + key].low or 0.0) <= RATES[0]
    )


def _percent(figure: Figure) -> str:
    low, high = 100 * (figure.low or 0.0), 100 * (1.0 if figure.high is None else figure.high)
    return f"{100 * figure.value:.1f} % ({low:.1f} to {high:.1f})"


def _plain(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low or 0.0:.2f} to {1.0 if figure.high is None else figure.high:.2f})"


def findings_of(setting: Setting, tried: Tried, twin: Twin | None) -> tuple[str, ...]:
    """What was found, for a reader who knows no statistics.

    Args:
        setting: what was trained.
        tried: all outcomes.
        twin: the protected training, where there is one.
    """
    key = rate_name(RATES[0])
    plain, blind = tried.unprotected.figures, tried.control.figures
    found = [
        (
            f"Without protection the attacker recognises {_percent(plain[key])} of the patients whose images a model "
            "was trained on, while wrongly accusing 1 % of the others; guessing gives 1 %, and the same analysis "
            f"against coins {_percent(blind[key])}. AUC {_plain(plain['auc'])}."
        ),
        (
            f"The models attacked are twins of the run's: trained {setting.epochs} epochs on about "
            f"{setting.members} patients instead of {setting.run_patients}, which makes them remember more. The "
            "finished model itself was not asked."
        ),
    ]
    if not tried.plain_works:
        found.append("The attack did not work on ordinary training, so its failure with protection shows nothing.")
    if tried.clipped is not None:
        found.append(_of_clipping(tried))
    if tried.protected is not None and twin is not None:
        found.append(_of_protection(tried.protected, twin))
    found.append(_of_hindsight(tried))
    found.append(
        f"Intervals resample patients, not the {setting.models} models attacked: another set of models may lie outside."
    )
    if rate_name(RATES[1]) not in plain:
        found.append("A false-positive rate of 0.1 % needs more patients and models than this effort trains.")
    if tried.broken:
        found.append(BROKEN)
    return tuple(found)


def _of_clipping(tried: Tried) -> str:
    """What is left of the attack where only the noise of the protected training is missing."""
    assert tried.clipped is not None
    figures, key = tried.clipped.figures, rate_name(RATES[0])
    said = f"With {tried.clipped.condition.name}: {_percent(figures[key])}, AUC {_plain(figures['auc'])}."
    if not tried.clipped_works:
        return (
            f"{said} The attack does not work there: clipping and short training alone hide members from it, and the "
            "protected row shows nothing about the noise."
        )
    if not tried.plain_works:
        return f"{said} The attack works there, though not on the plan's ordinary training."
    return f"{said} Only the fall from there to the protected row is the noise's."


def _of_protection(protected: Outcome, twin: Twin) -> str:
    key, figures = rate_name(RATES[0]), protected.figures
    said = (
        f"With {protected.condition.name}, it recognises {_percent(figures[key])}, AUC {_plain(figures['auc'])}; no "
        f"attack on the shadows' {twin.steps} steps can exceed {_share(figures[key + '_bound'])} (AUC "
        f"{figures['auc_bound'].value:.2f})"
    )
    steps = twin.protection.steps
    if steps == twin.steps:
        return f"{said}; the run takes as many."
    return (
        f"{said}, and none on a run of {steps} steps {_share(figures[f'run_{key}_bound'])} (AUC "
        f"{figures['run_auc_bound'].value:.2f})."
    )


def _of_hindsight(tried: Tried) -> str:
    """The variant that did best, under every condition."""
    key, parts = rate_name(RATES[0]), []
    rows = {"unprotected": tried.unprotected, "noise left out": tried.clipped, "protected": tried.protected}
    for title, outcome in (rows | {"against coins": tried.control}).items():
        if outcome is not None:
            titles = _titles(outcome)
            best = max((each for each in titles if each + key in outcome.figures), key=_by(outcome, key))
            parts.append(f"{title} {_percent(outcome.figures[best + key])} by {titles[best]}")
    return f"The best variant in hindsight at 1 % false alarms: {'; '.join(parts)}."


def _titles(outcome: Outcome) -> dict[str, str]:
    """Of the variants, by what their figures' names begin with: for masks the headline is another."""
    return _VARIANTS_OF_MASKS if "online_auc" in outcome.figures else _VARIANTS


def _by(outcome: Outcome, key: str) -> Callable[[str], float]:
    return lambda prefix: outcome.figures[prefix + key].value


def _share(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} %"
