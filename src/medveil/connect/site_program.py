"""What a hospital's own process does with a job: check it against the hospital's rules, then take part.

Nothing in here trusts the server or the job: the plan is checked against the site's policy and approvals, data are the
site's own, other sites' keys come from the site's own roster.
"""

import time
from contextlib import closing, suppress
from datetime import UTC, datetime

from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home, link_session
from medveil.connect.jobs import check_networked, plan_of
from medveil.connect.policy import SitePolicy
from medveil.connect.policy_checks import check_plan, refuse
from medveil.connect.site_run import Own, SiteRun
from medveil.errors import (
    AuditLogError,
    EngineError,
    InterruptedRunError,
    MedveilError,
    PrivacyError,
    ProtocolError,
    RunError,
)
from medveil.federation.engine.context import JobContext
from medveil.federation.messages import Decline, Farewell, Notice, decode, encode
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
_LONGEST_TEXT = 500
_FAREWELL_S = 5.0


def run_site(job: JobContext) -> None:
    """Take part in a job until the server ends it, this site refuses, or the server is silent for too long.

    Raises:
        MedveilError: why the site does not take part, or stopped; the server was told in one sentence.
    """
    home = Home(job.home)
    log = home.audit_log()
    log.append("job-received", job=job.job_id, submitter=job.submitter.name)
    postman = Postman(job.channel, {SERVER: link_session(job.job_id, job.me)})
    visit = _Visit(job, home, log, postman)
    try:
        visit.take_part()
    except MedveilError as error:
        visit.decline(error)
        raise
    except OSError as error:
        full = RunError(
            "A file of the site cannot be read or written",
            got=error.strerror,
            remedy="make room on its disk; the run goes on by itself",
        )
        visit.decline(full)
        raise full from error
    except Exception:
        visit.decline(RunError("The site met an unexpected error; its own log says which"))
        raise
    finally:
        postman.close()


class _Visit:
    """One job at this site."""

    def __init__(self, job: JobContext, home: Home, log: AuditLog, postman: Postman) -> None:
        self._job, self._home, self._log, self._postman = job, home, log, postman

    def decline(self, error: MedveilError) -> None:
        """Tell the server, in a sentence, that this site does not go on."""
        passing = type(error) is RunError or isinstance(error, InterruptedRunError | EngineError)
        self._postman.send(SERVER, encode(Decline(reason=_sentence(error), final=not passing)))
        self._postman.flush(_FAREWELL_S)
        with suppress(AuditLogError, OSError):
            self._log.append("stopped", job=self._job.job_id, error=type(error).__name__)

    def take_part(self) -> None:
        """The whole job."""
        plan = plan_of(self._job.app)
        check_networked(plan)
        plan = plan.model_copy(update={"performance": self._home.site().performance})
        self._log.append("plan-received", plan=plan.digest(), job=self._job.job_id)
        own = self._checked(plan)
        self._wait_for_approval(plan, self._home.policy())
        self._log.append("plan-accepted", plan=plan.digest(), job=self._job.job_id)
        self._tell(own.ready())
        run = SiteRun(
            own,
            self._home,
            log=self._log,
            allow=lambda sites: self._check(own, sites),
        )
        with closing(run):
            while not run.finished:
                arrival = self._next()
                for answer in run.receive(arrival):
                    self._tell(answer)
        self._postman.flush(10.0)
        self._log.append("job-ended", plan=plan.digest(), job=self._job.job_id)

    def _checked(self, plan: Plan) -> Own:
        """Read the site's data and build the network, then ask the policy."""
        self._tell(encode(Notice(text="reading its data")))
        config = self._home.site()
        prepared = prepare_own(plan, config.source, self._home.folder, self._job.me)
        local = _own_plan(plan, config.source)
        device = choose_device(plan.performance.device)
        be_deterministic(device)
        first = build_model(plan, prepared.input_shape, prepared.num_classes)
        own = Own(self._job.me, plan, bind_plan(local), prepared, first.to(device), device, config)
        self._check(own, tuple(self._home.roster()))
        return own

    def _check(self, own: Own, sites: tuple[str, ...]) -> None:
        """Ask the policy, as it reads now.

        Raises:
            PolicyError: it refuses.
        """
        findings = check_plan(
            self._home.policy(),
            own.plan,
            bound=own.bound,
            submitter=self._job.submitter,
            sites=sites,
            architecture_hash=architecture_hash(own.first, own.prepared.input_shape),
            dataset=own.prepared.dataset.name,
            parameters=sum(parameter.numel() for parameter in trainable(own.first)),
            deidentified=own.config.deidentified,
        )
        if findings:
            for finding in findings:
                self._log.append("rule-broken", plan=own.plan.digest(), rule=finding.rule)
            raise refuse(findings)

    def _wait_for_approval(self, plan: Plan, policy: SitePolicy) -> None:
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
            self._log.append("plan-approved", plan=plan_hash, rule="policy")
        end = time.monotonic() + 60 * policy.approval.wait_minutes
        told = False
        while approvals.state(plan_hash, policy=self._home.policy().digest()) == "pending":
            if not told:
                self._tell(encode(Notice(text=f"waits for approval of plan {plan_hash[:12]}")))
                self._log.append("approval-awaited", plan=plan_hash)
                told = True
            if time.monotonic() > end:
                break
            self._pause()
        approvals.require(plan_hash, policy=self._home.policy().digest())

    def _next(self) -> bytes:
        """The next message of the server.

        Raises:
            InterruptedRunError: the engine ended the job.
        """
        while True:
            arrival = self._postman.next(_POLL_S)
            if arrival is not None:
                return arrival.data
            self._stop_if_ended()

    def _pause(self) -> None:
        arrival = self._postman.next(_POLL_S)
        if arrival is not None and isinstance(decode(arrival.data)[0], Farewell):
            raise InterruptedRunError("The server ended the run")
        if arrival is not None:
            raise ProtocolError("A message arrived before this site was ready")
        self._stop_if_ended()

    def _stop_if_ended(self) -> None:
        if self._job.abort.is_set():
            raise InterruptedRunError("The engine ended the job")

    def _tell(self, data: bytes) -> None:
        self._postman.send(SERVER, data)


def _own_plan(plan: Plan, source: object) -> Plan:
    """The plan with this site's source in place of its own: what a claim says of patients must be true here."""
    data = plan.data.model_copy(update={"source": source})
    return plan.model_copy(update={"data": data})


def _sentence(error: MedveilError) -> str:
    """What the server may know of an error: what went wrong, never values of this site's data or paths."""
    what = str(error) if isinstance(error, PrivacyError) else error.what
    return what[:_LONGEST_TEXT]
