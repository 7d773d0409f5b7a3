"""A malicious server puts a layer before the plan's network that copies images into its gradient."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from medveil.accounting.events import Gaussian
from medveil.accounting.meaning import reconstruction_bound
from medveil.attacks import release
from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.imprint_engine import (
    Imprinted,
    Setting,
    imprint,
    layer_gradient,
    local_update,
    quiet,
    read,
    read_noisy,
    secure_sum,
)
from medveil.attacks.imprint_ground import EXACT_DB, Extent, Ground, prepare
from medveil.attacks.measures import nearest
from medveil.attacks.noise_levels import BROKEN, breaks, level_condition, shown_condition
from medveil.attacks.reconstruction_images import picture
from medveil.attacks.scene import Protection, Scene, check_enough
from medveil.rng import Seeds

_LITTLE_HIDDEN: Final = "Summing over sites hides little from it."
_WHO: Final = (
    "medveil's sites build the network from the plan that they agreed to, so a server cannot put the layer in unless "
    "the plan does: whoever agrees to a plan should look at its network."
)
_SITE_IMAGES: Final = 32
_GROUP: Final = 8
_FEWEST: Final = 16
_LAYER_VALUES: Final = 4_000_000
"""Weights of the layer, at most."""
_AMPLIFIED: Final = 2.0**20
_LOCAL_BINS: Final = 256


_Noisy = tuple[Imprinted, list[list[list[Tensor]]]]
"""A layer, and by group and patient the gradients of its weight and bias."""

_EFFORTS: Final[dict[Effort, Extent]] = {
    "quick": Extent((8, 64), ("random",), 4096, (4, 16, 64), 3, (1.0, 1e2, 1e4, 1e6)),
    "default": Extent(
        (8, 64, 256), ("brightness", "random"), 4096, (4, 16, 64), 8, (1.0, 8.0, 1e2, 1e3, 1e4, 1e5, 1e6)
    ),
}
_THREAT = ThreatModel(
    adversary="malicious server",
    sees="the sum of the sites' gradients, as a secure sum opens it, or one site's own",
    knows="what public images look like; with protection also the clip norm and the noise",
    does="sends another network than the plan's: a linear layer stands before it whose units all measure the same",
)


class Imprint:
    """Robbing the Fed: a linear layer with bins, for classifiers and segmentation networks, through the secure sum too.

    Under protection the attacker reads with the same layer, but with fewer bins, and takes the posterior mean of each
    image under what it knows of noise, clipping and public images; bins are chosen on patients whom it knows.

    Reference:
        Fowl et al. 2022, https://arxiv.org/abs/2110.13057
    """

    name = "imprint"

    def check(self, scene: Scene) -> None:
        """See :class:`medveil.attacks.attack.Attack`.

        Raises:
            AttackError: fewer than 16 patients or public images.
        """
        check_enough(scene, _FEWEST, "to place the bins and to tell images apart")

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """See :class:`medveil.attacks.attack.Attack`."""
        self.check(scene)
        begun = time.perf_counter()
        ground = prepare(scene, _EFFORTS[effort], seeds)
        clear = _unprotected(ground, tell)
        protected, noisy, curve = None, None, []
        shown = scene.shown
        if shown is not None and shown.noise_multiplier > 0:
            gradients = _unit_gradients(ground, shown, tell)
            tell("reading through the run's noise")
            protected, noisy = _protected(ground, shown, gradients, shown_condition(scene, shown))
            for epsilon in ground.effort.epsilons:
                tell(f"reading a release of epsilon {epsilon:g}")
                curve.append(_protected(ground, shown, gradients, level_condition(shown, epsilon))[0])
        control, blind = _control(ground)
        # Two images of eight may share a bin by chance: most, not all.
        succeeded = clear.outcome.figures[f"exact_rate_batch_{_GROUP}"].value > 1 / 2
        shown_first = ground.pool[:_GROUP]
        pictures = {"original": shown_first, "control": blind, "unprotected": clear.found, "sum": clear.summed}
        if noisy is not None:
            pictures["protected"] = noisy
        return Report(
            name=self.name,
            title="Imprint by a malicious server",
            threat_model=_THREAT,
            success="rank1_rate",
            unprotected=clear.outcome,
            protected=protected,
            curve=tuple(curve),
            control=control,
            succeeded_unprotected=succeeded,
            resisted=clear.resisted,
            findings=_findings(ground, clear.outcome, protected, control, succeeded=succeeded),
            seconds=time.perf_counter() - begun,
            pictures={name: picture(images[:_GROUP], ground.span) for name, images in pictures.items()},
        )


@dataclass(frozen=True, eq=False)
class _Clear:
    """What came back without protection: images of the batch of 8, and the same ones out of the sum."""

    outcome: Outcome
    found: Tensor
    summed: Tensor
    resisted: tuple[str, ...]


def _unprotected(ground: Ground, tell: Tell) -> _Clear:
    """Batches of rising size from one site, then the secure sum of all sites."""
    figures: dict[str, Figure] = {}
    rows: list[Mapping[str, Any]] = []
    layers = _layers(ground)
    found: dict[int, Tensor] = {}
    for size in _sizes(ground):
        tell(f"reading a batch of {size}")
        best = _best(ground, layers, [size])
        found[size] = best
        figures[f"exact_rate_batch_{size}"] = ground.exact(best)
        rows += ground.rows(best, f"batch of {size}")
    sites = max(ground.scene.sites, 2)
    each = min(_SITE_IMAGES, len(ground.pool) // sites)
    tell(f"reading a sum of {sites} sites of {each} images")
    summed = _best(ground, layers, [each] * sites)
    figures[f"exact_rate_sum_of_{sites}_sites_of_{each}"] = ground.exact(summed)
    rows += ground.rows(summed, f"secure sum of {sites} sites of {each}")
    resisted = _local_steps(ground, figures, rows, tell)
    first = found[min(found)]
    figures |= ground.figures(first)
    return _Clear(Outcome(Condition("unprotected"), figures, tuple(rows)), first, summed, resisted)


def _local_steps(
    ground: Ground, figures: dict[str, Figure], rows: list[Mapping[str, Any]], tell: Tell
) -> tuple[str, ...]:
    """The update of several local steps by the plan's optimiser, where the plan has them."""
    steps = min(ground.scene.optimiser_steps, 5, len(ground.pool) // _GROUP)
    if steps < 2:  # noqa: PLR2004 - one step is the gradient itself
        return ()
    tell(f"reading an update of {steps} local steps")
    parts = [slice(start, start + _GROUP) for start in range(0, steps * _GROUP, _GROUP)]
    batches = [(ground.pool[part], ground.targets[part]) for part in parts]
    layer = quiet(ground.scene, imprint(ground.scene, Setting(_LOCAL_BINS, "random"), ground.seeds.child("local")))
    images, _ = read(layer, *local_update(ground.scene, layer, batches))
    found = _own(ground, layer, images, ground.pool[: steps * _GROUP])
    share = ground.exact(found)
    figures[f"exact_rate_{steps}_local_steps_of_{_GROUP}"] = share
    rows += ground.rows(found, f"update of {steps} local steps of {_GROUP}")
    if share.value > 1 / 2:
        return ()
    kind = ground.scene.training.optimiser.kind
    return (f"An update of {steps} local steps by {kind} gave only {100 * share.value:.0f} % of its images exactly.",)


def _layers(ground: Ground) -> list[Imprinted]:
    """The layers that the attacker tries, one a measurement."""
    bins = min(ground.effort.bins, max(_FEWEST, _LAYER_VALUES // ground.pool[0].numel()))
    return [
        imprint(ground.scene, Setting(bins, measure), ground.seeds.child("layer", measure))
        for measure in ground.effort.measures
    ]


def _best(ground: Ground, layers: Sequence[Imprinted], parts: Sequence[int]) -> Tensor:
    """What the best layer read from sites' mean gradients over so many images each; pool images in order."""
    tried = []
    sizes, true, truth = list(parts), ground.pool[: sum(parts)], ground.targets[: sum(parts)]
    for layer in layers:
        gradients = [
            layer_gradient(ground.scene, layer, images, targets)
            for images, targets in zip(torch.split(true, sizes), torch.split(truth, sizes), strict=True)
        ]
        weight, bias = secure_sum(gradients) if len(parts) > 1 else gradients[0]
        tried.append(_own(ground, layer, read(layer, weight, bias)[0], true))
    return max(tried, key=lambda found: int((ground.psnr(found, true) > EXACT_DB).sum()))


def _own(ground: Ground, layer: Imprinted, candidates: Tensor, true: Tensor) -> Tensor:
    """Of every image the candidate of the bin that it fell into, in pixels."""
    bins = layer.bins(ground.scene.scaled(true)).clamp(min=0)
    return ground.pixels(candidates[bins])


def _unit_gradients(ground: Ground, shown: Protection, tell: Tell) -> dict[int, _Noisy]:
    """By number of bins: the layer, and by groups of eight patients each one's gradient, far beyond the clip."""
    groups = max(1, min(ground.effort.groups, len(ground.pool) // _GROUP))
    made = {}
    for bins in ground.effort.noisy_bins:
        tell(f"patients' gradients in {bins} bins")
        layer = imprint(ground.scene, Setting(bins, "random"), ground.seeds.child("layer", bins))
        layer.amplify(_AMPLIFIED * 2.0 ** math.ceil(math.log2(shown.clipping.l2_clip_norm)))
        units = [
            list(layer_gradient(ground.scene, layer, ground.pool[each : each + 1], ground.targets[each : each + 1]))
            for each in range(groups * _GROUP)
        ]
        made[bins] = layer, [units[start : start + _GROUP] for start in range(0, len(units), _GROUP)]
    return made


def _protected(
    ground: Ground,
    shown: Protection,
    gradients: Mapping[int, _Noisy],
    condition: Condition,
) -> tuple[Outcome, Tensor]:
    """Sums of eight patients' clipped gradients with noise, read in the way that did best on a third of the groups.

    That third is of patients whom the attacker knows; figures are of the others.
    """
    noise, norm = condition.noise_multiplier or 0.0, shown.clipping.l2_clip_norm
    tried = []
    for bins, (layer, groups) in gradients.items():
        found = []
        for number, units in enumerate(groups):
            seeds = ground.seeds.child("noise", f"{noise:.9g}", bins, number)
            total = torch.from_numpy(release.protected_sum(units, shown.clipping, noise, seeds))
            weight, bias = torch.split(total, [layer.linear.weight.numel(), len(layer.linear.bias)])
            weight = weight.reshape(layer.linear.weight.shape)
            true = ground.pool[number * _GROUP : (number + 1) * _GROUP]
            guesses = [
                read_noisy(layer, weight, bias, ground.prior, noise_std=noise * norm, l2_clip_norm=norm),
                read(layer, weight, bias)[0],
            ]
            found.append([_own(ground, layer, each, true) for each in guesses])
        tried += [torch.cat([group[way] for group in found]) for way in range(2)]
    true = ground.pool[: len(tried[0])]
    known = slice(len(true) - max(1, len(true) // _GROUP // 3) * _GROUP, None)
    # Every bin is a guess: which one an image fell into is taken from the image itself.
    guesses_of = [bins for bins in gradients for _way in range(2)]
    broken = [
        breaks(_first(ground, images, true), len(images), _most(ground, noise, guesses))
        for images, guesses in zip(tried, guesses_of, strict=True)
    ]

    def quality(way: int) -> tuple[int, float]:
        images = tried[way][known]
        return _first(ground, images, true[known]), float(np.median(ground.psnr(images, true[known])))

    way = max(range(len(tried)), key=quality)
    best, bound = tried[way][: known.start], _most(ground, noise, guesses_of[way])
    figures = ground.figures(best) | {"exact_rate": ground.exact(best)}
    figures["bound_kept"] = Figure(float(not any(broken)))
    return Outcome(condition, figures, tuple(ground.rows(best, f"sum of {_GROUP} patients")), bound), best


def _most(ground: Ground, noise: float, guesses: int) -> float:
    """The largest chance that any attacker has to find a patient with so many guesses."""
    prior = min(1.0, guesses / len(ground.pool))
    return reconstruction_bound(Gaussian(noise_multiplier=noise), prior) if noise else 1.0


def _first(ground: Ground, images: Tensor, true: Tensor) -> int:
    """How many true images rank first."""
    return int((ground.ranks(images, true) == 1).sum())


def _control(ground: Ground) -> tuple[Outcome, Tensor]:
    """The public mean for every image; and, in hindsight, the nearest public image."""
    true = ground.pool[: max(_sizes(ground))]
    blind = ground.pixels(ground.scene.scaled(ground.scene.public.float()).mean(0, keepdim=True)).expand_as(true)
    figures = ground.figures(blind)
    alike = ground.psnr(nearest(true, ground.scene.public), true)
    figures["median_psnr_of_nearest_public_db"] = Figure(float(np.median(alike)))
    figures["exact_rate"] = ground.exact(blind)
    return Outcome(Condition("control: the mean public image"), figures, tuple(ground.rows(blind, "control"))), blind


def _sizes(ground: Ground) -> tuple[int, ...]:
    return tuple(size for size in ground.effort.batches if size <= len(ground.pool))


def _findings(
    ground: Ground, clear: Outcome, protected: Outcome | None, control: Outcome, *, succeeded: bool
) -> tuple[str, ...]:
    others = len(ground.pool) - 1
    exact = {name: figure.value for name, figure in clear.figures.items() if name.startswith("exact_rate_")}
    told = ", ".join(
        f"{100 * share:.0f} % of {name.removeprefix('exact_rate_').replace('_', ' ')}" for name, share in exact.items()
    )
    summed = max(share for name, share in exact.items() if "_sum_" in name)
    found = [
        f"With the layer and without protection, the server copied exactly: {told}.",
        *([_LITTLE_HIDDEN] if summed > 1 / 2 else []),
        _WHO,
    ]
    if not succeeded:
        found.append("The attack did not work without protection, so its failure with protection shows nothing.")
    elif protected is not None:
        rank1, decibels = protected.figures["rank1_rate"].value, protected.figures["median_psnr_db"].value
        blind = control.figures["median_psnr_db"].value
        found.append(
            f"Under {protected.condition.name}, it told {100 * rank1:.1f} % of images from {others} others, at a "
            f"median of {decibels:.1f} dB; the mean public image gives {blind:.1f} dB. Where all are equally likely, "
            f"no attack on one release tells more than {100 * (protected.bound or 1.0):.1f} %."
        )
    if protected is not None and not protected.figures["bound_kept"].value:
        found.append(BROKEN)
    return tuple(found)
