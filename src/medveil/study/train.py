"""Run a plan: train, compare with the references, score, record."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medveil.evaluation.curves import Threshold
from medveil.federation.stages import build_pipeline
from medveil.models.weights import save_weights
from medveil.rng import Seeds
from medveil.study import record
from medveil.study.arms import Outcome, Workshop, build_model, load_outcome, train_alone, train_federated
from medveil.study.card import model_card
from medveil.study.environment import describe_environment, peak_memory_mb
from medveil.study.external import score_external
from medveil.study.folder import MetricsLog, RunFolder, read_json, write_json, write_text
from medveil.study.manifest import write_manifest
from medveil.study.pictures import save_examples
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared, prepare
from medveil.study.progress import Progress, Silent
from medveil.study.scoring import Scorer, point_metrics
from medveil.training.device import choose_device

_PICTURES = 12


@dataclass(frozen=True, eq=False)
class Arms:
    """What was trained.

    Args:
        federated: the run's model.
        central: reference on pooled data, or None.
        local_only: reference a site, possibly none.
    """

    federated: Outcome
    central: Outcome | None
    local_only: dict[str, Outcome]


def train(plan: Plan, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run ``plan`` in the folder ``out``.

    A run that was interrupted, however hard, goes on when called again with the same plan and folder, and ends
    with the same weights. A finished run is not repeated.

    Returns:
        The content of ``record.json``.

    Raises:
        MedveilError: the plan, the data, the model or the folder cannot be used.
    """
    progress = progress or Silent()
    folder = RunFolder(out)
    build_pipeline(plan.privacy.stages)  # an illegal pipeline is refused before any data is read
    with folder.claim():
        folder.bind_plan(
            {
                "plan_hash": plan.digest(),
                "plan": plan.model_dump(mode="json"),
                "root": str(plan.root),
                "data_root": str(plan.data_root),
            }
        )
        if folder.record.exists() and folder.manifest.exists():
            progress.note("This run is finished; its record is unchanged")
            return read_json(folder.record)
        return _run(plan, folder, progress)


def _run(plan: Plan, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    clock = _Clock()
    torch.use_deterministic_algorithms(mode=True)
    device = choose_device(plan.performance.device)
    progress.note("Reading the data")
    prepared = prepare(plan)
    clock.mark("data")
    first = build_model(plan, prepared.input_shape, prepared.num_classes).to(device)
    shop = Workshop(plan, prepared, folder, MetricsLog(folder.metrics), progress, device, first)
    federated = train_federated(shop)
    clock.add("federated", federated.seconds)
    arms = _train_references(shop, federated, progress)
    clock.add("references", sum(arm.seconds for arm in _reference_arms(arms)))
    progress.note("Scoring the test set")
    clock.mark("")
    content = _scored(shop, arms, progress)
    clock.mark("evaluation")
    content["cost"] = _cost(federated, clock, device, plan)
    _write(shop, arms, content)
    progress.note("Done")
    return content


class _Clock:
    """Seconds by part of the run."""

    def __init__(self) -> None:
        self.begun = self._last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Book the time since the last mark on ``part`` (nothing for "")."""
        now = time.perf_counter()
        if part:
            self.add(part, now - self._last)
        self._last = now

    def add(self, part: str, seconds: float) -> None:
        """Book seconds."""
        self.parts[part] = round(self.parts.get(part, 0.0) + seconds, 3)


def _reference_arms(arms: Arms) -> list[Outcome]:
    return [*([arms.central] if arms.central else []), *arms.local_only.values()]


def _train_references(shop: Workshop, federated: Outcome, progress: Progress) -> Arms:
    """Train the references side by side, the longest first."""
    plan, sites = shop.plan, shop.prepared.sites
    jobs: list[tuple[Party, str, int, int]] = []
    if plan.references.central:
        jobs.append((shop.prepared.pool(), "central", 0, len(sites)))
    if plan.references.local_only:
        jobs += [(site, f"local_only/{site.name}", number, 1) for number, site in enumerate(sites)]
    if jobs:
        progress.note("Training the references: one model on all data together, one on each site's own")
    workers = 1 if shop.device.type == "cuda" else plan.performance.worker_count()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {
            arm: pool.submit(train_alone, shop, party, arm, number=number, steps_factor=factor)
            for party, arm, number, factor in jobs
        }
        outcomes = {arm: future.result() for arm, future in futures.items()}
    central = outcomes.pop("central", None)
    return Arms(federated, central, {arm.removeprefix("local_only/"): outcomes[arm] for arm in outcomes})


def _scored(shop: Workshop, arms: Arms, progress: Progress) -> dict[str, Any]:
    """Everything of the record but its cost and its artifacts."""
    plan, prepared = shop.plan, shop.prepared
    scorer = Scorer(plan, prepared.dataset.class_names, shop.device)
    model = load_outcome(shop.model(), arms.federated)
    threshold = scorer.threshold(model, prepared.pool().validation)
    predictions = scorer.predict(model, prepared.test.data)
    result = scorer.score(predictions, prepared.test, threshold).to_json()
    save_examples(shop.folder.examples, prepared.test.data, predictions, count=_PICTURES, seeds=Seeds(plan.seed))
    return {
        **record.head_part(plan, datetime.now(UTC).isoformat(timespec="seconds")),
        "data": record.data_part(plan, prepared),
        "model": record.model_part(plan, prepared, model),
        "training": record.training_part(plan, arms.federated),
        "test": record.metrics_part(
            result,
            scorer.by_site(predictions, prepared.test, threshold),
            scorer.by_subgroup(predictions, prepared.test, threshold),
        ),
        "details": result["details"],
        "external": score_external(plan, prepared, scorer, model, threshold, result["metrics"], progress),
        "references": _references(shop, arms, scorer, prepared),
        "privacy": None,
        "protection": record.protection_part(build_pipeline(plan.privacy.stages)),
    }


def _references(shop: Workshop, arms: Arms, scorer: Scorer, prepared: Prepared) -> dict[str, Any]:
    def metrics(outcome: Outcome, party: Party) -> dict[str, float]:
        model: nn.Module = load_outcome(shop.model(), outcome)
        threshold: Threshold = scorer.threshold(model, party.validation)
        predictions = scorer.predict(model, prepared.test.data)
        return point_metrics(scorer.score(predictions, prepared.test, threshold, intervals=False))

    central = metrics(arms.central, prepared.pool()) if arms.central else None
    per_site = {
        site.name: metrics(arms.local_only[site.name], site) for site in prepared.sites if site.name in arms.local_only
    }
    local_only = {**record.mean_metrics(per_site), "per_site": per_site} if per_site else None
    return {"central": central, "local_only": local_only}


def _cost(federated: Outcome, clock: _Clock, device: torch.device, plan: Plan) -> dict[str, Any]:
    traffic = federated.traffic
    return {
        "seconds": round(sum(clock.parts.values()), 3),
        "seconds_by_part": clock.parts,
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "bytes_sent_per_site": dict(traffic.sent) if traffic else {},
        "bytes_received_per_site": dict(traffic.received) if traffic else {},
        "rounds": federated.rounds,
        "device": device.type,
        "threads": plan.performance.worker_count(),
    }


def _write(shop: Workshop, arms: Arms, content: dict[str, Any]) -> None:
    """Write the run's files, the record last but one, the manifest last: it marks the run as finished."""
    folder, plan_hash = shop.folder, content["plan_hash"]
    about = {"plan_hash": plan_hash, "architecture_hash": content["model"]["architecture_hash"]}
    save_weights(load_outcome(shop.model(), arms.federated), folder.weights, metadata=about)
    folder.references.mkdir(exist_ok=True)
    references = {"central": arms.central, **{f"local_only-{site}": arm for site, arm in arms.local_only.items()}}
    for name, outcome in references.items():
        if outcome is not None:
            save_weights(load_outcome(shop.model(), outcome), folder.references / f"{name}.safetensors", metadata=about)
    write_text(folder.seen, "".join(digest + "\n" for digest in sorted(shop.prepared.seen)))
    write_json(folder.environment, describe_environment(shop.device))
    content["artifacts"] = {
        "plan": folder.plan.name,
        "environment": folder.environment.name,
        "metrics": folder.metrics.name,
        "weights": folder.weights.name,
        "references": folder.references.name,
        "examples": folder.examples.name,
        "model_card": folder.card.name,
        "manifest": folder.manifest.name,
    }
    write_text(folder.card, model_card(content))
    write_json(folder.record, content)
    write_manifest(folder.path, plan_hash)
