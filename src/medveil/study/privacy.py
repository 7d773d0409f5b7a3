"""From a plan's ``[privacy]`` table to a bound guarantee, and to what the record says about it."""

from collections.abc import Iterable, Mapping
from typing import Any

from medveil.accounting.events import Event, compose, flatten
from medveil.accounting.meaning import membership_advantage, reconstruction_bound, trade_off
from medveil.data.partition import NaturalPartition
from medveil.dp.binding import bind
from medveil.dp.plan import LARGEST_CLAIM, PrivacyPlan
from medveil.dp.settings import SiteDpFedAvg
from medveil.errors import GuaranteeError
from medveil.study.claims import assumptions, holds_against, out_of_scope
from medveil.study.parties import number_of_parties, planned_steps, shares_of
from medveil.study.plan import Plan
from medveil.study.privacy_checks import check_claim

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
    settings, partition = privacy.secure_aggregation, plan.data.partition
    if settings is not None and not isinstance(partition, NaturalPartition):
        settings.smallest_group(partition.count)
    if privacy.dp is None:
        return None
    assert privacy.unit is not None
    assert privacy.relation is not None
    assert privacy.delta is not None
    assert privacy.trusted is not None
    check_claim(plan)
    return bind(
        privacy.dp,
        unit=privacy.unit,
        relation=privacy.relation,
        delta=privacy.delta,
        trusted=privacy.trusted,
        steps=planned_steps(plan),
        parties=number_of_parties(plan),
        earlier=tuple(earlier.event for earlier in privacy.earlier),
        shares=shares_of(plan),
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
    server, insider = _against(bound, event, spent.epsilon)
    return {
        "stamp": NOT_PRIVATE if reasons else None,
        "stamp_reasons": reasons,
        "mode": bound.mechanism.kind,
        "unit": bound.unit,
        "relation": bound.relation,
        "delta": bound.delta,
        "epsilon": spent.epsilon,
        "epsilon_server": server,
        "epsilon_insider": insider,
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


def _against(bound: PrivacyPlan, event: Event, epsilon: float) -> tuple[float | None, float | None]:
    """Epsilon against the server alone (None where it is trusted), and against insiders.

    Where sites share the noise, every site knows its own share, so an insider is the server with all sites that are
    tolerated, or with one where none is. None where that leaves no noise.
    """
    if isinstance(bound.mechanism, SiteDpFedAvg):
        return None, epsilon
    if bound.shares.sites == 1:
        return epsilon, epsilon
    steps = _count(event, bound)
    server, insider = bound.against(0, steps), bound.against(max(1, bound.shares.tolerated), steps)
    return (server.epsilon if server else None), (insider.epsilon if insider else None)


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
