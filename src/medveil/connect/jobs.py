"""The plan inside a job: how it is written, and how it is read by whoever is to follow it."""

import json
from pathlib import Path
from typing import Any

from medveil.configuration import parse_config
from medveil.errors import ConfigError
from medveil.study.parties import is_pooled
from medveil.study.plan import Plan

PLAN_FILE = "plan.json"
RESULT = "medveil-run"
"""Folder beside the job's own files in which the server leaves a finished run."""
_LARGEST = 1 << 20


def plan_bytes(plan: Plan) -> bytes:
    """A plan with everything spelled out, as it travels in a job."""
    return json.dumps(plan.model_dump(mode="json"), indent=2, sort_keys=True).encode()


def plan_of(app: Path) -> Plan:
    """The plan of a job.

    Args:
        app: folder of the job's own files.

    Raises:
        ConfigError: missing, too large, or no plan of this version of medveil.
    """
    path = app / PLAN_FILE
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError("The job's plan is too large to be one", expected=f"at most {_LARGEST} bytes")
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            "The job holds no plan that can be read", got=type(error).__name__, expected=PLAN_FILE
        ) from None
    if not isinstance(values, dict):
        raise ConfigError("The job's plan is no plan", got=type(values).__name__, expected="a JSON object")
    return parse_config(Plan, values, where="the job's plan").model_copy(update={"root": app, "data_root": app})


def check_networked(plan: Plan) -> None:
    """Refuse what cannot be done while every hospital keeps its images.

    Raises:
        ConfigError: one curator is to train on all images, or figures are asked for that sums over sites do not give.
    """
    if is_pooled(plan):
        raise ConfigError(
            "The plan brings all images to one curator, which a run over the network never does",
            got='privacy.dp.kind = "central"',
            expected='"local", "distributed" or "site"',
            remedy='set privacy.dp.kind = "distributed", with privacy.secure_aggregation',
        )
    if plan.initial_weights is not None:
        raise ConfigError(
            "The plan starts from a file of weights, which does not travel with a job",
            got="initial_weights",
            remedy="leave it out; the first weights then come from the plan's seed",
        )
    asked = {"evaluation.subgroups": plan.evaluation.subgroups, "evaluation.external": plan.evaluation.external}
    for key, wanted in asked.items():
        if wanted:
            raise ConfigError(
                "The plan asks for scores that need the images in one place",
                got=key,
                expected="sums over the sites' own test patients",
                remedy=f"leave out {key}, and score the finished model with medveil evaluate where the images are",
            )
