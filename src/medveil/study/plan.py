"""The plan: one TOML file that says what is trained, on what, how, and what protects it."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from medveil.accounting.events import Event
from medveil.configuration import Config, parse_config
from medveil.data.partition import IidPartition, Partition
from medveil.data.sources import AnySource, read_data_file
from medveil.data.splits import Splits
from medveil.data.subject import Task
from medveil.dp.settings import Mechanism, Relation, Trusted, Unit
from medveil.errors import ConfigError
from medveil.evaluation.intervals import BootstrapConfig
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.settings import Federation
from medveil.imaging.preprocess import Preprocess
from medveil.models.registry import ModelConfig
from medveil.training.objectives import DiceCrossEntropy
from medveil.training.settings import Performance, Training

NAMED_PLANS = Path(__file__).parent / "plans"


class Data(Config):
    """What is trained on.

    Attributes:
        source: where images come from; discriminated by ``kind``. In its place a plan may say
            ``file = "my-data.toml"``.
        preprocess: what happens to every image.
        splits: training, validation, test; by patient.
        partition: how subjects become sites.
    """

    source: AnySource
    preprocess: Preprocess = Preprocess()
    splits: Splits = Splits()
    partition: Partition = IidPartition(sites=5)


class External(Config):
    """Another data set to evaluate on, never trained on.

    Attributes:
        name: as the report calls it.
        relation: one sentence on how it differs from the training data.
        source: where its images come from.
    """

    name: str
    relation: str = ""
    source: AnySource


class Evaluation(Config):
    """How the test set is scored.

    Attributes:
        threshold: probability above which an image counts as positive; "validation" chooses it by Youden's J on
            validation data.
        bootstrap: patient-level intervals.
        surface_tolerance_mm: distance within which surfaces count as equal.
        subgroups: columns of the data whose values are scored apart.
        external: other data sets.
    """

    threshold: Literal["validation"] | Annotated[float, Field(ge=0, le=1)] = "validation"
    bootstrap: BootstrapConfig = BootstrapConfig()
    surface_tolerance_mm: float = Field(1.0, gt=0)
    subgroups: tuple[str, ...] = ()
    external: tuple[External, ...] = ()


class References(Config):
    """What the federated model is compared with, on the same test set.

    Attributes:
        central: one model on all sites' data together.
        local_only: one model a site, on its own data.
    """

    central: bool = True
    local_only: bool = True


class Earlier(Config):
    """Something else that touched the same patients and is composed with the training.

    Attributes:
        what: one phrase, for the report: "tuning on the same patients", "published mean age".
        event: what it was, as the accountant reads it.
    """

    what: str = Field(min_length=1, max_length=200)
    event: Event


Override = Literal["unprotected-references", "counted-class-weights"]


class Privacy(Config):
    """What protects the patients whose images are trained on. With ``dp``, the claim is stated in full.

    Attributes:
        stages: what happens to a site's update, in order, each discriminated by ``kind``.
        unit: whose presence is hidden: "patient", "image" or "site".
        relation: between neighbouring data sets: "add-remove" or "replace-one".
        delta: of the guarantee; below one over the number of units of the smallest party.
        trusted: who sees more than the guarantee covers; must be whom the mechanism trusts.
        held_out: "public": validation and test patients are outside the guarantee and their scores may be published.
            "private": nothing is validated during the training.
        one_image_per_patient: states that images whose source names no patients are of different patients.
        earlier: what else touched the same patients.
        dp: the mechanism; None promises no differential privacy.
        secure_aggregation: the server sees sums over sites only; None shows it every site's update.
        overrides: hazards that are knowingly accepted; the run is then stamped NOT PRIVATE.
    """

    stages: tuple[dict[str, Any], ...] = ()
    unit: Unit | None = None
    relation: Relation | None = None
    delta: float | None = Field(None, gt=0, lt=1)
    trusted: Trusted | None = None
    held_out: Literal["public", "private"] | None = None
    one_image_per_patient: bool = False
    earlier: tuple[Earlier, ...] = ()
    dp: Mechanism | None = None
    secure_aggregation: SecureAggregation | None = None
    overrides: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _stated_in_full(self) -> Self:
        names = ("unit", "relation", "delta", "trusted", "held_out")
        missing = [name for name in names if getattr(self, name) is None]
        if self.dp is not None and missing:
            raise ValueError(f"a claim with its unit, relation, delta, trusted and held_out; {missing[0]} is missing")
        if self.dp is None and (len(missing) < len(names) or self.earlier or self.overrides):
            raise ValueError("no claim where there is no mechanism: add [privacy.dp], or remove the claim")
        return self


class Plan(Config):
    """Everything that decides a run's result, in one place.

    Attributes:
        name: of the run.
        task: "classification" or "segmentation"; must be that of the data.
        seed: root of all reproducible randomness.
        initial_weights: safetensors file to start from, or None.
        architecture_hash: SHA-256 that every party's network must have, as the record of a run tells it; a party whose
            network differs refuses to train. None pins nothing beyond the plan itself.
        root: folder that relative paths of the plan start from (set by :func:`load_plan`; not part of the file).
        data_root: likewise for the data; the data file's folder when ``data.file`` names one.
    """

    name: str = Field(min_length=1, max_length=100)
    task: Task
    seed: int = 0
    initial_weights: Path | None = None
    architecture_hash: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    data: Data
    model: ModelConfig
    training: Training = Training()
    federation: Federation
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    references: References = References()
    performance: Performance = Performance()
    root: Path = Field(Path(), exclude=True)
    data_root: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task == "classification" and isinstance(self.training.loss, DiceCrossEntropy):
            raise ValueError("training.loss dice_ce needs masks: use cross_entropy for classification")
        metrics = {"auto", "loss", "auc" if self.task == "classification" else "dice"}
        stopping = self.federation.early_stopping
        chosen = {self.federation.select_metric, stopping.metric if stopping else "loss"}
        if not chosen <= metrics:
            raise ValueError(f"federation: {self.task} is validated by {', '.join(sorted(metrics - {'auto'}))}")
        if self.task == "segmentation" and self.evaluation.threshold != "validation":
            raise ValueError("evaluation.threshold belongs to classification: masks take the most probable class")
        views = getattr(self.privacy.dp, "views", 1)
        private = self.privacy.dp is not None and self.privacy.unit != "site"
        if private and self.training.view_pool not in {0, views}:
            raise ValueError(f"training.view_pool must be 0 or privacy.dp.views, {views}")
        slices = self.data.preprocess.slices
        if slices is not None and slices.keep == "foreground":
            raise ValueError('data.preprocess.slices.keep = "foreground" would choose test slices by their true masks')
        return self

    def metric(self) -> Literal["auc", "dice", "loss"]:
        """Validation score by which weights are selected."""
        if self.federation.select_metric != "auto":
            return self.federation.select_metric
        return "auc" if self.task == "classification" else "dice"

    def digest(self) -> str:
        """SHA-256 of everything but ``[performance]``, which may not change what a run means."""
        content = self.model_dump(mode="json", exclude={"performance"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_plan(plan: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan.

    Args:
        plan: path of a TOML file, or the name of a shipped plan ("pneumonia-28").
        overrides: ``key=value`` pairs, dotted keys, values in TOML (a bare word is text).

    Raises:
        ConfigError: no such file, not TOML, unknown keys, values out of range, or an override that is not
            ``key=value``.
    """
    path = find_plan(plan)
    values = read_toml(path)
    for override in overrides:
        _override(values, override)
    root = path.parent.resolve()
    data_root = _insert_data_file(values, root)
    return parse_plan(values, where=path.name, root=root, data_root=data_root)


def parse_plan(values: Mapping[str, Any], *, where: str, root: Path, data_root: Path) -> Plan:
    """Validate the tables of a plan.

    Raises:
        ConfigError: unknown keys or values out of range.
    """
    if {"root", "data_root"} & values.keys():
        raise ConfigError(f"{where}: unknown key root", remedy="remove it: paths start from the plan's own folder")
    return parse_config(Plan, values, where=where).model_copy(update={"root": root, "data_root": data_root})


def find_plan(plan: str | Path) -> Path:
    """The file of a plan given by path or by shipped name.

    Raises:
        ConfigError: neither.
    """
    path = Path(plan)
    if path.is_file():
        return path
    named = NAMED_PLANS / f"{plan}.toml"
    if named.is_file():
        return named
    raise ConfigError(
        "There is no such plan",
        got=str(plan),
        expected="a TOML file, or one of " + ", ".join(sorted(file.stem for file in NAMED_PLANS.glob("*.toml"))),
        remedy="check the path",
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("A file cannot be read", got=error.strerror, expected="a readable TOML file") from None
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path.name} is not valid TOML", got=str(error), remedy="correct the line named") from None


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            "An override is not of the form key=value", got=text, expected="for example federation.rounds=3"
        )
    table: Any = values
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError("An override leads through a value that is not a table", got=key)
    table[last] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _insert_data_file(values: dict[str, Any], root: Path) -> Path:
    """Put the source that ``data.file`` describes in its place; return the folder its paths start from."""
    data = values.get("data")
    if not isinstance(data, dict) or "file" not in data:
        return root
    if "source" in data:
        raise ConfigError("The plan's data table has both file and source", expected="one of the two")
    described = read_data_file(root / str(data.pop("file")))
    data["source"] = described.source.model_dump(mode="json")
    if "preprocess" not in data:
        data["preprocess"] = described.preprocess.model_dump(mode="json")
    return described.root.resolve()
