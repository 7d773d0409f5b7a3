"""Gradient inversion in figures, sentences and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.attack import Figure, Outcome
from medveil.attacks.inversion_trial import Bench, Trial, value_range
from medveil.attacks.measures import rate, spread
from medveil.attacks.noise_levels import BROKEN, breaks
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


def prefixed(trial: Trial, seeds: Seeds) -> dict[str, Figure]:
    """The same, by ``variant:figure``."""
    prefix = trial.variant.name.replace(" ", "_").replace(",", "")
    return {f"{prefix}:{name}": figure for name, figure in figures_of(trial, seeds).items()}


def mask_figures(known: Sequence[Trial], controls: Mapping[str, Sequence[Trial]]) -> dict[str, Figure]:
    """How far a known mask's attack is above the mean image and above what the mask alone says, in decibel."""
    found = {}
    for trial in known:
        for control in controls[trial.variant.name]:
            of = control.variant.name.replace(" ", "_")
            found[f"known_mask:gain_over_{of}_db"] = Figure(_gain(trial, control))
    return found


def worked(trial: Trial, controls: Sequence[Trial], task: Task) -> bool:
    """Whether an unprotected attack succeeded.

    Classification: most images at rank 1, or a median above 28 dB. Segmentation: 3 dB above every control in the
    median, and most images at rank 1 or nearer than any control's.
    """
    first = float((trial.rank == 1).mean()) > 0.5  # noqa: PLR2004 - most
    if task == "classification":
        return first or float(np.median(trial.psnr)) > _LEAKS_DB
    gain = min(_gain(trial, control) for control in controls)
    nearest = min(float(np.median(control.rank)) for control in controls)
    return gain >= _GAIN_DB and (first or float(np.median(trial.rank)) < nearest)


def resisted_of(scene: Scene, trials: Sequence[Trial], controls: Mapping[str, Sequence[Trial]]) -> tuple[str, ...]:
    """A sentence for everything that was tried and did not work."""
    return tuple(
        f"{_capital(trial)}: the true image came first for {int((trial.rank == 1).sum())} of {len(trial.rank)}; median "
        f"{np.median(trial.psnr):.1f} dB against {_against(controls[trial.variant.name])}. {_CAUTION}"
        for trial in trials
        if not worked(trial, controls[trial.variant.name], scene.task)
    )


def findings_of(
    scene: Scene,
    plain: Trial,
    variants: Sequence[Trial],
    controls: Mapping[str, Sequence[Trial]],
    protected: Trial | None,
    noisy: Sequence[Outcome],
) -> tuple[str, ...]:
    """Sentences for a reader who knows no statistics; ``noisy`` are the outcomes under any noise, the run's first."""
    others, control = plain.rows[0]["of"] - 1, controls[plain.variant.name]
    found = [
        (
            f"Without protection the server that saw one update found {_hits(plain)} among {others:,} other images "
            f"(who sees nothing: {_hits(control[0])})."
        )
    ]
    for trial in variants:
        own = controls[trial.variant.name]
        beside = f"; median {np.median(trial.psnr):.1f} dB against {_against(own)}" if len(own) > 1 else ""
        found.append(f"{_capital(trial)}: {_hits(trial)}{beside}.")
    if not worked(plain, control, scene.task):
        found.append("The attack did not work without protection: nothing follows for protected updates.")
    elif protected is not None:
        found.append(f"With {protected.variant.name}: {_hits(protected)}.")
        if not worked(protected, control, scene.task):
            found.append(
                f"That this attack failed is no evidence that {protected.variant.name} was necessary: look at the "
                "noise at which it works again, and at stronger attackers."
            )
    return (*found, *_of_bounds(noisy))


def _of_bounds(noisy: Sequence[Outcome]) -> list[str]:
    """Whether theory was broken, and whether that could have been seen at the run's noise."""
    if any(not outcome.figures["bound_kept"].value for outcome in noisy):
        return [BROKEN]
    if noisy and noisy[0].bound is not None and not breaks(count := len(noisy[0].images), count, noisy[0].bound):
        return [f"{count} images are too few to see a broken bound at the run's noise, had all of them been found."]
    return []


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


def _gain(trial: Trial, control: Trial) -> float:
    return float(np.median(trial.psnr) - np.median(control.psnr))


def _against(controls: Sequence[Trial]) -> str:
    return " and ".join(f"{np.median(each.psnr):.1f} dB of the {each.variant.name}" for each in controls)


def _hits(trial: Trial) -> str:
    return f"the true image of {int((trial.rank == 1).sum())} of {len(trial.rank)} patients"


def _capital(trial: Trial) -> str:
    return trial.variant.name[0].upper() + trial.variant.name[1:]
