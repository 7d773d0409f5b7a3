"""The run's own arm: training over the sites, through messages."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from medveil.accounting.events import Event
from medveil.dp.binding import check_delta
from medveil.dp.plan import PrivacyPlan
from medveil.federation.coordinator import Coordinator, Row, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.local import LocalWork
from medveil.federation.secure.decided import Decided
from medveil.federation.secure.server import SecureServer
from medveil.federation.server import Averaging, ServerOptimiser, ServerStep
from medveil.federation.settings import FedSgd
from medveil.federation.site import Sealing, Site, Spending, Work
from medveil.federation.site_privacy import site_privacy_stages
from medveil.federation.snapshot import Snapshot
from medveil.federation.stages import Pipeline, build_pipeline
from medveil.federation.transport import Traffic, Transport
from medveil.models.crafted import check_weights_not_crafted, has_hidden_linear, synthetic_inputs
from medveil.rng import SecureRandom
from medveil.study.arms import Desk, Journal, Outcome, Workshop
from medveil.study.parties import is_pooled
from medveil.study.plan import Plan
from medveil.study.prepare import Party
from medveil.study.secure import ProtocolClock, build_secure
from medveil.study.spending import Account, open_accounts
from medveil.training.device import one_thread
from medveil.training.optimisers import Schedule
from medveil.training.vectors import floating_buffers, to_vector, trainable


def train_federated(shop: Workshop) -> Outcome:
    """Train over the sites through messages; goes on from a checkpoint when there is one."""
    plan = shop.plan
    parties = (shop.prepared.pool(),) if is_pooled(plan) else shop.prepared.sites
    names = [party.name for party in parties]
    journal = Journal(shop, "federated")
    pipeline = build_stages(plan, shop.bound, shop.random("server"))
    check_sites(shop.bound, names)
    lost = lost_sites(journal)
    done = journal.snapshot.round if journal.snapshot else 0
    first = shop.model()
    clock = ProtocolClock(journal.snapshot.facts["protocol"] if journal.snapshot else {})
    secure, sealing = build_secure(
        plan,
        shop.bound,
        names,
        sizes=model_sizes(first),
        outboxes=shop.folder.outboxes,
        watch=clock.add,
        decided=Decided(shop.folder.decided),
    )
    accounts = open_accounts(shop, [name for name in names if name not in lost], done)
    at_sites = _at_sites(shop, parties, pipeline)
    sites = {
        party.name: build_site(
            shop,
            party.name,
            *at_sites[number],
            spending=accounts.get(party.name),
            sealing=sealing.get(party.name),
        )
        for number, party in enumerate(parties)
    }
    transport = InProcess(sites, workers=_workers(shop), traffic=earlier_traffic(journal.snapshot))
    coordinator = lead(shop, journal, transport, first, names=names, pipeline=pipeline, secure=secure, clock=clock)
    shutil.rmtree(shop.folder.outboxes, ignore_errors=True)  # unmasked contributions, needed until the last sum
    return outcome_of(plan, journal, coordinator, transport, secure=secure, clock=clock, **_settled(accounts))


def lead(
    desk: Desk,
    journal: Journal,
    transport: Transport,
    first: nn.Module,
    *,
    names: Sequence[str],
    pipeline: Pipeline,
    secure: SecureServer | None,
    clock: ProtocolClock,
    returned: Collection[str] = (),
    absent: Collection[str] = (),
    after_round: Callable[[Collection[str]], None] = lambda _lost: None,
) -> Coordinator:
    """Run the coordinator over any transport until the training is done, or goes on from the journal's checkpoint.

    Args:
        desk: of the run.
        journal: of its federated arm.
        transport: to the sites.
        first: model with the first weights.
        names: of all sites.
        pipeline: the plan's stages.
        secure: the coordinator's side of the secure sum, or None.
        clock: seconds that the secure sum took at the sites.
        returned: sites that were lost and are there again.
        absent: sites that cannot be reached, beside those that the checkpoint knows to be lost.
        after_round: called after every committed round, with the sites that are lost.

    Raises:
        MedveilError: the training cannot go on.
    """
    plan = desk.plan

    def commit(row: Row) -> None:
        traffic = transport.traffic()
        extra = {"sent": dict(traffic.sent), "received": dict(traffic.received), "protocol": clock.state()}
        journal.commit(row, coordinator.snapshot(), extra)
        after_round(coordinator.lost)

    coordinator = Coordinator(
        plan_hash=plan.digest(),
        sites=names,
        settings=plan.federation,
        metric=plan.metric(),
        server=_server(plan, first),
        pipeline=pipeline,
        weights=to_vector(trainable(first)),
        buffers=to_vector(floating_buffers(first)),
        secure=secure,
        watch=Watch(
            site_back=journal.tick,
            round_done=commit,
            round_summed=lambda: journal.keep_summed(coordinator.snapshot()),
        ),
    )
    start = journal.summed or journal.snapshot
    if start is not None:
        coordinator.restore(without(start, returned), scored=journal.summed is None)
    for name in sorted(set(absent) - coordinator.lost.keys()):
        coordinator.lose(name, "The site was not there when the run went on")
    one_thread()  # the server step runs here: its sums, too, must not depend on the number of cores
    transport.run(coordinator)
    return coordinator


def lost_sites(journal: Journal) -> dict[str, str]:
    """Sites that the journal's last snapshot knows to be lost, with the reason."""
    start = journal.summed or journal.snapshot
    return {} if start is None else dict(start.facts["lost"])


def without(snapshot: Snapshot, returned: Collection[str]) -> Snapshot:
    """The same checkpoint, with fewer sites lost."""
    lost = {site: reason for site, reason in snapshot.facts["lost"].items() if site not in returned}
    return Snapshot(snapshot.round, snapshot.tensors, {**snapshot.facts, "lost": lost})


def outcome_of(
    plan: Plan,
    journal: Journal,
    coordinator: Coordinator,
    transport: Transport,
    *,
    secure: SecureServer | None,
    clock: ProtocolClock,
    charged: dict[str, Event] | None,
    ledgers: dict[str, Any] | None,
) -> Outcome:
    """What a training that is done ended with."""
    weights, buffers = coordinator.selection.chosen(coordinator.weights, coordinator.buffers)
    return Outcome(
        weights=weights,
        buffers=buffers,
        rounds=coordinator.round,
        best_round=coordinator.selection.best_round,
        stopped_early=coordinator.round < plan.federation.rounds,
        earlier_seconds=journal.earlier,
        traffic=transport.traffic(),
        lost=dict(coordinator.lost),
        secure=None if secure is None else {**secure.describe(), "site_seconds": clock.state()},
        charged=charged,
        ledgers=ledgers,
    )


def build_site(
    shop: Workshop,
    name: str,
    work: Work,
    pipeline: Pipeline,
    *,
    spending: Spending | None,
    sealing: Sealing | None,
) -> Site:
    """A site's state machine under the plan."""
    return Site(
        name,
        plan_hash=shop.plan.digest(),
        work=work,
        weighting=shop.plan.federation.weighting,
        pipeline=pipeline,
        spending=spending,
        sealing=sealing,
    )


def check_sites(bound: PrivacyPlan | None, names: Sequence[str]) -> None:
    """Refuse a claim per site that so few sites make hollow.

    Raises:
        ConfigError: delta is too large for their number.
    """
    if bound is not None and bound.unit == "site":
        check_delta(bound.delta, len(names), nominal=False)


def model_sizes(model: nn.Module) -> tuple[int, int]:
    """Numbers of parameters and of running statistics."""
    return len(to_vector(trainable(model))), len(to_vector(floating_buffers(model)))


def _settled(accounts: Mapping[str, Account]) -> dict[str, Any]:
    """What the parties' ledgers were charged and say; parties that refused to take part are left out."""
    charged = {name: account.charged() for name, account in accounts.items()}
    present = {name: event for name, event in charged.items() if event is not None}
    ledgers = {name: accounts[name].close() for name in present}
    return {"charged": present or None, "ledgers": ledgers or None}


def build_stages(plan: Plan, bound: PrivacyPlan | None, random: SecureRandom) -> Pipeline:
    """The plan's stages, and those of a claim per site."""
    private = site_privacy_stages(bound, random) if bound is not None and bound.unit == "site" else ()
    return build_pipeline(plan.privacy.stages, private)


def _at_sites(shop: Workshop, parties: Sequence[Party], pipeline: Pipeline) -> list[tuple[Work, Pipeline]]:
    """Every party's work and stages, as they are or as an experiment with hostile sites has them."""
    honest: list[tuple[Work, Pipeline]] = [
        (build_work(shop, party, number, len(parties)), pipeline) for number, party in enumerate(parties)
    ]
    if shop.tamper is None:
        return honest
    return [shop.tamper(party.name, *own) for party, own in zip(parties, honest, strict=True)]


def build_work(shop: Workshop, party: Party, number: int, parties: int) -> LocalWork:
    """What a party does with its own data.

    Args:
        shop: of the run.
        party: whose data.
        number: of the party among all, which decides its random streams.
        parties: how many there are.
    """
    trainer = shop.private_trainer(party, number, parties)
    return LocalWork(
        trainer=trainer,
        algorithm=shop.plan.federation.algorithm,
        optimiser=shop.plan.training.optimiser,
        rounds=shop.plan.federation.rounds,
        score=shop.scorer(trainer.model, party),
        num_validation=len(party.validation) if party.validation is not None else 0,
        silent=shop.bound is not None,
        hidden=shop.bound is not None and shop.bound.unit == "site",
        inspect=partial(_inspect, trainer.model, shop.prepared.input_shape),
    )


def _inspect(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """A site looks at the weights that it was sent, where the network has layers that could copy images."""
    if has_hidden_linear(model):
        check_weights_not_crafted(model, synthetic_inputs(input_shape))


def _workers(shop: Workshop) -> int:
    return 1 if shop.device.type == "cuda" else shop.plan.performance.worker_count()


def _server(plan: Plan, model: nn.Module) -> ServerStep:
    shapes = [parameter.shape for parameter in trainable(model)]
    algorithm = plan.federation.algorithm
    if isinstance(algorithm, FedSgd):
        return ServerOptimiser(plan.training.optimiser, plan.training.schedule, shapes, direction=1)
    if algorithm.server is None:
        return Averaging()
    return ServerOptimiser(algorithm.server, Schedule(), shapes, direction=-1)


def earlier_traffic(snapshot: Snapshot | None) -> Traffic | None:
    """Bytes that earlier parts of the run carried."""
    return None if snapshot is None else Traffic(snapshot.facts["sent"], snapshot.facts["received"])
