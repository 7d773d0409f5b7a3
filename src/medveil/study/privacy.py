"""From a plan's ``[privacy]`` table to a bound guarantee, and to what the record says about it."""

from collections.abc import Iterable, Mapping
from typing import Any

from medveil.accounting.events import Event, compose, flatten
from medveil.accounting.meaning import membership_advantage, reconstruction_bound, trade_off
from medveil.data.partition import NaturalPartition
from medveil.dp.plan import LARGEST_CLAIM, PrivacyPlan, bind
from medveil.dp.settings import CentralDpSgd, LocalDpSgd, SiteDpFedAvg
from medveil.errors import ConfigError, GuaranteeError
from medveil.federation.settings import FedSgd
from medveil.study.claims import assumptions, holds_against, out_of_scope
from medveil.study.plan import Plan

NOT_PRIVATE = "NOT PRIVATE"
_FALSE_POSITIVE_RATES = (0.001, 0.01)
_PRIORS = (1e-6, 1e-3, 0.1)
_CURVE = (0.0, 0.0001, 0.001, 0.003, 0.01, *(round(point / 50, 2) for point in range(1, 51)))


def bind_plan(plan: Plan) -> PrivacyPlan | None:
    """What the plan promises, with its noise calibrated; None where it promises nothing.

    Everything is checked here that can be checked without data.

    Raises:
        ConfigError: settings that do not fit together.
        GuaranteeError: the claim would be hollow.
    """
    privacy = plan.privacy
    if privacy.dp is None:
        return None
    assert privacy.unit is not None
    assert privacy.relation is not None
    assert privacy.delta is not None
    assert privacy.trusted is not None
    _check_algorithm(plan)
    _check_leaks(plan)
    _check_patients(plan)
    return bind(
        privacy.dp,
        unit=privacy.unit,
        relation=privacy.relation,
        delta=privacy.delta,
        trusted=privacy.trusted,
        steps=planned_steps(plan),
        parties=_parties(plan),
        earlier=tuple(earlier.event for earlier in privacy.earlier),
    )


def planned_steps(plan: Plan) -> int:
    """Private steps of each party over the whole training."""
    return plan.federation.rounds * steps_per_round(plan)


def steps_per_round(plan: Plan) -> int:
    """Private steps of a party in one round."""
    return getattr(plan.federation.algorithm, "local_steps", None) or 1 if _steps_are_local(plan) else 1


def is_pooled(plan: Plan) -> bool:
    """Whether one curator trains on all sites' data."""
    return isinstance(plan.privacy.dp, CentralDpSgd)


def _steps_are_local(plan: Plan) -> bool:
    return isinstance(plan.privacy.dp, LocalDpSgd)


def _parties(plan: Plan) -> int:
    mechanism, partition = plan.privacy.dp, plan.data.partition
    if not isinstance(mechanism, LocalDpSgd):
        return 1
    if not isinstance(partition, NaturalPartition):
        return partition.count
    stated = mechanism.sampling.nominal_units
    if isinstance(stated, int):
        raise ConfigError(
            "The data name the sites, so the plan must state a public nominal size for each",
            got=f"privacy.dp.sampling.nominal_units = {stated}",
            expected="a table: one number for every site",
            remedy='write nominal_units = { "first site" = 1000, "second site" = 500 }',
        )
    return len(stated)


def _check_algorithm(plan: Plan) -> None:
    """The mechanism decides what a round is."""
    algorithm, kind = plan.federation.algorithm, plan.privacy.dp.kind if plan.privacy.dp else ""
    if is_pooled(plan) and not isinstance(algorithm, FedSgd):
        raise ConfigError(
            "A curator's training goes step by step",
            got=f'federation.algorithm.kind = "{algorithm.kind}"',
            expected='"fedsgd": a round is one noisy step',
            remedy='set federation.algorithm = { kind = "fedsgd" } and federation.rounds to the number of steps',
        )
    if not is_pooled(plan) and isinstance(algorithm, FedSgd):
        raise ConfigError(
            f'Privacy of the kind "{kind}" averages models',
            got='federation.algorithm.kind = "fedsgd"',
            expected='"fedavg" or "fedprox"',
            remedy='set federation.algorithm = { kind = "fedavg", local_steps = ... }',
        )
    if _steps_are_local(plan) and getattr(algorithm, "local_steps", None) is None:
        raise ConfigError(
            "The number of private steps would depend on the private size of a site",
            got="federation.algorithm.local_epochs",
            expected="federation.algorithm.local_steps",
            remedy="state local_steps; an epoch is about 1 / privacy.dp.sampling.rate steps",
        )


def _check_leaks(plan: Plan) -> None:
    """Refuse settings by which something about the training patients would leave besides the noisy steps."""
    if plan.federation.weighting == "size":
        raise GuaranteeError(
            "Weighting sites by size would publish their sizes",
            got='federation.weighting = "size"',
            expected='"equal"',
            remedy='set federation.weighting = "equal"',
        )
    if plan.training.amp != "off":
        raise ConfigError(
            "Per-patient gradients are computed in float32",
            got=f'training.amp = "{plan.training.amp}"',
            expected='"off"',
        )
    if plan.training.class_weights == "balanced" and "counted-class-weights" not in plan.privacy.overrides:
        raise GuaranteeError(
            "Balanced class weights are counted on the patients that the guarantee covers",
            got='training.class_weights = "balanced"',
            expected='"none", or one public number for every class',
            remedy="state the weights as numbers",
        )
    compared = plan.references.central or plan.references.local_only
    if compared and "unprotected-references" not in plan.privacy.overrides:
        raise GuaranteeError(
            "The references are trained on the same patients without protection, and their scores are published",
            got=f"references.central = {plan.references.central}, references.local_only = {plan.references.local_only}",
            expected="false, false",
            remedy="set both to false; or accept the stamp NOT PRIVATE with "
            'privacy.overrides = ["unprotected-references"]',
        )
    _check_held_out(plan)


def _check_held_out(plan: Plan) -> None:
    if plan.privacy.held_out == "public":
        return
    leaks = {
        "federation.validate_every": plan.federation.validate_every > 0,
        'evaluation.threshold = "validation"': plan.task == "classification"
        and plan.evaluation.threshold == "validation",
    }
    found = [name for name, leak in leaks.items() if leak]
    if found:
        raise GuaranteeError(
            "A validation curve would leak: its patients are private and its scores have no noise",
            got=", ".join(found),
            expected="federation.validate_every = 0 and a fixed evaluation.threshold",
            remedy='set them so; or state privacy.held_out = "public" where validation patients agreed to it',
        )


def _check_patients(plan: Plan) -> None:
    """A patient-level claim needs to know whose an image is."""
    privacy, source = plan.privacy, plan.data.source
    if privacy.unit == "patient" and not source.names_patients and not privacy.one_image_per_patient:
        raise GuaranteeError(
            "The claim is about patients, and the data do not say whose an image is",
            got=source.subject_rule,
            expected="a source with a patient column, pattern or header",
            remedy='name the patient column of the source; set privacy.unit = "image"; or state '
            "privacy.one_image_per_patient = true where every image is of another patient",
        )


def reasons_against(plan: Plan, bound: PrivacyPlan, epsilon: float) -> list[str]:
    """Why the run may not be called private, in sentences; empty when it may.

    Args:
        plan: of the run.
        bound: its guarantee.
        epsilon: of everything together.
    """
    reasons = []
    if not bound.secure:
        reasons.append("The noise came from a seed that the plan states: whoever knows it can subtract the noise.")
    sentences = {
        "unprotected-references": "References were trained on the same patients without protection, and their scores "
        "are published.",
        "counted-class-weights": "Class weights were counted on the patients without noise.",
    }
    used = {
        "unprotected-references": plan.references.central or plan.references.local_only,
        "counted-class-weights": plan.training.class_weights == "balanced",
    }
    if epsilon > LARGEST_CLAIM:
        reasons.append(f"Epsilon is above {LARGEST_CLAIM:g}: that promises nothing.")
    reasons += [sentences[name] for name in plan.privacy.overrides if used[name]]
    return reasons


def check_ledger_use(plan: Plan, bound: PrivacyPlan | None) -> None:
    """Refuse to write into a kept ledger what it could not count.

    Raises:
        GuaranteeError: the plan promises nothing, or the run would be stamped NOT PRIVATE: its releases cost more than
            any event says, and a ledger that listed them as ordinary ones would mislead every later reader.
    """
    if bound is None:
        raise GuaranteeError(
            "The plan promises no differential privacy, so a privacy ledger cannot count what it spends",
            got="--ledger without [privacy.dp]",
            remedy="leave out --ledger, or add [privacy.dp]",
        )
    reasons = reasons_against(plan, bound, bound.total().epsilon)
    if reasons:
        raise GuaranteeError(
            "The run would be stamped NOT PRIVATE, so a privacy ledger cannot count what it spends",
            got=reasons[0],
            remedy="leave out --ledger, or remove what the stamp is for",
        )


def privacy_part(
    plan: Plan,
    bound: PrivacyPlan,
    *,
    charged: Mapping[str, Event] | None = None,
    ledgers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record's ``privacy``: what is promised, to whom, on what assumptions, and what it means.

    Args:
        plan: of the run.
        bound: its guarantee.
        charged: what every party's ledger was really charged; None describes the plan.
        ledgers: what the parties' ledgers say, for the record.
    """
    # A training that stopped early stopped because of what it had released: only the whole plan bounds that.
    trained = [_larger(event, bound) for event in charged.values()] if charged else [bound.event()]
    totals = [bound.total(event) for event in trained]
    worst = max(range(len(totals)), key=lambda index: totals[index].epsilon)
    spent, event = totals[worst], trained[worst]
    reasons = reasons_against(plan, bound, spent.epsilon)
    return {
        "stamp": NOT_PRIVATE if reasons else None,
        "stamp_reasons": reasons,
        "mode": bound.mechanism.kind,
        "unit": bound.unit,
        "relation": bound.relation,
        "delta": bound.delta,
        "epsilon": spent.epsilon,
        "epsilon_server": None if isinstance(bound.mechanism, SiteDpFedAvg) else spent.epsilon,
        "epsilon_insider": spent.epsilon,
        "epsilon_rdp": spent.epsilon_rdp,
        "epsilon_target": bound.mechanism.noise.epsilon,
        "noise_multiplier": bound.noise_multiplier,
        "sampling_rate": bound.sampling_rate,
        "steps": _count(list((charged or {"plan": event}).values())[worst], bound),
        "steps_planned": bound.steps,
        "l2_clip_norm": bound.mechanism.clipping.l2_clip_norm,
        "clipping": bound.mechanism.clipping.kind,
        "accountant": spent.accountant,
        "trusted": bound.trusted,
        "holds_against": holds_against(bound),
        "assumptions": assumptions(plan, bound),
        "out_of_scope": out_of_scope(plan, bound),
        "composition": _composition(plan, bound, event),
        "meaning": _meaning(compose([event, *bound.earlier]), bound),
        "ledgers": dict(ledgers) if ledgers is not None else None,
    }


def _larger(event: Event, bound: PrivacyPlan) -> Event:
    return event if _count(event, bound) >= bound.steps else bound.event()


def _count(event: Event, bound: PrivacyPlan) -> int:
    """Steps in what was charged."""
    return sum(count for one, count in flatten(event) if one == bound.step_event())


def _composition(plan: Plan, bound: PrivacyPlan, event: Event) -> list[dict[str, Any]]:
    parts: Iterable[tuple[str, Event]] = [
        ("training", event),
        *((earlier.what, earlier.event) for earlier in plan.privacy.earlier),
    ]
    return [
        {"what": what, "event": one.model_dump(mode="json"), "epsilon": bound.alone(one).epsilon} for what, one in parts
    ]


def _meaning(event: Event, bound: PrivacyPlan) -> dict[str, Any]:
    """What the best attack can do, whatever it knows: from the trade-off curve of everything that was spent."""
    missed = trade_off(event, (*_FALSE_POSITIVE_RATES, *_CURVE), relation=bound.relation).tolist()
    rates = zip(_FALSE_POSITIVE_RATES, missed, strict=False)
    return {
        "membership_advantage": membership_advantage(event, relation=bound.relation),
        "tpr_at_fpr": [{"fpr": rate, "tpr": 1 - miss} for rate, miss in rates],
        "trade_off": {"fpr": list(_CURVE), "fnr": missed[len(_FALSE_POSITIVE_RATES) :]},
        "reconstruction": [
            {"prior": prior, "bound": reconstruction_bound(event, prior, relation=bound.relation)} for prior in _PRIORS
        ],
    }
