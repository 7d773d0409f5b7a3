"""What a plan would do, said before any data is read."""

from typing import Any

import torch

from medveil.data.catalogue import entry
from medveil.data.partition import NaturalPartition
from medveil.data.sources.catalogue_source import CatalogueSource
from medveil.data.sources.phantom import PhantomSource
from medveil.dp.settings import SiteDpFedAvg
from medveil.federation.stages import build_pipeline
from medveil.models.architecture import architecture_hash
from medveil.study.arms import build_model
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan, is_pooled, privacy_part
from medveil.study.record import protection_part
from medveil.training.device import choose_device

_FLOAT_BYTES = 4
_STAGED_BYTES = 8  # float64, as stages leave it


def dry_run(plan: Plan) -> dict[str, Any]:
    """Check everything about ``plan`` that needs no data, and describe it.

    Raises:
        ConfigError: the device is not there.
        PipelineError: the privacy stages cannot stand as they do.
        ModelError: the model cannot be built for the input that the plan states.
    """
    pipeline = build_pipeline(plan.privacy.stages)
    bound = bind_plan(plan)
    privacy = None if bound is None else privacy_part(plan, bound)
    device: torch.device = choose_device(plan.performance.device)
    model = _describe_model(plan)
    sites = None if isinstance(plan.data.partition, NaturalPartition) else plan.data.partition.count
    protection = protection_part(plan, pipeline, privacy)
    content = {
        "name": plan.name,
        "task": plan.task,
        "seed": plan.seed,
        "plan_hash": plan.digest(),
        "sites": sites,
        "model": model,
        "rounds": plan.federation.rounds,
        "privacy": privacy,
        "protection": protection,
        "device": device.type,
    }
    return {**content, "summary": _summary(plan, content, model)}


def _describe_model(plan: Plan) -> dict[str, Any] | None:
    """Parameters and hash, where the plan states its images and classes; None where only the data know them."""
    shape, classes = stated_shape(plan), stated_classes(plan.data.source)
    if shape is None or classes is None:
        return None
    model = build_model(plan, shape, classes)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "kind": plan.model.kind,
        "parameters": parameters,
        "architecture_hash": architecture_hash(model, shape),
        "input_shape": list(shape),
        "bytes_per_site": plan.federation.rounds
        * parameters
        * (_STAGED_BYTES if plan.privacy.stages else _FLOAT_BYTES),
    }


def stated_shape(plan: Plan) -> tuple[int, ...] | None:
    """Shape of one image, (channels, *spatial), where the plan says it; None where only the data know."""
    preprocess, source = plan.data.preprocess, plan.data.source
    size: tuple[int, ...] | None
    if isinstance(source, PhantomSource):
        channels, size = 1, preprocess.size or source.resize or source.size
    elif preprocess.channels != "keep":
        channels, size = (1 if preprocess.channels == "grey" else 3), preprocess.size or source.resize
    else:
        return None
    return None if size is None else (channels, *size)


def stated_classes(source: object) -> int | None:
    """Number of classes, background included, where the source says it; None where only the data know."""
    if isinstance(source, PhantomSource):
        return 2 if source.task == "classification" else 3
    if isinstance(source, CatalogueSource):
        return len(entry(source.name).class_names)
    classes = getattr(source, "classes", None)
    return len(classes) if classes else None


def _batch(plan: Plan) -> str:
    mechanism = plan.privacy.dp
    if mechanism is None or isinstance(mechanism, SiteDpFedAvg):
        return f"batch {plan.training.batch_size}"
    return f"each {plan.privacy.unit} drawn with probability {mechanism.sampling.rate:g} a step"


def _communication(plan: Plan, model: dict[str, Any] | None) -> str:
    if model is None:
        return "known when the data are"
    sender = "the curator" if is_pooled(plan) else "each site"
    return f"{model['bytes_per_site'] / 1e6:.1f} MB from {sender} over all rounds"


def _summary(plan: Plan, content: dict[str, Any], model: dict[str, Any] | None) -> dict[str, str]:
    federation, references = plan.federation, plan.references
    compared = [
        name for name, wanted in (("central", references.central), ("local only", references.local_only)) if wanted
    ]
    sites = "as the data name them" if content["sites"] is None else str(content["sites"])
    return {
        "data": f"{plan.data.source.kind}, splits {plan.data.splits.kind}, by patient",
        "sites": f"{sites} ({plan.data.partition.kind})",
        "model": plan.model.kind if model is None else f"{model['kind']}, {model['parameters']:,} parameters",
        "training": f"{federation.algorithm.kind}, {federation.rounds} rounds, {_batch(plan)}",
        "references": ", ".join(compared) or "none",
        "communication": _communication(plan, model),
        "protection": " ".join(content["protection"]["active"] + content["protection"]["inactive"]),
        "output": "weights, record, model card, signed manifest, report",
    }
