"""Whether this hospital lets a plan run, asked again whenever something is about to leave it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import EVERYONE
from medveil.connect.audit_lines import as_name
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home
from medveil.connect.own import Own
from medveil.connect.policy_checks import Finding, check_plan, check_request, refuse
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import Relation
from medveil.errors import ApprovalError, PolicyError
from medveil.federation.engine.context import Submitter
from medveil.study.folder import file_name
from medveil.study.plan import Plan


class Terms(TypedDict):
    """A limit of epsilon, and how it is counted."""

    epsilon: float
    delta: float
    relation: Relation
    unit: str


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

    def cap(self, bound: PrivacyPlan | None, site: str, dataset: str, run: str) -> None:
        """Hold the run, and the site's ledger, to the policy's epsilon over all runs.

        The ledger's own cap is replaced by a stricter one only: where neither is (a smaller epsilon at a larger delta),
        or the policy counts under another relation than the plan, the ledger's stays and the whole run is checked
        against the policy's besides.

        Raises:
            BudgetError: all runs together would cost more than the policy allows, at its delta and relation.
        """
        policy = self._home.policy()
        floor, limit = policy.privacy, policy.privacy.epsilon_over_all_runs
        if bound is None or limit is None or floor.delta is None or floor.relation is None:
            return
        self._home.ledgers.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Ledger(self._home.ledgers / f"{file_name(site)}.sqlite") as ledger:
            terms: Terms = {"epsilon": limit, "delta": floor.delta, "relation": floor.relation, "unit": bound.unit}
            ledger.check_limit(run, dataset, bound.event(), **terms)
            data = ledger.state().datasets.get(dataset)
            cap = data.caps.get(EVERYONE) if data is not None else None
            stricter = cap is None or (limit <= cap.epsilon and floor.delta <= cap.delta)
            same = cap is not None and (limit, floor.delta) == (cap.epsilon, cap.delta)
            if stricter and not same and floor.relation == bound.relation:
                ledger.set_budget(dataset, **terms)
                self._log.append("budget-set", dataset=as_name(dataset), epsilon=limit, delta=floor.delta)

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
