"""From a plan to a job that the hospitals receive."""

import re
from collections.abc import Sequence

from medveil.connect.job import Federation
from medveil.connect.jobs import check_networked, plan_bytes
from medveil.errors import ConfigError, EngineError
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan
from medveil.study.record import known_sites


def submit_plan(federation: Federation, plan: Plan, sites: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
    """Check a plan as far as can be without data, and submit it.

    Args:
        federation: a login of somebody who may.
        plan: to run.
        sites: who takes part; by default all that are connected.

    Returns:
        The job's id, and who takes part.

    Raises:
        ConfigError: the plan cannot run over a network, or counts on another number of sites.
        GuaranteeError: its claim would be hollow, or its secure sum cannot protect so few sites.
        EngineError: no site is connected.
    """
    check_networked(plan)
    bind_plan(plan)
    names = tuple(sorted(sites or federation.connected()))
    if not names:
        raise EngineError("No site is connected", remedy="start the sites, or name them with --site")
    planned = known_sites(plan)
    if planned is not None and planned != len(names):
        raise ConfigError(
            "The plan counts on another number of sites",
            got=f"{len(names)}: {', '.join(names)}",
            expected=f"{planned}, as data.partition says",
            remedy="correct data.partition, start the missing sites, or name those that take part with --site",
        )
    settings = plan.privacy.secure_aggregation
    if settings is not None:
        settings.smallest_group(len(names))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plan.name)
    return federation.submit(plan_bytes(plan), name=name, sites=names), names
