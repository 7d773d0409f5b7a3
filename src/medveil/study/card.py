"""The model card: what a run's model is, for whoever is handed its weights; and how a privacy claim is put in words."""

import math
from decimal import ROUND_CEILING, Decimal
from typing import Any

UNITS = {"patient": "one patient", "image": "one image", "site": "one hospital"}
NOTHING_PROMISED = (
    "Nothing is promised: no differential privacy was active, and nothing bounds what the model reveals about the "
    "patients that it was trained on."
)
NO_PROMISE = "What was calculated is no promise for this run."


def model_card(record: dict[str, Any]) -> str:
    """Markdown after Mitchell et al. 2019 (arXiv 1810.03993), from the content of ``record.json``."""
    lines = [
        f"# Model card: {record['name']}",
        "",
        *_identity(record),
        *_data(record),
        *_results(record),
        *_privacy(record["privacy"]),
        *_protection(record),
        "## Limits",
        "",
        "- A research model. It is not a medical device and has no clinical approval.",
        "- It was tested on the data named above and nowhere else; expect worse figures at other hospitals.",
    ]
    return "\n".join(lines) + "\n"


def privacy_lines(privacy: dict[str, Any] | None) -> list[str]:
    """A record's ``privacy`` in a few short lines of text, the stamp first.

    Args:
        privacy: of a record or of a dry run; None where nothing is promised.

    Returns:
        One line each, without indentation.
    """
    if privacy is None:
        return [f"Privacy: {NOTHING_PROMISED}"]
    stamped = [f"{privacy['stamp']}: {' '.join(privacy['stamp_reasons'])} {NO_PROMISE}"] if privacy["stamp"] else []
    return [
        *stamped,
        f"Privacy{' as calculated' if stamped else ''}: {claim_text(privacy)}",
        (
            f"Noise: multiplier {privacy['noise_multiplier']:.4g}, sampling rate {privacy['sampling_rate']:g}, "
            f"{privacy['steps']:,} steps, clip norm {privacy['l2_clip_norm']:g}"
        ),
    ]


def claim_text(privacy: dict[str, Any]) -> str:
    """Epsilon with everything that it means nothing without; with shared noise, epsilon against whom.

    >>> claim_text({"epsilon": 2.585, "unit": "patient", "delta": 1e-5, "relation": "add-remove", "mode": "central",
    ...             "trusted": "curator"})
    'epsilon 2.59 for one patient at delta 1e-5 (add-remove), mode central, trusted: curator'
    """
    return (
        f"{against_text(privacy)} for {UNITS[privacy['unit']]} at delta "
        f"{delta_text(privacy['delta'])} ({privacy['relation']}), mode {privacy['mode']}, trusted: {privacy['trusted']}"
    )


def against_text(privacy: dict[str, Any]) -> str:
    """Epsilon, or both where hospitals share the noise and some may tell the server theirs.

    >>> against_text({"mode": "distributed", "epsilon": 3.0, "epsilon_server": 2.521, "epsilon_insider": 3.0})
    'epsilon 2.53 against the server alone, 3.00 against the server with hospitals on its side,'
    """
    epsilon = f"epsilon {epsilon_text(privacy['epsilon'])}"
    if privacy["mode"] != "distributed":
        return epsilon
    if privacy["epsilon_server"] == privacy["epsilon"]:
        insider = epsilon_text(privacy["epsilon_insider"])
        return f"{epsilon} against the server, if no hospital helps it, {insider} if one does,"
    alone = f"epsilon {epsilon_text(privacy['epsilon_server'])} against the server alone"
    return f"{alone}, {epsilon_text(privacy['epsilon'])} against the server with hospitals on its side,"


def epsilon_text(value: float) -> str:
    """Epsilon rounded up, so that it is never shown smaller than it is.

    >>> epsilon_text(2.5812), epsilon_text(403.2), epsilon_text(12345.678)
    ('2.59', '403.20', '12,345.68')
    """
    return f"{_up(Decimal(str(float(value))), Decimal('0.01')):,}"


def delta_text(value: float) -> str:
    """Delta as a plan writes it.

    >>> delta_text(1e-5), delta_text(0.0002)
    ('1e-5', '0.0002')
    """
    return f"{value:g}".replace("e-0", "e-")


def percent_text(share: float) -> str:
    """A bound on a share as a percentage, rounded up: one decimal, below 1 % two significant digits.

    Args:
        share: in [0, 1].

    >>> percent_text(0.1234), percent_text(0.00211), percent_text(1.0), percent_text(0.0)
    ('12.4 %', '0.22 %', '100 %', '0 %')
    """
    percent = Decimal(str(float(share))) * 100
    if not percent:
        return "0 %"
    step = Decimal("0.1") if percent >= 1 else Decimal(1).scaleb(percent.adjusted() - 1)
    return f"{_up(percent, step).normalize():f} %"


def right_text(membership_advantage: float) -> str:
    """How often the best attacker is right of 100 times, half of the candidates having taken part.

    Args:
        membership_advantage: largest true-positive less false-positive rate, in [0, 1].

    >>> right_text(0.2301), right_text(0.0)
    ('61.6', '50')
    """
    return percent_text((1 + membership_advantage) / 2).removesuffix(" %")


def one_in(share: float) -> str:
    """A small chance in words.

    >>> one_in(1e-5), one_in(0.3)
    ('1 in 100,000', '1 in 3')
    """
    return f"1 in {math.floor(1 / share + 1e-6):,}"


def _up(value: Decimal, step: Decimal) -> Decimal:
    return value.quantize(step, rounding=ROUND_CEILING)


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


def _privacy(privacy: dict[str, Any] | None) -> list[str]:
    if privacy is None:
        return ["## Privacy", "", f"- {NOTHING_PROMISED}", ""]
    if privacy["stamp"]:
        reasons = " ".join(privacy["stamp_reasons"])
        return ["## Privacy", "", f"**{privacy['stamp']}.** {reasons}", "", f"- {NO_PROMISE}", ""]
    claim, noise = privacy_lines(privacy)
    right = right_text(privacy["meaning"]["membership_advantage"])
    return [
        "## Privacy",
        "",
        f"- {claim.replace('Privacy: e', 'E', 1)}.",
        f"- What that allows: the best attack on who took part is right {right} times in 100; guessing is right 50.",
        f"- {noise}.",
        *(f"- Holds against: {text}" for text in privacy["holds_against"] if not text.startswith("Not ")),
        *(f"- Does not hold: {text}" for text in privacy["holds_against"] if text.startswith("Not ")),
        *(f"- Assumes: {text}" for text in privacy["assumptions"]),
        *(f"- Not covered: {text}" for text in privacy["out_of_scope"]),
        "",
    ]


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
