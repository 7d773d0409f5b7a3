"""The secure sum of a run: groups, keys, packings, for all sites and for the coordinator."""

import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from medveil.dp.plan import PrivacyPlan, StepPlan, nominal_units
from medveil.dp.settings import DistributedDpSgd
from medveil.federation.clear_sum import SCORES
from medveil.federation.coordinator import validation_due
from medveil.federation.secure.blocks import Blocks
from medveil.federation.secure.decided import Decided
from medveil.federation.secure.outbox import Outbox
from medveil.federation.secure.packing import NoisyPacking, Packing, PlainPacking, ScorePacking, fitting_grid
from medveil.federation.secure.server import Group, SecureServer
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.site import SecureSite
from medveil.rng import Seeds
from medveil.secagg.identity import IdentityKey
from medveil.secagg.parameters import Parameters
from medveil.secagg.ring import Bits
from medveil.study.folder import file_name
from medveil.study.plan import Plan


class ProtocolClock:
    """Seconds that the secure sum takes at every site, restarts included.

    Args:
        earlier: from the checkpoint that the run goes on from.
    """

    def __init__(self, earlier: Mapping[str, float]) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float, earlier)
        self._lock = threading.Lock()

    def add(self, site: str, seconds: float) -> None:
        """Count ``seconds`` more at ``site``."""
        with self._lock:
            self._seconds[site] += seconds

    def state(self) -> dict[str, float]:
        """Seconds by site."""
        with self._lock:
            return {site: round(seconds, 4) for site, seconds in sorted(self._seconds.items())}


def step_plan(plan: Plan, bound: PrivacyPlan, dimension: int, party: str, parties: int) -> StepPlan:
    """One party's private step, on the grid that the secure sum has room for.

    Raises:
        GuaranteeError: as for :meth:`PrivacyPlan.step`.
        ConfigError: as for :meth:`PrivacyPlan.step`, or the sum does not fit the modulus that the plan asks for.
    """
    settings = plan.privacy.secure_aggregation
    if settings is None or not isinstance(bound.mechanism, DistributedDpSgd):
        return bound.step(dimension, party, parties)
    grid_bits, _ = grid(settings, bound, dimension, parties)
    return bound.step(dimension, party, parties, grid_bits=grid_bits)


def grid(settings: SecureAggregation, bound: PrivacyPlan, dimension: int, sites: int) -> tuple[int, Bits]:
    """Grid bits and modulus of a distributed plan's noisy sums.

    Raises:
        ConfigError: the sum does not fit the modulus that the plan asks for.
    """
    assert isinstance(bound.mechanism, DistributedDpSgd)
    return fitting_grid(
        noise_multiplier=bound.noise_multiplier,
        shares=bound.shares,
        sites=math.ceil(sites / settings.groups),
        dimension=dimension,
        expected_units=bound.sampling_rate * nominal_units(bound.mechanism, "", sites),
        modulus_bits=settings.modulus_bits,
    )


def modulus_bits(plan: Plan, bound: PrivacyPlan, dimension: int, sites: int) -> Bits:
    """Modulus of a distributed plan's sums; 64 where there are none."""
    settings = plan.privacy.secure_aggregation
    if settings is None or not isinstance(bound.mechanism, DistributedDpSgd):
        return 64
    return grid(settings, bound, dimension, sites)[1]


def build_secure(
    plan: Plan,
    bound: PrivacyPlan | None,
    names: Sequence[str],
    *,
    sizes: tuple[int, int],
    outboxes: Path,
    watch: Callable[[str, float], None],
    decided: Decided,
) -> tuple[SecureServer | None, dict[str, SecureSite]]:
    """Both sides of the secure sum with all parties in this process; (None, {}) where the plan asks for none.

    Identity keys are made here, once a session: in one process nobody can pretend to be another site.

    Args:
        plan: of the run.
        bound: what it promises.
        names: of all sites.
        sizes: numbers of parameters and of running statistics.
        outboxes: folder where every site keeps its own contributions.
        watch: told (site, seconds) that the protocol took at a site.
        decided: over whom sums are opened.

    Raises:
        GuaranteeError: a threshold that cannot protect.
        ConfigError: sums that do not fit.
    """
    if plan.privacy.secure_aggregation is None:
        return None, {}
    keys = {name: IdentityKey.generate() for name in names}
    groups = secure_groups(plan, bound, {name: key.public for name, key in keys.items()}, sizes=sizes)
    sites = {
        name: secure_site(
            plan, groups, name, keys[name], outbox=Outbox(outboxes / file_name(name)), watch=partial(watch, name)
        )
        for name in names
    }
    return secure_server(plan, groups, decided), sites


def secure_groups(
    plan: Plan, bound: PrivacyPlan | None, public: Mapping[str, bytes], *, sizes: tuple[int, int], session: str = ""
) -> tuple[Group, ...]:
    """What the parties of a run's secure sums agree on; none where the plan asks for no secure sum.

    Args:
        plan: of the run.
        bound: what it promises.
        public: identity key of every site.
        sizes: numbers of parameters and of running statistics.
        session: what tells this session from others of the same plan; signatures of one are void in another.

    Raises:
        GuaranteeError: a threshold that cannot protect.
        ConfigError: sums that do not fit.
    """
    settings = plan.privacy.secure_aggregation
    if settings is None:
        return ()
    dealt = settings.deal(list(public), Seeds(plan.seed))
    most = max(len(members) for members in dealt)
    groups = []
    for number, members in enumerate(dealt):
        parameters = Parameters(
            context=hashlib.sha256(f"{plan.digest()} group {number}{session and ' ' + session}".encode()).digest(),
            sites=tuple((name, public[name]) for name in members),
            threshold=settings.threshold_of(len(members)),
            colluding=settings.colluding,
            min_included=len(members) - settings.dropouts_of(len(members)),
            chunk_bytes=settings.chunk_bytes,
        )
        packing = packing_of(plan, bound, sizes, members=len(members), most=most, sites=len(public))
        groups.append(Group(parameters, packing, Blocks(min(settings.blocks, sizes[0]), packing.start, sizes[0])))
    return tuple(groups)


def secure_server(plan: Plan, groups: Sequence[Group], decided: Decided) -> SecureServer | None:
    """The coordinator's side; None where there are no secure sums."""
    settings = plan.privacy.secure_aggregation
    return None if settings is None else SecureServer(groups, _score_packing(groups), settings, decided)


def secure_site(
    plan: Plan,
    groups: Sequence[Group],
    name: str,
    key: IdentityKey,
    *,
    outbox: Outbox,
    watch: Callable[[float], None],
) -> SecureSite:
    """One site's side.

    Args:
        plan: with secure aggregation.
        groups: of :func:`secure_groups`.
        name: of the site.
        key: its own.
        outbox: where it writes down what it contributes.
        watch: told how many seconds the protocol takes.
    """
    group = next(group for group in groups if name in group.parameters.names)
    return SecureSite(
        group.parameters,
        name,
        key,
        outbox,
        packing=group.packing,
        blocks=group.blocks,
        score_packing=_score_packing(groups),
        due=partial(validation_due, plan.federation),
        watch=watch,
    )


def _score_packing(groups: Sequence[Group]) -> ScorePacking:
    return ScorePacking(SCORES, max(len(group.parameters.names) for group in groups))


def packing_of(
    plan: Plan, bound: PrivacyPlan | None, sizes: tuple[int, int], *, members: int, most: int, sites: int
) -> Packing:
    """How a group's updates are packed.

    Args:
        plan: with secure aggregation.
        bound: what it promises.
        sizes: numbers of parameters and of running statistics.
        members: of the group.
        most: members of the largest group.
        sites: all.

    Raises:
        ConfigError: sums that do not fit the modulus.
    """
    settings = plan.privacy.secure_aggregation
    assert settings is not None
    dimension, buffers = sizes
    if bound is None or not isinstance(bound.mechanism, DistributedDpSgd):
        return PlainPacking(
            dimension=dimension,
            buffers=buffers,
            sites=most,
            settings=settings,
            weighted=plan.federation.weighting == "size",
            silent=bound is not None,
        )
    step = step_plan(plan, bound, dimension, "", sites)
    _, bits = grid(settings, bound, dimension, sites)
    return NoisyPacking(step.noise, step.divisor * members / sites, bits)
