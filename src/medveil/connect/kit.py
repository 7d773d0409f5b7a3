"""A participant's kit, read and checked before anything starts."""

import datetime as dt
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from medveil.errors import ConfigError

Kind = Literal["server", "site", "person"]
_FILES: dict[Kind, tuple[str, str]] = {
    "server": ("fed_server.json", "server.crt"),
    "site": ("fed_client.json", "client.crt"),
    "person": ("fed_admin.json", "client.crt"),
}


@dataclass(frozen=True)
class Kit:
    """What a kit says about its owner.

    Attributes:
        folder: its root.
        kind: whose it is.
        name: of the owner, as in the certificate.
        org: the owner's institution.
        host: of the server.
        port: of the server.
    """

    folder: Path
    kind: Kind
    name: str
    org: str
    host: str
    port: int


def kind_of_kit(folder: Path) -> Kind:
    """Whose kit a folder is.

    Raises:
        ConfigError: nobody's.
    """
    for kind, (settings_file, _) in _FILES.items():
        if (folder / "startup" / settings_file).is_file():
            return kind
    raise ConfigError(
        "This folder is no kit", expected="a folder that was provisioned", remedy="name one of FOLDER/kits"
    )


def read_kit(folder: Path, kind: Kind) -> Kit:
    """Read a kit.

    Raises:
        ConfigError: it is the kit of another kind of participant, files are missing or damaged, its certificate does
            not hold today, or others on this machine may read its private key.
    """
    folder = folder.resolve()
    startup = folder / "startup"
    settings_file, certificate_file = _FILES[kind]
    if not (startup / settings_file).is_file():
        found = [other for other, (file, _) in _FILES.items() if (startup / file).is_file()]
        raise ConfigError(
            f"This is not the kit of a {kind}",
            got=f"the kit of a {found[0]}" if found else "a folder that is no kit",
            expected=f"startup/{settings_file}",
            remedy="name the folder that was provisioned for this machine",
        )
    try:
        settings = json.loads((startup / settings_file).read_text("utf-8"))
        certificate = x509.load_pem_x509_certificate((startup / certificate_file).read_bytes())
        host, port = _server(settings, kind)
        name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        org = str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ConfigError(
            "The kit is damaged",
            expected=f"startup/{settings_file} and startup/{certificate_file} as provisioned",
            remedy="unpack it again",
        ) from None
    _check_dates(certificate)
    _check_key((startup / certificate_file).with_suffix(".key"))
    return Kit(folder, kind, name, org, host, port)


def _server(settings: dict[str, Any], kind: Kind) -> tuple[str, int]:
    if kind == "person":
        return str(settings["admin"]["host"]), int(settings["admin"]["port"])
    host, _, port = str(settings["servers"][0]["service"]["target"]).partition(":")
    return host, int(port)


def _check_dates(certificate: x509.Certificate) -> None:
    now = dt.datetime.now(dt.UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise ConfigError(
            "The kit's certificate is not valid yet: is this machine's clock wrong?",
            got=f"{now:%Y-%m-%d %H:%M} UTC",
            expected=f"{begin:%Y-%m-%d %H:%M} UTC or later",
            remedy="set the clock, for example with NTP",
        )
    if now > end:
        raise ConfigError(
            "The kit's certificate has expired, or this machine's clock is wrong",
            got=f"{now:%Y-%m-%d %H:%M} UTC",
            expected=f"{end:%Y-%m-%d %H:%M} UTC or earlier",
            remedy="check the clock, then ask whoever provisioned the kit for a new one",
        )


def _check_key(path: Path) -> None:
    """Whether the private key is the owner's alone."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        raise ConfigError("The kit is damaged", expected=f"startup/{path.name}", remedy="unpack it again") from None
    if mode & 0o077:
        raise ConfigError(
            "Others on this machine may read or change the kit's private key",
            got=f"startup/{path.name} with mode {mode:04o}",
            expected="mode 0600",
            remedy=f"chmod 600 startup/{path.name}; if others had access to it, ask for a new kit and have this one "
            "revoked",
        )
