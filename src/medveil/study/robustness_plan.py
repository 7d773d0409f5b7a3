"""The defences that the robustness study compares, each as a change of one plan."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from medveil.dp.settings import DistributedDpSgd
from medveil.errors import ConfigError
from medveil.federation.secure.settings import SecureAggregation
from medveil.study.grid_plan import private_batch, without_privacy
from medveil.study.plan import Plan, Privacy, References

Setting = Literal["sum", "site-bound", "site-bound-obeyed", "group-bound", "group-median", "group-both", "dp", "dp-off"]
SETTINGS: Final[tuple[Setting, ...]] = get_args(Setting)
STEPWISE: Final[tuple[Setting, ...]] = ("dp", "dp-off")
WITHOUT_DP: Final[tuple[Setting, ...]] = SETTINGS[: -len(STEPWISE)]
FEWEST_SITES = 10
# A coordinate of a scaled change must not be cut by the encoding, which a hostile site would not use as it is.
_VALUE_RANGE = 16.0
_IN_GROUPS = ("group-bound", "group-median", "group-both")
BOUNDED: Final[tuple[Setting, ...]] = ("site-bound", "site-bound-obeyed", "group-bound", "group-both")
MEANINGS: Final[dict[Setting, str]] = {
    "sum": "one secure sum over all sites; nothing defends",
    "site-bound": "every site should limit its own change to the norm bound; hostile sites do not, and nobody sees it",
    "site-bound-obeyed": "as before, and the bad sites obey: they are broken or fed bad data, not hostile",
    "group-bound": "one secure sum a group; the server refuses a group whose mean change is beyond the norm bound",
    "group-median": "one secure sum a group; the server takes the coordinate-wise median of the groups",
    "group-both": "one secure sum a group; the bound first, then the median of the groups that passed",
    "dp": "the plan with distributed differential privacy; honest sites clip every patient, hostile ones need not",
    "dp-off": "the same steps without noise; an honest site limits its batch gradient only, for stability",
}


@dataclass(frozen=True)
class Defence:
    """What the study varies.

    Args:
        groups: of the settings in groups.
        l2_norm: the norm bound, or None where none is known yet.
        private: plan with distributed differential privacy, for the settings "dp" and "dp-off".
    """

    groups: int
    l2_norm: float | None = None
    private: Plan | None = None


def defended(plan: Plan, setting: Setting, seed: int, defence: Defence) -> Plan:
    """``plan`` under a setting.

    Every site weighs the same: under weights by size a hostile site could claim any size up to the largest allowed,
    unseen. References are off. The private plan is given the data, the sites and the seed of ``plan``.

    Raises:
        ConfigError: a setting without its bound or its private plan, or a plan with privacy of its own.
        GuaranteeError: groups so small that a secure sum hides nobody.
    """
    _check(plan, setting, defence)
    if setting in STEPWISE:
        return _stepwise(plan, setting, seed, defence)
    settings = (plan.privacy.secure_aggregation or SecureAggregation()).model_copy(
        update={
            "value_range": _VALUE_RANGE,
            "groups": defence.groups if setting in _IN_GROUPS else 1,
            "combine": "median" if setting in {"group-median", "group-both"} else "mean",
            "l2_norm": defence.l2_norm if setting in {"group-bound", "group-both"} else None,
        }
    )
    settings.smallest_group(sites_of(plan))
    bound = [{"kind": "norm_bound", "l2_norm": defence.l2_norm}] if setting.startswith("site-bound") else []
    return _equal(plan, seed, Privacy(stages=tuple(bound), secure_aggregation=settings))


def sites_of(plan: Plan) -> int:
    """Number of sites.

    Raises:
        ConfigError: the data name them, or they are too few for tenths of them.
    """
    count = getattr(plan.data.partition, "count", None)
    if count is None or count < FEWEST_SITES:
        raise ConfigError(
            "The study needs a known number of sites, a tenth of which is one",
            got="sites that the data name" if count is None else f"{count} sites",
            expected=f"at least {FEWEST_SITES}",
            remedy="set data.partition, for example --set 'data.partition={kind=\"iid\", sites=10}'",
        )
    return int(count)


def hides_among(plan: Plan) -> int:
    """Sites of the smallest group among whose changes the server cannot tell one apart, itself included.

    Members of a group less those that may side with the server: of ten sites in three groups, three; in one sum, ten.
    """
    settings = plan.privacy.secure_aggregation
    assert settings is not None
    return settings.smallest_group(sites_of(plan)) - settings.colluding


def _check(plan: Plan, setting: Setting, defence: Defence) -> None:
    if setting not in SETTINGS:
        raise ConfigError("There is no such setting", got=setting, expected=", ".join(SETTINGS))
    if plan.privacy.dp is not None or plan.privacy.stages:
        raise ConfigError(
            "The study puts defences into a plan that has none",
            got="[privacy.dp] or privacy.stages",
            remedy="give the plan without them; a plan with distributed privacy goes to --private",
        )
    if setting in BOUNDED and defence.l2_norm is None:
        raise ConfigError("A setting with a norm bound was given none", got=setting, expected="l2_norm > 0")
    if setting in STEPWISE:
        private = defence.private
        if private is None or not isinstance(private.privacy.dp, DistributedDpSgd) or private.task != plan.task:
            raise ConfigError(
                f'The setting "{setting}" needs a plan of the same task with distributed privacy',
                got="none" if private is None else f'"{private.name}"',
                expected='a plan with privacy.dp.kind = "distributed"',
                remedy="give it with --private, or leave the setting out",
            )


def _stepwise(plan: Plan, setting: Setting, seed: int, defence: Defence) -> Plan:
    private = defence.private
    assert private is not None
    shared = private.model_copy(update={"data": plan.data, "data_root": plan.data_root})
    if setting == "dp":
        return _equal(shared, seed, private.privacy)
    plain = without_privacy(shared, seed, batch_size=private_batch(shared))
    return _equal(plain, seed, Privacy(secure_aggregation=SecureAggregation(value_range=_VALUE_RANGE)))


def _equal(plan: Plan, seed: int, privacy: Privacy) -> Plan:
    federation = plan.federation.model_copy(update={"weighting": "equal"})
    references = References(central=False, local_only=False)
    return plan.model_copy(
        update={"seed": seed, "privacy": privacy, "federation": federation, "references": references}
    )
