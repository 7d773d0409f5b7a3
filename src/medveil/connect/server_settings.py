"""The server's own settings; read without torch, since the server's parent process needs none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from medveil.configuration import SITE_PAGE, Config, parse_config
from medveil.errors import ConfigError
from medveil.federation.link import LinkSettings
from medveil.federation.patience import Patience
from medveil.federation.postman import LINKS

SERVER_SETTINGS = "server.json"


class ServerConfig(Config):
    """The server's own settings, ``server.json``: how patient it is, and how much it takes.

    Attributes:
        dead_after_s: a site that nothing is heard of for so long is taken for dead.
        hold_s: how long in all the run waits for a site that the plan needs.
        answer_s: longest time for one answer of a site that is alive.
        max_message_mb: largest message that is taken, in MiB; of each site as much may wait to be read.
    """

    dead_after_s: float = Field(12.0, ge=1.0, le=3600.0)
    hold_s: float = Field(120.0, ge=1.0, le=7 * 86400.0)
    answer_s: float = Field(3600.0, ge=1.0, le=7 * 86400.0)
    max_message_mb: int = Field(256, ge=1, le=1 << 12)

    def patience(self) -> Patience:
        """How long the coordinator waits."""
        return Patience(self.dead_after_s, self.hold_s, self.answer_s)

    def links(self) -> LinkSettings:
        """Of the links to the sites."""
        return replace(LINKS, max_message_bytes=self.max_message_mb << 20)


def read_server_settings(path: Path) -> ServerConfig:
    """What the file says; the defaults where there is none.

    Raises:
        ConfigError: not valid.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ServerConfig()
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name} cannot be read", got=type(error).__name__, expected="a JSON object", remedy="correct the file"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} is not valid", got=type(values).__name__, expected="a JSON object")
    return parse_config(ServerConfig, values, where=path.name, page=SITE_PAGE)
