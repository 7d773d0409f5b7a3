"""The step that a plan leads to, built without data, ready to be audited."""

from typing import Final, TypeVar

from medveil.audit.components import ALPHA, audit_components
from medveil.audit.rig import AuditedStep
from medveil.audit.verdict import ComponentAudit
from medveil.data.partition import NaturalPartition
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import DistributedDpSgd, LocalDpSgd, SiteDpFedAvg
from medveil.errors import ConfigError, GuaranteeError
from medveil.rng import Seeds
from medveil.study.arms import build_model
from medveil.study.dry_run import stated_classes, stated_shape
from medveil.study.parties import number_of_sites
from medveil.study.plan import Plan
from medveil.study.prepare import input_scale
from medveil.study.privacy import bind_plan
from medveil.study.secure import modulus_bits, step_plan
from medveil.training.vectors import trainable

_POOL: Final = "pool"
_T = TypeVar("_T")


def audit_plan(
    plan: Plan,
    *,
    steps: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    alpha: float = ALPHA,
    seeds: Seeds | None = None,
) -> ComponentAudit:
    """Audit the private step that ``plan`` would take, on noise images: no data are read. Not a proof.

    Args:
        plan: with a ``[privacy.dp]`` table of steps.
        steps: see :func:`medveil.audit.components.audit_components`.
        input_shape: see :func:`planned_step`.
        num_classes: see :func:`planned_step`.
        alpha: see :func:`medveil.audit.components.audit_components`.
        seeds: see :func:`medveil.audit.components.audit_components`.

    Raises:
        GuaranteeError: the plan promises nothing, or has no steps of patients or images.
        ConfigError: see :func:`planned_step`.
    """
    audited, promise = planned_step(plan, input_shape=input_shape, num_classes=num_classes)
    return audit_components(audited, promise=promise, steps=steps, alpha=alpha, seeds=seeds)


def planned_step(
    plan: Plan, *, input_shape: tuple[int, ...] | None = None, num_classes: int | None = None
) -> tuple[AuditedStep, PrivacyPlan]:
    """The first party's step, with the plan's own model, clipping and noise.

    Args:
        plan: with a ``[privacy.dp]`` table of steps.
        input_shape: (channels, *spatial), where the plan does not say it.
        num_classes: background included, where the plan does not say it.

    Raises:
        GuaranteeError: the plan promises nothing, or has no steps of patients or images.
        ConfigError: neither plan nor arguments say what an image looks like, or they disagree.
    """
    promise = bind_plan(plan)
    if promise is None or isinstance(promise.mechanism, SiteDpFedAvg):
        raise GuaranteeError(
            "There is no private step to audit",
            got="no [privacy.dp]" if promise is None else 'privacy.dp.kind = "site"',
            expected='privacy.dp.kind = "central", "local" or "distributed"',
        )
    shape = _agreed("input shape", stated_shape(plan), input_shape, "--shape 1,28,28")
    classes = _agreed("number of classes", stated_classes(plan.data.source), num_classes, "--classes 2")
    model = build_model(plan, shape, classes)
    dimension = sum(parameter.numel() for parameter in trainable(model))
    party, parties = _first_party(plan)
    audited = AuditedStep(
        model=model,
        step=step_plan(plan, promise, dimension, party, parties),
        unit=promise.unit,
        training=plan.training,
        input_shape=shape,
        num_classes=classes,
        task=plan.task,
        performance=plan.performance,
        scale=input_scale(plan.data.preprocess),
        modulus_bits=modulus_bits(plan, promise, dimension, parties),
    )
    return audited, promise


def _first_party(plan: Plan) -> tuple[str, int]:
    """A party's name and how many there are, as the step's divisor wants them."""
    mechanism, partition = plan.privacy.dp, plan.data.partition
    if isinstance(mechanism, DistributedDpSgd):
        return "site-1", number_of_sites(plan)
    if not isinstance(mechanism, LocalDpSgd):
        return _POOL, 1
    stated = mechanism.sampling.nominal_units
    if not isinstance(stated, int):
        return min(stated), len(stated)
    return "site-1", 1 if isinstance(partition, NaturalPartition) else partition.count


def _agreed(what: str, planned: _T | None, stated: _T | None, option: str) -> _T:
    found = stated if planned is None else planned
    if found is None:
        raise ConfigError(
            f"Only the data know the {what}, and the audit reads none", remedy=f"state it, for example {option}"
        )
    if stated is not None and stated != found:
        raise ConfigError(f"The plan has another {what}", got=stated, expected=found, remedy="leave the option out")
    return found
