"""A participant's own folder: where its keys, rules, data and runs lie."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from medveil.configuration import SITE_PAGE, Config, parse_config
from medveil.connect.approvals import Approvals
from medveil.connect.audit_log import AuditLog
from medveil.connect.policy import SitePolicy, load_policy
from medveil.connect.server_settings import SERVER_SETTINGS, ServerConfig, read_server_settings
from medveil.data.sources import AnySource
from medveil.errors import ConfigError
from medveil.federation.link import LinkSettings
from medveil.federation.postman import LINKS
from medveil.secagg.identity import IdentityKey
from medveil.study.folder import file_name
from medveil.study.plan import read_toml
from medveil.training.settings import Performance


class SiteConfig(Config):
    """A site's own settings, ``site.toml``.

    Attributes:
        source: where this site's images are; in place of the plan's ``data.source``.
        deidentified: whether the hospital declares that the images and their headers name nobody.
        tell_ledger: whether the coordinator is told what this site's privacy ledger says.
        performance: threads and sizes of this machine; in place of the plan's, which may not use up this site's memory.
        max_message_mb: largest message that is taken, in MiB: four bytes a parameter, and room.
    """

    source: AnySource
    deidentified: bool = False
    tell_ledger: bool = True
    performance: Performance = Performance()
    max_message_mb: int = Field(256, ge=1, le=1 << 12)

    def links(self) -> LinkSettings:
        """Of the link to the server."""
        return replace(LINKS, max_message_bytes=self.max_message_mb << 20)


class Home:
    """The folder ``medveil/`` of a kit.

    Args:
        kit: root of the participant's kit.
    """

    def __init__(self, kit: Path) -> None:
        self.folder = kit / "medveil"
        self.runs = self.folder / "runs"
        self.ledgers = self.folder / "ledger"
        self.audit_path = self.folder / "audit.jsonl"
        self.policy_path = self.folder / "policy.toml"
        self.approvals_path = self.folder / "approvals.json"
        self.returned = self.folder / "returned"
        self.site_path = self.folder / "site.toml"

    def site(self) -> SiteConfig:
        """The site's own settings.

        Raises:
            ConfigError: missing, or not valid.
        """
        values = read_toml(self.site_path)
        return parse_config(SiteConfig, values, where=self.site_path.name, page=SITE_PAGE)

    def server(self) -> ServerConfig:
        """The server's own settings; the defaults where there is no file.

        Raises:
            ConfigError: not valid.
        """
        return read_server_settings(self.folder / SERVER_SETTINGS)

    def policy(self) -> SitePolicy:
        """What the hospital allows; nothing where there is no policy."""
        return load_policy(self.policy_path)

    def approvals(self) -> Approvals:
        """Plans that were approved."""
        return Approvals(self.approvals_path, self.folder / "inbox")

    def identity(self) -> IdentityKey:
        """The site's key of the secure sum.

        Raises:
            ConfigError: missing, or others may read it.
        """
        return IdentityKey.load(self.folder / "identity.key")

    def audit_log(self) -> AuditLog:
        """What happened here."""
        return AuditLog(self.audit_path, key=self.identity())

    def roster(self) -> dict[str, bytes]:
        """Identity keys of all sites, as this participant was given them.

        Raises:
            ConfigError: missing, or not valid.
        """
        path = self.folder / "roster.json"
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            roster = {str(name): bytes.fromhex(key) for name, key in content["sites"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(
                "The roster of sites cannot be read",
                got=type(error).__name__,
                expected=f"the file {path.name} of the kit",
                remedy="ask whoever provisions for it again",
            ) from None
        return dict(sorted(roster.items()))

    def run_folder(self, name: str, run: str) -> Path:
        """Of a run at the server, by the name that its submitter signed."""
        return self.runs / f"{file_name(name)}-{run[:16]}"


def link_session(job_id: str, site: str) -> bytes:
    """16 bytes that both ends of a link know; new with every job."""
    return hashlib.sha256(f"medveil link {job_id} {site}".encode()).digest()[:16]
