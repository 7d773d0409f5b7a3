"""The membership game: a pool of patients, shadow models under several conditions, and all variants of the attack."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.attack import Condition, Figure, Outcome, Tell
from medveil.attacks.membership_report import RATES, Setting, bounds, keeps_bound, rate_name, training_epsilon
from medveil.attacks.membership_scores import Members, Scores, area, hit_rate, likelihood_ratios, memorisation, roc
from medveil.attacks.membership_shadows import (
    NOISELESS,
    Answers,
    Pool,
    Twin,
    ask_plain,
    ask_protected,
    draw_members,
    with_noise,
    with_steps,
)
from medveil.attacks.noise_levels import noise_for, shown_name
from medveil.attacks.scene import Scene
from medveil.dp.checks import check
from medveil.errors import UnsupportedModelError
from medveil.rng import Seeds

PAIRS_BEYOND: Final = 5
"""Pairs beyond a false-positive rate from which it is reported."""
# Pairs beyond 1 % from which that rate is the headline; below, the AUC is.
_PAIRS_FOR_HEADLINE: Final = 20
_TOLD_EVERY: Final = 4
ROC_RATES: Final = np.logspace(-4, 0, 81)
"""False-positive rates of the curves."""


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Args:
        patients: in the pool, at most.
        images: of a patient, at most.
        models: shadow models of a condition.
        epochs: of an unprotected shadow.
        steps: of a protected shadow, at most.
        curve: releases' epsilons of the points of the curve.
        curve_models: shadow models of a point.
        share: chance of a patient to be in a model. Fewer patients a model are remembered in less time.
    """

    patients: int
    images: int
    models: int
    epochs: int
    steps: int
    curve: tuple[float, ...] = ()
    curve_models: int = 0
    share: float = 1 / 2

    @property
    def others(self) -> float:
        """Pairs of a model and a patient who is not in it, to be expected of this many patients."""
        return self.models * self.patients * (1 - self.share)


@dataclass(frozen=True, eq=False)
class Game:
    """The same pool and questions under several conditions.

    Args:
        scene: what is attacked.
        size: how much is trained.
        pool: patients of the shadows.
        seeds: of memberships, training and resampling.
        tell: progress.
    """

    scene: Scene
    size: Size
    pool: Pool
    seeds: Seeds
    tell: Tell

    @property
    def headline(self) -> str:
        """The figure that counts: members found at 1 % false alarms where so many pairs tell it, else the AUC."""
        others = replace(self.size, patients=self.pool.patients).others
        return rate_name(RATES[0]) if others * RATES[0] >= _PAIRS_FOR_HEADLINE else "auc"

    @property
    def setting(self) -> Setting:
        """What is trained, in numbers."""
        run = len(np.unique(self.scene.subject))
        return Setting(self.size.models, self.size.epochs, self._members, run)

    @property
    def plain_name(self) -> str:
        """Of the unprotected condition."""
        return f"unprotected: {self.size.epochs} epochs on about {self._members} of {self.pool.patients} patients"

    @property
    def _members(self) -> int:
        return round(self.size.share * self.pool.patients)

    def draw(self, models: int, seeds: Seeds) -> Members:
        """Who is in so many models."""
        return draw_members(models, self.pool.patients, seeds, share=self.size.share)

    def plain(self) -> Answers:
        """Answers of shadows that were trained without protection."""
        members = self.draw(self.size.models, self.seeds.child("members"))
        return ask_plain(
            self.scene,
            self.pool,
            members,
            epochs=self.size.epochs,
            seeds=self.seeds.child("plain"),
            done=self._done("unprotected", self.size.models),
        )

    def twin(self) -> Twin | None:
        """The protected training of a shadow; None where there is no protection, or the network cannot have it."""
        protection = self.scene.shown
        if protection is None or (self.scene.protection is None and not _fits(self.scene)):
            return None
        return Twin(protection, min(protection.steps, self.size.steps), protection.noise_multiplier)

    def protected(self, twin: Twin, models: int, name: str) -> Answers:
        """Answers of so many shadows that were trained as ``twin`` says."""
        members = self.draw(models, self.seeds.child("members"))
        return ask_protected(
            self.scene,
            self.pool,
            members,
            twin,
            units=self.size.share * self.pool.patients,
            seeds=self.seeds.child("protected", name),
            done=self._done(name, models),
        )

    def clipped(self, twin: Twin) -> Outcome:
        """The protected training with its noise left out: what short training and clipping hide on their own."""
        bare = with_noise(twin, NOISELESS)
        name = f"the same {twin.steps} steps and clipping, noise left out"
        condition = Condition(name=name, l2_clip_norm=twin.protection.clipping.l2_clip_norm, noise_multiplier=0.0)
        return self.outcome(condition, self.protected(bare, self.size.models, "clipped"), "clipped")

    def point(self, twin: Twin, epsilon: float) -> Outcome:
        """A point of the curve: other noise, chosen by what one release costs."""
        other = with_noise(twin, noise_for(epsilon, twin.protection.delta))
        name = f"noise of epsilon {epsilon:g} of a release"
        return self.outcome(self.condition(other), self.protected(other, self.size.curve_models, name), name, other)

    def condition(self, twin: Twin) -> Condition:
        """Epsilon is that of the shadows' own training; the run's stands in the name.

        No epsilon of a release: the attacker sees a model after all its steps.
        """
        protection, noise = twin.protection, twin.noise_multiplier
        own = noise == protection.noise_multiplier
        epsilon = training_epsilon(twin)
        name = shown_name(self.scene) if own else f"noise {noise:.2g}"
        if epsilon is not None:
            name += f"; the shadows' own training {epsilon:.3g}"
        return Condition(
            name=name,
            l2_clip_norm=protection.clipping.l2_clip_norm,
            noise_multiplier=noise,
            epsilon=epsilon,
            delta=protection.delta,
        )

    def outcome(self, condition: Condition, answers: Answers, name: str, twin: Twin | None = None) -> Outcome:
        """All variants of the attack on one set of answers; bounds where ``twin`` says how the models were trained.

        ``bound`` and figures that end in ``_bound`` are of the shadows' own training. ``run_..._bound``, under the
        run's own noise, are of as many steps as the run takes. ``bound_kept`` is 0 where a variant did better than the
        shadows' bound beyond doubt.
        """
        members, figures = answers.members, dict[str, Figure]()
        for prefix, scores in _variants(answers).items():
            seeds = self.seeds.child("bootstrap", name, prefix)
            figures[f"{prefix}auc"] = area(scores, members, seeds)
            for each in self._rates(answers):
                figures[prefix + rate_name(each)] = hit_rate(scores, members, each, seeds)
        most = dict[str, float]() if twin is None else bounds(twin)
        figures |= {f"{key}_bound": Figure(value) for key, value in most.items() if key in figures}
        if twin is not None:
            kept = all(keeps_bound(scores, members, twin) for scores in _variants(answers).values())
            figures["bound_kept"] = Figure(float(kept))
            if twin.noise_multiplier == twin.protection.noise_multiplier:
                whole = bounds(with_steps(twin, twin.protection.steps))
                figures |= {f"run_{key}_bound": Figure(value) for key, value in whole.items() if key in figures}
        remembered = memorisation(answers.confidence, members)
        known = remembered[np.isfinite(remembered)]
        figures["mean_memorisation"] = Figure(float(known.mean()))
        figures["most_memorisation"] = Figure(float(known.max()))
        return Outcome(condition, figures, self._rows(answers, remembered), most.get(self.headline))

    def curves(self, answers: Answers, name: str) -> dict[str, NDArray[np.float64]]:
        """Points of the ROC curves for a figure with log axes."""
        return {
            f"roc_{name}{'_' if prefix else ''}{prefix.rstrip('_')}": roc(scores, answers.members, ROC_RATES)
            for prefix, scores in _variants(answers).items()
        }

    def _rates(self, answers: Answers) -> tuple[float, ...]:
        """False-positive rates that so many pairs can show."""
        others = int((~answers.members).sum())
        return tuple(each for each in RATES if others * each >= PAIRS_BEYOND)

    def _rows(self, answers: Answers, remembered: Scores) -> tuple[dict[str, Any], ...]:
        scores = _variants(answers)[""]
        rows = []
        for patient in range(self.pool.patients):
            own, members = scores[:, patient], answers.members[:, patient]
            wins = own[members][:, None] > own[~members]
            rows.append(
                {
                    "image": int(self.pool.row[self.pool.owner == patient][0]),
                    "memorisation": float(remembered[patient]),
                    "auc": float(wins.mean()) if wins.size else None,
                }
            )
        return tuple(rows)

    def _done(self, name: str, models: int) -> Any:
        def told(number: int) -> None:
            if number == models or number % _TOLD_EVERY == 0:
                self.tell(f"{name}: shadow model {number} of {models}")

        return told


def _variants(answers: Answers) -> dict[str, Scores]:
    """Scores by what their figures' names begin with; the headline attack has no prefix.

    For masks the headline is the offline variant on Dice: background, of which most pixels are, says little of a
    patient, and most shadows are without it.
    """
    members = answers.members
    online = likelihood_ratios(answers.signal, members)
    beside = {
        "offline_": likelihood_ratios(answers.signal, members, "offline"),
        "loss_threshold_": -answers.loss,
    }
    if answers.overlap is None:
        return {"": online} | beside
    on_dice = {
        "": likelihood_ratios(answers.overlap, members, "offline"),
        "dice_": likelihood_ratios(answers.overlap, members),
    }
    return on_dice | {"online_": online} | beside


def _fits(scene: Scene) -> bool:
    """Whether the run's network can be trained privately: one that was not may have no gradient of one patient."""
    try:
        check(scene.model, input_shape=tuple(scene.images.shape[1:]))
    except UnsupportedModelError:
        return False
    return True


def relabelled(answers: Answers, members: NDArray[np.bool_]) -> Answers:
    """The same answers under other memberships: for the control."""
    return Answers(members, answers.signal, answers.overlap, answers.confidence, answers.loss)
