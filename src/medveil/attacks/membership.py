"""Was this patient in the training? LiRA: shadow models with and without every patient, and a likelihood ratio."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import torch

from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.membership_game import PAIRS_BEYOND, ROC_RATES, Game, Size, relabelled
from medveil.attacks.membership_report import RATES, Tried, findings_of, resisted_by
from medveil.attacks.membership_shadows import choose_pool
from medveil.attacks.scene import Scene
from medveil.errors import AttackError
from medveil.rng import Seeds

SIZES: Final[dict[tuple[str, Effort], Size]] = {
    ("classification", "quick"): Size(72, 2, 16, 40, 100),
    ("classification", "default"): Size(112, 2, 64, 50, 200, curve=(1e2,), curve_models=12),
    ("segmentation", "quick"): Size(64, 1, 9, 22, 24, share=1 / 8),
    ("segmentation", "default"): Size(96, 1, 16, 40, 60, share=1 / 8),
}
FEWEST_PATIENTS: Final = 64
_UNFIT: Final = "Protected shadows: the network has layers that mix patients, so it cannot be trained privately."


@dataclass(frozen=True)
class Membership:
    """Membership inference against twins of the finished model.

    Shadow models are the run's network and training, from the run's initial weights, on random parts of a pool of
    training patients (halves; for masks an eighth); each is the target once. The finished model itself is never asked.
    The pool is far smaller than the run and each image comes up more often: that favours the attacker, as the run's own
    patients hide in a larger crowd.

    A protected shadow takes at most as many steps as the run. It has two twins: one with the plan's ordinary training,
    and one with the same steps and clipping from which only the noise is left out. Both must be attacked with success,
    or the protected row shows nothing.

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
        pairs = replace(size, patients=min(found, size.patients)).others
        if found < FEWEST_PATIENTS or pairs * self.false_positive_rate < PAIRS_BEYOND:
            needed = max(
                FEWEST_PATIENTS, int(np.ceil(PAIRS_BEYOND / self.false_positive_rate / (1 - size.share) / size.models))
            )
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
        game = Game(scene, size, choose_pool(scene, size.patients, size.images, seeds.child("pool")), seeds, tell)
        plain = game.plain()
        unprotected = game.outcome(Condition(name=game.plain_name), plain, "unprotected")
        null = game.draw(size.models, seeds.child("null"))
        control = game.outcome(
            Condition(name="control: the same answers, scored against coins"), relabelled(plain, null), "control"
        )
        protected, clipped, twin = None, None, game.twin()
        pictures = {"roc_false_positive_rates": ROC_RATES} | game.curves(plain, "unprotected")
        pictures |= game.curves(relabelled(plain, null), "control")
        curve = tuple[Outcome, ...]()
        if twin is not None:
            clipped = game.clipped(twin)
            unprotected = replace(unprotected, figures={**unprotected.figures, **_named(clipped)})
            hidden = game.protected(twin, size.models, "protected")
            protected = game.outcome(game.condition(twin), hidden, "protected", twin)
            pictures |= game.curves(hidden, "protected")
            curve = (clipped, *(game.point(twin, each) for each in size.curve))
        tried = Tried(unprotected, clipped, protected, control, curve, game.headline)
        return Report(
            name=self.name,
            title="Membership inference (LiRA)",
            threat_model=ThreatModel(
                adversary="anyone with a model",
                sees="what a twin of the run's model, trained on a part of a small pool of its patients, answers about "
                "a patient's image; the finished model is not asked",
                knows="the image and its label, the plan, the initial weights, and the answers of "
                f"{size.models - 1} other such twins, with who was in each",
            ),
            success=game.headline,
            unprotected=unprotected,
            protected=protected,
            curve=curve,
            control=control,
            succeeded_unprotected=tried.succeeded,
            resisted=resisted_by(unprotected) + (() if twin is not None or scene.shown is None else (_UNFIT,)),
            findings=findings_of(game.setting, tried, twin),
            seconds=time.monotonic() - began,
            pictures={key: value.astype(np.float32) for key, value in pictures.items()},
        )


def _named(clipped: Outcome) -> dict[str, Figure]:
    """Figures of the noise-free twin, as they stand in the unprotected row."""
    return {f"clipped_{name}": figure for name, figure in clipped.figures.items()}
