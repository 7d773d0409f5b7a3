"""A run over the network, written down as a run in one process is."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from medveil.connect.summing import Summed
from medveil.dp.plan import PrivacyPlan
from medveil.federation.messages import Ready
from medveil.federation.stages import Pipeline
from medveil.models.weights import save_weights
from medveil.study import record
from medveil.study.arms import Outcome, load_outcome
from medveil.study.card import model_card
from medveil.study.environment import describe_environment, peak_memory_mb
from medveil.study.folder import RunFolder, write_json, write_text
from medveil.study.manifest import write_manifest
from medveil.study.plan import Plan
from medveil.study.privacy import privacy_part

_APART = (
    "over a network the hospitals' images cannot be brought together, nor models trained on one hospital's alone shown"
)


def write_run(
    plan: Plan,
    folder: RunFolder,
    *,
    bound: PrivacyPlan | None,
    facts: Ready,
    first: nn.Module,
    outcome: Outcome,
    sums: Summed,
    pipeline: Pipeline,
    events: Sequence[dict[str, Any]],
    sites: Sequence[str],
    seconds: Mapping[str, float],
    created: str,
    transport: str,
) -> dict[str, Any]:
    """Write record, weights, card and manifest; the manifest last, since it marks the run as finished.

    Returns:
        The content of ``record.json``.
    """
    privacy = None
    if bound is not None:
        privacy = privacy_part(plan, bound, charged=outcome.charged, ledgers=outcome.ledgers)
    model = load_outcome(copy.deepcopy(first), outcome)
    shape = tuple(facts.input_shape)
    traffic = outcome.traffic
    content: dict[str, Any] = {
        **record.head_part(plan, created, transport),
        "data": _data_part(plan, facts, sums, sites),
        "model": record.model_part(plan, shape, model),
        "training": record.training_part(plan, outcome),
        "test": {**sums.test["metrics"], "per_site": sums.per_site, "per_subgroup": {}},
        "details": _details(sums),
        "external": [],
        "references": {"central": None, "local_only": None, "failed": _failed(plan)},
        "privacy": privacy,
        "secure_aggregation": outcome.secure,
        "protection": _protection(record.protection_part(plan, pipeline, privacy, sites=len(sites)), plan, privacy),
        "cohort": sums.cohort,
        "cost": {
            "seconds": round(sum(seconds.values()), 3),
            "seconds_by_part": dict(seconds),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "bytes_sent_per_site": dict(traffic.sent) if traffic else {},
            "bytes_received_per_site": dict(traffic.received) if traffic else {},
            "rounds": outcome.rounds,
            "device": "cpu",
            "threads": 1,
        },
        "events": list(events),
    }
    about = {"plan_hash": content["plan_hash"], "architecture_hash": content["model"]["architecture_hash"]}
    save_weights(model, folder.weights, metadata=about)
    write_json(folder.environment, describe_environment(torch.device("cpu")))
    content["artifacts"] = {
        "plan": folder.plan.name,
        "environment": folder.environment.name,
        "metrics": folder.metrics.name,
        "weights": folder.weights.name,
        "model_card": folder.card.name,
        "manifest": folder.manifest.name,
    }
    write_text(folder.card, model_card(content))
    write_json(folder.record, content)
    write_manifest(folder.path, content["plan_hash"])
    return content


def _protection(part: dict[str, list[str]], plan: Plan, privacy: dict[str, Any] | None) -> dict[str, list[str]]:
    """The same sentences, but for what left a site, which is more over a network than in one process."""
    return {**part, "active": [_left(plan, privacy), *part["active"][1:]]}


def _left(plan: Plan, privacy: dict[str, Any] | None) -> str:
    scores = "counts of its test scores in bins and of its test patients"
    if plan.task == "segmentation":
        scores = "sums of its test patients' figures and of their squares"
    told = ["validation scores", scores]
    if plan.task == "classification" and plan.evaluation.threshold == "validation":
        told.append("counts of its validation scores in bins, to choose the decision threshold")
    settings = plan.privacy.secure_aggregation
    clear = ["the shape of its images, its class names and the name of its data set", "words on what it is doing"]
    if privacy is not None:
        clear.append("how many steps its privacy ledger was charged, and what the ledger says where the site tells it")
    if settings is None:
        update = "model updates" if privacy is None else "noisy model updates"
        sizes = ["its number of examples", "its training loss"] if privacy is None else []
        everything = "; ".join([update, *sizes, *told, *clear])
        return f"Images stayed at their hospitals. What left one, in the clear: {everything}."
    update = "model updates, numbers of examples, training losses" if privacy is None else "noisy model updates"
    if privacy is not None and privacy["mode"] == "distributed":
        update = "noisy steps"
    counted = ["counts and intensities of its training images"] if settings.statistics else []
    return (
        f"Images stayed at their hospitals. What left one masked, so that only sums over hospitals could be read: "
        f"{'; '.join([update, *told, *counted])}. What left one in the clear: {'; '.join(clear)}."
    )


def _data_part(plan: Plan, facts: Ready, sums: Summed, sites: Sequence[str]) -> dict[str, Any]:
    details = sums.test["details"]
    return {
        "kind": facts.data_kind,
        "name": facts.data_name,
        "licence": "",
        "citation": "",
        "class_names": list(facts.class_names),
        "subject_rule": plan.data.source.subject_rule,
        "partition": plan.data.partition.kind,
        "subjects": {"test": details["num_subjects"]},
        "examples": {"test": details["num_examples"]},
        "sites": [{"site": site} for site in sites],
        "rejected": [],
        "duplicates": {
            "policy": plan.data.splits.duplicates,
            "across_splits": None,
            "within_splits": None,
            "dropped": None,
        },
    }


def _details(sums: Summed) -> dict[str, Any]:
    details = dict(sums.test["details"])
    if sums.threshold is not None and details.get("threshold") is not None:
        details["threshold_source"] = sums.threshold.source
    return details


def _failed(plan: Plan) -> dict[str, str]:
    asked = {"central": plan.references.central, "local_only": plan.references.local_only}
    return {name: _APART for name, wanted in asked.items() if wanted}
