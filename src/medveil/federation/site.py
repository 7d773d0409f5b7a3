"""The site's state machine: message bytes in, message bytes out. It knows no torch and no transport."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, ProtocolError
from medveil.federation.messages import Join, Result, Scores, Stop, Task, Tensors, decode, encode
from medveil.federation.stages import Pipeline, StageContext
from medveil.federation.update import Update

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a site's training gave.

    Args:
        form: "weights" (``values`` are the new weights) or "mean" (``values`` are a mean gradient).
        values: shape (d,), float32.
        buffers: shape (b,), float32.
        train_loss: mean over the steps, or None where it may not be known.
    """

    form: Literal["weights", "mean"]
    values: Floats
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

    def release(self, round_number: int) -> AbstractContextManager[None]:
        """Durably charge what a round releases before the data are touched; note its completion on exit.

        Raises:
            BudgetError: the budget is spent.
        """
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
    ) -> None:
        self.name = name
        self.finished = False
        self._plan_hash = plan_hash
        self._work = work
        self._weight = _weight(work, weighting)
        self._spending = spending
        self._pipeline = pipeline
        self._model: tuple[Floats, Floats] | None = None

    def join(self) -> bytes:
        """The first message.

        Raises:
            BudgetError: the run does not fit the site's privacy budget.
        """
        if self._spending is not None:
            self._spending.open()
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
        if not isinstance(message, Task):
            raise ProtocolError(
                "A site received a message that only a coordinator may receive", got=type(message).__name__
            )
        return self._perform(message, tensors)

    def _perform(self, task: Task, tensors: Tensors) -> list[bytes]:
        if tensors:
            self._model = (_vector(tensors, "weights"), _vector(tensors, "buffers"))
        if self._model is None:
            raise ProtocolError("A task arrived before any weights", expected="weights with the first task")
        weights, buffers = self._model
        replies = []
        if task.validate_model:
            scores = self._work.validate(weights, buffers)
            replies.append(encode(Scores(round=task.round, num_examples=self._work.num_validation, **scores)))
        if task.train:
            replies.append(self._train(task, weights, buffers))
        return replies

    def _train(self, task: Task, weights: Floats, buffers: Floats) -> bytes:
        with nullcontext() if self._spending is None else self._spending.release(task.round):
            return self._release(task, weights, buffers)

    def _release(self, task: Task, weights: Floats, buffers: Floats) -> bytes:
        local = self._work.train(task.round, weights, buffers)
        if not self._pipeline.stages:
            header = Result(round=task.round, form=local.form, weight=self._weight, train_loss=local.train_loss)
            return encode(header, {"values": local.values, "buffers": local.buffers})
        update = Update.from_mean(change(local, weights), self._weight, local.buffers)
        context = StageContext(round=task.round, site=self.name, sites=tuple(task.sites))
        staged = self._pipeline.at_site(update, context)
        header = Result(round=task.round, form="sum", weight=staged.weight, train_loss=local.train_loss)
        return encode(header, {"values": staged.vector, "buffers": staged.buffers})


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
