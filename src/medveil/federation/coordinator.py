"""The coordinator's state machine: message bytes in, message bytes out. It knows no transport and sees no data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.messages import AnyMessage, Join, Result, Scores, Stop, Task, Tensors, decode, encode
from medveil.federation.selection import Selection
from medveil.federation.server import ServerStep
from medveil.federation.settings import Federation, FedSgd
from medveil.federation.site import Floats, LocalResult, change
from medveil.federation.snapshot import Snapshot
from medveil.federation.stages import Pipeline, StageContext
from medveil.federation.update import Update
from medveil.training.loop import diverged

Row = dict[str, Any]
SCORES = ("loss", "auc", "dice")
Phase = Literal["joining", "training", "validating", "done"]


@dataclass(frozen=True)
class Outgoing:
    """Bytes for one site."""

    site: str
    data: bytes


@dataclass(frozen=True)
class Watch:
    """What the coordinator tells whoever runs it.

    Args:
        site_back: called with (round, sites back, sites expected).
        round_done: called with a round's figures after the round is committed.
    """

    site_back: Callable[[int, int, int], None] = lambda _round, _back, _expected: None
    round_done: Callable[[Row], None] = lambda _row: None


class Coordinator:
    """Leads the sites through the rounds.

    Args:
        plan_hash: every site must have agreed to the same plan.
        sites: names of all sites that take part; ``settings.min_sites`` of them at least.
        settings: the plan's federation table.
        metric: which validation score selects and stops: "auc", "dice" or "loss".
        server: step from the mean update to new weights.
        pipeline: privacy stages, the same as at the sites.
        weights: first weights, shape (d,), float32.
        buffers: first running statistics, shape (b,), float32.
        watch: told about progress.

    Raises:
        ConfigError: the plan asks for more sites than there are.
    """

    def __init__(
        self,
        *,
        plan_hash: str,
        sites: Sequence[str],
        settings: Federation,
        metric: Literal["auc", "dice", "loss"],
        server: ServerStep,
        pipeline: Pipeline,
        weights: Floats,
        buffers: Floats,
        watch: Watch | None = None,
    ) -> None:
        self.round = 0
        self.phase: Phase = "joining"
        self.weights, self.buffers = weights, buffers
        self.selection = Selection(settings, metric)
        self.lost: dict[str, str] = {}
        self._plan_hash = plan_hash
        self._alive = sorted(sites)
        self._least = least_sites(settings, len(self._alive))
        self._examples: dict[str, int] = {}
        self._settings = settings
        self._server = server
        self._pipeline = pipeline
        self._watch = watch or Watch()
        self._answers: dict[str, tuple[AnyMessage, Tensors]] = {}
        self._sites_know_weights = False
        self._train_loss: float | None = None

    @property
    def done(self) -> bool:
        """Whether the training has ended."""
        return self.phase == "done"

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """React to a site's message.

        Raises:
            MessageError: not a valid message.
            ProtocolError: a message at the wrong moment, of another plan, or of the wrong size.
        """
        message, tensors = decode(data, max_body=16 * (self.weights.size + self.buffers.size) + (1 << 16))
        if site not in self._alive:
            raise ProtocolError("A message came from a site that does not take part", expected="a site of the plan")
        if site in self._answers:
            raise ProtocolError("A site answered the same task twice", got=f"{type(message).__name__} in {self.phase}")
        self._check(site, message, tensors)
        self._answers[site] = (message, tensors)
        if isinstance(message, Join) and message.num_examples is not None:
            self._examples[site] = message.num_examples
        if self.phase == "training":
            self._watch.site_back(self.round + 1, len(self._answers), len(self._alive))
        return self._proceed()

    def lose(self, site: str, reason: str) -> list[Outgoing]:
        """Go on without ``site``.

        Raises:
            TooFewSitesError: fewer sites are left than the plan allows.
        """
        if self.done:
            return []
        if site in self._alive:
            self._alive.remove(site)
            self._answers.pop(site, None)
            self.lost[site] = reason
        if len(self._alive) < self._least:
            raise TooFewSitesError(
                "Too few sites are left to go on",
                got=f"{len(self._alive)} left; the last one went because: {reason}",
                expected=f"at least {self._least}",
                remedy="mend the cause at the site and run again: the run goes on after its last full round; "
                "or lower federation.min_sites",
            )
        return self._proceed()

    def snapshot(self) -> Snapshot:
        """State after the last committed round."""
        tensors: dict[str, NDArray[np.generic]] = {"weights": self.weights, "buffers": self.buffers}
        tensors |= {f"server.{name}": value for name, value in self._server.state().items()}
        tensors |= {f"selection.{name}": value for name, value in self.selection.tensors().items()}
        return Snapshot(self.round, tensors, {"selection": self.selection.facts(), "lost": self.lost})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from :meth:`snapshot`; call it before any message arrives."""
        self.round = snapshot.round
        self.weights = np.asarray(snapshot.tensors["weights"], dtype=np.float32)
        self.buffers = np.asarray(snapshot.tensors["buffers"], dtype=np.float32)
        self._server.restore(snapshot.part("server."))
        self.selection.restore(snapshot.facts["selection"], snapshot.part("selection."))
        for site, reason in snapshot.facts["lost"].items():
            self._alive.remove(site)
            self.lost[site] = reason

    def _check(self, site: str, message: AnyMessage, tensors: Tensors) -> None:
        wanted = {"joining": Join, "training": Result, "validating": Scores}.get(self.phase)
        if wanted is None or not isinstance(message, wanted):
            raise ProtocolError(
                "A site sent a message at the wrong moment", got=f"{type(message).__name__} in {self.phase}"
            )
        if isinstance(message, Join):
            self._check_join(site, message)
        elif isinstance(message, Result):
            self._check_result(site, message, tensors)
        elif isinstance(message, Scores) and message.round != self.round:
            raise ProtocolError("A site scored another round", got=message.round, expected=self.round)

    def _check_join(self, site: str, message: Join) -> None:
        if message.site != site:
            raise ProtocolError("A site joined under another site's name", expected="its own name")
        if message.plan_hash != self._plan_hash:
            raise ProtocolError(
                "A site agreed to another plan",
                got=f"plan {message.plan_hash[:12]}",
                expected=f"plan {self._plan_hash[:12]}",
                remedy="give every site the same plan file",
            )
        if message.num_examples is None and self._settings.weighting == "size":
            raise ProtocolError(
                "A site does not tell its size, and the plan weighs sites by size",
                expected="the number of its examples",
                remedy='set federation.weighting = "equal"',
            )

    def _check_result(self, site: str, message: Result, tensors: Tensors) -> None:
        if message.round != self.round + 1:
            raise ProtocolError("A site answered for another round", got=message.round, expected=self.round + 1)
        if message.form != self._form():
            raise ProtocolError(
                "A site did not do what the plan's algorithm and privacy stages ask",
                got=f"an update in the form {message.form!r}",
                expected=repr(self._form()),
            )
        weight = float(self._examples[site]) if self._settings.weighting == "size" else 1.0
        if message.weight != weight:
            raise ProtocolError("A site claims another weight than is its own", got=message.weight, expected=weight)
        allowed = ("float64", "uint32", "uint64") if message.form == "sum" else ("float32",)
        for name, size in (("values", self.weights.size), ("buffers", self.buffers.size)):
            if name not in tensors or tensors[name].shape != (size,):
                raise MessageError(
                    "An update does not have the model's size",
                    got=tensors[name].shape if name in tensors else f"no {name}",
                    expected=(size,),
                    remedy="run the same plan with the same version of medveil at every site",
                )
        if tensors["values"].dtype.name not in allowed:
            raise MessageError("An update has another dtype", got=tensors["values"].dtype.name, expected=allowed)

    def _form(self) -> str:
        if self._pipeline.stages:
            return "sum"
        return "mean" if isinstance(self._settings.algorithm, FedSgd) else "weights"

    def _proceed(self) -> list[Outgoing]:
        if self.done or set(self._answers) != set(self._alive):
            return []
        answers, self._answers = self._answers, {}
        if self.phase == "training":
            self._aggregate(answers)
            if self._validation_due():
                return self._ask(validate=True)
            self._commit(None)
        elif self.phase == "validating":
            self._commit(_weighted_scores([message for message, _ in answers.values()]))
        if self.round >= self._settings.rounds or self.selection.exhausted:
            return self._finish()
        return self._ask(validate=False)

    def _validation_due(self) -> bool:
        return validation_due(self._settings, self.round)

    def _ask(self, *, validate: bool) -> list[Outgoing]:
        self.phase = "validating" if validate else "training"
        task = Task(
            round=self.round if validate else self.round + 1,
            validate_model=validate,
            train=not validate,
            sites=list(self._alive),
        )
        tensors = None if self._sites_know_weights else {"weights": self.weights, "buffers": self.buffers}
        self._sites_know_weights = True
        data = encode(task, tensors)
        return [Outgoing(site, data) for site in self._alive]

    def _aggregate(self, answers: dict[str, tuple[AnyMessage, Tensors]]) -> None:
        results = [(message, tensors) for _, (message, tensors) in sorted(answers.items())]  # one order, always
        weight = sum(message.weight for message, _ in results if isinstance(message, Result))
        updates: list[Update] = []
        losses: list[float | None] = []
        for message, tensors in results:
            assert isinstance(message, Result)
            updates.append(self._contribution(message, tensors, weight))
            losses.append(None if message.train_loss is None else message.weight * message.train_loss)
        context = StageContext(round=self.round + 1, site=None, sites=tuple(sorted(answers)))
        total = updates[0]
        for update in updates[1:]:
            total += update
        total = self._pipeline.at_server(total, context)
        weights = self._server.apply(self.weights, total.mean(), self.round / self._settings.rounds)
        if not np.isfinite(weights).all():
            raise diverged("weights")
        self.weights = weights
        if self.buffers.size:
            self.buffers = total.mean_buffers().astype(np.float32)
        self._train_loss = None if None in losses else sum(loss or 0.0 for loss in losses) / weight
        self._sites_know_weights = False
        self.round += 1

    def _contribution(self, message: Result, tensors: Tensors, total_weight: float) -> Update:
        """One site's summand. In the clear its weight is its share, so that a sole site's is exactly 1."""
        values, buffers = tensors["values"], np.asarray(tensors["buffers"], dtype=np.float64)
        if message.form == "sum":
            return Update(values, message.weight, buffers)
        local = LocalResult(message.form, _float32(values), _float32(tensors["buffers"]), message.train_loss)
        return Update.from_mean(change(local, self.weights), message.weight / total_weight, buffers)

    def _commit(self, scores: dict[str, float | None] | None) -> None:
        self.selection.consider(self.round, scores, self.weights, self.buffers)
        self._watch.round_done(
            {
                "round": self.round,
                "train_loss": self._train_loss,
                "validation": scores,
                "sites": len(self._alive),
            }
        )

    def _finish(self) -> list[Outgoing]:
        self.phase = "done"
        reason = "no improvement" if self.selection.exhausted else "all rounds done"
        data = encode(Stop(reason=reason))
        return [Outgoing(site, data) for site in self._alive]


def validation_due(settings: Federation, round_number: int) -> bool:
    """Whether the weights after ``round_number`` are validated: every so often, and at the end."""
    every = settings.validate_every
    return bool(every) and (round_number % every == 0 or round_number == settings.rounds)


def least_sites(settings: Federation, sites: int) -> int:
    """How many sites must stay.

    Raises:
        ConfigError: more than there are.
    """
    if settings.min_sites > sites:
        raise ConfigError(
            "The plan asks for more sites than there are",
            got=f"federation.min_sites = {settings.min_sites}, {sites} sites",
            expected=f"at most {sites}",
            remedy="lower federation.min_sites",
        )
    return settings.min_sites or sites


def _weighted_scores(messages: Sequence[AnyMessage]) -> dict[str, float | None]:
    """Mean of each score over the sites that could compute it, weighted by their validation examples.

    A score that no site could compute is left out.
    """
    sums: dict[str, list[tuple[int, float]]] = {}
    for message in messages:
        if isinstance(message, Scores):
            for name, value in message.model_dump(include=set(SCORES)).items():
                if value is not None and message.num_examples > 0:
                    sums.setdefault(name, []).append((message.num_examples, value))
    return {
        name: sum(count * value for count, value in parts) / sum(count for count, _ in parts)
        for name, parts in sorted(sums.items())
    }


def _float32(values: NDArray[np.generic]) -> Floats:
    return np.asarray(values, dtype=np.float32)
