"""The worst case: an attacker who knows everything but one patient's image, and sees one release of a linear model."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medveil.accounting.events import Gaussian
from medveil.accounting.meaning import reconstruction_bound
from medveil.attacks import release
from medveil.attacks.attack import Condition, Effort, Figure, Outcome, Report, Tell, ThreatModel
from medveil.attacks.measures import nearest, psnr_db, rank, rate, spread, ssim
from medveil.attacks.noise_levels import breaks, level_condition, shown_condition
from medveil.attacks.reconstruction_engine import GaussianPrior
from medveil.attacks.reconstruction_findings import findings
from medveil.attacks.reconstruction_images import one_a_subject, picture, pixel_span
from medveil.attacks.scene import Protection, Scene, check_enough
from medveil.dp.clipping import clip_and_sum
from medveil.errors import AttackError
from medveil.rng import Seeds

CANDIDATES: Final = (2, 16, 256)
_EPSILONS: Final[dict[Effort, tuple[float, ...]]] = {
    "quick": (1.0, 8.0, 1e2, 1e3, 1e4, 1e5, 1e6),
    "default": (1.0, 3.0, 8.0, 30.0, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6),
}
_TRIALS: Final[dict[Effort, int]] = {"quick": 300, "default": 1000}
_POOL: Final = 2048
_PUBLIC: Final = 2000
_VALUES: Final = 20_000_000
"""Numbers in one matrix of images, at most: about 160 MB in float64."""
_FEWEST: Final = 16
_STRETCH: Final = 100.0
_PICTURES: Final = 8
_TRUSTS: Final = (1.0, 0.03)

_THREAT = ThreatModel(
    adversary="whoever sees one update: a server without secure aggregation, or all other sites and the server",
    sees="one noisy sum of clipped gradients of a linear model, in which every other patient's part is known",
    knows="clip norm, noise, model, all other patients' images, and what public images look like",
    does="makes the loss so steep that every gradient is clipped, so that nothing of the signal is lost",
)


@dataclass(frozen=True, eq=False)
class _Setting:
    """What all noise levels share.

    Args:
        pool: images of different patients in pixels, shape (P, channels, *spatial).
        rows: what each gives to the sum before clipping, shape (P, d + 1), float32.
        prior: of network inputs.
        known: what the shown protection leaves of each row, without noise, shape (P, d + 1), float64.
        typical: expected length of a row before clipping.
        targets: pool index of every trial's patient, shape (trials,).
    """

    scene: Scene
    pool: Tensor
    rows: Tensor
    known: Tensor
    prior: GaussianPrior
    typical: float
    span: tuple[float, float]
    targets: NDArray[np.int64]
    seeds: Seeds


class Reconstruction:
    """The optimal linear attack with a Gaussian prior, and identification of the image among candidates.

    The release is the gradient of a linear model with a bias, ``[image, 1]`` times a number, clipped and noised by the
    code of the training: what any model gives away is a function of the image, and this one keeps all of it. The
    attack on the pixels is the posterior mean; the one on the identity is the maximum of the likelihood, which nothing
    beats among equally likely candidates.

    References:
        Balle, Cherubin & Hayes 2022, https://arxiv.org/abs/2201.04845 (the informed adversary); Hayes, Mahloujifar &
        Balle 2023, https://arxiv.org/abs/2302.07225 (the bound).
    """

    name = "reconstruction"

    def check(self, scene: Scene) -> None:
        """See :class:`medveil.attacks.attack.Attack`.

        Raises:
            AttackError: no protection to show, not even a hypothetical one; fewer than 16 patients or public images.
        """
        if scene.shown is None or not scene.shown.noise_multiplier > 0:
            raise AttackError(
                "The reconstruction attack measures what noise does, and there is none to measure",
                got="no protection" if scene.shown is None else f"noise multiplier {scene.shown.noise_multiplier:g}",
                expected="a protection, the run's own or a hypothetical one",
                remedy="name a hypothetical protection for the comparison",
            )
        check_enough(scene, _FEWEST, "for a rate of identification")

    def run(self, scene: Scene, *, effort: Effort, seeds: Seeds, tell: Tell) -> Report:
        """See :class:`medveil.attacks.attack.Attack`. Every trial draws its patient, noise and candidates anew."""
        self.check(scene)
        begun = time.perf_counter()
        shown = scene.shown
        assert shown is not None
        tell("fitting what public images look like")
        setting = _prepare(scene, shown, effort, seeds)
        unprotected, clear = _attack(setting, None, 0.0, Condition("unprotected"))
        tell("the run's noise" if scene.protection else "a hypothetical noise")
        protected, noisy = _attack(setting, shown, shown.noise_multiplier, shown_condition(scene, shown))
        curve = []
        for epsilon in _EPSILONS[effort]:
            tell(f"a release of epsilon {epsilon:g}")
            level = level_condition(shown, epsilon)
            curve.append(_attack(setting, shown, level.noise_multiplier or 0.0, level)[0])
        control, blind = _control(setting)
        held = all(outcome.figures["bound_kept"].value == 1 for outcome in (protected, *curve))
        first = torch.from_numpy(setting.targets[:_PICTURES])
        return Report(
            name=self.name,
            title="Reconstruction by an attacker who knows everything else",
            threat_model=_THREAT,
            success=f"identified_of_{_sizes(setting)[-1]}",
            unprotected=unprotected,
            protected=protected,
            curve=tuple(curve),
            control=control,
            succeeded_unprotected=unprotected.figures["rank1_rate"].value > 1 / 2,
            resisted=(),
            findings=findings(_sizes(setting)[-1], unprotected, protected, curve, control, held=held),
            seconds=time.perf_counter() - begun,
            pictures={
                "original": picture(setting.pool[first], setting.span),
                "control": picture(blind.expand(len(first), *blind.shape[1:]), setting.span),
                "unprotected": picture(clear[: len(first)], setting.span),
                "protected": picture(noisy[: len(first)], setting.span),
            },
        )


def _prepare(scene: Scene, shown: Protection, effort: Effort, seeds: Seeds) -> _Setting:
    dimension = scene.images[0].numel()
    first = one_a_subject(scene.subject)
    most = max(_FEWEST, min(_POOL, _VALUES // dimension))
    chosen = seeds.child("pool").numpy().permutation(first)[:most]
    known = seeds.child("public").numpy().permutation(len(scene.public))[: max(_FEWEST, min(_PUBLIC, most))]
    pool, public = scene.images[chosen].float(), scene.public[known].float()
    prior = GaussianPrior.fit(scene.scaled(public))
    rows = _rows(scene, prior, pool)
    typical = float(_rows(scene, prior, public).double().norm(dim=1).log().mean().exp())
    trials = max(_FEWEST, min(_TRIALS[effort], most))
    targets = seeds.child("targets").numpy().integers(0, len(pool), trials)
    left = torch.stack([_clipped(shown, row) for row in _stretched(shown, rows)])
    return _Setting(scene, pool, rows, left, prior, typical, pixel_span(scene.public), targets, seeds)


def _rows(scene: Scene, prior: GaussianPrior, images: Tensor) -> Tensor:
    centred = scene.scaled(images).flatten(1).double() - prior.mean
    return torch.cat([centred, torch.ones(len(images), 1, dtype=torch.float64)], 1).float()


def _attack(
    setting: _Setting, protection: Protection | None, noise_multiplier: float, condition: Condition
) -> tuple[Outcome, Tensor]:
    """Attack every trial's release; also the images that were found."""
    targets = torch.from_numpy(setting.targets)
    if protection is None:
        seen, known, norm, std = setting.rows[targets].double(), setting.rows.double(), setting.typical, 0.0
    else:
        norm = protection.clipping.l2_clip_norm
        stretched, known = _stretched(protection, setting.rows), setting.known
        seeds = setting.seeds.child("noise", f"{noise_multiplier:.9g}")
        seen = torch.stack(
            [
                torch.from_numpy(
                    release.protected_sum(
                        [[stretched[target]]], protection.clipping, noise_multiplier, seeds.child(trial)
                    )
                )
                for trial, target in enumerate(setting.targets)
            ]
        )
        std = noise_multiplier * norm
    found = _rebuild(setting, seen, std, norm)
    figures = _figures(setting, found) | _identification(setting, seen, known, noise_multiplier)
    bound = figures[f"bound_of_{_sizes(setting)[-1]}"].value if protection else None
    return Outcome(condition, figures, _images(setting, found), bound), found


def _stretched(protection: Protection, rows: Tensor) -> Tensor:
    """Gradients far beyond the bound: every one is clipped, whichever way."""
    return rows * (_STRETCH * protection.clipping.l2_clip_norm)


def _clipped(protection: Protection, row: Tensor) -> Tensor:
    total = torch.zeros(len(row), dtype=torch.float64)
    clip_and_sum(protection.clipping, [row[None]], total)
    return total


def _rebuild(setting: _Setting, seen: Tensor, std: float, norm: float) -> Tensor:
    """Pixels from releases: the quotient where there is no noise, elsewhere the posterior mean that did best."""
    pixels, constant = seen[:, :-1], seen[:, -1]
    if not std:
        return _as_images(setting, setting.prior.mean + pixels / constant[:, None])
    typical = torch.full((len(seen),), norm / setting.typical, dtype=torch.float64)
    true = setting.pool[torch.from_numpy(setting.targets)]
    tried = [
        _as_images(setting, setting.prior.reconstruct(pixels, constant, noise_std=std, typical=typical, trust=trust))
        for trust in _TRUSTS
    ]
    return max(tried, key=lambda images: float(np.median(psnr_db(images, true))))


def _as_images(setting: _Setting, inputs: Tensor) -> Tensor:
    scale = setting.scene.scale
    images = (inputs * scale.scale + scale.shift).clamp(*setting.span)
    return images.reshape(-1, *setting.pool.shape[1:])


def _figures(setting: _Setting, found: Tensor) -> dict[str, Figure]:
    true = setting.pool[torch.from_numpy(setting.targets)]
    decibels = psnr_db(found, true, span=setting.span[1] - setting.span[0])
    hits = int((_ranks(setting, found) == 1).sum())
    return {
        "median_psnr_db": spread(decibels, setting.seeds.child("bootstrap")),
        "p99_psnr_db": Figure(float(np.quantile(decibels, 0.99))),
        "best_psnr_db": Figure(float(decibels.max())),
        "rank1_rate": rate(hits, len(decibels)),
        "distractors": Figure(float(len(setting.pool) - 1)),
    }


def _ranks(setting: _Setting, found: Tensor) -> NDArray[np.int64]:
    # The pool holds the true image too, which counts as a tie with itself.
    return rank(found, setting.pool[torch.from_numpy(setting.targets)], setting.pool) - 1


def _identification(setting: _Setting, seen: Tensor, known: Tensor, noise_multiplier: float) -> dict[str, Figure]:
    """Rates of naming the right one among k equally likely patients, each with the bound on any attack."""
    scores = (seen @ known.T - known.square().sum(1) / 2).numpy()
    figures, kept = {}, True
    for size in _sizes(setting):
        draws = setting.seeds.child("candidates", size, f"{noise_multiplier:.9g}").numpy()
        hits = 0
        for trial, target in enumerate(setting.targets):
            others = draws.choice(len(setting.pool) - 1, size - 1, replace=False)
            others += others >= target
            hits += int(scores[trial, target] > scores[trial, others].max())
        bound = reconstruction_bound(Gaussian(noise_multiplier=noise_multiplier), 1 / size) if noise_multiplier else 1.0
        figures[f"identified_of_{size}"] = rate(hits, len(setting.targets))
        figures[f"bound_of_{size}"] = Figure(bound)
        kept &= not breaks(hits, len(setting.targets), bound)
    return figures | {"bound_kept": Figure(float(kept))}


def _sizes(setting: _Setting) -> tuple[int, ...]:
    """Numbers of candidates that the pool allows."""
    return tuple(size for size in CANDIDATES if size <= len(setting.pool))


def _images(setting: _Setting, found: Tensor) -> tuple[Mapping[str, Any], ...]:
    true = setting.pool[torch.from_numpy(setting.targets)]
    decibels = psnr_db(found, true, span=setting.span[1] - setting.span[0])
    likeness = ssim(found, true, span=setting.span[1] - setting.span[0])
    columns = zip(decibels, likeness, _ranks(setting, found), strict=True)
    return tuple({"psnr_db": float(a), "ssim": float(b), "rank": int(c)} for a, b, c in columns)


def _control(setting: _Setting) -> tuple[Outcome, Tensor]:
    """The public mean for everyone; and, in hindsight, the nearest public image."""
    scale = setting.scene.scale
    blind = (setting.prior.mean * scale.scale + scale.shift).reshape(1, *setting.pool.shape[1:]).float()
    true = setting.pool[torch.from_numpy(setting.targets)]
    found = blind.expand_as(true)
    alike = psnr_db(nearest(true, setting.scene.public), true, span=setting.span[1] - setting.span[0])
    figures = _figures(setting, found) | {"median_psnr_of_nearest_public_db": Figure(float(np.median(alike)))}
    figures |= {f"identified_of_{size}": Figure(1 / size) for size in _sizes(setting)}
    return Outcome(Condition("control: the mean public image, and a guess"), figures, _images(setting, found)), blind
