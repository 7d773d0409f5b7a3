"""Run a plan: train, compare with the references, score, record."""

import hashlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from medveil.dp.plan import PrivacyPlan
from medveil.errors import ConfigError, DivergedError
from medveil.evaluation.curves import Threshold
from medveil.federation.inprocess import InProcess
from medveil.federation.stages import build_pipeline
from medveil.models.architecture import architecture_hash
from medveil.models.weights import save_weights
from medveil.rng import Seeds
from medveil.study import record
from medveil.study.arms import Outcome, Workshop, build_model, load_outcome, train_alone
from medveil.study.card import model_card
from medveil.study.environment import describe_environment, peak_memory_mb
from medveil.study.external import ForeignTest, load_external, score_external
from medveil.study.federated import train_federated
from medveil.study.folder import MetricsLog, RunFolder, read_json, write_json, write_text
from medveil.study.manifest import verify_manifest, write_manifest
from medveil.study.pictures import save_examples
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared, prepare
from medveil.study.privacy import bind_plan, check_ledger_use, privacy_part
from medveil.study.progress import Progress, Silent
from medveil.study.scoring import Scorer, check_subgroups, point_metrics
from medveil.study.secure_statistics import cohort_statistics, decision_threshold
from medveil.training.device import be_deterministic, choose_device
from medveil.training.vectors import floating_buffers, to_vector, trainable

_PICTURES = 12


@dataclass(frozen=True, eq=False)
class Arms:
    """What was trained.

    Args:
        federated: the run's model.
        references: by arm ("central", "local_only/<site>"), possibly none.
        failed: references that could not be trained, with the reason.
    """

    federated: Outcome
    references: dict[str, Outcome]
    failed: dict[str, str]


def train(plan: Plan, out: Path, progress: Progress | None = None, *, ledgers: Path | None = None) -> dict[str, Any]:
    """Run ``plan`` in the folder ``out``.

    A run that was interrupted, however hard, goes on when called again with the same plan, data and folder, and
    ends with the same weights. A finished run is not repeated, only verified.

    Args:
        plan: what to do.
        out: the run's folder.
        progress: told what happens.
        ledgers: folder of the sites' privacy ledgers, one file a site; by default in the run folder, where no other
            run is composed with this one.

    Returns:
        The content of ``record.json``.

    Raises:
        MedveilError: the plan, the data, the model or the folder cannot be used.
        ManifestError: the run is finished and one of its files was changed since.
    """
    progress = progress or Silent()
    folder = RunFolder(out)
    build_pipeline(plan.privacy.stages)  # an illegal pipeline is refused before any data is read
    bound = bind_plan(plan)
    if ledgers is not None:
        check_ledger_use(plan, bound)
    with folder.claim():
        folder.bind_plan({"plan_hash": plan.digest(), "plan": plan.model_dump(mode="json")})
        if folder.record.exists() and folder.manifest.exists():
            verify_manifest(out)
            progress.note("This run is finished; its files are unchanged")
            return read_json(folder.record)
        return _run(plan, folder, progress, bound, ledgers or folder.ledgers)


def _run(plan: Plan, folder: RunFolder, progress: Progress, bound: PrivacyPlan | None, ledgers: Path) -> dict[str, Any]:
    clock = _Clock()
    device = choose_device(plan.performance.device)
    be_deterministic(device)
    progress.note("Reading the data")
    prepared = prepare(plan)
    check_subgroups(plan, prepared.test)
    _check_validation(plan, prepared)
    foreign = load_external(plan, prepared)
    first = build_model(plan, prepared.input_shape, prepared.num_classes).to(device)
    folder.bind_inputs(_inputs(plan, prepared, first))
    shop = Workshop(plan, prepared, folder, MetricsLog(folder.metrics), progress, device, first, bound, ledgers)
    clock.mark("data")
    cohort = cohort_statistics(plan, prepared)
    with _interruptible(shop):
        federated = train_federated(shop)
        clock.mark("federated", earlier=federated.earlier_seconds)
        arms = _train_references(shop, federated, progress)
        clock.mark("references", earlier=max((arm.earlier_seconds for arm in arms.references.values()), default=0.0))
    progress.note("Scoring the test set")
    content = _scored(shop, arms, foreign)
    clock.mark("evaluation")
    content["cohort"] = cohort
    content["cost"] = _cost(federated, clock, device, plan)
    _write(shop, arms, content)
    progress.note("Done")
    return content


def _check_validation(plan: Plan, prepared: Prepared) -> None:
    """Refuse a plan that selects or stops by validation where no site has validation data."""
    wanted = plan.federation.select == "best" or plan.federation.early_stopping is not None
    if wanted and all(site.validation is None for site in prepared.sites):
        raise ConfigError(
            "The plan selects or stops by validation scores, and no site has validation data",
            expected="validation subjects at some site",
            remedy='raise data.splits.validation, or set federation.select = "last" without early stopping',
        )


def _inputs(plan: Plan, prepared: Prepared, first: nn.Module) -> dict[str, str]:
    """Digests of what is trained on; a run that goes on must find them unchanged."""
    weights = to_vector([*trainable(first), *floating_buffers(first)])
    return {
        "plan_hash": plan.digest(),
        "data": prepared.fingerprint,
        "network": architecture_hash(first, prepared.input_shape),
        "first weights": hashlib.sha256(weights.tobytes()).hexdigest(),
    }


@contextmanager
def _interruptible(shop: Workshop) -> Iterator[None]:
    """On Ctrl-C, and on any error, let every worker stop at its next step rather than at its end."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        shop.halt.set()
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if in_main else None
    try:
        yield
    except BaseException:  # Ctrl-C too: work in other threads stops
        shop.halt.set()
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


class _Clock:
    """Wall seconds by part of the run."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def mark(self, part: str, *, earlier: float = 0.0) -> None:
        """Book the time since the last mark, and what earlier processes spent, on ``part``."""
        now = time.perf_counter()
        self.parts[part] = round(now - self._last + earlier, 3)
        self._last = now


def _train_references(shop: Workshop, federated: Outcome, progress: Progress) -> Arms:
    """Train the references side by side, the longest first. One that fails is recorded, not fatal."""
    plan, sites = shop.plan, shop.prepared.sites
    jobs: list[tuple[Party, str, int, int]] = []
    if plan.references.central:
        jobs.append((shop.prepared.pool(), "central", 0, len(sites)))
    if plan.references.local_only:
        jobs += [(site, f"local_only/{site.name}", number, 1) for number, site in enumerate(sites)]
    if jobs:
        progress.note("Training the references: " + " and ".join(_wanted_references(plan)))
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    workers = 1 if shop.device.type == "cuda" else plan.performance.worker_count()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {
            arm: pool.submit(train_alone, shop, party, arm, number=number, steps_factor=factor)
            for party, arm, number, factor in jobs
        }
        try:
            for arm, future in futures.items():
                try:
                    outcomes[arm] = future.result()
                except DivergedError as error:
                    failed[arm] = error.what
        except BaseException:  # as above
            shop.halt.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Arms(federated, outcomes, failed)


def _wanted_references(plan: Plan) -> list[str]:
    wanted = {
        "one model on all data together": plan.references.central,
        "one on each site's own": plan.references.local_only,
    }
    return [text for text, asked in wanted.items() if asked]


def _scored(shop: Workshop, arms: Arms, foreign: Sequence[ForeignTest]) -> dict[str, Any]:
    """Everything of the record but its cost and its artifacts."""
    plan, prepared = shop.plan, shop.prepared
    privacy = None
    if shop.bound is not None:
        privacy = privacy_part(plan, shop.bound, charged=arms.federated.charged, ledgers=arms.federated.ledgers)
    scorer = Scorer(plan, prepared.dataset.class_names, shop.device)
    model = load_outcome(shop.model(), arms.federated)
    threshold = decision_threshold(scorer, model, prepared.sites, arms.federated.lost or {})
    predictions = scorer.predict(model, prepared.test.data)
    result = scorer.score(predictions, prepared.test, threshold).to_json()
    save_examples(shop.folder.examples, prepared.test.data, predictions, count=_PICTURES, seeds=Seeds(plan.seed))
    return {
        **record.head_part(plan, datetime.now(UTC).isoformat(timespec="seconds"), InProcess.name),
        "data": record.data_part(plan, prepared),
        "model": record.model_part(plan, prepared.input_shape, model),
        "training": record.training_part(plan, arms.federated),
        "test": record.metrics_part(
            result,
            scorer.by_site(predictions, prepared.test, threshold),
            scorer.by_subgroup(predictions, prepared.test, threshold),
        ),
        "details": result["details"],
        "external": [score_external(one, scorer, model, threshold, result["metrics"]) for one in foreign],
        "references": _references(shop, arms, scorer, prepared),
        "privacy": privacy,
        "secure_aggregation": arms.federated.secure,
        "protection": record.protection_part(
            plan, build_pipeline(plan.privacy.stages), privacy, sites=len(prepared.sites)
        ),
    }


def _references(shop: Workshop, arms: Arms, scorer: Scorer, prepared: Prepared) -> dict[str, Any]:
    def metrics(arm: str, party: Party) -> dict[str, float]:
        model: nn.Module = load_outcome(shop.model(), arms.references[arm])
        threshold: Threshold = scorer.threshold(model, party.validation)
        predictions = scorer.predict(model, prepared.test.data)
        return point_metrics(scorer.score(predictions, prepared.test, threshold, intervals=False))

    per_site = {
        site.name: metrics(f"local_only/{site.name}", site)
        for site in prepared.sites
        if f"local_only/{site.name}" in arms.references
    }
    return {
        "central": metrics("central", prepared.pool()) if "central" in arms.references else None,
        "local_only": {**record.mean_metrics(per_site), "per_site": per_site} if per_site else None,
        "failed": arms.failed,
    }


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
    for arm, outcome in arms.references.items():
        save_weights(load_outcome(shop.model(), outcome), folder.reference(arm), metadata=about)
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
