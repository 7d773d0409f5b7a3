"""The site's state machine: message bytes in, message bytes out. It knows no torch and no transport."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, ProtocolError
from medveil.federation.messages import (
    Join,
    Result,
    Scores,
    Sealed,
    Stop,
    Task,
    Tensors,
    decode,
    encode,
    frames_of,
    with_frames,
)
from medveil.federation.secure.origin import fingerprint
from medveil.federation.stages import Pipeline, StageContext
from medveil.federation.update import Contribution, Update

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a site's training gave.

    Args:
        form: "weights" (``values`` are the new weights), "mean" (``values`` are a mean gradient), or "grid"
            (``values`` are a clipped sum with a share of the noise, which only a secure sum may take).
        values: shape (d,), float32; int64 for "grid".
        buffers: shape (b,), float32.
        train_loss: mean over the steps, or None where it may not be known.
    """

    form: Literal["weights", "mean", "grid"]
    values: Floats | NDArray[np.int64]
    buffers: Floats
    train_loss: float | None


class Work(Protocol):
    """What a site can do with its own data."""

    @property
    def num_examples(self) -> int | None:
        """Training examples, or None where their number is private."""
        ...

    @property
    def num_validation(self) -> int:
        """Validation examples."""
        ...

    def train(self, round_number: int, weights: Floats, buffers: Floats) -> LocalResult:
        """Train from ``weights``."""
        ...

    def validate(self, weights: Floats, buffers: Floats) -> dict[str, float | None]:
        """Score ``weights`` on the site's own validation data."""
        ...


class Spending(Protocol):
    """The site's own privacy ledger, for one run."""

    def open(self) -> None:
        """Check, before anything is computed, that the whole run fits the site's budget.

        Raises:
            BudgetError: it does not: the site refuses to take part.
        """
        ...

    def release(self, round_number: int, *, nothing_left: bool = False) -> AbstractContextManager[None]:
        """Durably charge what a round releases before the data are touched; note its completion on exit.

        Args:
            round_number: counted from 1.
            nothing_left: it is sure that nothing of an earlier attempt at this round left the site, so that what was
                charged for it and not completed pays for this one.

        Raises:
            BudgetError: the budget is spent.
        """
        ...


class Sealing(Protocol):
    """The site's side of a secure sum (:mod:`medveil.federation.secure.site`)."""

    def join(self) -> list[bytes]:
        """Frames that announce the site's keys."""
        ...

    def receive(self, frames: Sequence[bytes]) -> list[bytes]:
        """Answer frames of the server.

        Raises:
            ProtocolError: the server breaks the protocol.
        """
        ...

    def check_begun(self) -> None:
        """Refuse to contribute where the server has begun no sum.

        Raises:
            ProtocolError: it has not.
        """
        ...

    def known(self, round_number: int, start: str) -> bool:
        """Whether the contribution to a round was written down before; if not, none ever left.

        Raises:
            AuthenticityError: the round is past, or was begun from other weights.
        """
        ...

    def contribute(self, round_number: int, start: str, compute: Callable[[], Contribution]) -> list[bytes]:
        """Frames with the masked contribution: the one written down before, else a new one, written down first."""
        ...

    def scores(self, round_number: int, start: str, scores: Mapping[str, float | None], examples: int) -> list[bytes]:
        """Frames with the masked validation scores of these weights."""
        ...


class Site:
    """One site.

    Args:
        name: as the coordinator knows it.
        plan_hash: of the plan that the site agreed to.
        work: training and validation on its own data.
        weighting: "size" or "equal".
        pipeline: privacy stages; empty sends updates in the clear.
        spending: the site's ledger; None where the plan promises no differential privacy.
        sealing: the site's side of the secure sum; None sends updates in the clear.

    Raises:
        ConfigError: sites are weighted by a size that is private.
    """

    def __init__(
        self,
        name: str,
        *,
        plan_hash: str,
        work: Work,
        weighting: Literal["size", "equal"],
        pipeline: Pipeline,
        spending: Spending | None = None,
        sealing: Sealing | None = None,
    ) -> None:
        self.name = name
        self.finished = False
        self._plan_hash = plan_hash
        self._work = work
        self._weight = _weight(work, weighting)
        self._spending = spending
        self._pipeline = pipeline
        self._sealing = sealing
        self._model: tuple[Floats, Floats] | None = None

    def join(self) -> bytes:
        """The first message.

        Raises:
            BudgetError: the run does not fit the site's privacy budget.
        """
        if self._spending is not None:
            self._spending.open()
        if self._sealing is not None:
            header = Join(site=self.name, plan_hash=self._plan_hash, num_examples=None)
            return encode(header, with_frames(self._sealing.join()))
        return encode(Join(site=self.name, plan_hash=self._plan_hash, num_examples=self._work.num_examples))

    def receive(self, data: bytes) -> list[bytes]:
        """React to a message of the coordinator.

        Raises:
            MessageError: not a valid message.
            ProtocolError: a message that a site never receives, or one that comes too late or too early.
        """
        message, tensors = decode(data)
        if self.finished:
            raise ProtocolError("A message arrived after the end of the training", got=type(message).__name__)
        if isinstance(message, Stop):
            self.finished = True
            return []
        if isinstance(message, Sealed) and self._sealing is not None:
            answers = self._sealing.receive(frames_of(tensors))
            return [encode(Sealed(), with_frames(answers))] if answers else []
        if not isinstance(message, Task):
            raise ProtocolError(
                "A site received a message that only a coordinator may receive", got=type(message).__name__
            )
        return self._perform(message, tensors)

    def _perform(self, task: Task, tensors: Tensors) -> list[bytes]:
        if self._sealing is not None:
            self._sealing.receive(frames_of(tensors))
        if "weights" in tensors:
            self._model = (_vector(tensors, "weights"), _vector(tensors, "buffers"))
        if self._model is None:
            raise ProtocolError("A task arrived before any weights", expected="weights with the first task")
        weights, buffers = self._model
        replies = []
        if task.validate_model:
            replies += self._validate(task, weights, buffers)
        if task.train:
            replies += self._train(task, weights, buffers)
        return replies

    def _validate(self, task: Task, weights: Floats, buffers: Floats) -> list[bytes]:
        scores = self._work.validate(weights, buffers)
        if self._sealing is not None:
            start = fingerprint(weights, buffers)
            frames = self._sealing.scores(task.round, start, scores, self._work.num_validation)
            return _streamed(Scores(round=task.round, num_examples=0), frames)
        return [encode(Scores(round=task.round, num_examples=self._work.num_validation, **scores))]

    def _train(self, task: Task, weights: Floats, buffers: Floats) -> list[bytes]:
        if self._sealing is not None:
            return self._train_sealed(self._sealing, task, weights, buffers)
        with nullcontext() if self._spending is None else self._spending.release(task.round):
            return [self._release(task, weights, buffers)]

    def _train_sealed(self, sealing: Sealing, task: Task, weights: Floats, buffers: Floats) -> list[bytes]:
        """A contribution that was written down before a crash is sent again: nothing new is released or charged."""
        sealing.check_begun()  # before anything is charged
        start = fingerprint(weights, buffers)
        charged: AbstractContextManager[None] = nullcontext()
        if self._spending is not None and not sealing.known(task.round, start):
            charged = self._spending.release(task.round, nothing_left=True)
        with charged:
            frames = sealing.contribute(task.round, start, lambda: self._contribution(task, weights, buffers))
        return _streamed(Result(round=task.round, form="sealed", weight=1.0, train_loss=None), frames)

    def _contribution(self, task: Task, weights: Floats, buffers: Floats) -> Contribution:
        local = self._work.train(task.round, weights, buffers)
        if local.form == "grid":
            return Contribution(np.asarray(local.values, dtype=np.int64), None)
        update = Update.from_mean(change(local, weights), self._weight, local.buffers)
        context = StageContext(round=task.round, site=self.name, sites=tuple(task.sites))
        return Contribution(self._pipeline.at_site(update, context), local.train_loss)

    def _release(self, task: Task, weights: Floats, buffers: Floats) -> bytes:
        local = self._work.train(task.round, weights, buffers)
        if local.form == "grid":
            raise ProtocolError("A share of a noisy sum may leave its site masked only", expected="a secure sum")
        if not self._pipeline.stages:
            header = Result(round=task.round, form=local.form, weight=self._weight, train_loss=local.train_loss)
            return encode(header, {"values": local.values, "buffers": local.buffers})
        update = Update.from_mean(change(local, weights), self._weight, local.buffers)
        context = StageContext(round=task.round, site=self.name, sites=tuple(task.sites))
        staged = self._pipeline.at_site(update, context)
        header = Result(round=task.round, form="sum", weight=staged.weight, train_loss=local.train_loss)
        return encode(header, {"values": staged.vector, "buffers": staged.buffers})


def _streamed(header: Result | Scores, frames: Sequence[bytes]) -> list[bytes]:
    """An answer whose frames of the secure sum follow one by one: no message is longer than a chunk and a little."""
    return [encode(header), *(encode(Sealed(), with_frames([frame])) for frame in frames)]


def _weight(work: Work, weighting: Literal["size", "equal"]) -> float:
    if weighting == "equal":
        return 1.0
    if work.num_examples is None:
        raise ConfigError(
            "Sites cannot be weighted by a size that is private",
            got='federation.weighting = "size"',
            expected='"equal"',
            remedy='set federation.weighting = "equal"',
        )
    return float(work.num_examples)


def change(local: LocalResult, weights: Floats) -> NDArray[np.float64]:
    """Mean change (new weights minus old, exact in float64), or the mean gradient as it is."""
    values = local.values.astype(np.float64)
    return values if local.form == "mean" else values - weights.astype(np.float64)


def _vector(tensors: Tensors, name: str) -> Floats:
    if name not in tensors or tensors[name].dtype != np.float32:
        raise ProtocolError(
            "A task does not carry the tensors that it should",
            got=", ".join(sorted(tensors[key].dtype.name for key in tensors)),
            expected="weights and buffers, float32",
        )
    return np.asarray(tensors[name], dtype=np.float32)
