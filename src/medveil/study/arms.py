"""The ways a plan trains: federated over its sites, and the references on pooled and on own data."""

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.federation.coordinator import Coordinator, Row, Watch
from medveil.federation.inprocess import InProcess
from medveil.federation.local import LocalWork, check_buffers, local_steps
from medveil.federation.selection import Selection
from medveil.federation.server import Averaging, ServerOptimiser, ServerStep
from medveil.federation.settings import FedSgd
from medveil.federation.site import Site
from medveil.federation.snapshot import Snapshot, load_snapshot, save_snapshot
from medveil.federation.stages import build_pipeline
from medveil.federation.transport import Traffic
from medveil.models.registry import build
from medveil.models.weights import load_weights
from medveil.rng import Seeds
from medveil.study.folder import MetricsLog, RunFolder
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared, input_scale
from medveil.study.progress import Progress, Tick
from medveil.training.device import one_thread
from medveil.training.loop import Trainer
from medveil.training.optimisers import Schedule, build_optimiser, optimiser_state, restore_optimiser
from medveil.training.validation import Scores, validation_scores
from medveil.training.vectors import Vector, floating_buffers, from_vector, to_vector, trainable


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an arm ended with.

    Args:
        weights: chosen weights, shape (d,).
        buffers: running statistics that go with them.
        rounds: rounds done.
        best_round: round with the best validation score, or None without validation.
        stopped_early: whether early stopping ended it.
        earlier_seconds: spent in this arm by processes that were interrupted.
        traffic: bytes, for the federated arm.
        lost: sites that did not stay, with the reason.
    """

    weights: Vector
    buffers: Vector
    rounds: int
    best_round: int | None
    stopped_early: bool
    earlier_seconds: float
    traffic: Traffic | None = None
    lost: dict[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Workshop:
    """What every arm of a run shares.

    Args:
        plan: of the run.
        prepared: its data.
        folder: where checkpoints go.
        log: metrics of every round.
        progress: whoever watches.
        device: where models compute.
        first: model with the plan's first weights; every arm starts from a copy.
        halt: set to end every training at its next step.
    """

    plan: Plan
    prepared: Prepared
    folder: RunFolder
    log: MetricsLog
    progress: Progress
    device: torch.device
    first: nn.Module
    halt: threading.Event = field(default_factory=threading.Event)

    def model(self) -> nn.Module:
        """A new model with the plan's first weights."""
        return copy.deepcopy(self.first)

    def trainer(self, party: Party, number: int) -> Trainer:
        """A trainer for one party; the pool and a sole site share number 0, hence their batches."""
        return Trainer(
            self.model(),
            party.train,
            self.plan.training,
            scale=input_scale(self.plan.data.preprocess),
            num_classes=self.prepared.num_classes,
            seeds=Seeds(self.plan.seed).child("party", number),
            device=self.device,
            halt=self.halt,
        )

    def scorer(self, model: nn.Module, party: Party) -> Callable[[], Scores] | None:
        """Validation of ``model`` on the party's own validation data, or None when it has none."""
        data = party.validation
        if data is None:
            return None

        def score() -> Scores:
            return validation_scores(
                model,
                data,
                task=self.plan.task,
                scale=input_scale(self.plan.data.preprocess),
                loss=self.plan.training.loss,
                batch_size=self.plan.performance.eval_batch_size,
                device=self.device,
            )

        return score


class Journal:
    """Checkpoint, metrics lines and progress of one arm.

    Args:
        shop: the run.
        arm: its name.
    """

    def __init__(self, shop: Workshop, arm: str) -> None:
        self._shop, self._arm = shop, arm
        self._path = shop.folder.checkpoint(arm)
        self._begun = time.perf_counter()
        self._score: float | None = None
        self.snapshot = load_snapshot(self._path)
        facts = self.snapshot.facts if self.snapshot else {}
        self._rows: list[Row] = list(facts.get("rows", []))
        self.earlier = float(facts.get("seconds", 0.0))
        self._first_round = self.snapshot.round if self.snapshot else 0
        shop.log.append(self._rows)

    @property
    def seconds(self) -> float:
        """Spent in this arm so far, restarts included."""
        return self.earlier + time.perf_counter() - self._begun

    def commit(self, row: Row, snapshot: Snapshot, extra: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, then the metrics line, then tell the watcher."""
        line = {"arm": self._arm, "seconds": round(self.seconds, 3), **row}
        self._rows.append(line)
        facts = {**snapshot.facts, "rows": self._rows, "seconds": self.seconds, **(extra or {})}
        save_snapshot(Snapshot(snapshot.round, snapshot.tensors, facts), self._path)
        self._shop.log.append([line])
        if row["validation"]:
            self._score = row["validation"].get(self._shop.plan.metric())
        self.tick(row["round"], row["sites"], row["sites"])

    def tick(self, round_number: int, back: int, expected: int) -> None:
        """Tell the watcher."""
        plan = self._shop.plan
        self._shop.progress.tick(
            Tick(
                arm=self._arm,
                round=round_number,
                rounds=plan.federation.rounds,
                sites_back=back,
                sites=expected,
                metric=plan.metric(),
                score=self._score,
                seconds_left=self._seconds_left(round_number - (back < expected)),
            )
        )

    def _seconds_left(self, done: int) -> float | None:
        fresh = done - self._first_round
        if fresh < 1:
            return None
        plan = self._shop.plan
        a_round = (time.perf_counter() - self._begun) / fresh
        left = (plan.federation.rounds - done) * a_round
        if self._arm == "federated":  # each reference costs about what the federated training does
            left += plan.federation.rounds * a_round * (plan.references.central + plan.references.local_only)
        return left


def build_model(plan: Plan, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The plan's model with its first weights: by seed, or from ``initial_weights``.

    Raises:
        ModelError: the model cannot be built for this input, the weights do not fit, or it keeps running
            statistics that the plan does not deal with.
    """
    model = build(
        plan.model,
        input_shape=input_shape,
        num_classes=num_classes,
        seed=Seeds(plan.seed).child("model"),
        task=plan.task,
    )
    check_buffers(model, plan.federation.buffers)
    if plan.initial_weights is not None:
        load_weights(model, plan.root / plan.initial_weights)
    return model


def train_federated(shop: Workshop) -> Outcome:
    """Train over the sites through messages; goes on from a checkpoint when there is one."""
    plan, parties = shop.plan, shop.prepared.sites
    journal = Journal(shop, "federated")
    pipeline = build_pipeline(plan.privacy.stages)
    sites = {
        party.name: Site(
            party.name,
            plan_hash=plan.digest(),
            work=_work(shop, party, number),
            weighting=plan.federation.weighting,
            pipeline=pipeline,
        )
        for number, party in enumerate(parties)
    }
    first = shop.model()
    transport = InProcess(sites, workers=_workers(shop), traffic=_earlier_traffic(journal.snapshot))

    def commit(row: Row) -> None:
        traffic = transport.traffic()
        journal.commit(row, coordinator.snapshot(), {"sent": dict(traffic.sent), "received": dict(traffic.received)})

    coordinator = Coordinator(
        plan_hash=plan.digest(),
        sites=list(sites),
        settings=plan.federation,
        metric=plan.metric(),
        server=_server(plan, first),
        pipeline=pipeline,
        weights=to_vector(trainable(first)),
        buffers=to_vector(floating_buffers(first)),
        watch=Watch(site_back=journal.tick, round_done=commit),
    )
    if journal.snapshot is not None:
        coordinator.restore(journal.snapshot)
    one_thread()  # the server step runs here: its sums, too, must not depend on the number of cores
    transport.run(coordinator)
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
    )


def train_alone(shop: Workshop, party: Party, arm: str, *, number: int, steps_factor: int = 1) -> Outcome:
    """Train one model on one party's data, for as many rounds as the federation has, keeping optimiser state.

    Args:
        shop: the run.
        party: whose data.
        arm: its name in the metrics.
        number: of the party's random streams.
        steps_factor: how many sites' steps a round stands for (only where the plan counts steps).
    """
    one_thread()
    plan = shop.plan
    journal = Journal(shop, arm)
    trainer = shop.trainer(party, number)
    score = shop.scorer(trainer.model, party)
    optimiser = build_optimiser(trainer.parameters, plan.training.optimiser)
    selection = Selection(plan.federation, plan.metric())
    done = _resume_alone(journal.snapshot, trainer, optimiser, selection)
    steps = local_steps(plan.federation.algorithm, trainer.steps_per_epoch)
    if getattr(plan.federation.algorithm, "local_epochs", None) is None:
        steps *= steps_factor
    rounds = plan.federation.rounds
    while done < rounds and not selection.exhausted:
        loss = trainer.run(optimiser, first_step=done * steps, count=steps, total_steps=rounds * steps)
        done += 1
        due = done % plan.federation.validate_every == 0 or done == rounds
        scores = score() if due and score else ({} if due else None)
        selection.consider(done, scores, *_vectors(trainer.model))
        row = {"round": done, "train_loss": loss, "validation": scores, "sites": 1}
        journal.commit(row, _snapshot_alone(done, trainer, optimiser, selection))
    weights, buffers = selection.chosen(*_vectors(trainer.model))
    return Outcome(weights, buffers, done, selection.best_round, done < rounds, journal.earlier)


def load_outcome(model: nn.Module, outcome: Outcome) -> nn.Module:
    """Put an arm's weights into ``model``."""
    from_vector(outcome.weights, trainable(model))
    from_vector(outcome.buffers, floating_buffers(model))
    return model


def _work(shop: Workshop, party: Party, number: int) -> LocalWork:
    trainer = shop.trainer(party, number)
    return LocalWork(
        trainer=trainer,
        algorithm=shop.plan.federation.algorithm,
        optimiser=shop.plan.training.optimiser,
        rounds=shop.plan.federation.rounds,
        score=shop.scorer(trainer.model, party),
        num_validation=len(party.validation) if party.validation is not None else 0,
    )


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


def _vectors(model: nn.Module) -> tuple[Vector, Vector]:
    return to_vector(trainable(model)), to_vector(floating_buffers(model))


def _snapshot_alone(done: int, trainer: Trainer, optimiser: torch.optim.Optimizer, selection: Selection) -> Snapshot:
    weights, buffers = _vectors(trainer.model)
    tensors: dict[str, NDArray[np.generic]] = {"weights": weights, "buffers": buffers}
    tensors |= {f"optimiser.{name}": value.cpu().numpy() for name, value in optimiser_state(optimiser).items()}
    tensors |= {f"selection.{name}": value for name, value in selection.tensors().items()}
    return Snapshot(done, tensors, {"selection": selection.facts()})


def _resume_alone(
    snapshot: Snapshot | None, trainer: Trainer, optimiser: torch.optim.Optimizer, selection: Selection
) -> int:
    """Load a checkpoint into everything that has state; return the rounds done."""
    if snapshot is None:
        return 0
    from_vector(np.asarray(snapshot.tensors["weights"], dtype=np.float32), trainer.parameters)
    from_vector(np.asarray(snapshot.tensors["buffers"], dtype=np.float32), floating_buffers(trainer.model))
    restore_optimiser(
        optimiser, {name: torch.from_numpy(np.array(value)) for name, value in snapshot.part("optimiser.").items()}
    )
    selection.restore(snapshot.facts["selection"], snapshot.part("selection."))
    return snapshot.round
