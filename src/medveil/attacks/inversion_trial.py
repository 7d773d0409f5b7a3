"""One trial of gradient inversion: make the update that the attacker sees, search, compare with the truth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from medveil.attacks.inversion_engine import Recipe, Simulate, search
from medveil.attacks.inversion_labels import likely_labels
from medveil.attacks.inversion_mask import image_of_mask
from medveil.attacks.inversion_update import LocalSteps, simulator
from medveil.attacks.inversion_victims import chance
from medveil.attacks.measures import mean_image, psnr_db, rank, ssim
from medveil.attacks.release import as_tensors, protected_sum
from medveil.attacks.scene import Scene
from medveil.dp.clipping import Clipping
from medveil.rng import Seeds

_FOREGROUND_FLOOR = 1e-2
_SSIM_WINDOW = 7


@dataclass(frozen=True)
class Tries:
    """What is tried on every image: all combinations.

    Args:
        recipes: of the searches.
        smoothness: weights of the total variation.
        classes: the likeliest classes that are tried, for classification of single images.
    """

    recipes: tuple[Recipe, ...]
    smoothness: tuple[float, ...]
    classes: int = 1

    @property
    def count(self) -> int:
        """Of combinations."""
        return len(self.recipes) * len(self.smoothness) * self.classes


@dataclass(frozen=True)
class Variant:
    """What of the victims the attacker sees.

    Args:
        name: of the variant, for a reader.
        group: images in one update: a batch, or one of every site.
        steps: local steps; None is a single gradient.
        clipping: of a victim's gradient; None leaves it as it is. One image in an update then.
        noise_multiplier: noise over clip norm.
        joint: whether masks are unknown.
        trained: attack the finished model's gradient.
    """

    name: str
    group: int = 1
    steps: LocalSteps | None = None
    clipping: Clipping | None = None
    noise_multiplier: float = 0.0
    joint: bool = False
    trained: bool = False


@dataclass(frozen=True, eq=False)
class Trial:
    """What came back: of every image the best of all tries, judged in hindsight.

    Args:
        variant: of the attack.
        found: (images, channels, *spatial), unscaled.
        psnr: in decibel, (images,).
        ssim: (images,); not a number for images smaller than its window.
        rank: of the true image among itself and the distractors, (images,).
        rows: for the report, one an image.
    """

    variant: Variant
    found: Tensor
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    rank: NDArray[np.int64]
    rows: tuple[Mapping[str, Any], ...] = field(default=())


class Bench:
    """The victims of a run, and the tools with which they are attacked.

    Args:
        scene: of the attack.
        victims: rows of ``scene.images``, one a patient.
        plain: what is tried on every image without noise.
        noisy: what is tried on every image under noise.
        seeds: of noise.
    """

    def __init__(self, scene: Scene, victims: NDArray[np.int64], plain: Tries, noisy: Tries, seeds: Seeds) -> None:
        self.scene, self.victims, self.plain, self.noisy = scene, victims, plain, noisy
        self.distractors = scene.images[~np.isin(scene.subject, scene.subject[victims])].float()
        self.mean = mean_image(scene.public)
        least, largest = value_range(scene)
        self.span = largest - least
        ends = scene.scaled(torch.tensor([least, largest]))
        self._limits = (float(ends.min()), float(ends.max()))
        self._seeds = seeds

    def prior(self, tries: int) -> float:
        """Largest chance that one of ``tries`` images is the true one before anything was seen: each counts."""
        return min(1.0, tries * chance(self.scene, self.victims))

    def run(self, variant: Variant, count: int) -> Trial:
        """Attack the first ``count`` victims, ``variant.group`` of them at a time; what is left over is left out."""
        scene, group = self.scene, variant.group
        rows = torch.from_numpy(self.victims[: count // group * group])
        true = _grouped(scene.images[rows].float(), group)
        targets = _grouped(scene.targets[rows].long(), group)
        inputs = scene.scaled(true)
        simulate = simulator(scene, steps=variant.steps, trained=variant.trained)
        observed = self._observe(simulate, inputs, targets, variant)
        tries = self.plain if variant.clipping is None else self.noisy
        guesses = targets[:, None]
        if scene.task == "classification" and group == 1:
            noisy = variant.noise_multiplier > 0
            guesses = likely_labels(scene, observed, tries.classes, noisy=noisy, trained=variant.trained)[:, :, None]
        if variant.joint:
            simulate = simulator(scene, steps=variant.steps, soft_targets=True, trained=variant.trained)
        each_recipe = len(tries.smoothness) * guesses.shape[1]
        start = scene.scaled(self.mean)[:, None].expand(len(true) * each_recipe, *inputs.shape[1:]).clone()
        if group > 1:
            # From equal images all gradients are equal, and they would stay so.
            start = start + 0.1 * torch.randn(start.shape, generator=self._seeds.child("start").torch())
        aims = guesses.repeat_interleave(len(tries.smoothness), 1).flatten(0, 1)
        images, masks = [], []
        for recipe in tries.recipes:
            found, aimed, _ = search(
                simulate,
                [each.repeat_interleave(each_recipe, 0) for each in observed],
                start,
                self._masks(len(start), group) if variant.joint else aims,
                torch.tensor(tries.smoothness).repeat(len(start) // len(tries.smoothness)),
                recipe,
                limits=self._limits,
                soft_targets=variant.joint,
            )
            images.append(_grouped(found * scene.scale.scale + scene.scale.shift, each_recipe))
            masks.append(_grouped(aimed, each_recipe))
        overlap = variant.joint and group == 1
        dice = _dice(torch.cat(masks, 1), scene.targets[rows]) if overlap else None
        return self._judge(variant, torch.cat(images, 1), true, rows, dice)

    def judge_mask(self, count: int) -> Trial:
        """What an attacker reaches who is given the mask, and sees no update."""
        scene, rows = self.scene, torch.from_numpy(self.victims[:count])
        found = image_of_mask(scene.public, scene.public_targets, scene.targets[rows], scene.num_classes)
        true = scene.images[rows].float()[:, None]
        return self._judge(Variant("mask alone"), found[:, None, None], true, rows, None)

    def judge_control(self, count: int) -> Trial:
        """What an attacker reaches who sees nothing: the mean public image."""
        rows = torch.from_numpy(self.victims[:count])
        true = self.scene.images[rows].float()[:, None]
        found = self.mean.expand(len(true), 1, 1, *true.shape[2:])
        return self._judge(Variant("mean public image"), found, true, rows, None)

    def _observe(self, simulate: Simulate, inputs: Tensor, targets: Tensor, variant: Variant) -> list[Tensor]:
        updates = [each.detach() for each in simulate(inputs, targets)]
        if variant.clipping is None:
            return updates
        sums = []
        for number in range(len(inputs)):
            own = [each[number] for each in updates]
            seeds = self._seeds.child("noise", variant.name, number)
            sums.append(as_tensors(protected_sum([own], variant.clipping, variant.noise_multiplier, seeds), own))
        return [torch.stack(parts) for parts in zip(*sums, strict=True)]

    def _masks(self, count: int, group: int) -> Tensor:
        """Logits of how often each class stands at each place in public masks."""
        classes = functional.one_hot(self.scene.public_targets.long(), self.scene.num_classes).movedim(-1, 1)
        logits = classes.float().mean(0).clamp(min=_FOREGROUND_FLOOR).log()
        return logits.expand(count, group, *logits.shape).clone()

    def _judge(self, variant: Variant, found: Tensor, true: Tensor, rows: Tensor, dice: Tensor | None) -> Trial:
        """``found`` (groups, tries, n, ...) against ``true`` (groups, n, ...)."""
        found = _matched(found, true)
        flat = true.flatten(0, 1)
        tries = [found[:, number].flatten(0, 1) for number in range(found.shape[1])]
        scores = np.stack([psnr_db(each, flat, span=self.span) for each in tries])
        best = scores.argmax(0)
        kept = torch.stack([tries[choice][image] for image, choice in enumerate(best)])
        places = rank(kept, flat, self.distractors)
        small = min(flat.shape[2:]) < _SSIM_WINDOW
        alike = np.full(len(flat), np.nan) if small else ssim(kept, flat, span=self.span)
        psnr = scores[best, np.arange(len(best))]
        table = []
        for image, choice in enumerate(best):
            row: dict[str, Any] = {
                "variant": variant.name,
                "image": int(rows[image]),
                "psnr_db": float(psnr[image]),
                "ssim": float(alike[image]),
                "rank": int(places[image]),
                "of": len(self.distractors) + 1,
                "psnr_db_of_tries": [float(each) for each in scores[:, image]],
            }
            if dice is not None:
                row["mask_dice"] = float(dice[image, choice])
            table.append(row)
        return Trial(variant, kept, psnr, alike, places, tuple(table))


def value_range(scene: Scene) -> tuple[float, float]:
    """Least and largest value that images can have: 0 and 1, or for others those of public images."""
    least, largest = float(scene.public.min()), float(scene.public.max())
    return (0.0, 1.0) if least >= 0 and largest <= 1 else (least, largest)


def _grouped(values: Tensor, size: int) -> Tensor:
    """Shape (groups * size, ...) as (groups, size, ...)."""
    return values.reshape(-1, size, *values.shape[1:])


def _matched(found: Tensor, true: Tensor) -> Tensor:
    """Images of a group in the order of the truth that they resemble most: an update has no order."""
    if true.shape[1] == 1:
        return found
    ordered = found.clone()
    for group, wanted in enumerate(true):
        for number, guess in enumerate(found[group]):
            costs = torch.cdist(wanted.flatten(1), guess.flatten(1)).square().numpy()
            _, order = linear_sum_assignment(costs)
            ordered[group, number] = guess[torch.from_numpy(order)]
    return ordered


def _dice(masks: Tensor, true: Tensor) -> Tensor:
    """Overlap of the foreground that was found, (images, tries), from logits (images, tries, 1, classes, *spatial)."""
    found = masks[:, :, 0].argmax(2) > 0
    wanted = (true > 0)[:, None]
    both = (found & wanted).flatten(2).sum(2)
    overlap: Tensor = 2 * both / (found.flatten(2).sum(2) + wanted.flatten(2).sum(2)).clamp(min=1)
    return overlap
