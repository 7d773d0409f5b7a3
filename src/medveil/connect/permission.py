"""Whether this hospital lets a plan run, asked again whenever something is about to leave it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import EVERYONE
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home
from medveil.connect.own import Own
from medveil.connect.policy_checks import Finding, check_plan, check_request, refuse
from medveil.dp.plan import PrivacyPlan
from medveil.errors import ApprovalError, PolicyError
from medveil.federation.engine.context import Submitter
from medveil.study.folder import file_name
from medveil.study.plan import Plan


class Permission:
    """The site's policy and approvals, as they read at every moment.

    Args:
        home: the site's folder.
        log: its audit log.
        plan: as submitted.
        submitter: as the engine has authenticated them.
    """

    def __init__(self, home: Home, log: AuditLog, plan: Plan, submitter: Submitter) -> None:
        self._home, self._log, self._plan, self._submitter = home, log, plan, submitter
        self.broken: tuple[Finding, ...] = ()
        self._seen = ""

    def check_request(self, bound: PrivacyPlan | None) -> None:
        """Ask the policy what it can say before any data are read.

        Raises:
            PolicyError: it refuses.
        """
        self._refuse(check_request(self._home.policy(), self._plan, bound=bound, submitter=self._submitter))

    def check(self, own: Own, sites: Sequence[str]) -> None:
        """Ask the policy everything, with the sites of the job, and whether the plan is still approved.

        Raises:
            PolicyError: the policy refuses.
            ApprovalError: the plan is not approved, or not any more.
        """
        policy = self._home.policy()
        findings = check_plan(
            policy,
            self._plan,
            bound=own.bound,
            submitter=self._submitter,
            sites=sites,
            architecture_hash=own.architecture,
            dataset=own.prepared.dataset.name,
            parameters=own.parameters,
            deidentified=own.config.deidentified,
        )
        self._refuse(findings)
        self._home.approvals().require(self._plan.digest(), policy=policy.digest())
        self._seen = self._stamp()

    def check_again(self, own: Own, sites: Sequence[str]) -> None:
        """The same, where the policy or the approvals were written to since.

        Raises:
            PolicyError: the policy refuses.
            ApprovalError: the plan is not approved any more.
        """
        if self._stamp() != self._seen:
            self.check(own, sites)

    def cap(self, bound: PrivacyPlan | None, site: str, dataset: str) -> None:
        """Hold the site's ledger to the policy's epsilon over all runs, where it has no stricter cap of its own."""
        policy = self._home.policy()
        limit = policy.privacy.epsilon_over_all_runs
        if bound is None or limit is None or policy.privacy.delta is None:
            return
        self._home.ledgers.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Ledger(self._home.ledgers / f"{file_name(site)}.sqlite") as ledger:
            data = ledger.state().datasets.get(dataset)
            cap = data.caps.get(EVERYONE) if data is not None else None
            if cap is None or cap.epsilon > limit or cap.delta > policy.privacy.delta:
                ledger.set_budget(
                    dataset, epsilon=limit, delta=policy.privacy.delta, relation=bound.relation, unit=bound.unit
                )
                self._log.append("budget-set", dataset=dataset, epsilon=limit, delta=policy.privacy.delta)

    def _refuse(self, findings: Sequence[Finding]) -> None:
        if findings:
            self.broken = tuple(findings)
            self._log.append("plan-against-policy", plan=self._plan.digest(), rules=tuple(one.rule for one in findings))
            raise refuse(findings)

    def _stamp(self) -> str:
        """Changes whenever one of the files is written to."""
        digest = hashlib.sha256()
        for path in (self._home.policy_path, self._home.approvals_path):
            digest.update(_content(path))
        return digest.hexdigest()


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:
        return b"missing"
    return hashlib.sha256(content).digest()


def told(error: PolicyError | ApprovalError, broken: Sequence[Finding]) -> str:
    """What the server may know of a refusal: the rules and what the plan has, not what this site would allow."""
    if isinstance(error, PolicyError) and broken:
        return f"{error.what}: " + "; ".join(f"{one.rule}: {one.got}" for one in broken)
    return error.what
