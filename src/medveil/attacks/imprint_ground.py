"""What all releases of the imprint attack share: images, a prior, and how what came back is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medveil.attacks.attack import Figure
from medveil.attacks.measures import psnr_db, rank, rate, spread
from medveil.attacks.reconstruction_engine import GaussianPrior
from medveil.attacks.reconstruction_images import one_a_subject, pixel_span
from medveil.attacks.scene import Scene
from medveil.rng import Seeds

EXACT_DB: Final = 50.0
_POOL: Final = 2048
_FEWEST: Final = 16
_VALUES: Final = 20_000_000
"""Numbers in one matrix of images, at most."""


@dataclass(frozen=True)
class Extent:
    """How much is tried.

    Args:
        batches: images of one site's batch, ascending.
        measures: of the layer; the best in hindsight counts.
        bins: of the layer, without protection.
        noisy_bins: under protection; what did best on patients whom the attacker knows counts.
        groups: of eight patients, under protection.
        epsilons: of the curve.
    """

    batches: tuple[int, ...]
    measures: tuple[str, ...]
    bins: int
    noisy_bins: tuple[int, ...]
    groups: int
    epsilons: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Ground:
    """What all releases share.

    Args:
        pool: images of different patients; releases take the first ones. Shape (P, channels, *spatial).
        targets: of the pool.
        prior: of network inputs.
        span: of pixels.
    """

    scene: Scene
    pool: Tensor
    targets: Tensor
    prior: GaussianPrior
    span: tuple[float, float]
    effort: Extent
    seeds: Seeds

    def pixels(self, inputs: Tensor) -> Tensor:
        """Images from network inputs, within the span."""
        return (inputs * self.scene.scale.scale + self.scene.scale.shift).clamp(*self.span).float()

    def psnr(self, found: Tensor, true: Tensor) -> NDArray[np.float64]:
        """In decibel, a number an image."""
        return psnr_db(found, true, span=self.span[1] - self.span[0])

    def ranks(self, found: Tensor, true: Tensor) -> NDArray[np.int64]:
        """Among the pool, which holds the true image too: that one counts as a tie with itself."""
        return rank(found, true, self.pool) - 1

    def exact(self, found: Tensor) -> Figure:
        """Share of the first images of the pool that came back at more than 50 dB; ``found`` in the pool's order."""
        decibels = self.psnr(found, self.pool[: len(found)])
        return rate(int((decibels > EXACT_DB).sum()), len(decibels))

    def figures(self, found: Tensor) -> dict[str, Figure]:
        """Of the first images of the pool; ``found`` in the pool's order."""
        true = self.pool[: len(found)]
        decibels = self.psnr(found, true)
        return {
            "rank1_rate": rate(int((self.ranks(found, true) == 1).sum()), len(true)),
            "median_psnr_db": spread(decibels, self.seeds.child("bootstrap")),
            "p99_psnr_db": Figure(float(np.quantile(decibels, 0.99))),
            "best_psnr_db": Figure(float(decibels.max())),
            "distractors": Figure(float(len(self.pool) - 1)),
        }

    def rows(self, found: Tensor, where: str) -> list[Mapping[str, Any]]:
        """Of the first images of the pool, one row each, for JSON."""
        true = self.pool[: len(found)]
        columns = zip(self.psnr(found, true), self.ranks(found, true), strict=True)
        return [
            {"release": where, "psnr_db": float(a), "rank": int(b), "exact": bool(a > EXACT_DB)} for a, b in columns
        ]


def prepare(scene: Scene, effort: Extent, seeds: Seeds) -> Ground:
    """Draw the pool, one image a patient, and fit the prior; as many images as memory is meant to hold."""
    most = max(_FEWEST, min(_POOL, _VALUES // scene.images[0].numel()))
    chosen = seeds.child("pool").numpy().permutation(one_a_subject(scene.subject))[:most]
    return Ground(
        scene=scene,
        pool=scene.images[chosen].float(),
        targets=scene.targets[chosen],
        prior=GaussianPrior.fit(scene.scaled(scene.public[:most].float())),
        span=pixel_span(scene.public),
        effort=effort,
        seeds=seeds,
    )
