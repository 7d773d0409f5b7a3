"""A federation on paper: ``federation.toml``, from which certificates and kits are made."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medveil.configuration import SITE_PAGE, Config, parse_config
from medveil.errors import ConfigError

PROJECT_FILE = "federation.toml"
Role = Literal["project_admin", "org_admin", "lead", "member"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}@[a-z0-9][a-z0-9.-]{0,30}[a-z0-9]")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_ORG = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,61}")
_KEY = re.compile(r"[0-9a-f]{64}")


def _matches(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(what)
        return value

    return AfterValidator(check)


def _is_a_word(value: str) -> str:
    """The engine reads a name on a command line as a number or as yes or no where it can."""
    if value.isdigit() or value in {"true", "false", "yes", "no", "y", "n", "t", "f", "on", "off", "server", "admin"}:
        raise ValueError("a name that is no number, not yes or no, and not server or admin")
    return value


Name = Annotated[str, _matches(_NAME, "small letters, digits and hyphens, at most 63"), AfterValidator(_is_a_word)]
Host = Annotated[str, _matches(_HOST, "a host name or an IPv4 address, at most 63 characters")]
Org = Annotated[str, _matches(_ORG, "letters, digits and underscores, at most 62, beginning with a letter")]
Address = Annotated[str, _matches(_USER, "an e-mail address in small letters, at most 63 characters")]
PublicKey = Annotated[str, _matches(_KEY, "64 hexadecimal digits")]


class ServerEntry(Config):
    """The coordinator's machine."""

    host: Host
    """What sites connect to."""
    port: int = Field(ge=1024, le=65535)
    """The only port that anybody connects to: sites, and those who submit."""
    org: Org


class SiteEntry(Config):
    """One hospital."""

    name: Name
    org: Org
    identity: PublicKey | None = None
    """Public half of a key that the hospital made itself; without it, one is made with its kit."""


class UserEntry(Config):
    """One person who may log in at the server."""

    name: Address
    org: Org
    role: Role


class Validity(Config):
    """How long certificates hold, in days."""

    authority_days: int = Field(default=3650, ge=1, le=36500)
    certificate_days: int = Field(default=365, ge=1, le=3650)


class Project(Config):
    """A federation: who takes part, and where the server is."""

    name: Name
    server: ServerEntry
    sites: tuple[SiteEntry, ...] = Field(min_length=1)
    users: tuple[UserEntry, ...] = Field(min_length=1)
    validity: Validity = Validity()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [self.server.host, *(site.name for site in self.sites), *(user.name for user in self.users)]
        if len({name.lower() for name in names}) != len(names):
            raise ValueError("every participant needs a name of its own, and a site cannot be called like the server")
        if self.validity.certificate_days > self.validity.authority_days:
            raise ValueError("a certificate cannot hold longer than its authority")
        return self


def read_project(folder: Path) -> Project:
    """Read ``folder/federation.toml``.

    Raises:
        ConfigError: it is missing, is no TOML, or a value is wrong.
    """
    path = folder / PROJECT_FILE
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{PROJECT_FILE} cannot be read", got=error.strerror, remedy="make one with medveil connect init"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{PROJECT_FILE} is no TOML", got=str(error), remedy="correct it") from None
    return parse_config(Project, values, where=PROJECT_FILE, page=SITE_PAGE)
