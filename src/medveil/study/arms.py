"""What every arm of a run shares: models, trainers, checkpoints; and the references, trained on one party's data."""

import copy
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medveil.accounting.events import Event
from medveil.dp import check
from medveil.dp.binding import check_delta
from medveil.dp.plan import PrivacyPlan
from medveil.federation.coordinator import Row, validation_due
from medveil.federation.local import check_buffers, local_steps
from medveil.federation.selection import Selection
from medveil.federation.site import Work
from medveil.federation.snapshot import Snapshot, load_snapshot, save_snapshot
from medveil.federation.stages import Pipeline
from medveil.federation.transport import Traffic
from medveil.models.crafted import check_architecture, check_weights_not_crafted, synthetic_inputs
from medveil.models.registry import build
from medveil.models.weights import load_weights
from medveil.rng import SecureRandom, Seeds
from medveil.study.folder import MetricsLog, RoundLines, RunFolder
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared, input_scale
from medveil.study.progress import Progress, Tick
from medveil.study.secure import step_plan
from medveil.training.device import one_thread
from medveil.training.loop import Trainer
from medveil.training.objectives import per_example_loss
from medveil.training.optimisers import build_optimiser, optimiser_state, restore_optimiser
from medveil.training.private import Privately, PrivateTrainer
from medveil.training.validation import Scores, validation_scores
from medveil.training.vectors import Vector, floating_buffers, from_vector, to_vector, trainable

Tamper = Callable[[str, Work, Pipeline], tuple[Work, Pipeline]]


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
        charged: what each party's ledger was charged for this run; None without a privacy claim.
        ledgers: what those ledgers say, for the record.
    """

    weights: Vector
    buffers: Vector
    rounds: int
    best_round: int | None
    stopped_early: bool
    earlier_seconds: float
    traffic: Traffic | None = None
    lost: dict[str, str] | None = None
    charged: dict[str, Event] | None = None
    ledgers: dict[str, Any] | None = None
    secure: dict[str, Any] | None = None


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
        bound: what the plan promises, or None.
        ledgers: folder of the parties' privacy ledgers.
        tamper: for experiments with hostile sites only: gets a site's name, work and stages, and returns those that
            it uses instead; None in every ordinary run.
        halt: set to end every training at its next step.
    """

    plan: Plan
    prepared: Prepared
    folder: RunFolder
    log: MetricsLog
    progress: Progress
    device: torch.device
    first: nn.Module
    bound: PrivacyPlan | None
    ledgers: Path
    tamper: Tamper | None = None
    halt: threading.Event = field(default_factory=threading.Event)

    def model(self) -> nn.Module:
        """A new model with the plan's first weights."""
        return copy.deepcopy(self.first)

    def trainer(self, party: Party, number: int) -> Trainer:
        """A trainer for one party; the pool and a sole site share number 0, hence their batches."""
        return Trainer(self.model(), party.train, self.plan.training, **self._options(number))

    def private_trainer(self, party: Party, number: int, parties: int) -> Trainer:
        """The party's trainer under the plan's claim: private by itself where patients or images are the unit.

        Raises:
            GuaranteeError: the claim would be hollow for this party.
            ConfigError: delta is too large for its number of units.
        """
        bound = self.bound
        if bound is None or bound.unit == "site":
            return self.trainer(party, number)
        units = party.train.num_subjects if bound.unit == "patient" else len(party.train)
        check_delta(bound.delta, units, nominal=False)
        dimension = sum(parameter.numel() for parameter in trainable(self.first))
        privately = Privately(
            step=step_plan(self.plan, bound, dimension, party.name, parties),
            unit=bound.unit,
            random=self.random("party", number),
            repeatable=not bound.secure,
        )
        return PrivateTrainer(
            self.model(),
            party.train,
            self.plan.training,
            private=privately,
            performance=self.plan.performance,
            **self._options(number),
        )

    def random(self, *names: str | int) -> SecureRandom:
        """A fresh secure source, or the plan's seeded one, which makes every claim void."""
        return privacy_random(self.plan, self.bound, *names)

    def _options(self, number: int) -> dict[str, Any]:
        return {
            "scale": input_scale(self.plan.data.preprocess),
            "num_classes": self.prepared.num_classes,
            "seeds": Seeds(self.plan.seed).child("party", number),
            "device": self.device,
            "halt": self.halt,
        }

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


def privacy_random(plan: Plan, bound: PrivacyPlan | None, *names: str | int) -> SecureRandom:
    """A fresh secure source, or the plan's seeded one by name, which makes every claim void."""
    if bound is None or bound.secure:
        return SecureRandom()
    return SecureRandom.seeded(Seeds(plan.seed).child("privacy", *names))


class Desk(Protocol):
    """Where whoever leads a training keeps its notes; a :class:`Workshop` is one."""

    @property
    def plan(self) -> Plan:
        """Of the run."""
        ...

    @property
    def folder(self) -> RunFolder:
        """Where checkpoints go."""
        ...

    @property
    def log(self) -> MetricsLog:
        """Metrics of every round."""
        ...

    @property
    def progress(self) -> Progress:
        """Whoever watches."""
        ...


class Journal:
    """Checkpoint, metrics lines and progress of one arm.

    Args:
        shop: the run.
        arm: its name.
    """

    def __init__(self, shop: Desk, arm: str) -> None:
        self._shop, self._arm = shop, arm
        self._path = shop.folder.checkpoint(arm)
        self._begun = time.perf_counter()
        self._score: float | None = None
        self.snapshot = load_snapshot(self._path)
        self._summed_path = shop.folder.checkpoint(f"{arm}-summed")
        self._summed = load_snapshot(self._summed_path)
        facts: Mapping[str, Any] = self.snapshot.facts if self.snapshot else {"rows": 0}
        self._lines = RoundLines(shop.folder.lines(arm), facts.get("rows"))
        self.earlier = float(facts.get("seconds", 0.0))
        self._first_round = self.snapshot.round if self.snapshot else 0
        shop.log.append([json.loads(line) for line in self._lines.read()])

    @property
    def seconds(self) -> float:
        """Spent in this arm so far, restarts included."""
        return self.earlier + time.perf_counter() - self._begun

    @property
    def summed(self) -> Snapshot | None:
        """State of a round that was summed and not committed; None where there is none."""
        committed = 0 if self.snapshot is None else self.snapshot.round
        return self._summed if self._summed is not None and self._summed.round > committed else None

    def keep_summed(self, snapshot: Snapshot) -> None:
        """Write down a round whose scores are yet to come."""
        save_snapshot(snapshot, self._summed_path)

    def commit(self, row: Row, snapshot: Snapshot, extra: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, then the metrics line, then tell the watcher."""
        line = {"arm": self._arm, "seconds": round(self.seconds, 3), **row}
        self._lines.add(line)
        facts = {**snapshot.facts, "rows": self._lines.count, "seconds": self.seconds, **(extra or {})}
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
        GuaranteeError: another architecture than the plan pins, or first weights that look crafted to copy images.
    """
    model = build(
        plan.model,
        input_shape=input_shape,
        num_classes=num_classes,
        seed=Seeds(plan.seed).child("model"),
        task=plan.task,
    )
    check_buffers(model, plan.federation.buffers)
    if plan.privacy.dp is not None and plan.privacy.unit != "site":
        loss = partial(per_example_loss, config=plan.training.loss)
        check(model, input_shape=input_shape, loss=loss, num_classes=num_classes)
    if plan.architecture_hash is not None:
        check_architecture(model, input_shape, plan.architecture_hash)
    if plan.initial_weights is not None:
        load_weights(model, plan.root / plan.initial_weights)
        check_weights_not_crafted(model, synthetic_inputs(input_shape))
    return model


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
        due = validation_due(plan.federation, done)
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
