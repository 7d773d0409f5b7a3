"""What a plan would do, said before any data is read."""

from typing import Any

import torch

from medveil.data.catalogue import entry
from medveil.data.partition import NaturalPartition
from medveil.data.sources.catalogue_source import CatalogueSource
from medveil.data.sources.phantom import PhantomSource
from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import SiteDpFedAvg
from medveil.federation.stages import build_pipeline
from medveil.models.architecture import architecture_hash
from medveil.study.arms import build_model
from medveil.study.parties import is_pooled
from medveil.study.plan import Plan
from medveil.study.privacy import bind_plan, privacy_part
from medveil.study.record import protection_part
from medveil.study.secure_dry_run import bytes_per_site, describe_secure, settings_text
from medveil.training.device import choose_device
from medveil.training.vectors import floating_buffers, to_vector

_FLOAT_BYTES = 4
_STAGED_BYTES = 8  # float64, as stages leave it


def dry_run(plan: Plan) -> dict[str, Any]:
    """Check everything about ``plan`` that needs no data, and describe it.

    Raises:
        ConfigError: the device is not there, or a secure sum does not fit its modulus.
        GuaranteeError: the privacy claim would be hollow, or the secure sum's threshold cannot protect.
        PipelineError: the privacy stages cannot stand as they do.
        ModelError: the model cannot be built for the input that the plan states.
    """
    pipeline = build_pipeline(plan.privacy.stages)
    bound = bind_plan(plan)
    privacy = None if bound is None else privacy_part(plan, bound)
    device: torch.device = choose_device(plan.performance.device)
    model, secure = _describe_model(plan, bound)
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
        "secure_aggregation": secure,
        "protection": protection,
        "device": device.type,
    }
    return {**content, "summary": _summary(plan, content, model)}


def _describe_model(plan: Plan, bound: PrivacyPlan | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The model, None where only the data know its images and classes; and the secure sum, None where there is none."""
    shape, classes = stated_shape(plan), stated_classes(plan.data.source)
    if shape is None or classes is None:
        return None, describe_secure(plan, bound, None)
    model = build_model(plan, shape, classes)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sizes = (parameters, len(to_vector(floating_buffers(model))))
    secure = describe_secure(plan, bound, sizes)
    in_the_clear = plan.federation.rounds * parameters * (_STAGED_BYTES if plan.privacy.stages else _FLOAT_BYTES)
    described = {
        "kind": plan.model.kind,
        "parameters": parameters,
        "architecture_hash": architecture_hash(model, shape),
        "input_shape": list(shape),
        "bytes_per_site": in_the_clear if secure is None else bytes_per_site(plan, secure, sizes),
    }
    return described, secure


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


def _communication(plan: Plan, model: dict[str, Any] | None, secure: dict[str, Any] | None) -> str:
    if model is None:
        return "known when the data are"
    sender = "the curator" if is_pooled(plan) else "each site"
    sent = f"{model['bytes_per_site'] / 1e6:.1f} MB from {sender} over all rounds"
    if secure is None:
        return sent
    if secure["modulus_bits"] is None:
        return f"at most about {sent}: the modulus is known when the sites are"
    words = plan.federation.rounds * model["parameters"] / secure["blocks"] * secure["modulus_bits"] / 8e6
    return f"about {sent}, of which {words:.1f} MB are masked parameters, modulo 2^{secure['modulus_bits']}"


def _protection(protection: dict[str, list[str]]) -> str:
    """One sentence a line, as a list below its heading: "+" for what is active, "-" for what is not."""
    lines = [f"+ {text}" for text in protection["active"]] + [f"- {text}" for text in protection["inactive"]]
    return "".join(f"\n    {line}" for line in lines)


def _summary(plan: Plan, content: dict[str, Any], model: dict[str, Any] | None) -> dict[str, str]:
    federation, references = plan.federation, plan.references
    compared = [
        name for name, wanted in (("central", references.central), ("local only", references.local_only)) if wanted
    ]
    sites = "as the data name them" if content["sites"] is None else str(content["sites"])
    secure = content["secure_aggregation"]
    return {
        "data": f"{plan.data.source.kind}, splits {plan.data.splits.kind}, by patient",
        "sites": f"{sites} ({plan.data.partition.kind})",
        "model": plan.model.kind if model is None else f"{model['kind']}, {model['parameters']:,} parameters",
        "training": f"{federation.algorithm.kind}, {federation.rounds} rounds, {_batch(plan)}",
        "references": ", ".join(compared) or "none",
        "communication": _communication(plan, model, content["secure_aggregation"]),
        "secure_aggregation": "none" if secure is None else settings_text(secure),
        "protection": _protection(content["protection"]),
        "output": "weights, record, model card, signed manifest, report",
    }
