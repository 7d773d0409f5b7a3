"""A site's side of a run over the network, once its hospital agreed: message bytes in, message bytes out."""

import fcntl
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home
from medveil.connect.observing import SiteObserver
from medveil.connect.own import Own
from medveil.connect.permission import Permission
from medveil.connect.site_sums import SiteSums
from medveil.errors import AuthenticityError, LedgerError, PolicyError, ProtocolError, RunError
from medveil.federation.messages import Ask, Farewell, LedgerHead, Open, Sealed, Settled, Stop, Task, decode, encode
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.tally_notes import TallyNotes
from medveil.federation.site import Site
from medveil.study.arms import Workshop
from medveil.study.federated import build_site, build_stages, build_work, check_sites, model_sizes
from medveil.study.folder import MetricsLog, RunFolder, write_text
from medveil.study.progress import Silent
from medveil.study.record import known_sites
from medveil.study.secure import secure_groups, secure_site
from medveil.study.spending import Account, open_accounts

_PATIENCE_S = 60.0


class SiteRun:
    """One attempt at a run.

    Args:
        own: what the site brings.
        home: its folder.
        run: name of the run, 32 hexadecimal digits that its submitter signed: the server cannot make another one.
        permission: asked before anything is trained or told.
        log: the site's audit log.
        observer: told how the run goes.
    """

    def __init__(
        self, own: Own, home: Home, run: str, *, permission: Permission, log: AuditLog, observer: SiteObserver
    ) -> None:
        self.finished, self.farewell = False, ""
        self._own, self._home, self._run = own, home, run
        self._permission, self._log, self._observer = permission, log, observer
        self._names: tuple[str, ...] = ()
        self._site: Site | None = None
        self._account: Account | None = None
        self._sums: SiteSums | None = None
        self._outbox: Outbox | None = None
        self._held: IO[str] | None = None
        self._seconds = 0.0
        self._round = 0

    def receive(self, data: bytes) -> list[bytes]:
        """React to a message of the coordinator.

        Raises:
            MedveilError: the message breaks the protocol, or the site does not go on; nothing more is told.
        """
        message, tensors = decode(data)
        if isinstance(message, Open):
            return self._begin(message)
        if isinstance(message, Farewell):
            self.finished, self.farewell = True, message.reason
            return []
        if self._site is None or self._sums is None:
            raise ProtocolError("A message arrived before the run began", got=type(message).__name__)
        if isinstance(message, Stop):
            return self._stop(data)
        if isinstance(message, Ask):
            self._permission.check_again(self._own, self._names)
            return self._sums.ask(message, tensors, trained=self._site.finished)
        if isinstance(message, Sealed) and self._sums.begun:
            return self._sums.frames(tensors)
        if isinstance(message, Task):
            self._check_task(message)
        return self._site.receive(data)

    @property
    def trained(self) -> bool:
        """Whether the training came to its end in this attempt."""
        return self._site is not None and self._site.finished

    def close(self) -> None:
        """Let a later attempt have the run; what it did not even begin to spend is there for other runs meanwhile."""
        if self._account is not None:
            with suppress(LedgerError):  # it stays held; the ledger's state was told where it was needed
                self._account.give_back_unused()
            self._account = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def _check_task(self, task: Task) -> None:
        """Note what is asked, and refuse what the hospital does not allow any more.

        Raises:
            PolicyError: the policy was changed, and refuses.
            ApprovalError: the approval was taken back.
            ProtocolError: scores of a round that was not trained in this attempt.
        """
        self._permission.check_again(self._own, self._names)
        resumed = self._round == 0 and self._outbox is not None  # which gives scores of one model a round, whoever asks
        if task.validate_model and task.round != self._round and not resumed:
            raise ProtocolError(
                "The coordinator asks for scores of a round that this site has not just trained",
                got=task.round,
                expected=self._round,
            )
        if task.train:
            self._round = task.round
            self._observer.step(task.round)
        self._log.append("step-asked" if task.train else "scores-asked", plan=self._own.plan.digest(), round=task.round)

    def _begin(self, opening: Open) -> list[bytes]:
        if self._names:
            raise ProtocolError("The run was begun twice")
        own, plan = self._own, self._own.plan
        names = self._checked_names(opening)
        self._permission.check(own, names)
        self._permission.cap(own.bound, own.name, own.prepared.dataset.name, self._run)
        folder = RunFolder(self._home.runs / self._run)
        folder.state.mkdir(parents=True, exist_ok=True)
        self._held = _hold(folder)
        attempts = _note_attempt(folder, opening)
        folder.bind_inputs({"plan_hash": plan.digest(), "data": own.prepared.fingerprint})
        self._names = names
        self._log.append("run-begun", plan=plan.digest(), run=self._run, attempt=opening.attempt, sites=names)
        self._observer.begun(opening.attempt, opening.rounds_done, len(names))
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
        self._account = open_accounts(shop, [own.name], 0, repeats=attempts - 1).get(own.name)
        roster, identity, session = self._home.roster(), self._home.identity(), session_of(opening)
        keys = {name: roster[name] for name in names}
        groups = secure_groups(plan, own.bound, keys, sizes=model_sizes(own.first), session=session)
        sealing = None
        if groups:
            self._outbox = _LoggedOutbox(folder.outboxes / "own", self._log, plan.digest())
            sealing = secure_site(plan, groups, own.name, identity, outbox=self._outbox, watch=self._count)
        self._sums = SiteSums(
            own,
            keys,
            identity,
            notes=TallyNotes(folder.state / "tallies.json"),
            forever=TallyNotes(self._home.folder / "cohorts.json"),
            session=session,
            log=self._log,
        )
        work = build_work(shop, own.prepared.sites[0], names.index(own.name), len(names))
        pipeline = build_stages(plan, own.bound, shop.random("server"))
        self._site = build_site(shop, own.name, work, pipeline, spending=self._account, sealing=sealing)
        return [self._site.join()]

    def _checked_names(self, opening: Open) -> tuple[str, ...]:
        """Names of all sites, in the order that all parties use.

        Raises:
            PolicyError: other sites than this one knows.
            ProtocolError: another run, not as many sites as the plan says, or not in order.
        """
        if opening.run != self._run:
            raise ProtocolError(
                "The server begins a run that the job's submitter did not sign",
                got=opening.run[:12],
                expected=self._run[:12],
            )
        names, roster = tuple(opening.sites), self._home.roster()
        strangers = [name for name in names if name not in roster]
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

    def _stop(self, data: bytes) -> list[bytes]:
        """The training has ended: settle the ledger. What was contributed stays until the last round is summed.

        Raises:
            ProtocolError: it ended before.
        """
        assert self._site is not None
        if self._site.finished:
            raise ProtocolError("The end of the training was told twice")
        self._site.receive(data)
        self._observer.trained()
        steps = ledger = None
        if self._account is not None:
            steps = self._account.steps
            told = self._account.close()
            self._account = None
            ledger = LedgerHead(**told) if self._own.config.tell_ledger else None
            self._log.append("ledger-closed", plan=self._own.plan.digest(), steps=steps, head=told["head"])
        if self._outbox is not None and self._round == self._own.plan.federation.rounds:
            self._outbox.clear()
        return [encode(Settled(steps=steps, ledger=ledger, protocol_seconds=round(self._seconds, 4)))]

    def _count(self, seconds: float) -> None:
        self._seconds += seconds
        self._observer.secure_sum(seconds)


class _LoggedOutbox(Outbox):
    """Says in the audit log over whom each sum was opened."""

    def __init__(self, folder: Path, log: AuditLog, plan_hash: str) -> None:
        super().__init__(folder)
        self._log, self._plan_hash = log, plan_hash

    def accept(self, members: Sequence[str]) -> None:
        super().accept(members)
        self._log.append("sum-opened", plan=self._plan_hash, included=tuple(sorted(members)))

    def accept_scores(self, round_number: int, start: str, members: Sequence[str]) -> None:
        super().accept_scores(round_number, start, members)
        self._log.append("scores-opened", plan=self._plan_hash, round=round_number, included=tuple(sorted(members)))


def session_of(opening: Open) -> str:
    """What tells one attempt from others: signatures of one are void in another."""
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


def _note_attempt(folder: RunFolder, opening: Open) -> int:
    """Write down which attempt this is: signatures are of one attempt, and none is made twice.

    Returns:
        How many attempts this site has seen, this one included.

    Raises:
        AuthenticityError: the attempt is past.
    """
    path = folder.state / "attempt"
    before, seen = (int(word) for word in path.read_text(encoding="utf-8").split()) if path.exists() else (0, 0)
    if opening.attempt <= before:
        raise AuthenticityError(
            "The server begins an attempt that this site has seen",
            got=f"attempt {opening.attempt}",
            expected=f"a later one than {before}",
            remedy="start a new run; a server that lost its run folder cannot go on with this one",
        )
    write_text(path, f"{opening.attempt} {seen + 1}")
    write_text(folder.state / "run-id", opening.run)
    return seen + 1
