"""What a hospital's own process does with a job: check it against the hospital's rules, then take part.

Nothing in here trusts the server or the job: the plan is checked against the site's policy and approvals, data are the
site's own, other sites' keys come from the site's own roster, and the run's name from what the submitter signed.
"""

import errno
import sqlite3
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

from medveil.connect.audit_lines import as_name
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home, link_session
from medveil.connect.jobs import check_networked, plan_of
from medveil.connect.observing import SiteObserver
from medveil.connect.own import Own
from medveil.connect.permission import Permission, told
from medveil.connect.policy import SitePolicy
from medveil.connect.site_run import SiteRun
from medveil.errors import (
    ApprovalError,
    AuditLogError,
    BudgetError,
    ConfigError,
    EngineError,
    InterruptedRunError,
    LedgerError,
    MedveilError,
    PolicyError,
    ProtocolError,
    RunError,
)
from medveil.federation.engine.context import JobContext
from medveil.federation.messages import LONGEST_TEXT, Decline, Farewell, Notice, decode, encode
from medveil.federation.postman import Postman
from medveil.models.architecture import architecture_hash
from medveil.study.arms import build_model
from medveil.study.plan import Plan
from medveil.study.prepare import prepare_own
from medveil.study.privacy import bind_plan
from medveil.training.device import be_deterministic, choose_device
from medveil.training.vectors import trainable

SERVER = "server"
_POLL_S = 0.2
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE, errno.EFBIG}
_LEDGER = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_FAREWELL_S = 5.0


def run_site(job: JobContext) -> None:
    """Take part in a job until the server ends it, or this site refuses.

    Raises:
        MedveilError: why the site does not take part, or stopped; the server was told in one sentence.
    """
    home = Home(job.home)
    sessions = {SERVER: link_session(job.job_id, job.me)}
    postman = Postman(job.channel, sessions, settings=home.site().links())
    visit = _Visit(job, home, postman)
    try:
        visit.take_part()
    except MedveilError as error:
        full = _disk(error)
        visit.decline(full or error)
        if full is None:
            raise
        raise full from error
    except OSError as error:
        unusable = _unusable(error.strerror)
        visit.decline(unusable)
        raise unusable from error
    except Exception:  # whatever it is: the server is not left waiting for a site that is gone
        visit.decline(RunError("The site met an unexpected error; its own log says which"))
        raise
    finally:
        postman.close()


class _Visit:
    """One job at this site."""

    def __init__(self, job: JobContext, home: Home, postman: Postman) -> None:
        self._job, self._home, self._postman = job, home, postman
        self._log: AuditLog | None = None
        self._permission: Permission | None = None
        self._observer = SiteObserver(home.folder, job.job_id)

    def decline(self, error: MedveilError) -> None:
        """Tell the server, in a sentence, that this site does not go on."""
        passing = type(error) is RunError or isinstance(error, InterruptedRunError | EngineError)
        reason = _sentence(error, self._permission)
        self._postman.send(SERVER, encode(Decline(reason=reason, final=not passing)))
        self._postman.flush(_FAREWELL_S)
        self._observer.stopped(f"does not take part: {reason}")
        if self._log is not None:
            with suppress(AuditLogError, OSError):
                self._log.append("stopped", job=self._job.job_id, error=type(error).__name__)

    def take_part(self) -> None:
        """The whole job."""
        job, log = self._job, self._home.audit_log()
        self._log = log
        plan = plan_of(job.app)
        plan_hash = plan.digest()
        who = {"submitter": job.submitter.name, "org": job.submitter.org, "role": job.submitter.role}
        by: dict[str, Any] = {key: as_name(value) for key, value in who.items()}
        log.append("plan-received", plan=plan_hash, job=job.job_id, run=job.nonce, **by)
        check_networked(plan)
        plan = plan.model_copy(update={"performance": self._home.site().performance})
        bound = bind_plan(plan)
        self._observer.plan(plan.name, plan_hash, plan.federation.rounds, private=bound is not None)
        permission = self._permission = Permission(self._home, log, plan, job.submitter)
        permission.check_request(bound)
        self._wait_for_approval(plan, self._home.policy(), log)
        own = self._own(plan)
        spent: dict[str, Any] = {}
        if bound is not None:
            spent = {"epsilon": bound.total().epsilon, "delta": bound.delta, "unit": bound.unit}
        log.append("plan-accepted", plan=plan_hash, dataset=as_name(own.prepared.dataset.name), **spent)
        self._tell(own.ready())
        run = SiteRun(own, self._home, job.nonce, permission=permission, log=log, observer=self._observer)
        with closing(run):
            while not run.finished:
                message = self._next()
                with self._observer.message(len(message)) as seen:
                    for answer in run.receive(message):
                        seen.sent(len(answer))
                        self._tell(answer)
        self._postman.flush(10.0)
        self._observer.finished(f"the server ended the job: {run.farewell}")
        log.append("job-ended", plan=plan_hash, job=job.job_id, ending="trained" if run.trained else "early")

    def _own(self, plan: Plan) -> Own:
        """Read the site's data and build the network."""
        self._tell(encode(Notice(text="reading its data")))
        self._observer.note("reading its data")
        config = self._home.site()
        prepared = prepare_own(plan, config.source, self._home.folder, self._job.me)
        local = _own_plan(plan, config.source)
        device = choose_device(plan.performance.device)
        be_deterministic(device)
        first = build_model(plan, prepared.input_shape, prepared.num_classes).to(device)
        architecture = architecture_hash(first, prepared.input_shape)
        parameters = sum(parameter.numel() for parameter in trainable(first))
        return Own(self._job.me, plan, bind_plan(local), prepared, first, device, config, architecture, parameters)

    def _wait_for_approval(self, plan: Plan, policy: SitePolicy, log: AuditLog) -> None:
        """Wait for a person, where the policy asks for one; every moment the decision on disk counts.

        Raises:
            ApprovalError: refused, or not approved in time.
        """
        approvals = self._home.approvals()
        plan_hash = approvals.receive(plan)
        if policy.approval.rule == "policy" and approvals.state(plan_hash, policy=policy.digest()) == "pending":
            approvals.approve(
                plan_hash, by="policy", at=datetime.now(UTC), policy=policy.digest(), rule="policy", note=""
            )
            log.append("plan-approved", plan=plan_hash, rule="policy", policy=policy.digest())
        end = time.monotonic() + 60 * policy.approval.wait_minutes
        waiting = False
        while approvals.state(plan_hash, policy=self._home.policy().digest()) == "pending":
            if not waiting:
                self._tell(encode(Notice(text=f"waits for approval of plan {plan_hash[:16]}")))
                self._observer.awaits_approval()
                log.append("approval-awaited", plan=plan_hash)
                waiting = True
            if time.monotonic() > end:
                break
            self._pause()
        approvals.require(plan_hash, policy=self._home.policy().digest())

    def _next(self) -> bytes:
        """The next message of the server.

        Raises:
            InterruptedRunError: the engine ended the job.
            ConfigError: the message is longer than this site takes.
        """
        while True:
            arrival = self._postman.next(_POLL_S)
            if arrival is not None:
                return arrival.data
            if (length := self._postman.too_long(SERVER)) is not None:
                raise ConfigError(
                    "The server's message is longer than this site takes",
                    got=f"{length / 2**20:.0f} MiB",
                    expected=f"at most {self._home.site().max_message_mb} MiB",
                    remedy="raise max_message_mb in the site's site.toml",
                )
            self._observer.server_silent(self._postman.silent_s(SERVER))
            self._stop_if_ended()

    def _pause(self) -> None:
        arrival = self._postman.next(_POLL_S)
        if arrival is not None:
            message, _ = decode(arrival.data)
            if isinstance(message, Farewell):
                raise InterruptedRunError(f"The server ended the job: {message.reason}")
            raise ProtocolError("A message arrived before this site was ready")
        self._observer.server_silent(self._postman.silent_s(SERVER))
        self._stop_if_ended()

    def _stop_if_ended(self) -> None:
        if self._job.abort.is_set():
            raise InterruptedRunError("The engine ended the job")

    def _tell(self, data: bytes) -> None:
        self._postman.send(SERVER, data)


def _disk(error: BaseException) -> RunError | None:
    """What to say where a full or broken disk is behind an error, however it was dressed: that passes; else None."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _DISK:
            return _unusable(link.strerror)
        if isinstance(link, sqlite3.OperationalError) and getattr(link, "sqlite_errorcode", 0) & 0xFF in _LEDGER:
            return _unusable(str(link))
        link = link.__cause__ or link.__context__
    return None


def _unusable(got: str | None) -> RunError:
    return RunError(
        "A file of the site cannot be read or written",
        got=got,
        remedy="make room on its disk, or correct the file's permissions; the run goes on by itself",
    )


def _own_plan(plan: Plan, source: object) -> Plan:
    """The plan with this site's source in place of its own: what a claim says of patients must be true here."""
    data = plan.data.model_copy(update={"source": source})
    return plan.model_copy(update={"data": data})


def _sentence(error: MedveilError, permission: Permission | None) -> str:
    """What the server may know of an error: what went wrong, never values of this site's data, ledger or paths."""
    if isinstance(error, PolicyError | ApprovalError):
        text = told(error, () if permission is None else permission.broken)
    elif isinstance(error, BudgetError):
        text = "This site's privacy budget does not allow the run"
    elif isinstance(error, LedgerError):
        text = "This site's privacy ledger cannot be used for the run"
    else:
        text = error.what
    return text[:LONGEST_TEXT]
