"""A site's side of a run over the network, once its hospital agreed: message bytes in, message bytes out."""

import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from medveil import __version__
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home, SiteConfig
from medveil.connect.tallies import needed_tallies
from medveil.dp.plan import PrivacyPlan
from medveil.errors import AuthenticityError, PolicyError, ProtocolError, RunError
from medveil.federation.messages import (
    Ask,
    Farewell,
    LedgerHead,
    Open,
    Ready,
    Sealed,
    Settled,
    Stop,
    Task,
    Tensors,
    decode,
    encode,
)
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.sums import sum_parameters
from medveil.federation.secure.tally_notes import TallyNotes
from medveil.federation.site import Site
from medveil.federation.tally import TallySite
from medveil.models.crafted import check_weights_not_crafted, has_hidden_linear, synthetic_inputs
from medveil.study.arms import Workshop
from medveil.study.federated import build_site, build_stages, build_work, check_sites, model_sizes
from medveil.study.folder import MetricsLog, RunFolder, write_text
from medveil.study.plan import Plan
from medveil.study.prepare import Prepared
from medveil.study.progress import Silent
from medveil.study.record import known_sites
from medveil.study.scoring import Scorer
from medveil.study.secure import secure_groups, secure_site
from medveil.study.spending import Account, open_accounts
from medveil.training.vectors import floating_buffers, from_vector, to_vector, trainable

_PATIENCE_S = 60.0


@dataclass(frozen=True, eq=False)
class Own:
    """What this site brings.

    Args:
        name: of the site.
        plan: as submitted.
        bound: what the plan promises for this site's data; None promises nothing.
        prepared: this site's data.
        first: network of the plan, its weights not yet the run's.
        device: where it computes.
        config: the site's settings.
    """

    name: str
    plan: Plan
    bound: PrivacyPlan | None
    prepared: Prepared
    first: nn.Module
    device: torch.device
    config: SiteConfig

    def ready(self) -> bytes:
        """The first message."""
        dataset = self.prepared.dataset
        return encode(
            Ready(
                site=self.name,
                plan_hash=self.plan.digest(),
                version=__version__,
                input_shape=list(self.prepared.input_shape),
                class_names=list(dataset.class_names),
                data_kind=dataset.kind,
                data_name=dataset.name,
                validates=self.prepared.sites[0].validation is not None,
            )
        )


class SiteRun:
    """One attempt at a run.

    Args:
        own: what the site brings.
        home: its folder.
        log: its audit log.
        allow: asked with the names of all sites before anything is trained; raises what refuses.
    """

    def __init__(self, own: Own, home: Home, *, log: AuditLog, allow: Callable[[tuple[str, ...]], None]) -> None:
        self.finished = False
        self._own, self._home, self._log, self._allow = own, home, log, allow
        self._site: Site | None = None
        self._account: Account | None = None
        self._open: Open | None = None
        self._tally: TallySite | None = None
        self._notes: TallyNotes | None = None
        self._outbox: Path | None = None
        self._seconds = 0.0
        self._round = 0
        self._held: IO[str] | None = None

    def receive(self, data: bytes) -> list[bytes]:
        """React to a message of the coordinator.

        Raises:
            MedveilError: the message breaks the protocol, or the site does not go on; nothing more is told.
        """
        message, tensors = decode(data)
        if isinstance(message, Open):
            return self._begin(message)
        if isinstance(message, Farewell):
            self.finished = True
            return []
        if isinstance(message, Stop):
            return self._stop(data)
        if isinstance(message, Ask):
            return self._begin_tally(message, tensors)
        if isinstance(message, Sealed) and self._tally is not None:
            return self._tally.receive(tensors)
        if self._site is None:
            raise ProtocolError("A message arrived before the run began", got=type(message).__name__)
        if isinstance(message, Task) and message.train:
            self._round = message.round
            self._log.append("step-asked", plan=self._own.plan.digest(), round=message.round)
        return self._site.receive(data)

    def _begin(self, opening: Open) -> list[bytes]:
        if self._open is not None:
            raise ProtocolError("The run was begun twice")
        own, plan = self._own, self._own.plan
        names = self._checked_names(opening)
        self._allow(names)
        folder = RunFolder(self._home.runs / opening.run)
        folder.state.mkdir(parents=True, exist_ok=True)
        self._held = _hold(folder)
        _note_attempt(folder, opening)
        folder.bind_inputs({"plan_hash": plan.digest(), "data": own.prepared.fingerprint})
        self._log.append("run-begun", plan=plan.digest(), run=opening.run, attempt=opening.attempt, sites=names)
        self._open = opening
        shop = Workshop(
            plan,
            own.prepared,
            folder,
            MetricsLog(folder.metrics),
            Silent(),
            own.device,
            own.first,
            own.bound,
            self._home.ledgers,
        )
        self._account = open_accounts(shop, [own.name], 0).get(own.name)
        self._notes = TallyNotes(folder.state / "tallies.json")
        self._outbox = folder.outboxes / "own"
        groups = secure_groups(
            plan, own.bound, self._keys(names), sizes=model_sizes(own.first), session=_session(opening)
        )
        sealing = None
        if groups:
            sealing = secure_site(
                plan,
                groups,
                own.name,
                self._home.identity(),
                outbox=Outbox(self._outbox),
                watch=self._count,
            )
        work = build_work(shop, own.prepared.sites[0], names.index(own.name), len(names))
        pipeline = build_stages(plan, own.bound, shop.random("server"))
        self._site = build_site(shop, own.name, work, pipeline, spending=self._account, sealing=sealing)
        return [self._site.join()]

    def _checked_names(self, opening: Open) -> tuple[str, ...]:
        """Names of all sites, in the order that all parties use.

        Raises:
            PolicyError: other sites than this one knows.
            ProtocolError: not as many as the plan says, or not in order.
        """
        names = tuple(opening.sites)
        strangers = [name for name in names if name not in self._home.roster()]
        if strangers or self._own.name not in names:
            raise PolicyError(
                "The run has sites that this site does not know",
                got=f"{len(strangers)} of {len(names)}",
                expected="sites of its own roster, this one among them",
                remedy="give every site the same roster, or submit the plan to the sites that are in it",
            )
        planned = known_sites(self._own.plan)
        if list(names) != sorted(set(names)) or (planned is not None and len(names) != planned):
            raise ProtocolError(
                "The run does not have the sites that the plan counts on",
                got=len(names),
                expected=planned,
                remedy="set data.partition in the plan to the number of sites",
            )
        check_sites(self._own.bound, names)
        return names

    def _keys(self, names: tuple[str, ...]) -> dict[str, bytes]:
        roster = self._home.roster()
        return {name: roster[name] for name in names}

    def _begin_tally(self, ask: Ask, tensors: Tensors) -> list[bytes]:
        """Compute a statistic, and give it once."""
        own, opening = self._own, self._open
        if opening is None or self._site is None or self._notes is None:
            raise ProtocolError("A statistic was asked for before the run began", got=ask.purpose)
        tallies = needed_tallies(own.plan, own.prepared.dataset.class_names, own.prepared.input_shape[0], opening.sites)
        if ask.purpose not in tallies:
            raise PolicyError("The server asks for a statistic that the plan does not ask for", got=ask.purpose)
        if ask.purpose != "cohort" and not self._site.finished:
            raise ProtocolError("The model's scores were asked for before its training ended", got=ask.purpose)
        origin = self._load(tensors) if ask.purpose != "cohort" else fingerprint()
        self._notes.begin(ask.purpose, origin)
        self._log.append("statistic-asked", plan=own.plan.digest(), reason=ask.purpose)
        scorer = Scorer(own.plan, own.prepared.dataset.class_names, own.device)
        vector = tallies[ask.purpose].vector(scorer, own.first, own.prepared.sites[0], own.prepared.test)
        settings, notes = own.plan.privacy.secure_aggregation, self._notes
        parameters = None
        if settings is not None:
            context = f"{own.plan.digest()} {_session(opening)} {ask.purpose}"
            parameters = sum_parameters(self._keys(tuple(opening.sites)), settings, context)
        self._tally = TallySite(
            ask.purpose,
            vector,
            origin=origin,
            name=own.name,
            parameters=parameters,
            identity=self._home.identity(),
            accept=lambda sites: notes.accept(ask.purpose, sites),
        )
        return self._tally.begin()

    def _load(self, tensors: Tensors) -> str:
        """Put the weights that are to be scored into the network; what they are.

        Raises:
            ProtocolError: none came, or of another size.
            GuaranteeError: they look crafted to copy images.
        """
        model, vectors = self._own.first, []
        for name, own in (("weights", trainable(model)), ("buffers", floating_buffers(model))):
            vector = tensors.get(name)
            size = len(to_vector(own))
            if vector is None or vector.dtype != np.float32 or vector.shape != (size,):
                raise ProtocolError("The weights to be scored do not fit the network", expected=f"{size} of float32")
            vectors.append(np.asarray(vector, dtype=np.float32))
            from_vector(vectors[-1], own)
        if has_hidden_linear(model):
            check_weights_not_crafted(model, synthetic_inputs(self._own.prepared.input_shape))
        return fingerprint(*vectors)

    def _stop(self, data: bytes) -> list[bytes]:
        """The training has ended: settle the ledger. What was contributed stays until the last round is summed.

        Raises:
            ProtocolError: it ended before, or never began.
        """
        if self._site is None or self._site.finished:
            raise ProtocolError("The end of the training was told twice, or before it began")
        self._site.receive(data)
        steps = ledger = None
        if self._account is not None:
            steps = self._account.steps
            told = self._account.close()
            ledger = LedgerHead(**told) if self._own.config.tell_ledger else None
            self._log.append("ledger-closed", plan=self._own.plan.digest(), steps=steps, head=told["head"])
        if self._outbox is not None and self._round == self._own.plan.federation.rounds:
            Outbox(self._outbox).clear()
        return [encode(Settled(steps=steps, ledger=ledger, protocol_seconds=round(self._seconds, 4)))]

    def close(self) -> None:
        """Let other processes of this site into the run."""
        if self._held is not None:
            self._held.close()

    def _count(self, seconds: float) -> None:
        self._seconds += seconds


def _session(opening: Open) -> str:
    return f"run {opening.run} attempt {opening.attempt}"


def _hold(folder: RunFolder) -> IO[str]:
    """Keep every other process of this site out of the run; an earlier attempt's may take a while to end.

    Raises:
        RunError: it did not end.
    """
    lock = (folder.state / "lock").open("w", encoding="utf-8")
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                lock.close()
                raise RunError(
                    "An earlier attempt at the run has not ended at this site",
                    expected="one process a run",
                    remedy="stop the site's process that still runs",
                ) from None
            time.sleep(0.2)
        else:
            return lock


def _note_attempt(folder: RunFolder, opening: Open) -> None:
    """Write down which attempt this is: signatures are of one attempt, and none is made twice.

    Raises:
        AuthenticityError: the attempt is past.
    """
    path = folder.state / "attempt"
    before = int(path.read_text(encoding="utf-8")) if path.exists() else 0
    if opening.attempt <= before:
        raise AuthenticityError(
            "The server begins an attempt that this site has seen",
            got=f"attempt {opening.attempt}",
            expected=f"a later one than {before}",
            remedy="start a new run; a server that lost its run folder cannot go on with this one",
        )
    write_text(path, str(opening.attempt))
    write_text(folder.state / "run-id", opening.run)
