"""``record.json``: what a run was, what it reached, what it cost, what protected it.

docs/reference/record.schema.json describes it; :data:`SCHEMA_VERSION` grows with every change.
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

from torch import nn

import medveil
from medveil.data.partition import NaturalPartition
from medveil.federation.stages import Pipeline
from medveil.models.architecture import architecture_hash
from medveil.study.arms import Outcome
from medveil.study.card import against_text, delta_text
from medveil.study.parties import number_of_sites
from medveil.study.plan import Plan
from medveil.study.prepare import Party, Prepared

SCHEMA_VERSION = 3


def data_part(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """What was trained and tested on."""
    dataset = prepared.dataset
    examples = {
        "train": sum(len(site.train) for site in prepared.sites),
        "validation": sum(len(site.validation) for site in prepared.sites if site.validation is not None),
        "test": len(prepared.test.data),
    }
    return {
        "kind": dataset.kind,
        "name": dataset.name,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "class_names": list(dataset.class_names),
        "subject_rule": plan.data.source.subject_rule,
        "partition": plan.data.partition.kind,
        "subjects": prepared.split_subjects,
        "examples": examples,
        "sites": [_site(plan, prepared, site) for site in prepared.sites],
        "rejected": [asdict(rejection) for rejection in dataset.rejected],
        "duplicates": _duplicates(plan, prepared),
    }


def _site(plan: Plan, prepared: Prepared, site: Party) -> dict[str, Any]:
    """What a site brought; only its name where the plan has sums alone leave it."""
    if plan.privacy.secure_aggregation is not None:
        return {"site": site.name}
    return {
        "site": site.name,
        "subjects": site.train.num_subjects,
        "examples": len(site.train),
        "label_counts": prepared.site_labels[site.name],
    }


def _duplicates(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    found = prepared.duplicates
    return {
        "policy": plan.data.splits.duplicates,
        "across_splits": found.across,
        "within_splits": found.within_train + found.within_validation + found.within_test,
        "dropped": found.dropped_from_train + found.dropped_from_validation,
        **asdict(found),
    }


def model_part(plan: Plan, input_shape: tuple[int, ...], model: nn.Module) -> dict[str, Any]:
    """Which network."""
    return {
        "kind": plan.model.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "architecture_hash": architecture_hash(model, input_shape),
        "input_shape": list(input_shape),
    }


def training_part(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """How it was trained."""
    algorithm = plan.federation.algorithm
    return {
        "algorithm": algorithm.kind,
        "local_epochs": getattr(algorithm, "local_epochs", None),
        "local_steps": getattr(algorithm, "local_steps", None),
        "weighting": plan.federation.weighting,
        "rounds": plan.federation.rounds,
        "rounds_run": outcome.rounds,
        "best_round": outcome.best_round,
        "selected": plan.federation.select,
        "stopped_early": outcome.stopped_early,
        "optimiser": plan.training.optimiser.model_dump(mode="json"),
        "batch_size": plan.training.batch_size,
        "lost_sites": outcome.lost or {},
    }


def protection_part(
    plan: Plan, pipeline: Pipeline, privacy: dict[str, Any] | None, *, sites: int | None = None
) -> dict[str, list[str]]:
    """What protection was and was not active, in sentences.

    Args:
        plan: of the run.
        pipeline: the plan's stages.
        privacy: the record's ``privacy``.
        sites: how many there are; by default as many as the plan says, where it says so.
    """
    claim = [] if privacy is None or privacy["stamp"] else [_claim(privacy)]
    if privacy is None:
        missing = ["Differential privacy: none. The model may remember individual patients."]
    else:
        missing = [f"Differential privacy: {privacy['stamp']}. {reason}" for reason in privacy["stamp_reasons"]]
    sums = secure_sentence(plan, known_sites(plan) if sites is None else sites)
    return {
        "active": [_left(plan, privacy), *sums, *claim, *_site_privacy(privacy), *pipeline.describe()],
        "inactive": [
            *missing,
            *([] if sums else [_in_the_clear(privacy)]),
            "Encrypted inference: none. Whoever runs the model sees the image, and the other way round.",
        ],
    }


def known_sites(plan: Plan) -> int | None:
    """Number of sites, where the plan says it; None where only the data do."""
    by_data = plan.privacy.dp is None and isinstance(plan.data.partition, NaturalPartition)
    return None if by_data else number_of_sites(plan)


def secure_sentence(plan: Plan, sites: int | None) -> list[str]:
    """What the secure sum guarantees, in one item; none where the plan asks for no secure sum.

    Raises:
        GuaranteeError: a threshold that cannot protect.
    """
    settings = plan.privacy.secure_aggregation
    if settings is None:
        return []
    if settings.colluding == 0:
        condition = "as long as no site tells it what it knows"
    else:
        several = "sites" if settings.colluding > 1 else "site"
        condition = f"even with up to {settings.colluding} other {several} on its side"
    whose = (
        "over the sites that took part" if settings.groups == 1 else f"over each of {settings.groups} groups of sites"
    )
    text = f"Secure aggregation: the server saw sums {whose} and no single site's contribution, {condition}."
    if sites is None:
        return [f"{text} More than half of the sites must help to open a sum."]
    size = settings.smallest_group(sites)
    among = f"{size} sites" if settings.groups == 1 else f"the {size} sites of the smallest group"
    threshold, absent = settings.threshold_of(size), settings.dropouts_of(size)
    return [f"{text} Of {among}, {threshold} must help to open a sum, and up to {absent} may be missing from it."]


def _left(plan: Plan, privacy: dict[str, Any] | None) -> str:
    """What left a site."""
    pooled = plan.task == "classification" and plan.evaluation.threshold == "validation"
    settings = plan.privacy.secure_aggregation
    if settings is not None:
        told = {None: "model updates, numbers of examples, training losses", "distributed": "noisy steps"}
        parts = [told.get(None if privacy is None else privacy["mode"], "noisy model updates"), "validation scores"]
        parts += ["validation predictions in bins, to choose the decision threshold"] if pooled else []
        parts += ["counts and intensities of its training images"] if settings.statistics else []
        return (
            f"Images stayed at their sites. What left a site: {'; '.join(parts)}; all of it masked, so that only sums "
            "over sites could be read."
        )
    threshold = "; and, to choose the decision threshold, its validation predictions." if pooled else "."
    left = "Images stayed at their sites. What left a site: model updates"
    if privacy is None:
        left += ", its number of examples, its training loss and its validation scores"
    elif privacy["mode"] == "central":
        left = "Images were pooled at a trusted curator. What left it: noisy steps of the model and validation scores"
    else:
        left += " and its validation scores"
    return left + threshold


def _in_the_clear(privacy: dict[str, Any] | None) -> str:
    if privacy is not None and privacy["mode"] == "central":
        return "Secure aggregation: none. One curator trained, so there were no sites' updates to add up."
    return "Secure aggregation: none. The coordinator saw every site's update in the clear."


def _site_privacy(privacy: dict[str, Any] | None) -> list[str]:
    if privacy is None or privacy["mode"] != "site":
        return []
    bound, noise = privacy["l2_clip_norm"], privacy["noise_multiplier"]
    return [
        f"Each site's change a round was clipped to L2 norm {bound:g}.",
        f"The server added Gaussian noise of {noise:.3g} clip norms to the sum of the changes.",
    ]


def _claim(privacy: dict[str, Any]) -> str:
    return (
        f"Differential privacy: {against_text(privacy)} at delta {delta_text(privacy['delta'])}, unit: one "
        f"{privacy['unit']}, {privacy['relation']}. It holds against: {privacy['holds_against'][0]}"
    )


def metrics_part(result: dict[str, Any], per_site: dict[str, Any], per_subgroup: dict[str, Any]) -> dict[str, Any]:
    """Metrics with intervals, and the same per site and subgroup."""
    return {**result["metrics"], "per_site": per_site, "per_subgroup": per_subgroup}


def head_part(plan: Plan, created: str, transport: str) -> dict[str, Any]:
    """Identity of the run."""
    return {
        "schema_version": SCHEMA_VERSION,
        "medveil_version": medveil.__version__,
        "name": plan.name,
        "task": plan.task,
        "seed": plan.seed,
        "plan_hash": plan.digest(),
        "created": created,
        "transport": transport,
    }


def mean_metrics(per_site: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over the sites that have the metric."""
    counts = Counter(name for metrics in per_site.values() for name in metrics)
    return {
        name: sum(metrics[name] for metrics in per_site.values() if name in metrics) / count
        for name, count in sorted(counts.items())
    }
