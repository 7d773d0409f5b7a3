"""Was this patient in the training? LiRA: shadow models with and without every patient, and a likelihood ratio."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray

from medveil.accounting.accountants import bound_of
from medveil.accounting.events import Gaussian
from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.membership_report import (
    RATES,
    Setting,
    bounds,
    findings_of,
    rate_name,
    resisted_by,
    succeeded_by,
    training_epsilon,
)
from medveil.attacks.membership_scores import (
    Scores,
    area,
    hit_rate,
    likelihood_ratios,
    memorisation,
    roc,
)
from medveil.attacks.membership_shadows import (
    Answers,
    Pool,
    Twin,
    ask_plain,
    ask_protected,
    choose_pool,
    draw_members,
    with_noise,
)
from medveil.attacks.noise_levels import noise_for, shown_name
from medveil.attacks.scene import Scene
from medveil.dp.checks import check
from medveil.errors import AttackError, UnsupportedModelError
from medveil.rng import Seeds

_PAIRS_BEYOND: Final = 5
# Pairs beyond 1 % from which that rate is the headline; below, the AUC is.
_PAIRS_FOR_HEADLINE: Final = 20
_TOLD_EVERY: Final = 4
_ROC_RATES: Final = np.logspace(-4, 0, 81)


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
    """

    patients: int
    images: int
    models: int
    epochs: int
    steps: int
    curve: tuple[float, ...] = ()
    curve_models: int = 0


SIZES: Final[dict[tuple[str, Effort], Size]] = {
    ("classification", "quick"): Size(112, 2, 16, 40, 40),
    ("classification", "default"): Size(240, 2, 48, 50, 200, curve=(1e2, 1e6), curve_models=12),
    ("segmentation", "quick"): Size(64, 1, 16, 12, 12),
    ("segmentation", "default"): Size(96, 1, 16, 25, 40, curve=(1e6,), curve_models=8),
}
FEWEST_PATIENTS: Final = 64
_UNFIT: Final = "Protected shadows: the network has layers that mix patients, so it cannot be trained privately."


@dataclass(frozen=True)
class Membership:
    """Membership inference against the finished model.

    Shadow models are the run's network and training, from the run's initial weights, on random halves of a pool of
    training patients. The pool is far smaller than the run and each image comes up more often: what is measured is an
    upper estimate for the run's own patients, who hide in a larger crowd.

    Args:
        false_positive_rate: at which the attack must be measurable.

    References:
        Carlini et al. 2022, https://arxiv.org/abs/2112.03570
    """

    false_positive_rate: float = RATES[0]
    name: ClassVar[str] = "membership"

    def check(self, scene: Scene) -> None:
        """Refuse a scene with too few patients for the false-positive rate, or whose model is trained already.

        Raises:
            AttackError: see above.
        """
        self._check_patients(scene, SIZES[scene.task, "quick"])
        initial, final = scene.model.state_dict(), scene.trained.state_dict()
        if initial and all(torch.equal(initial[key], final[key]) for key in initial if key in final):
            raise AttackError(
                "Membership inference needs the run's initial weights: shadow models start from them",
                got="a model that equals the trained one",
                expected="the network as it was before the first round",
                remedy="keep the run's plan and initial weights together, and build the network from the plan",
            )

    def _check_patients(self, scene: Scene, size: Size) -> None:
        found = len(np.unique(scene.subject))
        pairs = min(found, size.patients) * size.models / 2
        if found < FEWEST_PATIENTS or pairs * self.false_positive_rate < _PAIRS_BEYOND:
            needed = max(FEWEST_PATIENTS, int(np.ceil(2 * _PAIRS_BEYOND / self.false_positive_rate / size.models)))
            raise AttackError(
                "Too few patients to measure membership inference at this false-positive rate",
                got=f"{found} training patients, of whom at most {size.patients} are used; "
                f"a false-positive rate of {self.false_positive_rate:g}",
                expected=f"at least {needed} patients with {size.models} shadow models",
                remedy="attack a run with more patients, use the default effort, or ask for a higher rate",
            )

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """Train shadows without protection, with the run's (or the hypothetical one), and over a curve of noise."""
        began = time.monotonic()
        self.check(scene)
        size = SIZES[scene.task, effort]
        self._check_patients(scene, size)
        game = _Game(scene, size, choose_pool(scene, size.patients, size.images, seeds.child("pool")), seeds, tell)
        plain = game.plain()
        unprotected = game.outcome(Condition(name=game.plain_name), plain, "unprotected")
        null = draw_members(size.models, game.pool.patients, seeds.child("null"))
        control = game.outcome(
            Condition(name="control: the same answers, scored against coins"), _relabelled(plain, null), "control"
        )
        protected, twin = None, game.twin()
        pictures = {"roc_false_positive_rates": _ROC_RATES} | game.curves(plain, "unprotected")
        pictures |= game.curves(_relabelled(plain, null), "control")
        if twin is not None:
            hidden = game.protected(twin, size.models, "protected")
            protected = game.outcome(game.condition(twin), hidden, "protected", twin)
            pictures |= game.curves(hidden, "protected")
        curve = () if twin is None else tuple(game.point(twin, each) for each in size.curve)
        succeeded = succeeded_by(unprotected, control, game.headline)
        return Report(
            name=self.name,
            title="Membership inference (LiRA)",
            threat_model=ThreatModel(
                adversary="anyone with the model",
                sees="what the finished model answers about a patient's image",
                knows="the image and its label, the plan, the initial weights, and images of many patients like the "
                f"run's, on random halves of whom {size.models} models of the same kind are trained",
            ),
            success=game.headline,
            unprotected=unprotected,
            protected=protected,
            curve=curve,
            control=control,
            succeeded_unprotected=succeeded,
            resisted=resisted_by(unprotected) + (() if twin is not None or scene.shown is None else (_UNFIT,)),
            findings=findings_of(game.setting, unprotected, protected, control, succeeded=succeeded),
            seconds=time.monotonic() - began,
            pictures={key: value.astype(np.float32) for key, value in pictures.items()},
        )


@dataclass(frozen=True, eq=False)
class _Game:
    """The same pool and questions under several conditions."""

    scene: Scene
    size: Size
    pool: Pool
    seeds: Seeds
    tell: Tell

    @property
    def headline(self) -> str:
        """The figure that counts: members found at 1 % false alarms where so many pairs tell it, else the AUC."""
        others = self.size.models * self.pool.patients / 2
        return rate_name(RATES[0]) if others * RATES[0] >= _PAIRS_FOR_HEADLINE else "auc"

    @property
    def setting(self) -> Setting:
        run = len(np.unique(self.scene.subject))
        return Setting(self.size.models, self.size.epochs, self.pool.patients, run)

    @property
    def plain_name(self) -> str:
        return f"unprotected: {self.size.epochs} epochs on halves of {self.pool.patients} patients"

    def plain(self) -> Answers:
        members = draw_members(self.size.models, self.pool.patients, self.seeds.child("members"))
        return ask_plain(
            self.scene,
            self.pool,
            members,
            epochs=self.size.epochs,
            seeds=self.seeds.child("plain"),
            done=self._done("unprotected", self.size.models),
        )

    def twin(self) -> Twin | None:
        protection = self.scene.shown
        if protection is None or (self.scene.protection is None and not _fits(self.scene)):
            return None
        return Twin(protection, min(protection.steps, self.size.steps), protection.noise_multiplier)

    def protected(self, twin: Twin, models: int, name: str) -> Answers:
        members = draw_members(models, self.pool.patients, self.seeds.child("members"))
        seeds = self.seeds.child("protected", name)
        return ask_protected(self.scene, self.pool, members, twin, seeds=seeds, done=self._done(name, models))

    def point(self, twin: Twin, epsilon: float) -> Outcome:
        """A point of the curve: other noise, chosen by what one release costs."""
        other = with_noise(twin, noise_for(epsilon, twin.protection.delta))
        name = f"epsilon {epsilon:g} of a release"
        return self.outcome(self.condition(other), self.protected(other, self.size.curve_models, name), name, other)

    def condition(self, twin: Twin) -> Condition:
        """Epsilon is that of the shadows' own training; the run's stands in the name."""
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
            epsilon_of_release=bound_of(Gaussian(noise_multiplier=noise), delta=protection.delta),
            delta=protection.delta,
        )

    def outcome(self, condition: Condition, answers: Answers, name: str, twin: Twin | None = None) -> Outcome:
        """All variants of the attack on one set of answers."""
        members, figures = answers.members, dict[str, Figure]()
        for prefix, scores in _variants(answers).items():
            seeds = self.seeds.child("bootstrap", name, prefix)
            figures[f"{prefix}auc"] = area(scores, members, seeds)
            for each in self._rates(answers):
                figures[prefix + rate_name(each)] = hit_rate(scores, members, each, seeds)
        most = dict[str, float]() if twin is None else bounds(twin)
        figures |= {f"{key}_bound": Figure(value) for key, value in most.items() if key in figures}
        remembered = memorisation(answers.confidence, members)
        known = remembered[np.isfinite(remembered)]
        figures["mean_memorisation"] = Figure(float(known.mean()))
        figures["most_memorisation"] = Figure(float(known.max()))
        return Outcome(condition, figures, self._rows(answers, remembered), most.get(self.headline))

    def curves(self, answers: Answers, name: str) -> dict[str, NDArray[np.float64]]:
        """Points of the ROC curves for a figure with log axes."""
        return {
            f"roc_{name}{'_' if prefix else ''}{prefix.rstrip('_')}": roc(scores, answers.members, _ROC_RATES)
            for prefix, scores in _variants(answers).items()
        }

    def _rates(self, answers: Answers) -> tuple[float, ...]:
        """False-positive rates that so many pairs can show."""
        others = int((~answers.members).sum())
        return tuple(each for each in RATES if others * each >= _PAIRS_BEYOND)

    def _rows(self, answers: Answers, remembered: Scores) -> tuple[dict[str, Any], ...]:
        scores = likelihood_ratios(answers.signal, answers.members)
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
    """Scores by what their figures' names begin with; the headline attack has no prefix."""
    members = answers.members
    found = {
        "": likelihood_ratios(answers.signal, members),
        "offline_": likelihood_ratios(answers.signal, members, "offline"),
        "loss_threshold_": -answers.loss,
    }
    if answers.overlap is not None:
        found["dice_"] = likelihood_ratios(answers.overlap, members)
    return found


def _fits(scene: Scene) -> bool:
    """Whether the run's network can be trained privately: one that was not may have no gradient of one patient."""
    try:
        check(scene.model, input_shape=tuple(scene.images.shape[1:]))
    except UnsupportedModelError:
        return False
    return True


def _relabelled(answers: Answers, members: NDArray[np.bool_]) -> Answers:
    return Answers(members, answers.signal, answers.overlap, answers.confidence, answers.loss)
