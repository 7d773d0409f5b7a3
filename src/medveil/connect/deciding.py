"""What a hospital's people do with plans that wait, and with the log of what happened."""

import getpass
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medveil.connect.approvals import Decision
from medveil.connect.audit_lines import check_facts
from medveil.connect.audit_verify import Verified, verify
from medveil.connect.home import Home
from medveil.connect.kit import read_kit
from medveil.errors import ApprovalError, AuditLogError, ConfigError
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan

_LEAST_DIGITS = 16


@dataclass(frozen=True)
class Waiting:
    """A plan that nothing is decided about.

    Args:
        plan_hash: of the plan.
        summary: what it asks, in one line.
    """

    plan_hash: str
    summary: str


def waiting_plans(kit: Path) -> list[Waiting]:
    """Plans that wait at a site.

    Raises:
        ConfigError: not a site's kit.
        ApprovalError: the decisions cannot be read.
    """
    read_kit(kit, "site")
    home = Home(kit)
    approvals = home.approvals()
    hashes = approvals.waiting(policy=home.policy().digest())
    return [Waiting(plan_hash, summary(approvals.plan(plan_hash))) for plan_hash in hashes]


def summary(plan: Plan) -> str:
    """A plan in one line: what is trained, for how long, and what the patients are promised."""
    bound = bind_plan(plan)
    promise = "no differential privacy"
    if bound is not None:
        spent = bound.alone(bound.event())
        promise = (
            f"epsilon {spent.epsilon:.2f} at delta {bound.delta:g} for one {bound.unit}, mode {bound.mechanism.kind}"
        )
        if not bound.secure:
            promise += ", NOT PRIVATE: its noise is drawn from a seed"
    sums = "secure sums" if plan.privacy.secure_aggregation is not None else "every site's update seen by the server"
    return f"{plan.name}: {plan.task}, {plan.model.kind}, {plan.federation.rounds} rounds; {promise}; {sums}"


def decide(kit: Path, plan_hash: str, *, by: str = "", refuse: bool = False) -> Decision:
    """Approve or refuse a plan at a site, and log it.

    Args:
        kit: the site's.
        plan_hash: of the plan, or its first digits where they are those of one plan only.
        by: who; by default the user's name on this machine.
        refuse: refuse instead of approve.

    Raises:
        ConfigError: not a site's kit, or a name that a line of the log cannot hold; nothing is decided.
        ApprovalError: no such plan, or several; or the decision cannot be written; of an approval the log has the
            line all the same.
        AuditLogError: the log cannot be written; nothing is approved then, and a refusal holds all the same.
    """
    read_kit(kit, "site")
    home = Home(kit)
    approvals, policy = home.approvals(), home.policy().digest()
    whole = _whole(home, plan_hash)
    who, now = by or getpass.getuser(), datetime.now(UTC)
    log = home.audit_log()
    if refuse:
        facts: dict[str, Any] = {"plan": whole, "by": who, "policy": policy}
        check_facts("plan-refused", facts)
        decision = approvals.revoke(whole, by=who, at=now, policy=policy)  # first: a broken log must not keep a plan on
        try:
            log.append("plan-refused", **facts)
        except AuditLogError as error:
            raise AuditLogError(
                f"The plan is refused, but its line is not in the audit log: {error.what}",
                got=error.got,
                expected=error.expected,
                remedy=error.remedy,
            ) from None
        return decision
    approvals.plan(whole)  # what is approved can be read, and is what its hash says
    log.append("plan-approved", plan=whole, by=who, policy=policy, rule="person")  # first: none without a line
    return approvals.approve(whole, by=who, at=now, policy=policy)


def _whole(home: Home, digits: str) -> str:
    if not re.fullmatch(f"[0-9a-f]{{{_LEAST_DIGITS},64}}", digits):
        raise ApprovalError(
            "This is no hash of a plan",
            got=digits[:80],
            expected=f"at least {_LEAST_DIGITS} hexadecimal digits of one",
            remedy="list the plans that wait: medveil connect approve KIT",
        )
    inbox = home.approvals().inbox
    found = sorted(path.stem for path in inbox.glob(f"{digits}*.json")) if inbox.is_dir() else []
    if len(found) != 1:
        raise ApprovalError(
            "There is no such plan in the inbox" if not found else "Several plans begin with these digits",
            got=digits,
            remedy="list the plans that wait: medveil connect approve KIT",
        )
    return found[0]


def verify_site_log(kit: Path, *, head: str | None = None, public: str | None = None) -> Verified:
    """Check a site's audit log, signatures included.

    Args:
        kit: the site's.
        head: hash of a line that was noted elsewhere.
        public: the key that signed it, hexadecimal; by default the site's in its roster.

    Raises:
        AuditLogError: a line was changed, removed, inserted or reordered; the first is named.
        ConfigError: not a site's kit, or no key.
    """
    site = read_kit(kit, "site")
    home = Home(kit)
    if not home.audit_path.exists():
        raise AuditLogError("This site has no audit log yet", remedy="it begins with the first job")
    if public is None:
        key = home.roster().get(site.name)
        if key is None:
            raise ConfigError("The roster does not name this site", remedy="give its public key with --key")
        return verify(home.audit_path, public_key=key, expect=head)
    try:
        given = bytes.fromhex(public)
    except ValueError:
        raise ConfigError("This is no public key", expected="64 hexadecimal digits") from None
    return verify(home.audit_path, public_key=given, expect=head)
