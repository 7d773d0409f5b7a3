"""Whether a site's policy allows a plan: every rule that it breaks, all at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from medveil.connect.policy import AllowedSubmitter, PrivacyFloor, SitePolicy
from medveil.dp.plan import PrivacyPlan, Shares
from medveil.dp.settings import DistributedDpSgd, LocalDpSgd
from medveil.errors import ConfigError, GuaranteeError, PolicyError
from medveil.study.parties import number_of_sites, planned_steps, shares_of
from medveil.study.plan import Plan


class Submitter(Protocol):
    """Who submitted a plan, as the engine has authenticated them."""

    @property
    def name(self) -> str:
        """Of the certificate."""
        ...

    @property
    def org(self) -> str:
        """Of the certificate."""
        ...

    @property
    def role(self) -> str:
        """Of the certificate."""
        ...


@dataclass(frozen=True)
class Finding:
    """One rule of the policy that a plan breaks.

    Attributes:
        rule: the policy's key, for example "privacy.epsilon"; "claim" for a guarantee that is not the plan's.
        got: what the plan has.
        expected: what the policy allows.
        remedy: what the submitter, or this site, can do.
    """

    rule: str
    got: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.got} (allowed: {self.expected})"


def check_plan(
    policy: SitePolicy,
    plan: Plan,
    *,
    bound: PrivacyPlan | None,
    submitter: Submitter,
    sites: Sequence[str],
    architecture_hash: str,
    dataset: str,
    parameters: int,
    deidentified: bool,
) -> list[Finding]:
    """Every rule of ``policy`` that the plan breaks; empty when it may run here.

    Args:
        policy: of this site.
        plan: as submitted.
        bound: what :func:`medveil.study.privacy.bind_plan` makes of the plan, here at the site; None without a claim.
        submitter: as the engine has authenticated them.
        sites: names of all sites of the job, this one too.
        architecture_hash: of the network that this site built from the plan, never the plan's own statement.
        dataset: name of this site's data set that would be trained on.
        parameters: trainable ones of that network.
        deidentified: whether this site declares its data de-identified.

    Guarantees:
        Epsilon is computed from the mechanism, for the whole run and everything earlier that the plan lists, at the
        policy's delta and relation, against the server with as many sites as the plan tolerates or the policy's
        ``colluding``, whichever is more. No figure that the plan claims is used.
    """
    count = len(set(sites))
    return [
        *_scope(policy, plan, dataset=dataset, deidentified=deidentified),
        *_model(policy, architecture_hash, parameters),
        *_submitter(policy.submitters, submitter),
        *_sites(policy.privacy, plan, bound, count),
        *_hazards(policy.privacy, plan),
        *_claim(policy.privacy, plan, bound),
        *_secure_sum(policy.privacy, plan, count),
    ]


def check_request(policy: SitePolicy, plan: Plan, *, bound: PrivacyPlan | None, submitter: Submitter) -> list[Finding]:
    """The rules of :func:`check_plan` that need neither data nor network nor the job's sites.

    Args:
        policy: of this site.
        plan: as submitted.
        bound: what the plan promises; None without a claim.
        submitter: as the engine has authenticated them.
    """
    return [
        *_task(policy, plan),
        *_submitter(policy.submitters, submitter),
        *_hazards(policy.privacy, plan),
        *_claim(policy.privacy, plan, bound),
    ]


def refuse(findings: Sequence[Finding]) -> PolicyError:
    """The error that names every broken rule.

    Args:
        findings: at least one.

    Raises:
        ValueError: there is none, so nothing to refuse.
    """
    if not findings:
        raise ValueError("a plan that breaks no rule is not refused")
    return PolicyError(
        "This site's policy refuses the plan",
        got="; ".join(f"{finding.rule}: {finding.got}" for finding in findings),
        expected="; ".join(f"{finding.rule}: {finding.expected}" for finding in findings),
        remedy="; ".join(dict.fromkeys(finding.remedy for finding in findings)),
    )


def honest_epsilon(floor: PrivacyFloor, bound: PrivacyPlan) -> float:
    """Epsilon of the whole run as the policy counts it; infinite where no finite figure holds.

    Args:
        floor: with delta and relation.
        bound: the plan's guarantee, whose noise and steps are used; its delta and relation are not.
    """
    if floor.delta is None or floor.relation is None:
        return math.inf
    held = replace(bound, delta=floor.delta, relation=floor.relation)
    try:
        if not isinstance(bound.mechanism, DistributedDpSgd):
            return held.total().epsilon
        spent = held.against(max(floor.colluding or 0, bound.shares.tolerated), bound.steps)
    except GuaranteeError:
        return math.inf
    return spent.epsilon if spent else math.inf


def _scope(policy: SitePolicy, plan: Plan, *, dataset: str, deidentified: bool) -> Iterator[Finding]:
    yield from _task(policy, plan)
    if dataset not in policy.datasets:
        yield Finding("datasets", dataset, _listed(policy.datasets), "train on a data set that the site allows")
    if policy.deidentified and not deidentified:
        yield Finding(
            "deidentified",
            "data that are not declared de-identified",
            "de-identified data",
            "de-identify the data, then set deidentified = true in this site's site.toml",
        )


def _task(policy: SitePolicy, plan: Plan) -> Iterator[Finding]:
    if plan.task not in policy.tasks:
        yield Finding("tasks", plan.task, _listed(policy.tasks), "ask the site to allow the task")
    kinds = policy.models.kinds
    if kinds != "any" and plan.model.kind not in kinds:
        yield Finding("models.kinds", plan.model.kind, _listed(kinds), "choose a network that the site allows")
    rounds = plan.federation.rounds
    if rounds > policy.max_rounds:
        yield Finding("max_rounds", str(rounds), f"at most {policy.max_rounds}", "lower federation.rounds")


def _model(policy: SitePolicy, architecture_hash: str, parameters: int) -> Iterator[Finding]:
    allowed = policy.models
    if allowed.architectures != "any" and architecture_hash not in allowed.architectures:
        yield Finding(
            "models.architectures",
            architecture_hash,
            _listed(allowed.architectures),
            "ask the site to look at the network and to allow its hash",
        )
    if parameters > policy.max_parameters:
        yield Finding("max_parameters", str(parameters), f"at most {policy.max_parameters}", "take a smaller network")


def _submitter(allowed: Sequence[AllowedSubmitter], submitter: Submitter) -> Iterator[Finding]:
    def admits(entry: AllowedSubmitter) -> bool:
        pairs = ((entry.name, submitter.name), (entry.org, submitter.org), (entry.role, submitter.role))
        return all(wanted is None or wanted == found for wanted, found in pairs)

    if not any(admits(entry) for entry in allowed):
        entries = (entry.model_dump(exclude_none=True) for entry in allowed)
        yield Finding(
            "submitters",
            f"name = {submitter.name}, org = {submitter.org}, role = {submitter.role}",
            " or ".join(", ".join(f"{key} = {value}" for key, value in entry.items()) for entry in entries) or "nobody",
            "let somebody submit whom the site admits",
        )


def _sites(floor: PrivacyFloor, plan: Plan, bound: PrivacyPlan | None, count: int) -> Iterator[Finding]:
    if floor.min_sites is None or count < floor.min_sites:
        least = "none: the policy allows no number" if floor.min_sites is None else f"at least {floor.min_sites}"
        yield Finding("privacy.min_sites", f"{count} sites", least, "let more sites take part")
    if bound is None or not isinstance(plan.privacy.dp, DistributedDpSgd | LocalDpSgd):
        return
    try:
        planned = number_of_sites(plan)
    except ConfigError as error:
        yield Finding("claim", error.what, "a plan that states its sites", error.remedy or "state them")
        return
    if planned != count:
        yield Finding(
            "claim",
            f"noise for {planned} sites in a job of {count}",
            "as many sites as the noise is made for",
            "correct data.partition or privacy.dp.sampling.nominal_units, or submit to all sites",
        )


def _hazards(floor: PrivacyFloor, plan: Plan) -> Iterator[Finding]:
    privacy = plan.privacy
    if extra := [name for name in privacy.overrides if name not in floor.overrides]:
        yield Finding("privacy.overrides", ", ".join(extra), _listed(floor.overrides), "remove the overrides")
    if privacy.dp is None:
        return
    generator = privacy.dp.noise.generator
    if generator != "secure" and not floor.debug_randomness:
        yield Finding(
            "privacy.debug_randomness",
            f'privacy.dp.noise.generator = "{generator}"',
            '"secure"',
            "remove privacy.dp.noise.generator: whoever knows the seed can subtract the noise",
        )
    if privacy.held_out not in floor.held_out:
        yield Finding(
            "privacy.held_out",
            str(privacy.held_out),
            _listed(floor.held_out),
            'set privacy.held_out = "private", with no validation and a fixed threshold',
        )
    if privacy.one_image_per_patient and not floor.one_image_per_patient:
        yield Finding(
            "privacy.one_image_per_patient",
            "true",
            "false",
            "name the patients in the data's source, and remove privacy.one_image_per_patient",
        )


def _claim(floor: PrivacyFloor, plan: Plan, bound: PrivacyPlan | None) -> Iterator[Finding]:
    privacy = plan.privacy
    mode = "none" if privacy.dp is None else privacy.dp.kind
    if mode not in floor.modes:
        yield Finding("privacy.modes", mode, _listed(floor.modes), "choose a privacy.dp.kind that the site allows")
    if not _is_of(plan, bound):
        yield Finding(
            "claim",
            "a guarantee that is not this plan's",
            "the guarantee that bind_plan makes of this very plan",
            "bind the plan at the site",
        )
        return
    if bound is None:
        return
    if bound.unit not in floor.units:
        yield Finding("privacy.units", bound.unit, _listed(floor.units), "protect a unit that the site allows")
    if floor.delta is None or bound.delta > floor.delta:
        most = "none" if floor.delta is None else f"at most {floor.delta:g}"
        yield Finding("privacy.delta", f"{bound.delta:g}", most, "lower privacy.delta")
    epsilon = honest_epsilon(floor, bound)
    if floor.epsilon is None or not epsilon <= floor.epsilon:
        yield Finding(
            "privacy.epsilon",
            f"{epsilon:.6g} for the whole run" + _against(floor, bound),
            "none"
            if floor.epsilon is None
            else f"at most {floor.epsilon:g} at delta {floor.delta:g}, {floor.relation}",
            "lower privacy.dp.noise.epsilon or raise its multiplier, or train fewer steps",
        )


def _is_of(plan: Plan, bound: PrivacyPlan | None) -> bool:
    """Whether a guarantee was bound from this plan."""
    privacy = plan.privacy
    if bound is None or privacy.dp is None:
        return bound is None and privacy.dp is None
    multiplier = privacy.dp.noise.multiplier
    facts: dict[str, tuple[object, object]] = {
        "mechanism": (bound.mechanism, privacy.dp),
        "unit": (bound.unit, privacy.unit),
        "relation": (bound.relation, privacy.relation),
        "delta": (bound.delta, privacy.delta),
        "trusted": (bound.trusted, privacy.trusted),
        "steps": (bound.steps, planned_steps(plan)),
        "multiplier": (bound.noise_multiplier, bound.noise_multiplier if multiplier is None else multiplier),
        "earlier": (bound.earlier, tuple(earlier.event for earlier in privacy.earlier)),
    }
    return all(does == says for does, says in facts.values()) and _shares_are_of(plan, bound.shares)


def _shares_are_of(plan: Plan, shares: Shares) -> bool:
    try:
        return shares == (shares_of(plan) or Shares())
    except (ConfigError, GuaranteeError):
        return False


def _against(floor: PrivacyFloor, bound: PrivacyPlan) -> str:
    if not isinstance(bound.mechanism, DistributedDpSgd):
        return ""
    return f" against the server with {max(floor.colluding or 0, bound.shares.tolerated)} sites"


def _secure_sum(floor: PrivacyFloor, plan: Plan, count: int) -> Iterator[Finding]:
    settings = plan.privacy.secure_aggregation
    if settings is None:
        if floor.secure_aggregation:
            yield Finding(
                "privacy.secure_aggregation",
                "the server sees every site's update",
                "sums over sites only",
                "add [privacy.secure_aggregation]",
            )
        return
    if floor.colluding is not None and settings.colluding < floor.colluding:
        yield Finding(
            "privacy.colluding",
            f"{settings.colluding}",
            f"at least {floor.colluding}",
            "raise privacy.secure_aggregation.colluding",
        )
    try:
        settings.smallest_group(count)
    except GuaranteeError as error:
        remedy = error.remedy or "let more sites take part"
        yield Finding("privacy.secure_aggregation", f"{error.what}: {error.got}", str(error.expected), remedy)
        return
    included = min(
        _included(settings.dropouts_of, size) for size in {count // settings.groups, -(-count // settings.groups)}
    )
    if floor.min_included is not None and included < floor.min_included:
        yield Finding(
            "privacy.min_included",
            f"{included} sites in a sum",
            f"at least {floor.min_included}",
            "lower privacy.secure_aggregation.dropouts or groups, or let more sites take part",
        )


def _included(dropouts_of: Callable[[int], int], size: int) -> int:
    return size - dropouts_of(size)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"
