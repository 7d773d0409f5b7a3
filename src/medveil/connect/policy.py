"""A site's policy: what this hospital allows, whatever a plan, a server or a submitter says."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medveil.configuration import SITE_PAGE, Config, parse_config
from medveil.data.subject import Task
from medveil.dp.plan import LARGEST_CLAIM
from medveil.dp.settings import Relation, Unit
from medveil.errors import ConfigError
from medveil.study.plan import Override

Mode = Literal["central", "local", "distributed", "site", "none"]
"""A kind of ``[privacy.dp]``, or "none" for a plan without one."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

TEMPLATE = Path(__file__).parent / "templates" / "policy.toml"
"""The example that a new site starts from, with a comment on every key."""

_LONGEST_FILE = 1 << 20


class AllowedModels(Config):
    """Which networks may be trained here.

    Attributes:
        architectures: SHA-256 of each, as ``medveil train PLAN --dry-run --json`` and the record tell it; "any"
            allows all.
        kinds: the plan's ``model.kind``; "any" allows all. A network must satisfy both keys.
    """

    architectures: tuple[Hash, ...] | Literal["any"] = ()
    kinds: tuple[Name, ...] | Literal["any"] = "any"


class AllowedSubmitter(Config):
    """Who may submit: whoever has every property that is given here.

    Attributes:
        name: as the submitter's certificate states it.
        org: likewise.
        role: likewise, for example "lead".
    """

    name: Name | None = None
    org: Name | None = None
    role: Name | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.name is None and self.org is None and self.role is None:
            raise ValueError("name, org or role: an empty entry would admit everyone")
        return self


class PrivacyFloor(Config):
    """The least protection under which this hospital takes part. A key that is left out allows nothing.

    Attributes:
        modes: mechanisms (kinds of ``privacy.dp``); "none" allows plans without differential privacy.
        units: whose presence a plan may promise to hide.
        epsilon: most that the whole run may cost, at ``delta`` and under ``relation``, whatever the plan states.
        epsilon_total: most that all runs together may cost the same patients; as much as ``epsilon`` by default, which
            allows one such run.
        delta: at which ``epsilon`` is computed; a plan's own delta must not be larger.
        relation: between neighbouring data sets, under which ``epsilon`` is computed.
        held_out: "private" only, or "public" too: validation scores without noise.
        one_image_per_patient: whether a plan may state that every image is of another patient.
        debug_randomness: whether noise may come from a seed, which protects nobody.
        overrides: hazards that a plan may knowingly accept.
        secure_aggregation: whether the server must see sums only.
        colluding: t, sites that the secure sum must withstand on the server's side; epsilon holds against them too.
        min_sites: fewest sites in a job.
        min_included: fewest sites in one sum.
    """

    modes: tuple[Mode, ...] = ()
    units: tuple[Unit, ...] = ()
    epsilon: float | None = Field(None, gt=0, le=LARGEST_CLAIM)
    epsilon_total: float | None = Field(None, gt=0)
    delta: float | None = Field(None, gt=0, lt=1)
    relation: Relation | None = None
    held_out: tuple[Literal["private", "public"], ...] = ("private",)
    one_image_per_patient: bool = False
    debug_randomness: bool = False
    overrides: tuple[Override, ...] = ()
    secure_aggregation: bool = True
    colluding: int | None = Field(None, ge=0)
    min_sites: int | None = Field(None, ge=1)
    min_included: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _stated_in_full(self) -> Self:
        needed: list[str] = ["min_sites"] if self.modes else []
        if set(self.modes) - {"none"}:
            needed += ["epsilon", "delta", "relation"]
            if not self.units:
                raise ValueError("units, for modes with differential privacy")
        if self.modes and self.secure_aggregation:
            needed += ["colluding", "min_included"]
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"a floor that is stated in full: {', '.join(missing)} missing")
        return self

    @property
    def epsilon_over_all_runs(self) -> float | None:
        """Most that all runs together may cost; None where nothing is said of epsilon."""
        return self.epsilon if self.epsilon_total is None else self.epsilon_total


class ApprovalRule(Config):
    """How a plan that meets every rule is approved.

    Attributes:
        rule: "person": somebody approves the plan's hash; "policy": meeting the rules is enough.
        wait_minutes: how long a job waits for a person before the site refuses it.
    """

    rule: Literal["person", "policy"] = "person"
    wait_minutes: float = Field(60.0, ge=0, le=20160)


class SitePolicy(Config):
    """What a hospital allows. Every default is the strictest: a key that is left out allows nothing.

    Attributes:
        tasks: what may be answered.
        datasets: names of this site's data sets that may be trained on.
        max_rounds: of a run.
        max_parameters: of a network.
        deidentified: whether this site's data must be declared de-identified.
        models: which networks.
        submitters: who may submit.
        privacy: the least protection.
        approval: who decides.

    >>> SitePolicy().tasks, SitePolicy().privacy.modes, SitePolicy().approval.rule
    ((), (), 'person')
    """

    tasks: tuple[Task, ...] = ()
    datasets: tuple[Name, ...] = ()
    max_rounds: int = Field(0, ge=0)
    max_parameters: int = Field(0, ge=0)
    deidentified: bool = True
    models: AllowedModels = AllowedModels()
    submitters: tuple[AllowedSubmitter, ...] = ()
    privacy: PrivacyFloor = PrivacyFloor()
    approval: ApprovalRule = ApprovalRule()

    def digest(self) -> str:
        """SHA-256 of every resolved key: comments, order and spelled-out defaults do not change it."""
        content = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_policy(path: str | Path) -> SitePolicy:
    """Read a site's policy; where there is no file, the policy that refuses every plan.

    Args:
        path: a TOML file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or holds unknown keys or values out of range. There is no policy
            then, and so nothing may run.

    >>> load_policy("/nonexistent/policy.toml") == SitePolicy()
    True
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_FILE + 1)
    except FileNotFoundError:
        return SitePolicy()
    except OSError as error:
        raise ConfigError(
            "The site's policy cannot be read",
            got=error.strerror,
            expected="a TOML file that this process may read",
            remedy="correct its permissions; nothing runs without it",
        ) from None
    if len(raw) > _LONGEST_FILE:
        raise ConfigError("The site's policy is too long", got=f"over {_LONGEST_FILE} bytes", expected="a short file")
    try:
        values = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number of too many digits
        raise ConfigError(f"{path.name} is not valid TOML", got=str(error), remedy="correct the line named") from None
    return parse_config(SitePolicy, values, where=path.name, page=SITE_PAGE)
