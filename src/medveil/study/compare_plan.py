"""One distributed plan, turned into the same training under other trust: who adds the noise, and who sees what."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medveil.dp.settings import CentralDpSgd, DistributedDpSgd, LocalDpSgd, Trusted
from medveil.errors import ConfigError
from medveil.federation.settings import FedAvg
from medveil.study.grid_plan import at_epsilon, mechanism_of, private_batch, without_privacy
from medveil.study.plan import Plan, Privacy, References

DISTRIBUTED = "distributed-dp-t"
# With neither a stated number: as many private steps between two averages, if they divide the plan's rounds.
_LOCAL_STEPS = 5
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Request:
    """What an arm's plan is made for.

    Args:
        epsilon: of the whole training; None in an arm without differential privacy.
        seed: root of the reproducible randomness.
        local_steps: of a round of local privacy; None chooses.
        references: whether the plain arm also trains the references.
    """

    epsilon: float | None
    seed: int
    local_steps: int | None = None
    references: bool = True


@dataclass(frozen=True)
class Arm:
    """One column of trust.

    Args:
        name: as ``--arms`` and folders write it.
        title: for readers.
        trusted: whom its patients must trust, for readers.
        private: whether it promises differential privacy.
        derive: from the distributed plan.
    """

    name: str
    title: str
    trusted: str
    private: bool
    derive: Callable[[Plan, Request], Plan]


def distributed_plan(plan: Plan) -> DistributedDpSgd:
    """The mechanism of the plan that all arms come from.

    Raises:
        ConfigError: it is not distributed, so that the plan does not say what the other arms need.
    """
    mechanism = plan.privacy.dp
    if not isinstance(mechanism, DistributedDpSgd) or plan.privacy.secure_aggregation is None:
        raise ConfigError(
            "Trust models are compared on a plan with distributed differential privacy",
            got="no [privacy.dp]" if mechanism is None else f'privacy.dp.kind = "{mechanism.kind}"',
            expected='privacy.dp.kind = "distributed" and [privacy.secure_aggregation]',
            remedy="give the distributed plan: every other arm is made from it",
        )
    return mechanism


def default_arms(plan: Plan) -> tuple[str, ...]:
    """Central, distributed with no and one colluding site (and as many as the plan says), local, sum, plain."""
    distributed_plan(plan)
    assert plan.privacy.secure_aggregation is not None
    colluding = sorted({0, 1, plan.privacy.secure_aggregation.colluding})
    return ("central-dp", *(f"{DISTRIBUTED}{number}" for number in colluding), "local-dp", "secure-sum", "federated")


def find_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """Arms by name.

    Raises:
        ConfigError: there is no such arm.
    """
    return tuple(_find(name) for name in names)


def _find(name: str) -> Arm:
    if name in _ARMS:
        return _ARMS[name]
    if match := re.fullmatch(re.escape(DISTRIBUTED) + r"(0|[1-9]\d{0,3})", name):
        return _distributed_arm(int(match[1]))
    raise ConfigError(
        "There is no such arm",
        got=name,
        expected=", ".join([*_ARMS, f"{DISTRIBUTED}0", f"{DISTRIBUTED}1"]) + " or another number of colluding sites",
        remedy="correct --arms",
    )


def _distributed_arm(colluding: int) -> Arm:
    def derive(plan: Plan, request: Request) -> Plan:
        settings = plan.privacy.secure_aggregation
        assert settings is not None
        # A threshold that was stated for another number of colluding sites may not protect: the least that does.
        threshold = settings.threshold if colluding == settings.colluding else None
        settings = settings.model_copy(update={"colluding": colluding, "threshold": threshold})
        derived = at_epsilon(plan, _epsilon(request), request.seed)
        return derived.model_copy(
            update={"privacy": derived.privacy.model_copy(update={"secure_aggregation": settings})}
        )

    sites = "one site" if colluding == 1 else f"{colluding} sites"
    return Arm(
        name=f"{DISTRIBUTED}{colluding}",
        title=f"Distributed DP, t = {colluding}",
        trusted=f"nobody; at most {sites} with the server" if colluding else "no site to side with the server",
        private=True,
        derive=derive,
    )


def _central(plan: Plan, request: Request) -> Plan:
    mechanism = _distributed_at(plan, request)
    return _with_mechanism(plan, request, CentralDpSgd(**_settings_of(mechanism)), "curator").model_copy(
        update={"federation": plan.federation.model_copy(update={"min_sites": 0})}  # one curator trains
    )


def _local(plan: Plan, request: Request) -> Plan:
    federation = plan.federation
    steps = request.local_steps or _local_steps(federation.rounds)
    if federation.rounds % steps:
        raise ConfigError(
            "The steps of local privacy would not add up to those of the plan",
            got=f"{steps} local steps, {federation.rounds} rounds of one step",
            expected="a divisor of federation.rounds",
            remedy="correct --local-steps",
        )
    every = federation.validate_every
    changes = {
        "algorithm": FedAvg(local_steps=steps),
        "rounds": federation.rounds // steps,
        "validate_every": max(1, round(every / steps)) if every else 0,
        "ema": federation.ema**steps,
    }
    mechanism = _distributed_at(plan, request)
    return _with_mechanism(plan, request, LocalDpSgd(**_settings_of(mechanism)), "nobody").model_copy(
        update={"federation": federation.model_copy(update=changes)}
    )


def _secure_sum(plan: Plan, request: Request) -> Plan:
    settings = plan.privacy.secure_aggregation
    assert settings is not None
    derived = without_privacy(plan, request.seed, batch_size=private_batch(plan))
    # No coordinate is longer than the gradient, whose norm is limited: so the sum's range cuts nothing off.
    limit = derived.training.max_grad_norm or 0.0
    settings = settings.model_copy(update={"value_range": max(settings.value_range, limit)})
    return derived.model_copy(update={"privacy": Privacy(secure_aggregation=settings)})


def _federated(plan: Plan, request: Request) -> Plan:
    derived = without_privacy(plan, request.seed, batch_size=private_batch(plan))
    references = References(central=request.references, local_only=request.references)
    return derived.model_copy(update={"references": references})


_ARMS = {
    arm.name: arm
    for arm in (
        Arm("central-dp", "Central DP", "a curator, with all images", private=True, derive=_central),
        Arm("local-dp", "Local DP", "nobody", private=True, derive=_local),
        Arm("secure-sum", "Secure sum, no DP", "everyone who sees the model", private=False, derive=_secure_sum),
        Arm(
            "federated",
            "Federated, unprotected",
            "the server, and everyone who sees the model",
            private=False,
            derive=_federated,
        ),
    )
}


def arm_plan(arm: Arm, plan: Plan, request: Request) -> Plan:
    """The plan of one run.

    Data, splits, partition, model, optimiser, augmentation and evaluation stay as they are in every arm. So do
    sampling, clipping, views and number of steps in the arms with differential privacy, whose noise is calibrated to
    one epsilon. Local privacy takes several steps between two averages, and its averaging of weights and its
    validation keep their pace in steps. Arms without differential privacy are those of
    :func:`medveil.study.grid_plan.without_privacy`.

    Args:
        arm: what becomes of it.
        plan: with distributed differential privacy.
        request: epsilon, seed and what else the arm takes.

    Raises:
        ConfigError: the plan is not distributed, or ``local_steps`` do not divide its rounds.
        DataError: the data had to be read, and cannot be.
    """
    distributed_plan(plan)
    derived = arm.derive(plan, request)
    return derived.model_copy(update={"name": f"{plan.name[: _LONGEST_NAME - 1 - len(arm.name)]} {arm.name}"})


def _epsilon(request: Request) -> float:
    assert request.epsilon is not None
    return request.epsilon


def _distributed_at(plan: Plan, request: Request) -> DistributedDpSgd:
    mechanism = mechanism_of(at_epsilon(plan, _epsilon(request), request.seed))
    assert isinstance(mechanism, DistributedDpSgd)
    return mechanism


def _settings_of(mechanism: DistributedDpSgd) -> dict[str, object]:
    return {name: getattr(mechanism, name) for name in ("sampling", "clipping", "noise", "views")}


def _with_mechanism(plan: Plan, request: Request, mechanism: CentralDpSgd | LocalDpSgd, trusted: Trusted) -> Plan:
    changes = {"dp": mechanism, "trusted": trusted, "secure_aggregation": None}
    return plan.model_copy(update={"privacy": plan.privacy.model_copy(update=changes), "seed": request.seed})


def _local_steps(rounds: int) -> int:
    """The largest divisor of ``rounds`` up to five.

    >>> [_local_steps(rounds) for rounds in (100, 12, 7)]
    [5, 4, 1]
    """
    return max(steps for steps in range(1, _LOCAL_STEPS + 1) if rounds % steps == 0)
