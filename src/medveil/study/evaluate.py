"""Score a finished run's model on data that the run never saw."""

from pathlib import Path
from typing import Any

from medveil.data.sources import DataConfig, load, read_data_file
from medveil.data.subject import Dataset
from medveil.errors import ConfigError, PartitionError
from medveil.evaluation.curves import Threshold
from medveil.imaging.preprocess import Preprocess
from medveil.models.registry import build
from medveil.models.weights import load_weights
from medveil.rng import Seeds
from medveil.study import record
from medveil.study.external import test_set
from medveil.study.folder import RunFolder, read_json
from medveil.study.manifest import verify_manifest
from medveil.study.plan import Plan, parse_plan
from medveil.study.scoring import Scorer
from medveil.training.device import be_deterministic, choose_device


def evaluate(run: Path, data: Path, *, new_sites: bool = False) -> dict[str, Any]:
    """Score the model of ``run`` on the data that a data file describes.

    Args:
        run: folder of a finished run.
        data: TOML file; see docs/how-to/your-own-data.md.
        new_sites: accept sites that the run does not know.

    Returns:
        ``{"run", "data", "test", "details"}``, metrics as in ``record.json``; ``data.seen`` counts images that
        the run trained or validated on (None where the run folder no longer knows).

    Raises:
        RunError: not a finished run.
        ManifestError: files of the run changed after it was signed.
        ConfigError: another task or shape.
        LabelError: other classes.
        PartitionError: sites that the run does not know.
    """
    folder = RunFolder(run)
    content = read_json(folder.record)
    verify_manifest(run)
    plan = stored_plan(folder)
    config = read_data_file(data)
    check_preprocess(config, plan)
    dataset = load(config.source, plan.data.preprocess, root=config.root)
    class_names = tuple(content["data"]["class_names"])
    test = test_set(dataset, plan, class_names, tuple(content["model"]["input_shape"]))
    named = check_sites(config, dataset, [site["site"] for site in content["data"]["sites"]], new_sites=new_sites)
    device = choose_device(plan.performance.device)
    be_deterministic(device)
    shape = tuple(content["model"]["input_shape"])
    model = build(plan.model, input_shape=shape, num_classes=len(class_names), seed=Seeds(plan.seed).child("model"))
    load_weights(model, folder.weights)
    scorer = Scorer(plan, class_names, device)
    predictions = scorer.predict(model.to(device), test.data)
    threshold = stored_threshold(content)
    result = scorer.score(predictions, test, threshold).to_json()
    return {
        "run": {"name": content["name"], "plan_hash": content["plan_hash"]},
        "data": {
            "name": dataset.name,
            "kind": dataset.kind,
            "subjects": len(dataset.subjects),
            "examples": dataset.num_examples,
            "seen": _count_seen(folder, dataset),
            "rejected": [
                {"reason": item.reason, "detail": item.detail, "count": item.count} for item in dataset.rejected
            ],
        },
        "test": record.metrics_part(
            result,
            scorer.by_site(predictions, test, threshold) if named else {},
            scorer.by_subgroup(predictions, test, threshold),
        ),
        "details": result["details"],
    }


def stored_plan(folder: RunFolder) -> Plan:
    """The plan that a run folder was made with."""
    stored = read_json(folder.plan)
    return parse_plan(
        stored["plan"],
        where=folder.plan.name,
        root=folder.path,
        data_root=folder.path,
    )


def stored_threshold(content: dict[str, Any]) -> Threshold:
    """The threshold that the run fixed; it is not chosen again on new data."""
    value = content["details"].get("threshold")
    return Threshold(0.5 if value is None else float(value), "as the run fixed it")


def check_preprocess(config: DataConfig, plan: Plan) -> None:
    """Refuse a data file that asks for other preprocessing than the model was trained with.

    Raises:
        ConfigError: it does.
    """
    if config.preprocess not in (Preprocess(), plan.data.preprocess):
        raise ConfigError(
            "The data file asks for another preprocessing than the model was trained with",
            expected="no [preprocess] table: the run's own applies",
            remedy="remove the table; to bring images to the model's size use resize",
        )


def check_sites(config: DataConfig, dataset: Dataset, known: list[str], *, new_sites: bool) -> bool:
    """Whether results are given per site.

    Raises:
        PartitionError: the data file names a site column, it holds sites that the run does not know, and
            ``new_sites`` is false.
    """
    if getattr(config.source, "site", None) is None:
        return False
    found = {subject.attributes.get("site", "") for subject in dataset.subjects}
    unknown = len(found - set(known))
    if unknown and not new_sites:
        raise PartitionError(
            "The data come from sites that the run does not know",
            got=f"{unknown} of {len(found)} sites are unknown",
            expected="sites of the run: " + ", ".join(known),
            remedy="give --new-sites to score them all the same, or leave the site column out of the data file",
        )
    return True


def _count_seen(folder: RunFolder, dataset: Dataset) -> int | None:
    """Images of ``dataset`` that are pixel-identical to one that the run trained or validated on."""
    if not folder.seen.exists():
        return None
    seen = set(folder.seen.read_text(encoding="utf-8").split())
    images = {
        (subject.subject_id, example.volume, example.digest)
        for subject in dataset.subjects
        for example in subject.examples
    }
    return sum(digest in seen for _, _, digest in images)
