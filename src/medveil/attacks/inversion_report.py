"""Gradient inversion in figures, sentences and pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.attack import Figure
from medveil.attacks.inversion_trial import Bench, Trial, value_range
from medveil.attacks.measures import rate, spread
from medveil.attacks.scene import Scene
from medveil.data.subject import Task
from medveil.rng import Seeds

_LEAKS_DB = 28.0
_GAIN_DB = 3.0
_CAUTION = "A failed attempt does not show that a stronger attack would fail."


def figures_of(trial: Trial, seeds: Seeds) -> dict[str, Figure]:
    """Rank-1 rate, rank, PSNR and SSIM of a trial: median, best and 99th percentile."""
    resampling = seeds.child("bootstrap", trial.variant.name)
    found = {
        "rank1_rate": rate(int((trial.rank == 1).sum()), len(trial.rank)),
        "median_rank": spread(trial.rank.astype(np.float64), resampling.child("rank")),
        "median_psnr_db": spread(trial.psnr, resampling.child("psnr")),
        "best_psnr_db": Figure(float(trial.psnr.max())),
        "p99_psnr_db": Figure(float(np.quantile(trial.psnr, 0.99))),
    }
    if np.isfinite(trial.ssim).all():
        found["median_ssim"] = spread(trial.ssim, resampling.child("ssim"))
    overlap = np.array([row["mask_dice"] for row in trial.rows if "mask_dice" in row])
    if overlap.size:
        found["median_mask_dice"] = spread(overlap, resampling.child("dice"))
    return found


def worked(trial: Trial, control: Trial, task: Task) -> bool:
    """Whether an unprotected attack succeeded.

    Classification: most images at rank 1, or a median above 28 dB. Segmentation: 3 dB above the mean image in the
    median, and most images at rank 1 or nearer than the control's.
    """
    first = float((trial.rank == 1).mean()) > 0.5  # noqa: PLR2004 - most
    if task == "classification":
        return first or float(np.median(trial.psnr)) > _LEAKS_DB
    gain = float(np.median(trial.psnr) - np.median(control.psnr))
    return gain >= _GAIN_DB and (first or float(np.median(trial.rank)) < float(np.median(control.rank)))


def resisted_of(scene: Scene, plain: Trial, variants: Sequence[Trial], control: Trial) -> tuple[str, ...]:
    """A sentence for everything that was tried and did not work."""
    return tuple(
        f"{_capital(trial)}: the true image came first for {int((trial.rank == 1).sum())} of {len(trial.rank)}; median "
        f"{np.median(trial.psnr):.1f} dB against {np.median(control.psnr):.1f} dB of the mean public image. {_CAUTION}"
        for trial in (plain, *variants)
        if not worked(trial, control, scene.task)
    )


def findings_of(
    plain: Trial, variants: Sequence[Trial], control: Trial, protected: Trial | None, *, succeeded: bool
) -> tuple[str, ...]:
    """Sentences for a reader who knows no statistics."""
    others = plain.rows[0]["of"] - 1
    found = [
        (
            f"Without protection the server that saw one update found {_hits(plain)} among {others:,} other images "
            f"(who sees nothing: {_hits(control)})."
        )
    ]
    found += [f"{_capital(trial)}: {_hits(trial)}." for trial in variants]
    if not succeeded:
        found.append("The attack did not work without protection: nothing follows for protected updates.")
    elif protected is not None:
        found.append(f"With {protected.variant.name}: {_hits(protected)}.")
    return tuple(found)


def pictures_of(
    scene: Scene, bench: Bench, plain: Trial, variants: Sequence[Trial], protected: Trial | None
) -> dict[str, NDArray[np.float32]]:
    """The first channel of what came back, in 0..1."""
    least, largest = value_range(scene)

    def shown(images: object) -> NDArray[np.float32]:
        values = (np.asarray(images, dtype=np.float32)[:, 0] - least) / (largest - least)
        within: NDArray[np.float32] = np.clip(values, 0, 1).astype(np.float32)
        return within

    true = scene.images[bench.victims[: len(plain.psnr)]]
    found = {
        "original": shown(true),
        "control": shown(bench.mean.expand(true.shape)),
        "unprotected": shown(plain.found),
    }
    if protected is not None:
        found["protected"] = shown(protected.found)
    summed = [trial for trial in variants if trial.variant.name.startswith("sum of")]
    if summed:
        found["sum"] = shown(summed[0].found[: len(plain.psnr)])
    return found


def _hits(trial: Trial) -> str:
    return f"the true image of {int((trial.rank == 1).sum())} of {len(trial.rank)} patients"


def _capital(trial: Trial) -> str:
    return trial.variant.name[0].upper() + trial.variant.name[1:]
