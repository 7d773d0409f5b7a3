"""What a plan's tables imply together: who trains, how many they are, how many private steps they take."""

from medveil.data.partition import NaturalPartition
from medveil.dp.plan import Shares
from medveil.dp.settings import CentralDpSgd, DistributedDpSgd, LocalDpSgd, SiteDpFedAvg
from medveil.errors import ConfigError
from medveil.study.plan import Plan


def planned_steps(plan: Plan) -> int:
    """Private steps of each party over the whole training."""
    return plan.federation.rounds * steps_per_round(plan)


def steps_per_round(plan: Plan) -> int:
    """Private steps of a party in one round."""
    return getattr(plan.federation.algorithm, "local_steps", None) or 1 if steps_are_local(plan) else 1


def is_pooled(plan: Plan) -> bool:
    """Whether one curator trains on all sites' data."""
    return isinstance(plan.privacy.dp, CentralDpSgd)


def number_of_sites(plan: Plan) -> int:
    """Public number of sites.

    Raises:
        ConfigError: the data name the sites, and the plan does not.
    """
    mechanism, partition = plan.privacy.dp, plan.data.partition
    if not isinstance(partition, NaturalPartition):
        return partition.count
    stated = None if mechanism is None or isinstance(mechanism, SiteDpFedAvg) else mechanism.sampling.nominal_units
    if not isinstance(stated, dict):
        raise ConfigError(
            "The data name the sites, so the plan must state a public nominal size for each",
            got=f"privacy.dp.sampling.nominal_units = {stated}",
            expected="a table: one number for every site",
            remedy='write nominal_units = { "first site" = 1000, "second site" = 500 }',
        )
    return len(stated)


def steps_are_local(plan: Plan) -> bool:
    """Whether every party takes private steps of its own."""
    return isinstance(plan.privacy.dp, LocalDpSgd)


def number_of_parties(plan: Plan) -> int:
    """Parties that take steps of their own: 1 where all take the same."""
    return number_of_sites(plan) if steps_are_local(plan) else 1


def shares_of(plan: Plan) -> Shares | None:
    """How the sites of the smallest group share a step's noise; None where every party adds its own."""
    settings = plan.privacy.secure_aggregation
    if not isinstance(plan.privacy.dp, DistributedDpSgd) or settings is None:
        return None
    size = settings.smallest_group(number_of_sites(plan))
    return Shares(size, settings.colluding, settings.dropouts_of(size))
