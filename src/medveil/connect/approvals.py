"""What this site has approved, by the hash of the whole plan, and the plans that wait for somebody."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from medveil.configuration import Config, ConfigT, parse_config
from medveil.connect.policy import Hash
from medveil.disk import alone_with, replace_file, sync_folder
from medveil.errors import ApprovalError, ConfigError
from medveil.study.plan import Plan

State = Literal["approved", "pending", "refused"]
Rule = Literal["person", "policy"]

_HASH = re.compile("[0-9a-f]{64}")
_LONGEST_FILE = 1 << 24


class Decision(Config):
    """One decision about one plan.

    Attributes:
        plan: the plan's hash.
        decision: "approved", or "refused" (a revoked approval too).
        by: who decided; the name of a rule's approval is the site's own.
        at: when, UTC.
        rule: "person", or "policy" where meeting the rules was enough.
        policy: hash of the policy that was in force.
        note: a remark.
    """

    plan: Hash
    decision: Literal["approved", "refused"]
    by: str = Field(min_length=1, max_length=200)
    at: datetime
    rule: Rule
    policy: Hash
    note: str = Field("", max_length=1000)

    @field_validator("at")
    @classmethod
    def _with_a_zone(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("a time with its zone")
        return value.astimezone(UTC)


class _File(Config):
    """The whole file: every decision ever taken, oldest first."""

    version: Literal[1] = 1
    decisions: tuple[Decision, ...] = ()


class Approvals:
    """A site's decisions, for several processes at a time; each is on disk when its method returns.

    The last decision about a plan counts. An approval is of one hash, so that any change of the plan leaves it
    without one. One that the policy's rule gave lapses when the policy changes; one that a person gave stays, and the
    policy is checked before every run anyway.

    Args:
        path: of the JSON file; made with the first decision, readable by its owner only.
        inbox: folder of waiting plans; beside the file by default.
    """

    def __init__(self, path: Path, inbox: Path | None = None) -> None:
        self.path = path
        self.inbox = path.with_name("inbox") if inbox is None else inbox

    def approve(
        self, plan_hash: str, *, by: str, at: datetime, policy: str, rule: Rule = "person", note: str = ""
    ) -> Decision:
        """Approve the plan that has this hash, and no other.

        Args:
            plan_hash: 64 hexadecimal digits.
            by: who.
            at: when, with its time zone.
            policy: hash of the site's policy now.
            rule: "person", or "policy" where meeting the rules was enough.
            note: a remark.

        Raises:
            ConfigError: not a hash, no name, or no time zone.
            ApprovalError: the file cannot be used, or a rule would overrule a person's refusal.
        """
        return self._decide("approved", plan=plan_hash, by=by, at=at, policy=policy, rule=rule, note=note)

    def revoke(self, plan_hash: str, *, by: str, at: datetime, policy: str, note: str = "") -> Decision:
        """Refuse the plan that has this hash, whether it was approved before or not; arguments as for approve."""
        return self._decide("refused", plan=plan_hash, by=by, at=at, policy=policy, rule="person", note=note)

    def state(self, plan_hash: str, *, policy: str) -> State:
        """Where a plan stands.

        Args:
            plan_hash: of the plan as it would run.
            policy: hash of the site's policy now.

        Raises:
            ApprovalError: the file cannot be used; nothing is approved then.
        """
        decision = self.decision(plan_hash)
        if decision is None or _lapsed(decision, policy):
            return "pending"
        return decision.decision

    def require(self, plan_hash: str, *, policy: str) -> Decision:
        """The approval under which a plan may run.

        Raises:
            ApprovalError: it waits, was refused or revoked, or its approval lapsed.
        """
        decision = self.decision(plan_hash)
        if decision is not None and decision.decision == "approved" and not _lapsed(decision, policy):
            return decision
        if decision is None:
            got = "no decision"
        else:
            got = "an approval by rule under another policy" if decision.decision == "approved" else "refused"
        raise ApprovalError(
            "This site has not approved the plan",
            got=f"{got} for {plan_hash}",
            expected="an approval of this very hash",
            remedy="look at the plan in the inbox, then approve its hash; any change of a plan gives it another hash",
        )

    def decision(self, plan_hash: str) -> Decision | None:
        """The last decision about a plan, lapsed or not."""
        return next((one for one in reversed(self.history()) if one.plan == plan_hash), None)

    def history(self) -> tuple[Decision, ...]:
        """Every decision, oldest first.

        Raises:
            ApprovalError: the file is damaged or cannot be read.
        """
        try:
            return _parsed(_File, _bytes_of(self.path)).decisions
        except FileNotFoundError:
            return ()

    def receive(self, plan: Plan) -> str:
        """Put a plan into the inbox under its own hash, which is returned; a plan that is there already stays.

        Raises:
            ApprovalError: the folder cannot be written.
        """
        plan_hash = plan.digest()
        try:
            self.inbox.mkdir(mode=0o700, parents=True, exist_ok=True)
            with alone_with(self._lock_file()):
                _replace(self._place(plan_hash), json.dumps(plan.model_dump(mode="json"), indent=2).encode())
        except OSError as error:
            raise _unusable("The inbox cannot be written", error) from None
        return plan_hash

    def waiting(self, *, policy: str) -> tuple[str, ...]:
        """Hashes of the plans in the inbox about which nothing is decided, sorted; read each with :meth:`plan`."""
        names = (path.stem for path in self.inbox.glob("*.json")) if self.inbox.is_dir() else ()
        hashes = sorted(name for name in names if _HASH.fullmatch(name))
        return tuple(name for name in hashes if self.state(name, policy=policy) == "pending")

    def plan(self, plan_hash: str) -> Plan:
        """A plan of the inbox, whose hash is computed from what the file says.

        Raises:
            ApprovalError: there is none, or the file holds another plan than its name says.
        """
        if not _HASH.fullmatch(plan_hash):
            raise ApprovalError("This is no hash of a plan", got=plan_hash, expected="64 hexadecimal digits")
        try:
            plan = _parsed(Plan, _bytes_of(self._place(plan_hash)))
        except FileNotFoundError:
            raise ApprovalError(
                "There is no such plan in the inbox", got=plan_hash, remedy="list the plans that wait"
            ) from None
        if plan.digest() != plan_hash:
            raise ApprovalError(
                "A plan in the inbox is not the one that its name says",
                got=plan.digest(),
                expected=plan_hash,
                remedy="do not approve it; remove the file and let the plan be submitted again",
            )
        return plan.model_copy(update={"root": Path(), "data_root": Path()})

    def discard(self, plan_hash: str) -> None:
        """Take a plan out of the inbox; decisions stay."""
        if _HASH.fullmatch(plan_hash):
            self._place(plan_hash).unlink(missing_ok=True)

    def _decide(self, decision: str, **facts: Any) -> Decision:
        made = parse_config(Decision, {"decision": decision, **facts}, where="approval")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with alone_with(self._lock_file()):
                _check_overrule(self.decision(made.plan), made)
                content = _File(decisions=(*self.history(), made))
                _replace(self.path, content.model_dump_json(indent=2).encode())
        except OSError as error:
            raise _unusable("The site's approvals cannot be written", error) from None
        return made

    def _place(self, plan_hash: str) -> Path:
        return self.inbox / f"{plan_hash}.json"

    def _lock_file(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")


def _lapsed(decision: Decision, policy: str) -> bool:
    return decision.decision == "approved" and decision.rule == "policy" and decision.policy != policy


def _check_overrule(last: Decision | None, made: Decision) -> None:
    if last is not None and last.decision == "refused" and made.rule == "policy":
        raise ApprovalError(
            "A person has refused this plan, and a rule does not overrule them",
            got=made.plan,
            expected="a person's approval",
            remedy="let somebody approve the plan's hash",
        )


def _bytes_of(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: there is none.
        ApprovalError: it cannot be read, or is far too long.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(f"{path.name} cannot be read", error) from None
    if len(raw) > _LONGEST_FILE:
        raise ApprovalError(f"{path.name} is too long", expected=f"at most {_LONGEST_FILE} bytes")
    return raw


def _parsed(model: type[ConfigT], raw: bytes) -> ConfigT:
    try:
        return model.model_validate_json(raw)
    except (ValidationError, ConfigError, RecursionError):
        raise ApprovalError(
            "A file of this site's approvals is damaged",
            expected="what medveil wrote",
            remedy="restore the newest copy; until then nothing is approved",
        ) from None


def _replace(path: Path, data: bytes) -> None:
    """Write a whole file durably, or leave the old one; call it under the lock."""
    replace_file(path, data, mode=0o600)
    sync_folder(path.parent)


def _unusable(what: str, error: OSError) -> ApprovalError:
    return ApprovalError(what, got=error.strerror, remedy="check the folder, its permissions and free space")
