"""The model card: what a run's model is, for whoever is handed its weights."""

from typing import Any


def model_card(record: dict[str, Any]) -> str:
    """Markdown after Mitchell et al. 2019 (arXiv 1810.03993), from the content of ``record.json``."""
    lines = [
        f"# Model card: {record['name']}",
        "",
        *_identity(record),
        *_data(record),
        *_results(record),
        *_protection(record),
        "## Limits",
        "",
        "- A research model. It is not a medical device and has no clinical approval.",
        "- It was tested on the data named above and nowhere else; expect worse figures at other hospitals.",
    ]
    return "\n".join(lines) + "\n"


def _identity(record: dict[str, Any]) -> list[str]:
    model, training = record["model"], record["training"]
    shape = " x ".join(str(size) for size in model["input_shape"])
    sites = len(record["data"]["sites"])
    return [
        f"- Task: {record['task']}; classes: {', '.join(record['data']['class_names'])}",
        f"- Network: {model['kind']}, {model['parameters']:,} parameters, input {shape}",
        f"- Architecture hash: `{model['architecture_hash']}`",
        f"- Training: {training['algorithm']}, {training['rounds_run']} rounds, {sites} sites, seed {record['seed']}",
        f"- Plan hash: `{record['plan_hash']}`; medveil {record['medveil_version']}; made {record['created']}",
        "",
    ]


def _data(record: dict[str, Any]) -> list[str]:
    data = record["data"]
    phantom = ["**Synthetic phantom images: the figures say nothing about patients.**", ""]
    return [
        "## Data",
        "",
        *(phantom if data["kind"] == "phantom" else []),
        f"- {data['name']}; "
        + ", ".join(f"{count:,} subjects for {split}" for split, count in data["subjects"].items()),
        f"- What a subject is: {data['subject_rule']}",
        f"- Licence: {data['licence'] or 'not stated'}",
        f"- Cite: {data['citation'] or 'not stated'}",
        "",
    ]


def _results(record: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {_number(estimate['value'])} | {_number(estimate['low'])} to {_number(estimate['high'])} |"
        for name, estimate in record["test"].items()
        if not name.startswith("per_")
    ]
    level = record["details"]["bootstrap"]["level"]
    return ["## Test", "", f"| metric | value | {level:.0%} interval |", "|---|---|---|", *rows, ""]


def _protection(record: dict[str, Any]) -> list[str]:
    protection = record["protection"]
    return [
        "## Protection",
        "",
        *(f"- {text}" for text in protection["active"]),
        *(f"- Not active: {text}" for text in protection["inactive"]),
        "",
    ]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
