"""What does an update say about all patients of a batch together? Differential privacy does not promise to hide it."""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.noise_levels import level_condition, shown_condition
from medveil.attacks.property_engine import (
    BATCH,
    FEW,
    MANY,
    Side,
    clipped_side,
    one_image_each,
    parameter_sizes,
    properties,
    side,
    tell_apart,
)
from medveil.attacks.scene import Protection, Scene
from medveil.errors import AttackError
from medveil.rng import Seeds

PROPERTIES: Final = {"class_mix": "how many of them are ill", "brightness": "how bright they are (a site's scanner)"}
_SEGMENTED: Final = "how large what is outlined is"
_VALUES: Final = 24_000_000
_CHANCE: Final = 0.5
_EVEN: Final = (BATCH // 2, BATCH // 2)


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Args:
        images: of either side, at most; training patients give one each.
        pairs: of batches, at most.
        curve: epsilons of the release.
        noise: numbers of noise, in all; networks of many parameters get fewer pairs, and wider intervals.
    """

    images: int
    pairs: int
    curve: tuple[float, ...]
    noise: float


SIZES: Final[dict[Effort, Size]] = {
    "quick": Size(96, 24, (1e6,), 1.5e8),
    "default": Size(400, 100, (1e6, 1e3, 1e2, 10.0, 1.0), 1.5e9),
}
_FEWEST_PAIRS: Final = 12


class PropertyInference:
    """Property inference from the update of one batch of 32 patients, a quarter or three quarters of whom have it.

    Of every training patient one image is drawn, so that no batch holds a patient twice. The attacker's public images
    may share patients.
    """

    name = "property"

    def check(self, scene: Scene) -> None:
        """Refuse a scene without enough training patients and public images with and without each property.

        Raises:
            AttackError: see above.
        """
        picked = torch.from_numpy(one_image_each(scene.subject))
        for whose, images, targets in (
            ("training patients'", scene.images[picked], scene.targets[picked]),
            ("public", scene.public, scene.public_targets),
        ):
            for name, has in properties(scene, images, targets).items():
                fewest = min(int(has.sum()), int((~has).sum()))
                if fewest < MANY:
                    raise AttackError(
                        f"Too few {whose} images for property inference by {name}",
                        got=f"{fewest} images of the rarer kind",
                        expected=f"at least {MANY}",
                        remedy="attack a run with more patients",
                    )

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """Tell batches of both kinds apart, from plain updates, protected ones, and over a curve of noise."""
        began = time.monotonic()
        self.check(scene)
        size, sizes = SIZES[effort], parameter_sizes(scene)
        tell("gradients of single images")
        room = max(2 * MANY, min(size.images, _VALUES // sum(sizes)))
        plain = {whose: _side(scene, whose, room, seeds) for whose in ("public", "training")}
        protection = scene.shown
        added = plain
        if protection is not None:
            clip = protection.clipping
            added = {whose: clipped_side(each, clip, sizes) for whose, each in plain.items()}
        pairs = pairs_of(size, sum(sizes))

        def outcome(condition: Condition, protection: Protection | None, shares: tuple[int, int]) -> Outcome:
            tell(f"{condition.name}")
            figures = dict[str, Figure]()
            sides = plain if protection is None else added
            for name in PROPERTIES:
                figures[f"{name}_auc"], _ = tell_apart(
                    sides["public"],
                    sides["training"],
                    name,
                    clipping=None if protection is None else protection.clipping,
                    noise_multiplier=condition.noise_multiplier or 0.0,
                    pairs=pairs,
                    seeds=seeds.child(condition.name, name),
                    shares=shares,
                )
            return Outcome(condition, figures)

        unprotected = outcome(Condition("unprotected"), None, (FEW, MANY))
        control = outcome(Condition("control: both kinds of batches alike"), None, _EVEN)
        protected, curve = None, tuple[Outcome, ...]()
        if protection is not None:
            protected = outcome(shown_condition(scene, protection), protection, (FEW, MANY))
            levels = [level_condition(protection, each) for each in size.curve]
            curve = tuple(outcome(level, protection, (FEW, MANY)) for level in levels)
        succeeded = (unprotected.figures["class_mix_auc"].low or 0.0) > _CHANCE
        return Report(
            name=self.name,
            title="Property inference",
            threat_model=_THREAT,
            success="class_mix_auc",
            unprotected=unprotected,
            protected=protected,
            curve=curve,
            control=control,
            succeeded_unprotected=succeeded,
            resisted=_resisted(unprotected),
            findings=_findings(scene, unprotected, protected),
            seconds=time.monotonic() - began,
        )


def pairs_of(size: Size, parameters: int) -> int:
    """Pairs of batches for a network: as many as the noise on all of their updates allows, but at least 12.

    >>> pairs_of(SIZES["quick"], 60_000), pairs_of(SIZES["quick"], 676_579), pairs_of(SIZES["quick"], 10**8)
    (24, 24, 12)
    """
    releases = 2 * len(PROPERTIES) * (1 + len(size.curve))
    return max(_FEWEST_PAIRS, min(size.pairs, int(size.noise / (releases * parameters))))


_THREAT: Final = ThreatModel(
    adversary="server",
    sees=f"the update of one step on {BATCH} patients, one image each, or of a secure sum the sum",
    knows="the weights, the clip norm and the noise's size, and public images with and without the property",
)


def _side(scene: Scene, whose: str, images: int, seeds: Seeds) -> Side:
    """Images at random, half of them with each class mix where there are enough."""
    shown, targets = scene.public, scene.public_targets
    if whose == "training":
        rows = torch.from_numpy(one_image_each(scene.subject))
        shown, targets = scene.images[rows], scene.targets[rows]
    order = seeds.child("images", whose).numpy().permutation(len(shown))
    taken = order[:images]
    # Rare kinds must fill a batch, whatever the draw: the first of each kind in random order come along.
    for has in properties(scene, shown, targets).values():
        for kind in (has, ~has):
            taken = np.union1d(taken, order[kind[order]][:MANY])
    picked = torch.from_numpy(taken)
    return side(scene, shown[picked], targets[picked])


def _resisted(unprotected: Outcome) -> tuple[str, ...]:
    figure = unprotected.figures["brightness_auc"]
    if (figure.low or 0.0) > _CHANCE:
        return ()
    return ("The update of this network does not tell bright batches from dark ones.",)


def _findings(scene: Scene, unprotected: Outcome, protected: Outcome | None) -> tuple[str, ...]:
    titles = PROPERTIES | ({"class_mix": _SEGMENTED} if scene.task == "segmentation" else {})
    found = []
    for name, title in titles.items():
        plain = unprotected.figures[f"{name}_auc"]
        sentence = (
            f"Of two batches of {BATCH} patients, one image each, that differ in {title}, the server picks the right "
            f"one {_percent(plain)} of the time from an unprotected update"
        )
        if protected is not None:
            sentence += f", and {_percent(protected.figures[f'{name}_auc'])} under {protected.condition.name}"
        found.append(f"{sentence}; guessing gives 50 %.")
    found.append(
        "Privacy for each patient does not promise to hide what is true of a whole batch or hospital, and there is no "
        "bound to compare with. Only that it is a sum over many hospitals blurs whose property it is."
    )
    return tuple(found)


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.0f} %"
