"""``record.json`` as the report reads it.

Unknown keys are left alone, so that a record may grow; a key that is missing is None or empty and is shown as
"not measured".
"""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from medveil.report.claim import Claim
from medveil.report.parts import Curve, Part
from medveil.report.secure_sums import SecureSums

SCHEMA_VERSION = 3
_REMEDY = "run the study again, or restore the run folder from a copy"


class Quantity(Part):
    """A figure with its interval; a bare number or null is a figure without one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        return {"value": given} if given is None or isinstance(given, int | float) else given


Quantities = dict[str, Quantity]


class Scores(Part):
    """Metrics of one test, with the same metrics by site and by subgroup."""

    metrics: Quantities = Field(default_factory=dict)
    per_site: dict[str, Quantities] = Field(default_factory=dict)
    per_subgroup: dict[str, dict[str, Quantities]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        """In the record, metrics stand beside ``per_site`` and ``per_subgroup``."""
        if not isinstance(given, dict):
            return given
        groups = {key: given[key] or {} for key in ("per_site", "per_subgroup") if key in given}
        return {"metrics": {key: value for key, value in given.items() if key not in groups}, **groups}


class SiteData(Part):
    """What one site brought."""

    site: str
    subjects: int | None = None
    examples: int | None = None
    label_counts: dict[str, int] = Field(default_factory=dict)


class RejectedFiles(Part):
    """Files that were not used, counted by reason."""

    reason: str
    detail: str = ""
    count: int


class Duplicates(Part):
    """Pixel-identical images: how they were treated and how many there were."""

    policy: str | None = None
    across_splits: int | None = None
    within_splits: int | None = None
    dropped: int | None = None


class Data(Part):
    """What the model was trained and tested on."""

    kind: Literal["real", "phantom"]
    name: str
    licence: str = ""
    citation: str = ""
    subject_rule: str = ""
    class_names: tuple[str, ...] = ()
    subjects: dict[str, int] = Field(default_factory=dict)
    examples: dict[str, int] = Field(default_factory=dict)
    sites: tuple[SiteData, ...] = ()
    rejected: tuple[RejectedFiles, ...] = ()
    duplicates: Duplicates | None = None


class Model(Part):
    """The network."""

    kind: str | None = None
    parameters: int | None = None
    architecture_hash: str | None = None
    input_shape: tuple[int, ...] | None = None


class Roc(Curve):
    """Corners of the ROC curve."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


class Calibration(Curve):
    """Reliability curve."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


class BootstrapUsed(Part):
    """How intervals were made."""

    resamples: int
    level: float


class Details(Part):
    """What stands behind the test figures."""

    threshold: float | None = None
    threshold_source: str | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    roc: Roc | None = None
    calibration: Calibration | None = None
    per_class: dict[str, Quantities] = Field(default_factory=dict)
    num_subjects: int | None = None
    num_examples: int | None = None
    bootstrap: BootstrapUsed | None = None
    distance_unit: str | None = None
    surface_tolerance: float | None = None
    one_sided: int | None = None


class External(Part):
    """A test on data from elsewhere."""

    name: str
    relation: str = ""
    test: Scores
    num_subjects: int | None = None
    fall: Quantities = Field(default_factory=dict)


class References(Part):
    """The same training without federation: all data pooled, and each site alone."""

    central: Scores | None = None
    local_only: Scores | None = None


class Cost(Part):
    """What the run took."""

    seconds: float | None = None
    seconds_by_part: dict[str, float] = Field(default_factory=dict)
    peak_memory_mb: float | None = None
    bytes_sent_per_site: dict[str, int] = Field(default_factory=dict)
    bytes_received_per_site: dict[str, int] = Field(default_factory=dict)
    rounds: int | None = None
    device: str | None = None
    threads: int | None = None


class Protection(Part):
    """What stood between a curious party and the images."""

    active: tuple[str, ...] = ()
    inactive: tuple[str, ...] = ()


class Record(Part):
    """``record.json``."""

    schema_version: int
    name: str
    task: Literal["classification", "segmentation"]
    data: Data
    test: Scores
    medveil_version: str | None = None
    plan_hash: str | None = None
    created: str | None = None
    transport: str | None = None
    model: Model = Model()
    training: dict[str, Any] = Field(default_factory=dict)
    details: Details = Details()
    external: tuple[External, ...] = ()
    references: References = References()
    cost: Cost = Cost()
    secure_aggregation: SecureSums | None = None
    privacy: Claim | None = None
    protection: Protection = Protection()
    artifacts: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """A part that is null is a part that was not measured."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @field_validator("privacy", mode="after")
    @classmethod
    def _needs_its_sums(cls, claim: Claim | None, info: ValidationInfo) -> Claim | None:
        """Noise that sites share out protects nobody but in a secure sum."""
        if claim is not None and claim.mode == "distributed" and info.data.get("secure_aggregation") is None:
            raise PydanticCustomError("without_secure_aggregation", "a secure sum")
        return claim
