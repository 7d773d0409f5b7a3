"""What one update says about a batch as a whole: gradients of images, batches of two kinds, the matched filter."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medveil.attacks import release
from medveil.attacks.attack import Figure
from medveil.attacks.membership_scores import area
from medveil.attacks.scene import Scene
from medveil.dp.clipping import Clipping, clip_and_sum
from medveil.dp.gradients import per_unit_gradients
from medveil.rng import Seeds
from medveil.training.vectors import trainable

BATCH = 32
FEW, MANY = 8, 24
"""Images with the property in a batch of either kind."""
_RIDGE = 1e-2
_COLUMNS = 2**16
_TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Side:
    """One party's images as gradients.

    Args:
        gradients: shape (images, parameters).
        has: which images have each property, by its name; shape (images,).
    """

    gradients: Tensor
    has: dict[str, NDArray[np.bool_]]


def properties(scene: Scene, images: Tensor, targets: Tensor) -> dict[str, NDArray[np.bool_]]:
    """Class mix (the second class or above; for masks, more foreground than public images' median), and brightness.

    Args:
        scene: whose public images set the medians.
        images: shape (N, ...).
        targets: likewise.
    """
    bright = images.flatten(1).mean(1) > scene.public.flatten(1).mean(1).median()
    if scene.task == "segmentation":
        public = (scene.public_targets > 0).flatten(1).sum(1)
        mixed = (targets > 0).flatten(1).sum(1) > public.median()
    else:
        mixed = targets > 0
    return {"class_mix": mixed.numpy(), "brightness": bright.numpy()}


def one_image_each(subject: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of one image of every patient, at random but always the same; shape (patients,).

    Args:
        subject: whose image it is, shape (N,).
    """
    order = Seeds(0).child("one image a patient").numpy().permutation(len(subject))
    _, first = np.unique(subject[order], return_index=True)
    rows: NDArray[np.int64] = order[first].astype(np.int64)
    return rows


def side(scene: Scene, images: Tensor, targets: Tensor) -> Side:
    """Gradients of images one by one, by the code that private trainings use."""
    model = copy.deepcopy(scene.model).cpu().eval()
    batch = (scene.scaled(images), targets.long())
    rows = per_unit_gradients(
        model,
        lambda logits, truth: scene.loss(logits, truth).mean(),
        batch,
        torch.arange(len(images)),
        method="microbatch",
    )
    return Side(rows, properties(scene, images, targets))


def batches(has: NDArray[np.bool_], shares: Sequence[int], seeds: Seeds) -> NDArray[np.int64]:
    """One batch for each number of images with the property; shape (batches, BATCH), no image twice in one."""
    random = seeds.numpy()
    rows = [
        np.concatenate(
            [
                random.choice(np.flatnonzero(has), share, replace=False),
                random.choice(np.flatnonzero(~has), BATCH - share, replace=False),
            ]
        )
        for share in shares
    ]
    return np.stack(rows).astype(np.int64)


def clipped(gradients: Tensor, clipping: Clipping, sizes: Sequence[int]) -> Tensor:
    """Rows as a step that clips adds them; shape of ``gradients``."""
    rows = torch.empty_like(gradients)
    for place, row in enumerate(gradients):
        total = torch.zeros(len(row), dtype=torch.float64)
        clip_and_sum(clipping, [part[None] for part in torch.split(row, list(sizes))], total)
        rows[place] = total
    return rows


def clipped_side(known: Side, clipping: Clipping, sizes: Sequence[int]) -> Side:
    """One party's images as a step that clips adds them."""
    return Side(clipped(known.gradients, clipping, sizes), known.has)


def matched_filter(gradients: Tensor, has: NDArray[np.bool_], noise: float) -> Tensor:
    """The direction along which updates of the two kinds of batches differ most, measured in their spread.

    Args:
        gradients: of public images, shape (images, parameters), as the step adds them.
        has: the property, shape (images,).
        noise: standard deviation of the noise on a batch's mean, a coordinate.

    Returns:
        Shape (parameters,): (S / BATCH + noise^2 I)^-1 (mean with - mean without), S being the covariance within
        both kinds. A hundredth of the mean variance stands in for S where public images do not show it.

    Reference:
        Fisher 1936, Annals of Eugenics 7 (the linear discriminant, which is the matched filter in coloured noise).
    """
    mask = torch.from_numpy(has)
    with_it, without = gradients[mask], gradients[~mask]
    difference = with_it.mean(0) - without.mean(0)
    spread = torch.cat([with_it - with_it.mean(0), without - without.mean(0)])
    spread /= (len(spread) * BATCH) ** 0.5
    inner = torch.zeros(len(spread), len(spread), dtype=torch.float64)
    shared = torch.zeros(len(spread), dtype=torch.float64)
    # Some columns at a time: all of them in float64 would take twice the gradients' memory.
    for part, aim in _columns(spread, difference):
        inner += part @ part.T
        shared += part @ aim
    ridge = float(inner.trace()) / min(spread.shape) * _RIDGE
    inner += (noise**2 + max(ridge, 1e-30)) * torch.eye(len(spread), dtype=torch.float64)
    along = torch.linalg.solve(inner, shared)
    weights = torch.cat([aim - part.T @ along for part, aim in _columns(spread, difference)])
    direction: Tensor = weights / weights.norm().clamp(min=1e-30)
    return direction


def _columns(rows: Tensor, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some columns of a matrix and the same places of a vector, in float64."""
    for part, own in zip(torch.split(rows, _COLUMNS, 1), torch.split(vector, _COLUMNS), strict=True):
        yield part.double(), own.double()


def parameter_sizes(scene: Scene) -> list[int]:
    """Values of every trainable parameter."""
    return [parameter.numel() for parameter in trainable(scene.model)]


def tell_apart(
    public: Side,
    private: Side,
    name: str,
    *,
    clipping: Clipping | None,
    noise_multiplier: float,
    pairs: int,
    seeds: Seeds,
    shares: tuple[int, int] = (FEW, MANY),
) -> tuple[Figure, NDArray[np.float64]]:
    """AUC of the matched filter over pairs of batches, one of either kind, each seen as one update.

    Args:
        public: what the filter is made from, as the step adds it: with clipping that of :func:`clipped_side`.
        private: whose batches are attacked; likewise.
        name: of the property.
        clipping: that was done to both; None for a plain mean, without noise.
        noise_multiplier: noise over clip norm.
        pairs: of batches.
        seeds: of batches and noise.
        shares: images with the property in either kind.

    Returns:
        The AUC, its interval over pairs of batches from the same pool, and the scores, shape (2, pairs).
    """
    std = 0.0 if clipping is None else noise_multiplier * clipping.l2_clip_norm / BATCH
    weights = matched_filter(public.gradients, public.has[name], std)
    scores = np.empty((2, pairs))
    for kind, share in enumerate(shares):
        drawn = batches(private.has[name], [share] * pairs, seeds.child("batches", kind))
        if clipping is None:
            scores[kind] = (private.gradients @ weights.float()).double().numpy()[drawn].mean(1)
            continue
        for number, total in enumerate(_totals(private.gradients, drawn)):
            seen = release.noisy_sum(total, clipping, noise_multiplier, seeds.child("noise", kind, number))
            scores[kind, number] = float(weights @ torch.from_numpy(seen)) / BATCH
    kinds = np.array([[False] * pairs, [True] * pairs])
    return area(scores, kinds, seeds.child("bootstrap")), scores


def _totals(rows: Tensor, drawn: NDArray[np.int64]) -> Iterator[Tensor]:
    """The sum of every batch's rows, shape (parameters,), float64; a few batches at a time, as one product."""
    for start in range(0, len(drawn), _TOGETHER):
        some = drawn[start : start + _TOGETHER]
        counts = np.zeros((len(some), len(rows)), dtype=np.float32)
        np.put_along_axis(counts, some, 1.0, axis=1)
        yield from (torch.from_numpy(counts) @ rows).double()
