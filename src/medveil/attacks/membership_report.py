"""What membership figures mean: bounds beside them, whether the attack worked, and sentences for a reader."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from medveil.accounting.accountants import bound_of, check_relation, dp_sgd
from medveil.accounting.meaning import trade_off, true_positive_rate
from medveil.attacks.attack import Figure, Outcome
from medveil.attacks.membership_shadows import Twin
from medveil.dp.plan import LARGEST_CLAIM

RATES: Final = (1e-2, 1e-3)
"""False-positive rates at which true positives are counted."""
_LEAST_NOISE: Final = 0.1
_REFINED: Final = 200
_CHANCE: Final = 0.5


@dataclass(frozen=True)
class Setting:
    """What was trained, in numbers.

    Args:
        models: shadow models.
        epochs: of an unprotected one.
        patients: of the pool.
        run_patients: of the run.
    """

    models: int
    epochs: int
    patients: int
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
    event = dp_sgd(sampling_rate=protection.sampling_rate, noise_multiplier=twin.noise_multiplier, steps=twin.steps)
    return bound_of(event, delta=protection.delta, relation=check_relation(protection.relation))


def bounds(twin: Twin) -> dict[str, float]:
    """The most that any attack on the shadows' training reaches.

    By addition and removal, whatever relation the run promises under: that is the game here (see
    :func:`medveil.attacks.membership_shadows.draw_members`). 1 where epsilon promises nothing.
    """
    keys = ["auc", *(rate_name(each) for each in RATES)]
    epsilon = training_epsilon(twin)
    if epsilon is None or epsilon > LARGEST_CLAIM:
        return dict.fromkeys(keys, 1.0)
    event = dp_sgd(
        sampling_rate=twin.protection.sampling_rate, noise_multiplier=twin.noise_multiplier, steps=twin.steps
    )
    grid = np.unique(np.concatenate([[0.0], np.logspace(-6, 0, _REFINED), np.linspace(0, 1, _REFINED)]))
    # The best true-positive rate never falls: its values at the right ends make an upper sum.
    most = 1 - trade_off(event, list(grid[1:]))
    values = [float(np.sum(most * np.diff(grid))), *(true_positive_rate(event, each) for each in RATES)]
    return dict(zip(keys, values, strict=True))


def succeeded_by(unprotected: Outcome, control: Outcome, headline: str) -> bool:
    """Whether the AUC, and the headline's hits where it is not the AUC, lie above guessing, intervals included."""
    reached, guessed = unprotected.figures, control.figures
    ranked = (reached["auc"].low or 0.0) > max(_CHANCE, guessed["auc"].value)
    return ranked and (headline == "auc" or (reached[headline].low or 0.0) > RATES[0])


def resisted_by(unprotected: Outcome) -> tuple[str, ...]:
    """Variants that find nobody."""
    key = rate_name(RATES[0])
    titles = {"offline_": "offline LiRA", "loss_threshold_": "a threshold on the loss", "dice_": "LiRA on Dice"}
    return tuple(
        f"{title} finds {_percent(unprotected.figures[prefix + key])} of the members at 1 % false alarms: guessing "
        "lies within its interval."
        for prefix, title in titles.items()
        if prefix + key in unprotected.figures and (unprotected.figures[prefix + key].low or 0.0) <= RATES[0]
    )


def _percent(figure: Figure) -> str:
    low, high = 100 * (figure.low or 0.0), 100 * (1.0 if figure.high is None else figure.high)
    return f"{100 * figure.value:.1f} % ({low:.1f} to {high:.1f})"


def _plain(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low or 0.0:.2f} to {1.0 if figure.high is None else figure.high:.2f})"


def findings_of(
    setting: Setting, unprotected: Outcome, protected: Outcome | None, control: Outcome, *, succeeded: bool
) -> tuple[str, ...]:
    """What was found, for a reader who knows no statistics."""
    key = rate_name(RATES[0])
    found = [
        (
            f"Without protection the attacker recognises {_percent(unprotected.figures[key])} of the patients whose "
            "images a model was trained on, while wrongly accusing 1 % of the others; guessing gives 1 %, and the "
            f"same analysis against coins {_percent(control.figures[key])}. AUC {_plain(unprotected.figures['auc'])}."
        ),
        (
            f"The models attacked are twins of the run's: trained {setting.epochs} epochs on about "
            f"{setting.patients // 2} patients instead of {setting.run_patients}, which makes them remember more."
        ),
    ]
    if not succeeded:
        found.append("The attack did not work without protection, so its failure with protection shows nothing.")
    if protected is not None:
        hits = protected.figures[key]
        found.append(
            f"With {protected.condition.name}, it recognises {_percent(hits)}; no attack on that training can exceed "
            f"{100 * protected.figures[key + '_bound'].value:.1f} %."
        )
    if rate_name(RATES[1]) not in unprotected.figures:
        found.append("A false-positive rate of 0.1 % needs more patients and models than this effort trains.")
    return tuple(found)
