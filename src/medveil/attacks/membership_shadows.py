"""Shadow models: trained as the plan trains, each on a random part of a pool of patients."""

import copy
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medveil.accounting.events import PoissonGaussian
from medveil.attacks.membership_scores import Members, Scores
from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import AdaptiveClipping, sum_noise_multiplier
from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import StepPlan
from medveil.errors import UnsupportedModelError
from medveil.rng import SecureRandom, Seeds
from medveil.training.arrays import ArrayData
from medveil.training.device import one_thread
from medveil.training.loop import Trainer
from medveil.training.optimisers import build_optimiser
from medveil.training.private import Privately, PrivateTrainer
from medveil.training.settings import Performance, Training
from medveil.training.vectors import trainable

NOISELESS: Final = 2.0**-19
"""The least noise that the code of trainings draws, for the twin without noise: a two-millionth of the clip norm."""
_BATCH = 256
_CPU = torch.device("cpu")
_WORKERS = 2


@dataclass(frozen=True, eq=False)
class Pool:
    """Patients of whom each shadow model gets a random part.

    Args:
        images: shape (N, channels, *spatial), unscaled.
        targets: shape (N,) or (N, *spatial).
        owner: whose image it is, shape (N,), 0 to patients - 1.
        row: of each image in the scene, shape (N,).
    """

    images: Tensor
    targets: Tensor
    owner: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.owner[-1]) + 1

    def of(self, members: NDArray[np.bool_]) -> ArrayData:
        """The images of some patients, who are numbered anew."""
        rows = np.flatnonzero(members[self.owner])
        owners, owner = np.unique(self.owner[rows], return_inverse=True)
        picked = torch.from_numpy(rows)
        none = np.zeros(len(rows), dtype=np.int64)
        return ArrayData(
            images=self.images[picked],
            targets=self.targets[picked],
            subject=owner.astype(np.int64),
            volume=none,
            position=none,
            spacing_mm=(None,) * len(rows),
            num_subjects=len(owners),
        )


@dataclass(frozen=True)
class Twin:
    """A protected training of a shadow: the run's private step, on the pool.

    Args:
        protection: whose clip, sampling rate and noise multiplier it takes.
        steps: it takes.
        noise_multiplier: in place of the protection's, for a curve.
    """

    protection: Protection
    steps: int
    noise_multiplier: float

    @property
    def step_event(self) -> PoissonGaussian:
        """What one of its steps costs."""
        return PoissonGaussian(sampling_rate=self.protection.sampling_rate, noise_multiplier=self.noise_multiplier)


@dataclass(frozen=True, eq=False)
class Answers:
    """What models say about patients.

    Args:
        members: shape (models, patients): who was in a model's part.
        signal: shape (models, patients): logit of the truth, by patient the mean over images and their pixels.
        overlap: for segmentation, logit of the foreground's soft Dice; None for classification.
        confidence: probability of the truth.
        loss: the training's.
    """

    members: Members
    signal: Scores
    overlap: Scores | None
    confidence: Scores
    loss: Scores


def choose_pool(scene: Scene, patients: int, images_each: int, seeds: Seeds) -> Pool:
    """Patients at random, with at most ``images_each`` images of each: for masks those with most foreground."""
    everyone = np.unique(scene.subject)
    chosen = seeds.numpy().permutation(everyone)[:patients]
    size = np.zeros(len(scene.images))
    if scene.task == "segmentation":
        size = (scene.targets > 0).flatten(1).sum(1).double().numpy()
    rows, owner = [], []
    for number, subject in enumerate(chosen):
        own = np.flatnonzero(scene.subject == subject)
        best = own[np.argsort(-size[own], kind="stable")][:images_each]
        rows.append(best)
        owner.append(np.full(len(best), number, dtype=np.int64))
    row = np.concatenate(rows).astype(np.int64)
    picked = torch.from_numpy(row)
    return Pool(scene.images[picked], scene.targets[picked], np.concatenate(owner), row)


def draw_members(models: int, patients: int, seeds: Seeds, *, share: float = 1 / 2) -> Members:
    """Every patient in every model with chance ``share`` by a coin of its own, shape (models, patients).

    Independent coins, rather than parts of exactly equal size: so a patient's part in the other models says nothing
    about the target, and given the others a target with and one without the patient are neighbours by addition.
    """
    return seeds.numpy().random((models, patients)) < share


def ask_plain(
    scene: Scene, pool: Pool, members: Members, *, epochs: int, seeds: Seeds, done: Callable[[int], None]
) -> Answers:
    """Train a model on each row of ``members`` without protection, and ask it about everybody."""

    def train(model: nn.Module, number: int) -> None:
        trainer = Trainer(model, pool.of(members[number]), scene.training, **_options(scene, seeds.child(number)))
        _run(trainer, scene.training, epochs * trainer.steps_per_epoch)

    return _ask(scene, pool, members, train, done)


def ask_protected(
    scene: Scene,
    pool: Pool,
    members: Members,
    twin: Twin,
    *,
    units: float,
    seeds: Seeds,
    done: Callable[[int], None],
) -> Answers:
    """The same with the protection's clip and noise, by the private step that runs take.

    The noise is seeded, as an experiment's must be that repeats. The sum is divided by the sampling rate times
    ``units``, the patients to be expected in a model, and steps are as long as the run's. The pool is smaller than the
    run, so each step's noise weighs more in the weights, but not against one patient's part of the sum. Shorter steps
    would only train less.
    """
    settings = scene.training
    step = private_step(scene.model, twin, units, views=max(scene.training.view_pool, 1))

    def train(model: nn.Module, number: int) -> None:
        own = seeds.child(number)
        data = pool.of(members[number])
        start = copy.deepcopy(model.state_dict())
        for method in ("layerwise", "microbatch"):
            model.load_state_dict(start)
            trainer = PrivateTrainer(
                model,
                data,
                settings,
                private=Privately(step, "patient", SecureRandom.seeded(own.child("random"))),
                performance=Performance(dp_method=method),
                **_options(scene, own),
            )
            try:
                return _run(trainer, settings, twin.steps)
            except UnsupportedModelError:
                if method == "microbatch":
                    raise
        return None

    return _ask(scene, pool, members, train, done)


def private_step(model: nn.Module, twin: Twin, units: float, *, views: int) -> StepPlan:
    """The private step of a training on about ``units`` patients.

    Raises:
        GuaranteeError: the noise does not cover the clipping that adapts.
    """
    clipping = twin.protection.clipping
    multiplier = twin.noise_multiplier
    if isinstance(clipping, AdaptiveClipping):
        multiplier = sum_noise_multiplier(multiplier, clipping.count_noise_multiplier)
    dimension = sum(parameter.numel() for parameter in trainable(model))
    return StepPlan(
        sampling_rate=twin.protection.sampling_rate,
        max_images=None,
        views=views,
        clipping=clipping,
        noise=NoiseMechanism(l2_clip_norm=clipping.l2_clip_norm, noise_multiplier=multiplier, dimension=dimension),
        divisor=twin.protection.sampling_rate * units,
        event=twin.step_event,
    )


def _options(scene: Scene, seeds: Seeds) -> dict[str, Any]:
    return {"scale": scene.scale, "num_classes": scene.num_classes, "seeds": seeds, "device": _CPU}


def _run(trainer: Trainer, settings: Training, steps: int) -> None:
    optimiser = build_optimiser(trainer.parameters, settings.optimiser)
    trainer.run(optimiser, first_step=0, count=steps, total_steps=steps)


def _ask(
    scene: Scene, pool: Pool, members: Members, train: Callable[[nn.Module, int], None], done: Callable[[int], None]
) -> Answers:
    """Train a copy of the scene's model for each row of ``members``; two at a time, each on one thread."""

    def one(number: int) -> tuple[Scores, ...]:
        model = copy.deepcopy(scene.model).cpu()
        train(model, number)
        answer = answers_of(scene, pool, model)
        done(number + 1)
        return answer

    workers = min(_WORKERS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(workers, initializer=one_thread) as crew:
        signal, overlap, confidence, loss = (
            np.stack(part) for part in zip(*crew.map(one, range(len(members))), strict=True)
        )
    return Answers(members, signal, overlap if scene.task == "segmentation" else None, confidence, loss)


@torch.no_grad()
def answers_of(scene: Scene, pool: Pool, model: nn.Module) -> tuple[Scores, Scores, Scores, Scores]:
    """One model's signal, overlap, confidence and loss, each of shape (patients,)."""
    model.eval()
    parts = []
    for start in range(0, len(pool.images), _BATCH):
        targets = pool.targets[start : start + _BATCH].long()
        logits = model(scene.scaled(pool.images[start : start + _BATCH])).double()
        margin = _margin(logits, targets)
        signal, confidence = (each.reshape(len(each), -1).mean(1) for each in (margin, margin.sigmoid()))
        overlap = _overlap(logits, targets) if targets.dim() > 1 else signal
        parts.append(torch.stack([signal, overlap, confidence, scene.loss(logits, targets)]))
    rows = torch.cat(parts, dim=1).numpy()
    count = np.bincount(pool.owner, minlength=pool.patients)
    means = [np.bincount(pool.owner, weights=row, minlength=pool.patients) / count for row in rows]
    return means[0], means[1], means[2], means[3]


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the probability of the truth, log p - log(1 - p), of every image or pixel."""
    truth = functional.one_hot(targets, logits.shape[1]).movedim(-1, 1).bool()
    own = torch.where(truth, logits, 0.0).sum(1)
    margin: Tensor = own - logits.masked_fill(truth, -math.inf).logsumexp(1)
    return margin


def _overlap(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the soft Dice of foreground against background, of every image."""
    found = 1 - logits.softmax(1)[:, 0].flatten(1)
    wanted = (targets > 0).double().flatten(1)
    dice = (2 * (found * wanted).sum(1) + 1e-3) / (found.sum(1) + wanted.sum(1) + 1e-3)
    return torch.logit(dice.clamp(1e-6, 1 - 1e-6))


def with_noise(twin: Twin, noise_multiplier: float) -> Twin:
    """The same training under other noise."""
    return replace(twin, noise_multiplier=noise_multiplier)


def with_steps(twin: Twin, steps: int) -> Twin:
    """The same training of other length."""
    return replace(twin, steps=steps)
