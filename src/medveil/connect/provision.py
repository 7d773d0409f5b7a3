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
from medveil.connect.authority import DatedCertBuilder, revocation_list, revoke_certificate
from medveil.connect.project import Project, read_project
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
        ConfigError: the file is wrong, or contradicts certificates that exist.
    """
    project = read_project(folder)
    ca, kits = folder / "ca", folder / "kits"
    for made in (ca, kits):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_kits = _engine_kits(project, ca, kits)
    crl = revocation_list(ca)
    identities: dict[str, str] = {}
    for site in project.sites:
        identities[site.name] = _identity(made_kits[site.name], site.identity)
    for name, kit in made_kits.items():
        _settle(kit, name, project, identities, crl, parts)
    return made_kits


def revoke(folder: Path, name: str) -> Path:
    """Revoke the certificate of a site or user, at once and for good.

    Args:
        folder: of the federation.
        name: of the site or user.

    Returns:
        The new list of revoked certificates, which is put into every kit in ``folder/kits``. It must be copied to
        ``startup/`` of every kit that is in use elsewhere, the sites' as well: by its own list a site knows that the
        submitter of a job was revoked, whatever the server says. A running server reads it within a second, a site
        at the start of each job.

    Raises:
        ConfigError: there is no such certificate.
    """
    crl = revoke_certificate(folder / "ca", name)
    path = folder / "kits" / SERVER_KIT / "startup" / CRL_FILE
    if not path.parent.is_dir():
        raise ConfigError("This federation has no server kit yet", remedy="provision it first")
    for startup in (folder / "kits").glob("*/startup"):
        _replace(startup / CRL_FILE, crl)
    return path


def _engine_kits(project: Project, ca: Path, kits: Path) -> dict[str, Path]:
    """Certificates and start files, made aside by the engine and then moved into the kits."""
    with tempfile.TemporaryDirectory(dir=ca) as temporary:
        work = Path(temporary)
        state = work / project.name / "state"
        state.mkdir(parents=True)
        kept = ca / "cert.json"
        if kept.exists():
            shutil.copy(kept, state / "cert.json")
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
        _replace(kept, (state / "cert.json").read_bytes(), secret=True)
        return {
            name: _move_kit(made / inner, kits / name)
            for name, inner in {
                SERVER_KIT: project.server.host,
                **{site.name: site.name for site in project.sites},
                **{user.name: user.name for user in project.users},
            }.items()
        }


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
            _replace(kit / "startup" / file.name, file.read_bytes(), secret=file.suffix == ".key")
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
        _replace(own / "roster.json", _json({"sites": identities}))
    for file, content in files.items():
        if not (kit / "local" / file).exists():
            _replace(kit / "local" / file, _json(content))
    _replace(kit / "startup" / CRL_FILE, crl)


def _identity(kit: Path, public: str | None) -> str:
    """The public identity of a site; its secret is made here unless the site made it itself."""
    if public is not None:
        return public
    path = kit / "medveil" / "identity.key"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        IdentityKey.generate().save(path)
    return IdentityKey.load(path).public.hex()


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _replace(path: Path, content: bytes, *, secret: bool = False) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(0o600 if secret else 0o644)
    fresh.write_bytes(content)
    fresh.replace(path)


class _Silent:
    """The engine's provisioner reports to it; what matters comes as an error."""

    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...
