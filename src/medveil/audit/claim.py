"""What is claimed: by a plan before it runs, or by a finished run after what its ledgers were charged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medveil.accounting.events import Repeated
from medveil.audit.planned import planned_step
from medveil.audit.rig import AuditedStep
from medveil.audit.verdict import Component
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import SiteDpFedAvg
from medveil.errors import AttackError, RunError
from medveil.study.evaluate import stored_plan
from medveil.study.folder import RunFolder, read_json
from medveil.study.manifest import verify_manifest
from medveil.study.plan import Plan, load_plan
from medveil.study.privacy import bind_plan, reasons_against

_ROUNDING = 1e-6
# A ledger works at a delta without the part that is kept back for rounding.
_LEDGERS_ROUND = 1e-3


@dataclass(frozen=True, eq=False)
class Claim:
    """A claimed epsilon, and the step that it is about.

    Attributes:
        kind: "run" or "plan".
        name: of the plan.
        plan_hash: of the plan.
        epsilon: of everything together, against the worst coalition that is tolerated.
        delta: of it.
        steps: that were charged, or are planned.
        audited: the step.
        accounting: whether the accountant comes to the same epsilon; None for a plan, whose epsilon is the
            accountant's.
    """

    kind: Literal["run", "plan"]
    name: str
    plan_hash: str
    epsilon: float
    delta: float
    steps: int
    audited: AuditedStep
    accounting: Component | None


def claim_of(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Claim:
    """The claim of a finished run's folder, or of a plan.

    Args:
        target: folder of a run, path of a plan, or name of a shipped plan.
        overrides: of a plan's keys.
        input_shape: where a plan does not say it; a run's record does.
        num_classes: as ``input_shape``.

    Raises:
        AttackError: there is no claim to audit: no differential privacy, a run or plan that is stamped NOT PRIVATE, or
            privacy of whole sites, whose steps nothing here can take; or keys of a finished run are to be changed.
        ConfigError: the plan cannot be used.
        RunError: not a finished run.
        ManifestError: files of the run changed after it was signed.
    """
    path = Path(target)
    if not path.is_dir():
        return _of_plan(load_plan(target, overrides), input_shape, num_classes)
    if overrides:
        raise AttackError(
            "A finished run is what it is", got="--set", remedy="audit the plan, or leave out what is to be changed"
        )
    return _of_run(path)


def _of_plan(plan: Plan, input_shape: tuple[int, ...] | None, num_classes: int | None) -> Claim:
    promise = _promised(plan)
    epsilon = promise.total().epsilon
    reasons = reasons_against(plan, promise, epsilon)
    if reasons:
        raise _nothing_claimed(f"NOT PRIVATE: {reasons[0]}")
    audited, _ = planned_step(plan, input_shape=input_shape, num_classes=num_classes)
    return Claim("plan", plan.name, plan.digest(), epsilon, promise.delta, promise.steps, audited, None)


def _of_run(path: Path) -> Claim:
    folder = RunFolder(path)
    record = read_json(folder.record)
    verify_manifest(path)
    plan = stored_plan(folder)
    promise, said = _promised(plan), record.get("privacy")
    if not said or said.get("stamp"):
        reasons = (said or {}).get("stamp_reasons") or ["the record claims nothing"]
        raise _nothing_claimed(reasons[0])
    try:
        epsilon, steps = float(said["epsilon"]), int(said["steps"])
        shape = tuple(int(side) for side in record["model"]["input_shape"])
        classes = len(record["data"]["class_names"])
    except (KeyError, TypeError, ValueError):
        raise RunError(
            "The record lacks what an audit needs", expected="privacy, model and data of a finished run"
        ) from None
    audited, _ = planned_step(plan, input_shape=shape, num_classes=classes)
    accounting = _accounting(said, epsilon, max(steps, promise.steps), promise)
    digest = str(record.get("plan_hash", plan.digest()))
    return Claim("run", plan.name, digest, epsilon, promise.delta, max(steps, 1), audited, accounting)


def _promised(plan: Plan) -> PrivacyPlan:
    if plan.privacy.dp is None:
        raise _nothing_claimed("no differential privacy")
    if isinstance(plan.privacy.dp, SiteDpFedAvg):
        raise AttackError(
            "Only steps that protect patients or images can be audited",
            got='privacy.dp.kind = "site": the server adds noise to whole sites\' changes',
            expected='privacy.dp.kind = "central", "local" or "distributed"',
        )
    promise = bind_plan(plan)
    assert promise is not None
    return promise


def _nothing_claimed(got: str) -> AttackError:
    return AttackError(
        "There is no privacy claim to audit",
        got=got,
        expected="a plan or run with differential privacy and without a NOT PRIVATE stamp",
        remedy="add [privacy.dp] to the plan; medveil attack shows what an unprotected run leaks",
    )


def _accounting(said: dict[str, Any], epsilon: float, steps: int, promise: PrivacyPlan) -> Component:
    """Whether the record's steps cost what it says, are the plan's, and were charged to a ledger where any was kept."""
    training = Repeated(event=promise.step_event(), count=steps)
    found = promise.total(training).epsilon
    wrong = _unlike(said, promise)
    ledgers = [kept.get("epsilon_all_runs") or 0.0 for kept in (said.get("ledgers") or {}).values()]
    if ledgers and max(ledgers) < promise.alone(training).epsilon * (1 - _LEDGERS_ROUND):
        wrong.append("what the ledgers were charged")
    passed = found <= epsilon * (1 + _ROUNDING) and not wrong
    sentence = f"the accountant's epsilon of the {steps} steps that the record must pay for"
    if wrong:
        sentence += f"; the record and the plan differ in {', '.join(wrong)}"
    return Component("accounting", passed, epsilon, found, None, None, sentence)


def _unlike(said: dict[str, Any], promise: PrivacyPlan) -> list[str]:
    """What the record says of the mechanism, other than the plan."""
    planned = {
        "delta": promise.delta,
        "noise_multiplier": promise.noise_multiplier,
        "sampling_rate": promise.sampling_rate,
        "l2_clip_norm": promise.mechanism.clipping.l2_clip_norm,
    }
    return [
        name
        for name, value in planned.items()
        if not isinstance(said.get(name), int | float) or abs(said[name] - value) > _ROUNDING * abs(value)
    ]
