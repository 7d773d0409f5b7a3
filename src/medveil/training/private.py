"""The private training step: draw patients, clip each one's gradient, add noise, divide by a public number."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.dp.clipping import AdaptiveClipping, ClipCounts, adapted, clip_and_sum, encode_count
from medveil.dp.gradients import GradientEngine
from medveil.dp.methods import Method
from medveil.dp.plan import StepPlan
from medveil.dp.sampling import PoissonSampler, choose_examples
from medveil.dp.settings import Unit
from medveil.errors import GuaranteeError
from medveil.rng import SecureRandom, Seeds
from medveil.training.arrays import ArrayData
from medveil.training.loop import Trainer
from medveil.training.settings import Performance, Training
from medveil.training.vectors import from_vector

# Augmented views held at a time; only memory depends on it.
_BLOCK = 1024


@dataclass(frozen=True)
class Privately:
    """What makes a trainer private.

    Args:
        step: the bound step of this party.
        unit: "patient" or "image".
        random: this party's own source of noise and draws.
        repeatable: whether a step draws the same again when a run goes on after an interruption. For debugging: the
            source must be a seeded one.
    """

    step: StepPlan
    unit: Unit
    random: SecureRandom
    repeatable: bool = False


def _secret_seeds(random: SecureRandom) -> Seeds:
    return Seeds(int(random.words(1)[0]))


def _method(performance: Performance, *, secure: bool) -> Method | Literal["auto"]:
    """Methods agree up to rounding, and which is fastest varies: a seeded run that must repeat takes the plainest."""
    return performance.dp_method if secure or performance.dp_method != "auto" else "microbatch"


class PrivateTrainer(Trainer):
    """A trainer whose every step is the one that its :class:`StepPlan` describes.

    The gradient that a step sets is the noisy clipped sum over a divisor: what comes after it (optimiser, schedule,
    gradient-norm limit, pull towards an anchor) is post-processing. No loss is told: it has no noise.

    Args:
        model: passes :func:`medveil.dp.check`.
        data: of the party.
        settings: as for :class:`Trainer`; ``batch_size`` plays no part.
        private: what protects the party's patients.
        performance: how gradients are computed; changes speed only.
        **options: as for :class:`Trainer`.

    Guarantees:
        Steps are those of the Poisson-sampled Gaussian mechanism for which ``private.step.event`` stands, units being
        the subjects of ``data`` (or its images).
    """

    def __init__(
        self,
        model: nn.Module,
        data: ArrayData,
        settings: Training,
        *,
        private: Privately,
        performance: Performance,
        **options: Any,
    ) -> None:
        secret = private.random.child("views")
        super().__init__(model, data, settings, pool_seeds=_secret_seeds(secret), **options)
        self._secret = secret
        self._private = private
        self._clipping = private.step.clipping
        self._source = private.random
        self._owner = np.arange(len(data)) if private.unit == "image" else data.subject
        units = len(data) if private.unit == "image" else data.num_subjects
        self._units = units
        self._draw_from(private.random)
        self._engine = GradientEngine(
            self._views.network,
            self._losses,
            method=_method(performance, secure=private.random.secure),
            chunk_size=performance.dp_chunk or None,
            overwrite=True,  # each chunk is summed up before the next is asked for
        )

    @property
    def num_examples(self) -> None:  # type: ignore[override] # the clear trainer tells a number
        """None: how many there are is private."""
        return

    @property
    def shares_noise(self) -> bool:
        """Whether the noise of a step is whole only in the sum over several sites."""
        return self._private.step.noise.sites > 1

    def _draws(self, name: str, step: int) -> Seeds:
        """Fresh secret seeds, never the plan's.

        Views and dropout go by position in the batch: with seeds that anyone knows, a patient's gradient would hang on
        who else is there, and one patient could move the sum by more than the clip norm. With secret ones, views are
        independent of the others, and the guarantee given the views carries over to their mixture.
        """
        del name, step
        return _secret_seeds(self._secret)

    def _draw_from(self, random: SecureRandom) -> None:
        self._sampler = PoissonSampler(self._units, self._private.step.sampling_rate, random.child("sampling"))
        self._picks = random.child("images")
        self._noise = random.child("noise")

    def _begin(self, step: int) -> None:
        """Where a run must repeat, every step has streams of its own."""
        if self._private.repeatable:
            streams = self._source.replay(f"step {step}")
            self._secret = streams.child("views")
            self._draw_from(streams)

    def encoded_step(self, step: int) -> NDArray[np.int64]:
        """This party's part of a step that all sites take together: its clipped sum and its share of the noise.

        Returns:
            Shape (parameters,), grid units of the step's noise mechanism. Only the sum over the sites has the noise
            of the guarantee: it leaves the party masked or not at all.
        """
        self._check_halt()
        self._begin(step)
        self.model.train()
        with self._reproducible(step):
            total, _ = self._clipped_total(step)
        return self._private.step.noise.encode(total.numpy(), self._noise)

    def _backward(self, step: int) -> None:
        if self.shares_noise:
            raise GuaranteeError(
                "A party's own share of the noise does not protect its step",
                got=f"noise shared by {self._private.step.noise.sites} sites",
                expected="a secure sum over all of them",
                remedy="use encoded_step, and mask what it gives",
            )
        self._begin(step)
        total, counts = self._clipped_total(step)
        noise = replace(self._private.step.noise, l2_clip_norm=self._clipping.l2_clip_norm)
        self._set_gradients(noise.release(total.numpy(), self._noise) / self._private.step.divisor)
        if isinstance(self._clipping, AdaptiveClipping):
            encoded = encode_count(self._clipping, counts, self._noise)
            self._clipping = adapted(self._clipping, encoded, self._private.step.divisor)

    def _clipped_total(self, step: int) -> tuple[torch.Tensor, ClipCounts]:
        """Sum of the clipped gradients of the units that this step draws, shape (parameters,), float64."""
        total = torch.zeros(self._private.step.noise.dimension, dtype=torch.float64)
        counts = ClipCounts()
        for number, picked in enumerate(self._blocks()):
            views, targets, units = self._unit_views(picked, self._draws("augment", step).child(number))
            for gradients in self._engine.chunks(views, targets, units):
                counts += clip_and_sum(self._clipping, gradients, total)
        return total, counts

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """The examples of this step's units: whole units, about as many views at a time as memory is meant to hold."""
        limit = self._private.step.max_images or max(len(self._owner), 1)
        picked = choose_examples(self._owner, self._sampler.draw(), limit, self._picks)
        picked = picked[np.argsort(self._owner[picked], kind="stable")]
        starts = np.flatnonzero(np.diff(self._owner[picked], prepend=-1))
        most = max(_BLOCK // self._private.step.views, 1)
        begin = 0
        for start, end in pairwise([*starts.tolist(), len(picked)]):
            if end - begin > most and start > begin:
                yield picked[begin:start]
                begin = start
        if begin < len(picked):
            yield picked[begin:]

    def _unit_views(self, picked: NDArray[np.int64], seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views, targets and owners, one row a view."""
        count = self._private.step.views
        views, targets = self._views.several(torch.from_numpy(picked), count, seeds)
        return views, targets, torch.from_numpy(np.repeat(self._owner[picked], count))

    def _set_gradients(self, vector: NDArray[np.float64]) -> None:
        gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        from_vector(vector.astype(np.float32), gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
