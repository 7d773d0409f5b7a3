"""Who can take part in a job: every site tells what it runs and holds, and those that do not fit are left out."""

from collections import Counter
from collections.abc import Sequence

from medveil import __version__
from medveil.connect.gather import Gather
from medveil.connect.server_run import Events
from medveil.errors import ConfigError, ProtocolError, TooFewSitesError
from medveil.federation.coordinator import least_sites
from medveil.federation.messages import Ready
from medveil.federation.remote import Remote
from medveil.rng import Seeds
from medveil.study.plan import Plan


def gather_ready(plan: Plan, remote: Remote, here: Sequence[str], sites: Sequence[str], events: Events) -> Ready:
    """Wait until the sites agreed to the plan.

    A site of another plan or version is left out at once; one whose images or classes are not those of most sites, once
    all have told: whoever tells first decides nothing.

    Args:
        plan: of the run.
        remote: to the sites.
        here: sites that may take part in this job.
        sites: all of the run.
        events: where what happens is noted.

    Returns:
        What the sites that take part have in common.

    Raises:
        TooFewSitesError: too few take part.
        ConfigError: the plan needs validation scores, and no site can give any.
    """
    events.note("Waiting for the sites to agree to the plan")
    least = max(1, _least(plan, sites))

    def check(site: str, ready: Ready) -> None:
        _check_same(plan, site, ready)
        events.joined(site)

    gather = Gather(Ready, here, least=least, check=check)
    remote.lead(gather)
    told = gather.gathered
    (usual, _), *others = Counter(_form(told[site]) for site in sorted(told)).most_common()
    if others:
        for site in sorted(site for site in told if _form(told[site]) != usual):
            shape, classes = _form(told.pop(site))
            remote.dismiss(
                site,
                "The site's images or classes are not those of most sites: "
                f"shape {shape} and {len(classes)} classes, not {usual[0]} and {len(usual[1])}",
            )
    if len(told) < least:
        raise TooFewSitesError(
            "Too few sites have images and classes of one kind",
            got=f"{len(told)} of one kind, {len(others)} further kinds",
            expected=f"at least {least} sites",
            remedy="set data.preprocess in the plan so that all images have one shape, and name the same classes",
        )
    chosen = plan.federation.select == "best" or plan.federation.early_stopping is not None
    if chosen and not any(ready.validates for ready in told.values()):
        raise ConfigError(
            "The plan selects or stops by validation scores, and no site has validation data",
            remedy='set federation.select = "last" without early stopping',
        )
    return told[min(told)]


def _form(ready: Ready) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return tuple(ready.input_shape), tuple(ready.class_names)


def _least(plan: Plan, sites: Sequence[str]) -> int:
    """Fewest sites to begin with: as many as the training itself cannot spare."""
    federation, sums = plan.federation, plan.privacy.secure_aggregation
    if sums is None:
        return least_sites(federation, len(sites))
    groups = sums.deal(list(sites), Seeds(plan.seed))
    return max(federation.min_sites, sum(len(group) - sums.dropouts_of(len(group)) for group in groups))


def _check_same(plan: Plan, site: str, ready: Ready) -> None:
    """Refuse a site that follows another plan or version.

    Raises:
        ProtocolError: as said; the run goes on without the site where it can.
    """
    ours = {"plan": plan.digest(), "version": __version__, "name": site}
    theirs = {"plan": ready.plan_hash, "version": ready.version, "name": ready.site}
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise ProtocolError(
            f"The site has another {' and '.join(different)} than the server",
            got=", ".join(theirs[name][:20] for name in different),
            expected=", ".join(ours[name][:20] for name in different),
            remedy="install the same version of medveil everywhere",
        )
