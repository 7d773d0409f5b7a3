"""A finished run as a run of MLflow, in an SQLite file on this machine."""

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medveil.errors import ConfigError
from medveil.study.folder import RunFolder, read_json
from medveil.study.manifest import verify_manifest

EXPERIMENT = "medveil"
INSTALL = 'pip install "medveil[mlflow]"'
_LONGEST_VALUE = 500


def export_mlflow(run: Path, store: str, *, experiment: str = EXPERIMENT) -> str:
    """Write plan, metrics and provenance of a finished run into MLflow's store.

    The run's own files stay where they are; nothing is sent anywhere. Exported twice, it is there twice.

    Args:
        run: folder of a finished run.
        store: ``sqlite:///FILE``.
        experiment: MLflow's name for a group of runs.

    Returns:
        MLflow's id of the run.

    Raises:
        ConfigError: another kind of store, its folder is missing, or MLflow is not installed.
        ManifestError: files of the run were changed.
        RunError: the run is not finished.
    """
    path = _file(store)
    verify_manifest(run)
    folder = RunFolder(run)
    record, plan = read_json(folder.record), read_json(folder.plan)["plan"]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use by default
    try:
        entities, tracking = import_module("mlflow.entities"), import_module("mlflow.tracking")
        client = tracking.MlflowClient(tracking_uri=f"sqlite:///{path}")
    except ImportError as error:
        raise ConfigError("MLflow is not installed", got=f"no module {error.name}", remedy=INSTALL) from None
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known is not None else client.create_experiment(experiment)
    made = client.create_run(place, run_name=record["name"])
    identity = made.info.run_id
    metrics = [entities.Metric(*row) for row in _metrics(record, folder)]
    params = [entities.Param(key, text[:_LONGEST_VALUE]) for key, text in _flat(plan).items()]
    tags = [entities.RunTag(key, text) for key, text in _tags(record).items()]
    for start in range(0, len(params), 100):
        client.log_batch(identity, params=params[start : start + 100])
    for start in range(0, len(metrics), 1000):
        client.log_batch(identity, metrics=metrics[start : start + 1000])
    client.log_batch(identity, tags=tags)
    client.set_terminated(identity)
    return str(identity)


def _file(store: str) -> Path:
    """The SQLite file of a store.

    Raises:
        ConfigError: another kind of store, or its folder is missing.
    """
    scheme = "sqlite:///"
    if not store.startswith(scheme) or urlsplit(store).query or not store.removeprefix(scheme):
        raise ConfigError("This is no SQLite store", got=store[:100], expected="sqlite:///FILE")
    path = Path(store.removeprefix(scheme)).resolve()
    if not path.parent.is_dir():
        raise ConfigError("The folder of the store is not there", expected="an existing folder", remedy="make it first")
    return path


def _metrics(record: dict[str, Any], folder: RunFolder) -> list[tuple[str, float, int, int]]:
    """Key, value, milliseconds since the training began, round."""
    rounds, end = int(record["cost"]["rounds"]), int(1000 * float(record["cost"]["seconds"]))
    rows = [(key, value, end, rounds) for key, value in _final(record)]
    for line in _lines(folder.metrics):
        at, step, arm = int(1000 * line["seconds"]), int(line["round"]), line["arm"]
        scores = {f"validation_{name}": value for name, value in (line["validation"] or {}).items()}
        told = {"train_loss": line["train_loss"], "sites": line["sites"], **scores}
        rows += [(f"{arm}/{name}", value, at, step) for name, value in told.items()]
    return [(key, float(value), at, step) for key, value, at, step in rows if isinstance(value, int | float)]


def _final(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Figures of the whole run; those that it has not are None."""
    for name, estimate in record["test"].items():
        if isinstance(estimate, dict) and "value" in estimate:
            yield f"test/{name}", estimate["value"]
            yield f"test/{name}_low", estimate["low"]
            yield f"test/{name}_high", estimate["high"]
    for name in ("epsilon", "epsilon_server", "epsilon_insider", "delta", "noise_multiplier", "steps"):
        yield f"privacy/{name}", (record["privacy"] or {}).get(name)
    yield "cost/seconds", record["cost"]["seconds"]
    yield "cost/peak_memory_mb", record["cost"]["peak_memory_mb"]
    for kind in ("bytes_sent_per_site", "bytes_received_per_site"):
        for site, count in record["cost"][kind].items():
            yield f"cost/{kind}/{site}", count


def _tags(record: dict[str, Any]) -> dict[str, str]:
    privacy = record["privacy"] or {}
    return {
        "medveil.version": record["medveil_version"],
        "medveil.plan_hash": record["plan_hash"],
        "medveil.architecture_hash": record["model"]["architecture_hash"],
        "medveil.transport": record["transport"],
        "medveil.data": f"{record['data']['kind']}: {record['data']['name']}",
        "medveil.privacy": privacy.get("mode", "none"),
        "medveil.privacy.stamp": privacy.get("stamp") or "",
        "medveil.created": record["created"],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """A nested plan as dotted keys; what is not set is left out."""
    if isinstance(value, dict):
        return {name: text for one, below in value.items() for name, text in _flat(below, f"{key}.{one}").items()}
    return {} if value is None else {key.lstrip("."): str(value)}
