"""The coordinator's state machine: message bytes in, message bytes out. It knows no transport and sees no data."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medveil.errors import ConfigError, ProtocolError, TooFewSitesError
from medveil.federation.clear_sum import Answer, ClearSum, weighted_scores
from medveil.federation.messages import (
    AnyMessage,
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
from medveil.federation.secure.origin import Purpose, fingerprint
from medveil.federation.secure.server import Counts, SecureServer, by_site
from medveil.federation.selection import Selection
from medveil.federation.server import ServerStep
from medveil.federation.settings import Federation
from medveil.federation.site import Floats
from medveil.federation.snapshot import Snapshot
from medveil.federation.stages import Pipeline, StageContext
from medveil.secagg.server import Outgoing as SealedFor
from medveil.training.loop import diverged

Row = dict[str, Any]
Phase = Literal["joining", "training", "validating", "done"]
# Room in a message beside the model's vectors: headers, and for every site keys, shares and signatures.
_ROOM, _ROOM_PER_SITE = 1 << 16, 1 << 11


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
        round_summed: called when a round's secure sum is in the weights and its scores are yet to come; a snapshot of
            that moment saves the round from being asked for again.
    """

    site_back: Callable[[int, int, int], None] = lambda _round, _back, _expected: None
    round_done: Callable[[Row], None] = lambda _row: None
    round_summed: Callable[[], None] = lambda: None


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
        secure: opens sums over the sites' masked answers; None lets every site answer in the clear.
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
        secure: SecureServer | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.round = 0
        self.phase: Phase = "joining"
        self.weights, self.buffers = weights, buffers
        self.selection = Selection(settings, metric)
        self.lost: dict[str, str] = {}
        self._plan_hash = plan_hash
        self._alive = sorted(sites)
        self._least = least_sites(settings, len(self._alive), secure)
        self._clear = ClearSum(settings, staged=bool(pipeline.stages), sizes=(weights.size, buffers.size))
        self._settings = settings
        self._server = server
        self._pipeline = pipeline
        self._secure = secure
        self._watch = watch or Watch()
        self._answers: dict[str, Answer] = {}
        self._sites_know_weights = False
        self._train_loss: float | None = None
        self._scores_due = False

    @property
    def done(self) -> bool:
        """Whether the training has ended."""
        return self.phase == "done"

    @property
    def awaited(self) -> tuple[str, ...]:
        """Sites that have yet to answer before the phase can end."""
        if self._secure is not None:
            return tuple(site for site in self._alive if site in self._secure.awaited)
        return tuple(site for site in self._alive if site not in self._answers)

    def can_spare(self, site: str) -> bool:
        """Whether the training could go on if ``site`` were gone."""
        left = len(self._alive) - (site in self._alive)
        return left >= self._least and (self._secure is None or self._secure.can_spare(site))

    @property
    def alive(self) -> tuple[str, ...]:
        """Sites that have not been lost."""
        return tuple(self._alive)

    def receive(self, site: str, data: bytes) -> list[Outgoing]:
        """React to a site's message.

        Raises:
            MessageError: not a valid message.
            ProtocolError: a message at the wrong moment, of another plan, or of the wrong size.
        """
        room = _ROOM + _ROOM_PER_SITE * (len(self._alive) + len(self.lost))
        message, tensors = decode(data, max_body=16 * (self.weights.size + self.buffers.size) + room)
        if site not in self._alive:
            raise ProtocolError("A message came from a site that does not take part", expected="a site of the plan")
        if isinstance(message, Sealed) and self._secure is not None:
            return self._sealed(self._secure.receive(site, frames_of(tensors))) + self._proceed()
        if site in self._answers:
            raise ProtocolError("A site answered the same task twice", got=f"{type(message).__name__} in {self.phase}")
        self._check(site, message, tensors)
        if isinstance(message, Join) and self._secure is None:
            self._clear.join(site, message.num_examples)
        self._answers[site] = (message, tensors)
        if self.phase == "training":
            self._watch.site_back(self.round + 1, len(self._answers), len(self._alive))
        if self._secure is not None:
            return self._sealed(self._secure.receive(site, frames_of(tensors))) + self._proceed()
        return self._proceed()

    def lose(self, site: str, reason: str) -> list[Outgoing]:
        """Go on without ``site``.

        Raises:
            TooFewSitesError: fewer sites are left than the plan allows.
        """
        if self.done:
            return []
        known = site in self._alive
        if known:
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
        if self._secure is not None and known:
            return self._sealed(self._secure.lose(site)) + self._proceed()
        return self._proceed()

    def snapshot(self) -> Snapshot:
        """State after the last round whose sum is in the weights."""
        tensors: dict[str, NDArray[np.generic]] = {"weights": self.weights, "buffers": self.buffers}
        tensors |= {f"server.{name}": value for name, value in self._server.state().items()}
        tensors |= {f"selection.{name}": value for name, value in self.selection.tensors().items()}
        secure = None if self._secure is None else asdict(self._secure.counts)
        facts = {"selection": self.selection.facts(), "lost": self.lost, "secure": secure, "loss": self._train_loss}
        return Snapshot(self.round, tensors, facts)

    def restore(self, snapshot: Snapshot, *, scored: bool = True) -> None:
        """Go on from :meth:`snapshot`; call it before any message arrives.

        Args:
            snapshot: of this training.
            scored: whether the round was committed; if not, its scores come first.
        """
        self._scores_due = not scored
        self._train_loss = snapshot.facts.get("loss")
        self.round = snapshot.round
        self.weights = np.asarray(snapshot.tensors["weights"], dtype=np.float32)
        self.buffers = np.asarray(snapshot.tensors["buffers"], dtype=np.float32)
        self._server.restore(snapshot.part("server."))
        self.selection.restore(snapshot.facts["selection"], snapshot.part("selection."))
        if self._secure is not None:
            self._secure.counts = Counts(**snapshot.facts["secure"])
        for site, reason in snapshot.facts["lost"].items():
            self._alive.remove(site)
            self.lost[site] = reason
            if self._secure is not None:
                self._secure.lose(site)

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

    def _check_result(self, site: str, message: Result, tensors: Tensors) -> None:
        if message.round != self.round + 1:
            raise ProtocolError("A site answered for another round", got=message.round, expected=self.round + 1)
        if self._secure is None:
            self._clear.check(site, message, tensors)
        elif message.form != "sealed" or message.weight != 1 or message.train_loss is not None:
            raise ProtocolError("A site answered in the clear where the plan asks for a secure sum", got=message.form)

    def _proceed(self) -> list[Outgoing]:
        if self.done or not self._complete():
            return []
        answers, self._answers = self._answers, {}
        if self.phase == "training":
            self._aggregate(answers)
            if self._validation_due():
                if self._secure is not None:
                    self._watch.round_summed()
                return self._ask(validate=True)
            self._commit(None)
        elif self.phase == "validating":
            self._commit(self._scores(answers))
        elif self._scores_due:
            self._scores_due = False
            return self._ask(validate=True)
        if self.round >= self._settings.rounds or self.selection.exhausted:
            return self._finish()
        return self._ask(validate=False)

    def _complete(self) -> bool:
        """Whether everything is there that the phase waits for."""
        if self._secure is None:
            return set(self._answers) == set(self._alive)
        return self._secure.prepared if self.phase == "joining" else self._secure.opened

    def _validation_due(self) -> bool:
        return validation_due(self._settings, self.round)

    def _ask(self, *, validate: bool) -> list[Outgoing]:
        self.phase = "validating" if validate else "training"
        number = self.round if validate else self.round + 1
        purpose: Purpose = "scores" if validate else "round"
        if self._secure is not None:
            self._leave_out(self._secure, purpose, number)
        task = Task(
            round=number,
            validate_model=validate,
            train=not validate,
            sites=list(self._alive),
        )
        tensors = {} if self._sites_know_weights else {"weights": self.weights, "buffers": self.buffers}
        self._sites_know_weights = True
        if self._secure is None:
            data = encode(task, tensors)
            return [Outgoing(site, data) for site in self._alive]
        start = fingerprint(self.weights, self.buffers)
        begun = self._secure.begin(purpose, task.round, start)
        return [Outgoing(site, encode(task, tensors | with_frames(frames))) for site, frames in begun.items()]

    def _leave_out(self, secure: SecureServer, purpose: Purpose, number: int) -> None:
        """A sum that was to be opened before an interruption is asked for over the same sites again."""
        for site in secure.left_out(purpose, number, self._alive):
            self._alive.remove(site)
            self.lost[site] = "The round is opened without the site, as it was to be before an interruption"
            secure.lose(site)

    def _sealed(self, outgoing: Sequence[SealedFor]) -> list[Outgoing]:
        return [Outgoing(site, encode(Sealed(), with_frames(frames))) for site, frames in by_site(outgoing).items()]

    def _aggregate(self, answers: dict[str, Answer]) -> None:
        if self._secure is None:
            total, loss = self._clear.total(answers, self.weights)
        else:
            total, loss = self._secure.update(self.round + 1)
        context = StageContext(round=self.round + 1, site=None, sites=tuple(sorted(answers)))
        total = self._pipeline.at_server(total, context)
        weights = self._server.apply(self.weights, total.mean(), self.round / self._settings.rounds)
        if not np.isfinite(weights).all():
            raise diverged("weights")
        self.weights = weights
        if total.buffers.size:  # a noisy sum has none: constants stay as they are
            self.buffers = total.mean_buffers().astype(np.float32)
        self._train_loss = loss
        self._sites_know_weights = False
        self.round += 1

    def _scores(self, answers: dict[str, Answer]) -> dict[str, float | None]:
        if self._secure is None:
            return weighted_scores(message for message, _ in answers.values())
        return self._secure.scores()

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


def least_sites(settings: Federation, sites: int, secure: SecureServer | None = None) -> int:
    """How many sites must stay: as many as the plan says, or all; under a secure sum as many as it needs.

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
    return max(settings.min_sites, secure.least) if secure is not None else settings.min_sites or sites
