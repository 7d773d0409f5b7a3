"""A curious server inverts the update that a step shows it: classification and segmentation, alone and summed."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.inversion_engine import Distance, Recipe
from medveil.attacks.inversion_report import figures_of, findings_of, pictures_of, resisted_of, worked
from medveil.attacks.inversion_trial import Bench, Trial, Variant
from medveil.attacks.inversion_update import local_steps, step_flops
from medveil.attacks.noise_levels import condition_of, noise_for, rank1_bound, shown_name
from medveil.attacks.scene import Protection, Scene
from medveil.errors import AttackError
from medveil.rng import Seeds

_FLOPS: dict[Effort, float] = {"quick": 4e11, "default": 4e12}
"""Work that a run may take: about 20 and 180 seconds on two cores of a small server."""
_OVERHEAD_FLOPS = 1e7  # what a step costs however small the network
_SMOOTHNESS: dict[Effort, tuple[float, ...]] = {"quick": (1e-3,), "default": (3e-4, 1e-3)}
_EPSILONS: dict[Effort, tuple[float, ...]] = {"quick": (1e2, 1e4, 1e6), "default": (1, 1e2, 1e3, 1e4, 1e5, 1e6)}
_CURVE_IMAGES: dict[Effort, int] = {"quick": 1, "default": 3}
_MOST_IMAGES: dict[Effort, int] = {"quick": 4, "default": 10}
_LEAST_IMAGES = 2
_MOST_SUMMED = 10
_LOCAL_STEPS = 5
_VARIANT_IMAGES = 4
_BATCHES = (4, 8)
_MOST_STEPS: dict[Distance, int] = {"global": 1000, "layer": 400}
_WANTED_STEPS: dict[Distance, int] = {"global": 280, "layer": 120}
_LEAST_STEPS = 40
_LEAST_DISTRACTORS = 20
_STEP_SIZE: dict[Distance, float] = {"global": 0.1, "layer": 0.05}


@dataclass(frozen=True)
class _Work:
    """How much is done: images under each main condition, steps of a search, smoothness settings, what else."""

    images: int
    steps: int
    smoothness: tuple[float, ...]
    variants: tuple[tuple[Variant, int], ...]


class Inversion:
    """Gradient inversion: from the update of one step back to the images (and masks) that caused it.

    The figure that counts is ``rank1_rate``: how often the true image is nearer to what was found than the images of
    all other patients. ``prior`` of its bound is one over the candidates, times the smoothness settings among which
    hindsight chooses.

    Every protected row is the worst case: everybody else's part of the sum is known to the attacker and subtracted, the
    victim was sampled, and its image was not augmented. The attacker knows the masks, and the classes in an update of
    several images; one variant looks for image and mask together.

    References:
        Geiping et al. 2020, arXiv 2003.14053; Hayes et al. 2023, arXiv 2302.07225 (the bound).
    """

    name = "inversion"

    def check(self, scene: Scene) -> None:
        """Say whether the network can be differentiated twice and whether there are patients enough.

        Raises:
            AttackError: it cannot, or there are not.
        """
        wanted = _pool_size(scene, "default") + _LEAST_DISTRACTORS
        patients = len(np.unique(scene.subject))
        if patients < wanted:
            raise AttackError(
                "Gradient inversion has too few patients to attack some and tell them from others",
                got=f"{patients} patients",
                expected=f"at least {wanted}",
                remedy="leave this attack out, or use a data set with more patients",
            )
        if not len(scene.public):
            raise AttackError(
                "Gradient inversion starts from the mean of public images, and there are none",
                expected="images that no training saw",
                remedy="keep a test or validation split",
            )
        step_flops(scene)

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """Attack one update without protection, under the scene's protection, over a curve of noise, and variants.

        Raises:
            AttackError: as :meth:`check`.
        """
        began = time.monotonic()
        self.check(scene)
        distance = recipe_distance(scene)
        work = _plan_work(scene, effort, distance)
        bench = Bench(
            scene,
            choose_victims(scene, _pool_size(scene, effort), seeds.child("victims")),
            Recipe(distance, work.steps, _STEP_SIZE[distance]),
            work.smoothness,
            seeds,
        )
        control = bench.judge_control(work.images)
        tell(f"{work.images} images, {work.steps} steps each, without protection")
        plain = bench.run(Variant("single update"), work.images)
        variants = [_told(bench, variant, count, tell) for variant, count in work.variants]
        shown, curve = scene.shown, []
        protected = None
        if shown is not None:
            tell("under protection, and over a curve of noise")
            protected = _noised(bench, shown, shown.noise_multiplier, work.images, shown_name(scene))
            for epsilon in _EPSILONS[effort]:
                noise = noise_for(epsilon, shown.delta)
                name = f"epsilon {epsilon:g} of one release"
                curve.append(_noised(bench, shown, noise, _curve_images(scene, effort), name))
        prior = len(bench.smoothness) / (len(bench.distractors) + 1)
        nothing_seen = Outcome(Condition("nothing seen"), figures_of(control, seeds), control.rows, prior)
        extra = {name: figure for each in variants for name, figure in _prefixed(each, seeds).items()}
        rows = (*plain.rows, *(row for each in variants for row in each.rows))
        unprotected = Outcome(Condition("unprotected"), {**figures_of(plain, seeds), **extra}, rows)
        rescued = [_outcome(bench, each, seeds, prior) for each in ([protected] if protected else [])]
        succeeded = worked(plain, control, scene.task)
        return Report(
            name=self.name,
            title="Gradient inversion",
            threat_model=ThreatModel(
                adversary="server",
                sees="the update of one step, or the sum of several sites' updates",
                knows="the network and its weights before the step, the loss, clip norm and noise, public images",
            ),
            success="rank1_rate",
            unprotected=unprotected,
            protected=rescued[0] if rescued else None,
            curve=tuple(_outcome(bench, each, seeds, prior) for each in curve),
            control=nothing_seen,
            succeeded_unprotected=succeeded,
            resisted=resisted_of(scene, plain, variants, control),
            findings=(
                *findings_of(plain, variants, control, protected[0] if protected else None, succeeded=succeeded),
                *_left_out(scene, effort, work),
            ),
            seconds=time.monotonic() - began,
            pictures=pictures_of(scene, bench, plain, variants, protected[0] if protected else None),
        )


def recipe_distance(scene: Scene) -> Distance:
    """Global for classifiers with ReLU; by layer for segmentation and smooth activations, where global fails."""
    kinked = any(isinstance(each, nn.ReLU) for each in scene.model.modules())
    smooth = any(isinstance(each, nn.SiLU | nn.ELU | nn.GELU) for each in scene.model.modules())
    return "layer" if scene.task == "segmentation" or (smooth and not kinked) else "global"


def choose_victims(scene: Scene, count: int, seeds: Seeds) -> NDArray[np.int64]:
    """One image a patient, patients drawn alike; for segmentation images with a foreground, where there are enough."""
    order = seeds.numpy().permutation(len(scene.images))
    if scene.task == "segmentation":
        empty = (scene.targets == 0).flatten(1).all(1).numpy()
        order = np.concatenate([order[~empty[order]], order[empty[order]]])
    _, first = np.unique(scene.subject[order], return_index=True)
    return order[np.sort(first)[:count]].astype(np.int64)


_Noised = tuple[Trial, Condition, float]


def _noised(bench: Bench, protection: Protection, noise: float, count: int, name: str) -> _Noised:
    trial = bench.run(Variant(name, clipping=protection.clipping, noise_multiplier=noise), count)
    own = noise == protection.noise_multiplier
    return trial, condition_of(protection, None if own else noise, name=name), noise


def _outcome(bench: Bench, noised: _Noised, seeds: Seeds, prior: float) -> Outcome:
    trial, condition, noise = noised
    shown = bench.scene.shown
    assert shown is not None
    bound = rank1_bound(noise, prior, shown.relation)
    return Outcome(condition, figures_of(trial, seeds), trial.rows, bound)


def _told(bench: Bench, variant: Variant, count: int, tell: Tell) -> Trial:
    tell(f"gradient inversion: {variant.name}")
    return bench.run(variant, count)


def _prefixed(trial: Trial, seeds: Seeds) -> dict[str, Figure]:
    prefix = trial.variant.name.replace(" ", "_").replace(",", "")
    return {f"{prefix}:{name}": figure for name, figure in figures_of(trial, seeds).items()}


def _summed(scene: Scene) -> int:
    return min(scene.sites, _MOST_SUMMED)


def _pool_size(scene: Scene, effort: Effort) -> int:
    sums = 2 if effort == "default" else 1
    return max(_MOST_IMAGES[effort], sums * _summed(scene), max(_BATCHES) if effort == "default" else 0)


def _variants(scene: Scene, effort: Effort) -> list[tuple[Variant, int]]:
    """What is attacked besides one image's gradient, and how many images of each."""
    found: list[tuple[Variant, int]] = []
    many = effort == "default"
    sites = _summed(scene)
    if sites > 1:
        found.append(
            (
                Variant(f"sum of {sites} sites", group=sites),
                sites * (2 if many and scene.task == "classification" else 1),
            )
        )
    if scene.task == "segmentation":
        found.append((Variant("image and mask", joint=True), _VARIANT_IMAGES if many else _LEAST_IMAGES))
    if many:
        steps, own = local_steps(scene, _LOCAL_STEPS)
        name = f"{_LOCAL_STEPS} local steps" + ("" if own else " of plain SGD")
        found.append((Variant(name, steps=steps), _VARIANT_IMAGES))
        found.append((Variant("finished model", trained=True), _VARIANT_IMAGES))
        found += [(Variant(f"batch of {size}", group=size), size) for size in _BATCHES]
    return found


def _plan_work(scene: Scene, effort: Effort, distance: Distance) -> _Work:
    """What fits the effort: fewer images first, then fewer settings, then fewer variants, then fewer steps.

    It counts operations, not seconds: the same run on another machine does the same.
    """
    affordable = _FLOPS[effort] / (step_flops(scene) + _OVERHEAD_FLOPS)
    all_variants = tuple(_variants(scene, effort))
    noisy = scene.shown is not None
    curve = len(_EPSILONS[effort]) * _curve_images(scene, effort) if noisy else 0

    def steps_of(images: int, tries: int, variants: tuple[tuple[Variant, int], ...]) -> int:
        extra = sum(count * (variant.steps.count if variant.steps else 1) for variant, count in variants)
        return int(affordable / (tries * (extra + curve + images * (2 if noisy else 1))))

    most, smoothness = _MOST_STEPS[distance], _SMOOTHNESS[effort]
    for kept in range(len(all_variants), -1, -1):
        variants = all_variants[:kept]
        for settings in (smoothness, smoothness[-1:]):
            for images in range(_MOST_IMAGES[effort], _LEAST_IMAGES - 1, -1):
                steps = steps_of(images, len(settings), variants)
                if steps >= _WANTED_STEPS[distance]:
                    return _Work(images, min(steps, most), settings, variants)
    return _Work(_LEAST_IMAGES, max(_LEAST_STEPS, steps_of(_LEAST_IMAGES, 1, ())), smoothness[-1:], ())


def _curve_images(scene: Scene, effort: Effort) -> int:
    return 1 if scene.task == "segmentation" else _CURVE_IMAGES[effort]


def _left_out(scene: Scene, effort: Effort, work: _Work) -> tuple[str, ...]:
    names = [variant.name for variant, _ in _variants(scene, effort)[len(work.variants) :]]
    return (f"Not tried, for want of time: {', '.join(names)}.",) if names else ()
