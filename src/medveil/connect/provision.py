"""Make the authority of a federation and a kit for everyone in it, with the engine's own provisioning."""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import PropKey
from nvflare.lighter.entity import Project as EngineProject
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from medveil.connect import kit_files
from medveil.connect.authority import (
    LOCK_FILE,
    STATE_FILE,
    DatedCertBuilder,
    check_authority,
    read_state,
    revocation_list,
    revoke_certificate,
    root_of,
)
from medveil.connect.project import Project, read_project
from medveil.disk import alone_with, replace_file
from medveil.errors import ConfigError
from medveil.federation.engine.driver import SCHEME
from medveil.federation.engine.tls import CRL_FILE
from medveil.secagg.identity import IdentityKey

SERVER_KIT = "server"
_SHIPPED = ("fed_server.json", "fed_client.json", "fed_admin.json", "*.crt", "*.key", "rootCA.pem")


def provision(folder: Path, *, parts: Sequence[str] = kit_files.JOB_PARTS) -> dict[str, Path]:
    """Make what ``folder/federation.toml`` describes: ``folder/ca`` and ``folder/kits``.

    Run again, it adds who is new and keeps every key and certificate, what a site wrote into its kit, and what was
    revoked.

    Args:
        folder: of the federation; stays with whoever provisions.
        parts: classes that a job may name; nothing else of a job is ever run.

    Returns:
        Name of each participant -> its kit.

    Raises:
        ConfigError: the file is wrong, or contradicts certificates that exist; kits exist and the authority that made
            them is gone, or has ended.
    """
    read_project(folder)
    with alone_with(folder / LOCK_FILE):
        return _provisioned(folder, read_project(folder), parts)


def _provisioned(folder: Path, project: Project, parts: Sequence[str]) -> dict[str, Path]:
    ca, kits = folder / "ca", folder / "kits"
    if (ca / STATE_FILE).exists() or any(kits.glob("*/startup/rootCA.pem")):
        check_authority(root_of(read_state(ca)))  # kits without their authority: another would shut everyone out
    for made in (ca, kits):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_kits = _engine_kits(project, ca, kits)
    crl = revocation_list(ca)
    known = _known_identities(made_kits[SERVER_KIT])
    identities: dict[str, str] = {}
    for site in project.sites:
        identities[site.name] = _identity(made_kits[site.name], site.identity, known.get(site.name))
    for name, kit in made_kits.items():
        _settle(kit, name, project, identities, crl, parts)
    return made_kits


def revoke(folder: Path, name: str, *, old: bool = False) -> Path:
    """Revoke the certificates of a site or user, at once and for good.

    Args:
        folder: of the federation.
        name: of the site or user.
        old: leave the present certificate alone: only those that a renewal replaced.

    Returns:
        The new list of revoked certificates, which is put into every kit in ``folder/kits``. It must be copied to
        ``startup/`` of every kit that is in use elsewhere, the sites' as well: by its own list a site knows that the
        submitter of a job was revoked, whatever the server says. A running server reads it within a second, a site
        at the start of each job.

    Raises:
        ConfigError: there is no such certificate.
    """
    if not (folder / "kits" / SERVER_KIT / "startup").is_dir():
        raise ConfigError("This federation has no server kit yet", remedy="provision it first")
    with alone_with(folder / LOCK_FILE):
        return hand_out_revocations(folder, revoke_certificate(folder / "ca", name, old=old))


def hand_out_revocations(folder: Path, crl: bytes) -> Path:
    """Put the list of revoked certificates into every kit of ``folder/kits``; returns the server's."""
    for startup in (folder / "kits").glob("*/startup"):
        replace_file(startup / CRL_FILE, crl)
    return folder / "kits" / SERVER_KIT / "startup" / CRL_FILE


def common_names(project: Project) -> dict[str, str]:
    """Name of each participant's kit -> common name on its certificate: the server's is its host."""
    names = [*(site.name for site in project.sites), *(user.name for user in project.users)]
    return {SERVER_KIT: project.server.host, **{name: name for name in names}}


def _engine_kits(project: Project, ca: Path, kits: Path) -> dict[str, Path]:
    """Certificates and start files, made aside by the engine and then moved into the kits."""
    with tempfile.TemporaryDirectory(dir=ca) as temporary:
        work = Path(temporary)
        state = work / project.name / "state"
        state.mkdir(parents=True)
        kept = ca / STATE_FILE
        if kept.exists():
            shutil.copy(kept, state / STATE_FILE)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it chatters
            builders = [
                WorkspaceBuilder(),
                StaticFileBuilder(config_folder="config", scheme=SCHEME, require_signed_jobs=True),
                DatedCertBuilder(project.validity.authority_days, project.validity.certificate_days),
            ]
            context = Provisioner(str(work), builders).provision(_engine_project(project), logger=_Silent())
        made = work / project.name / "prod_00"
        if context.get("build_error") or not made.is_dir():
            raise ConfigError(
                "The kits could not be made",
                got="; ".join(context.get_errors()) or "an error of the engine",
                remedy="if a role or the validity of the authority changed, begin in a new folder",
            )
        replace_file(kept, (state / STATE_FILE).read_bytes(), mode=0o600)
        return {name: _move_kit(made / common, kits / name) for name, common in common_names(project).items()}


def _engine_project(project: Project) -> EngineProject:
    engine = EngineProject(project.name, "made by medveil", props={"api_version": 3})
    port = {PropKey.FED_LEARN_PORT: project.server.port, PropKey.ADMIN_PORT: project.server.port}
    engine.set_server(project.server.host, project.server.org, {**port, PropKey.DEFAULT_HOST: project.server.host})
    for site in project.sites:
        engine.add_client(site.name, site.org, {})
    for user in project.users:
        engine.add_admin(user.name, user.org, {PropKey.ROLE: user.role})
    return engine


def _move_kit(made: Path, kit: Path) -> Path:
    (kit / "startup").mkdir(parents=True, exist_ok=True)
    (kit / "local").mkdir(exist_ok=True)
    kit.chmod(0o700)
    for pattern in _SHIPPED:
        for file in (made / "startup").glob(pattern):
            replace_file(kit / "startup" / file.name, file.read_bytes(), mode=0o600 if file.suffix == ".key" else 0o644)
    return kit


def _settle(
    kit: Path, name: str, project: Project, identities: dict[str, str], crl: bytes, parts: Sequence[str]
) -> None:
    """Fill ``local/`` and ``medveil/``; settings that stand there already are the owner's."""
    if name in {user.name for user in project.users}:
        resources: dict[str, Any] = {"format_version": 1, "admin": {"idle_timeout": 900.0, "login_timeout": 10.0}}
        files = {"resources.json": resources}
    else:
        resources = kit_files.server_resources(parts) if name == SERVER_KIT else kit_files.site_resources(parts)
        files = {
            "resources.json": resources,
            "authorization.json": kit_files.authorization(),
            "comm_config.json": kit_files.comm_config(),
            "log_config.json": kit_files.log_config(),
        }
        own = kit / "medveil"
        own.mkdir(mode=0o700, exist_ok=True)
        replace_file(own / "roster.json", _json({"sites": identities}))
    for file, content in files.items():
        if not (kit / "local" / file).exists():
            replace_file(kit / "local" / file, _json(content))
    replace_file(kit / "startup" / CRL_FILE, crl)


def _known_identities(server: Path) -> dict[str, str]:
    """Public identities of the last roster: they hold for sites whose kits were given away and are here no more."""
    path = server / "medveil" / "roster.json"
    if not path.exists():
        return {}
    try:
        roster: dict[str, str] = json.loads(path.read_text("utf-8"))["sites"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            "The roster of sites cannot be read",
            expected=f"kits/{SERVER_KIT}/medveil/{path.name}, as provisioning left it",
            remedy="restore it from a backup, or from the kit of a site",
        ) from None
    return roster


def _identity(kit: Path, public: str | None, known: str | None) -> str:
    """The public identity of a site; its secret is made here unless there is one, here or at the site."""
    if public is not None:
        return public
    path = kit / "medveil" / "identity.key"
    if not path.exists() and known is not None:
        return known
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        IdentityKey.generate().save(path)
    return IdentityKey.load(path).public.hex()


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


class _Silent:
    """The engine's provisioner reports to it; what matters comes as an error."""

    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...
