"""The run's own arm: training over the sites, through messages."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from medveil.dp.binding import check_delta
from medveil.federation.coordinator import Coordinator, Row, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.local import LocalWork
from medveil.federation.server import Averaging, ServerOptimiser, ServerStep
from medveil.federation.settings import FedSgd
from medveil.federation.site import Site, Work
from medveil.federation.site_privacy import site_privacy_stages
from medveil.federation.snapshot import Snapshot
from medveil.federation.stages import Pipeline, build_pipeline
from medveil.federation.transport import Traffic
from medveil.models.crafted import check_weights_not_crafted, has_hidden_linear, synthetic_inputs
from medveil.study.arms import Journal, Outcome, Workshop
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
    journal = Journal(shop, "federated")
    pipeline = _pipeline(shop)
    if shop.bound is not None and shop.bound.unit == "site":
        check_delta(shop.bound.delta, len(parties), nominal=False)
    lost = set(journal.snapshot.facts["lost"]) if journal.snapshot else set()
    done = journal.snapshot.round if journal.snapshot else 0
    first = shop.model()
    clock = ProtocolClock(journal.snapshot.facts["protocol"] if journal.snapshot else {})
    secure, sealing = build_secure(
        plan,
        shop.bound,
        [party.name for party in parties],
        sizes=(len(to_vector(trainable(first))), len(to_vector(floating_buffers(first)))),
        outboxes=shop.folder.outboxes,
        watch=clock.add,
    )
    accounts = open_accounts(shop, [party.name for party in parties if party.name not in lost], done)
    at_sites = _at_sites(shop, parties, pipeline)
    sites = {
        party.name: Site(
            party.name,
            plan_hash=plan.digest(),
            work=at_sites[number][0],
            weighting=plan.federation.weighting,
            pipeline=at_sites[number][1],
            spending=accounts.get(party.name),
            sealing=sealing.get(party.name),
        )
        for number, party in enumerate(parties)
    }
    transport = InProcess(sites, workers=_workers(shop), traffic=_earlier_traffic(journal.snapshot))

    def commit(row: Row) -> None:
        traffic = transport.traffic()
        extra = {"sent": dict(traffic.sent), "received": dict(traffic.received), "protocol": clock.state()}
        journal.commit(row, coordinator.snapshot(), extra)

    coordinator = Coordinator(
        plan_hash=plan.digest(),
        sites=list(sites),
        settings=plan.federation,
        metric=plan.metric(),
        server=_server(plan, first),
        pipeline=pipeline,
        weights=to_vector(trainable(first)),
        buffers=to_vector(floating_buffers(first)),
        secure=secure,
        watch=Watch(site_back=journal.tick, round_done=commit),
    )
    if journal.snapshot is not None:
        coordinator.restore(journal.snapshot)
    one_thread()  # the server step runs here: its sums, too, must not depend on the number of cores
    transport.run(coordinator)
    shutil.rmtree(shop.folder.outboxes, ignore_errors=True)  # unmasked contributions, needed until the last sum
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
        **_settled(accounts),
    )


def _settled(accounts: Mapping[str, Account]) -> dict[str, Any]:
    """What the parties' ledgers were charged and say; parties that refused to take part are left out."""
    charged = {name: account.charged() for name, account in accounts.items()}
    present = {name: event for name, event in charged.items() if event is not None}
    ledgers = {name: accounts[name].close() for name in present}
    return {"charged": present or None, "ledgers": ledgers or None}


def _pipeline(shop: Workshop) -> Pipeline:
    bound = shop.bound
    private = site_privacy_stages(bound, shop.random("server")) if bound is not None and bound.unit == "site" else ()
    return build_pipeline(shop.plan.privacy.stages, private)


def _at_sites(shop: Workshop, parties: Sequence[Party], pipeline: Pipeline) -> list[tuple[Work, Pipeline]]:
    """Every party's work and stages, as they are or as an experiment with hostile sites has them."""
    honest: list[tuple[Work, Pipeline]] = [
        (_work(shop, party, number, len(parties)), pipeline) for number, party in enumerate(parties)
    ]
    if shop.tamper is None:
        return honest
    return [shop.tamper(party.name, *own) for party, own in zip(parties, honest, strict=True)]


def _work(shop: Workshop, party: Party, number: int, parties: int) -> LocalWork:
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


def _earlier_traffic(snapshot: Snapshot | None) -> Traffic | None:
    return None if snapshot is None else Traffic(snapshot.facts["sent"], snapshot.facts["received"])
