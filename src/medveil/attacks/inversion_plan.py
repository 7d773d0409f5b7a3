"""What a run of gradient inversion does: how many images, steps, settings and variants fit its effort."""

from dataclasses import dataclass, replace

from torch import nn

from medveil.attacks.attack import Effort
from medveil.attacks.inversion_engine import Distance, Recipe
from medveil.attacks.inversion_trial import Tries, Variant
from medveil.attacks.inversion_update import local_steps, step_flops
from medveil.attacks.scene import Scene

EPSILONS: dict[Effort, tuple[float, ...]] = {"quick": (1e2, 1e4, 1e6), "default": (1, 1e2, 1e3, 1e4, 1e5, 1e6)}
LEAST_DISTRACTORS = 20
KNOWN_MASK = "known mask"
NO_CURVE = "Other noise was not tried: the attack did not work without any, and the network is large for this effort."
_FLOPS: dict[Effort, float] = {"quick": 5e11, "default": 6e12}
"""Work that a run may take: about 20 seconds and 5 minutes on two cores of a small server."""
_OVERHEAD_FLOPS = 1e7  # what a step costs however small the network
_SMOOTHNESS: dict[Effort, tuple[float, ...]] = {"quick": (1e-3,), "default": (3e-4, 1e-3)}
_NOISY_SMOOTHNESS: dict[Effort, tuple[float, ...]] = {"quick": (1e-3, 1e-2), "default": (1e-3, 1e-2, 1e-1)}
_ONE_SMOOTHNESS = (1e-2,)  # under noise, where no more fits
_NOISY_CLASSES = 4
_NOISY_SHARE = 0.5  # of the steps: noise ends a search early
_CURVE_IMAGES: dict[Effort, int] = {"quick": 1, "default": 3}
_MOST_IMAGES: dict[Effort, int] = {"quick": 4, "default": 10}
_LEAST_IMAGES = 2
_MOST_SUMMED = 10
_LOCAL_STEPS = 5
_VARIANT_IMAGES = 4
_BATCHES = (4, 8)
_MOST_STEPS: dict[Distance, int] = {"global": 1000, "layer": 400}
_WANTED_STEPS: dict[Distance, int] = {"global": 230, "layer": 120}
_LEAST_STEPS: dict[Distance, int] = {"global": 80, "layer": 100}
_STEP_SIZE: dict[Distance, float] = {"global": 0.1, "layer": 0.05}


@dataclass(frozen=True)
class Work:
    """How much is done.

    Args:
        images: under each main condition.
        plain: what is tried on each without noise.
        noisy: what is tried on each under noise.
        variants: what else is attacked, and how many images of each.
        beyond: the network is so large that even the least takes longer than the effort says.
    """

    images: int
    plain: Tries
    noisy: Tries
    variants: tuple[tuple[Variant, int], ...]
    beyond: bool = False


def recipe_distance(scene: Scene) -> Distance:
    """Global for classifiers with ReLU; by layer for segmentation and smooth activations, where global fails."""
    kinked = any(isinstance(each, nn.ReLU) for each in scene.model.modules())
    smooth = any(isinstance(each, nn.SiLU | nn.ELU | nn.GELU) for each in scene.model.modules())
    return "layer" if scene.task == "segmentation" or (smooth and not kinked) else "global"


def tries(scene: Scene, effort: Effort, steps: int) -> tuple[Tries, Tries]:
    """What is tried on an image without noise and with it.

    Under noise also the whole update's direction, in which tensors that are all noise do not outvote the others, more
    smoothness, and the likeliest classes.
    """
    own = recipe_distance(scene)
    distances: tuple[Distance, ...] = ("layer", "global") if own == "layer" else ("global",)
    fewer = max(1, round(_NOISY_SHARE * steps))
    classes = min(scene.num_classes, _NOISY_CLASSES) if scene.task == "classification" else 1
    plain = Tries((Recipe(own, steps, _STEP_SIZE[own]),), _SMOOTHNESS[effort])
    recipes = tuple(Recipe(each, fewer, _STEP_SIZE[each]) for each in distances)
    return plain, Tries(recipes, _NOISY_SMOOTHNESS[effort], classes)


def plan_work(scene: Scene, effort: Effort) -> Work:
    """What fits the effort: fewer images first, then fewer settings, then fewer variants, then fewer steps and tries.

    It counts operations, not seconds: the same run on another machine does the same.
    """
    affordable = _FLOPS[effort] / (step_flops(scene) + _OVERHEAD_FLOPS)
    every = tuple(variants(scene, effort))
    distance = recipe_distance(scene)

    def planned(images: int, steps: int, settings: int, kept: int) -> Work:
        plain, noisy = tries(scene, effort, steps)
        return Work(images, Tries(plain.recipes, plain.smoothness[-settings:]), noisy, every[:kept])

    def steps_of(images: int, settings: int, kept: int) -> int:
        extra = sum(count * (variant.steps.count if variant.steps else 1) for variant, count in every[:kept])
        cost: float = settings * (images + extra)
        if scene.shown is not None:
            noisy = images + len(EPSILONS[effort]) * curve_images(scene, effort)
            cost += noisy * tries(scene, effort, 1)[1].count * _NOISY_SHARE
        return int(affordable / cost)

    for kept in range(len(every), -1, -1):
        for settings in range(len(_SMOOTHNESS[effort]), 0, -1):
            for images in range(_MOST_IMAGES[effort], _LEAST_IMAGES - 1, -1):
                steps = steps_of(images, settings, kept)
                if steps >= _WANTED_STEPS[distance]:
                    return planned(images, min(steps, _MOST_STEPS[distance]), settings, kept)
    # So that the unprotected twin has a chance, large networks take longer than the effort says.
    short = planned(_LEAST_IMAGES, max(_LEAST_STEPS[distance], steps_of(_LEAST_IMAGES, 1, 0)), 1, 0)
    recipes = tuple(replace(each, steps=max(1, each.steps // 2)) for each in short.noisy.recipes)
    return replace(short, noisy=Tries(recipes, _ONE_SMOOTHNESS, short.noisy.classes), beyond=True)


def variants(scene: Scene, effort: Effort) -> list[tuple[Variant, int]]:
    """What is attacked besides one image's gradient, and how many images of each; masks are unknown but in one."""
    found: list[tuple[Variant, int]] = []
    many, masks = effort == "default", scene.task == "segmentation"
    sites = _summed(scene)
    if masks:
        found.append((Variant(KNOWN_MASK), _VARIANT_IMAGES if many else _LEAST_IMAGES))
    if sites > 1:
        summed = Variant(f"sum of {sites} sites", group=sites, joint=masks)
        found.append((summed, sites * (2 if many and not masks else 1)))
    if many:
        steps, own = local_steps(scene, _LOCAL_STEPS)
        name = f"{_LOCAL_STEPS} local steps" + ("" if own else " of plain SGD")
        found.append((Variant(name, steps=steps, joint=masks), _VARIANT_IMAGES))
        found.append((Variant("finished model", trained=True, joint=masks), _VARIANT_IMAGES))
        found += [(Variant(f"batch of {size}", group=size, joint=masks), size) for size in _BATCHES]
    return found


def pool_size(scene: Scene, effort: Effort) -> int:
    """How many patients are attacked at most."""
    sums = 2 if effort == "default" else 1
    return max(_MOST_IMAGES[effort], sums * _summed(scene), max(_BATCHES) if effort == "default" else 0)


def curve_images(scene: Scene, effort: Effort) -> int:
    """Images at every noise of the curve."""
    return 1 if scene.task == "segmentation" else _CURVE_IMAGES[effort]


def left_out(scene: Scene, effort: Effort, work: Work) -> tuple[str, ...]:
    """A sentence that names the variants for which there was no time."""
    names = [variant.name for variant, _ in variants(scene, effort)[len(work.variants) :]]
    return (f"Not tried, for want of time: {', '.join(names)}.",) if names else ()


def _summed(scene: Scene) -> int:
    return min(scene.sites, _MOST_SUMMED)
