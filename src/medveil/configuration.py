"""The one base of every configuration: frozen, and unknown keys are errors."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medveil.errors import ConfigError


class Config(BaseModel):
    """A frozen table of settings; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=BaseModel)
PLAN_PAGE = "docs/reference/plan.md"
SITE_PAGE = "docs/reference/site-policy.md"


def parse_config(model: type[ConfigT], values: object, *, where: str, page: str = PLAN_PAGE) -> ConfigT:
    """Validate ``values`` as ``model``.

    Args:
        model: a pydantic model.
        values: parsed TOML.
        where: what is being read, for the message, for example ``"plan.toml"``.
        page: of the documentation, with every key.

    Raises:
        ConfigError: with the first problem's place, value and expectation, and how many more there are.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise config_error(error, values, where=where, page=page) from None


def config_error(error: ValidationError, values: object, *, where: str, page: str = PLAN_PAGE) -> ConfigError:
    """The first problem of a pydantic error as a :class:`ConfigError` in this project's words."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = _place(first["loc"], values)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    kind = first["type"]
    if kind == "extra_forbidden":
        return ConfigError(
            f"{where}: unknown key {place}{more}",
            remedy=f"remove it or correct its spelling; {page} lists every key",
        )
    if kind == "missing":
        return ConfigError(f"{where}: {place} is missing{more}", remedy=f"add it; {page} has an example")
    value = first.get("input")
    return ConfigError(
        f"{where}: {place} is not valid{more}",
        got=_short(value),
        expected=first["msg"].removeprefix("Value error, "),
        remedy=f"{page} lists every key with its range",
    )


def _place(location: tuple[int | str, ...], values: object) -> str:
    """The dotted key as it stands in the file: without the kinds that pydantic puts in for unions."""
    parts = []
    for part in location:
        if isinstance(values, dict) and part not in values and values.get("kind") == part:
            continue
        parts.append(str(part))
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
    return ".".join(parts) or "(top level)"


def _short(value: object, limit: int = 80) -> str:
    text = repr(str(value)) if isinstance(value, str | Path) else repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
