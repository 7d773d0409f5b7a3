"""New certificates for parties whose old ones end soon: another key, number and dates, everything else as it was."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from nvflare.lighter.utils import generate_keys, serialize_pri_key

from medveil.connect.authority import (
    LOCK_FILE,
    STATE_FILE,
    certificate_of,
    dates,
    entry_of,
    read_state,
    revocation_list,
    revoked,
    root_key_of,
    root_of,
)
from medveil.connect.project import Project, read_project
from medveil.connect.provision import SERVER_KIT, common_names, hand_out_revocations
from medveil.disk import alone_with, replace_file, sync_folder
from medveil.errors import ConfigError

Stands = Literal["valid", "ended", "revoked"]


@dataclass(frozen=True)
class Certificate:
    """How a certificate stands.

    Attributes:
        name: of the kit; ``authority`` for the authority's own.
        ends: UTC.
        stands: today.
        listed: whether ``federation.toml`` still names its owner.
        earlier: ends of certificates before this one that are still accepted, UTC.
    """

    name: str
    ends: dt.datetime
    stands: Stands
    listed: bool = True
    earlier: tuple[dt.datetime, ...] = ()

    @property
    def days_left(self) -> int:
        """Whole days until it ends; negative once it has."""
        return (self.ends - dt.datetime.now(dt.UTC)) // dt.timedelta(days=1)


@dataclass(frozen=True)
class Renewed:
    """What a renewal made.

    Attributes:
        name: of the kit.
        ends: of the new certificate, UTC.
        old_ends: of the one before, UTC.
        old_revoked: whether the one before is accepted no longer.
        files: to be copied into ``startup/`` of the owner's kit; the one ending in ``.key`` is a secret.
    """

    name: str
    ends: dt.datetime
    old_ends: dt.datetime
    old_revoked: bool
    files: tuple[Path, ...]

    @property
    def old_ended(self) -> bool:
        """Whether the one before had ended already."""
        return self.old_ends <= dt.datetime.now(dt.UTC)


def certificates(folder: Path) -> list[Certificate]:
    """Every certificate of a federation, the authority's own first; changes nothing.

    Args:
        folder: of the federation.

    Raises:
        ConfigError: the federation's files are missing or damaged.
    """
    names = {common: name for name, common in common_names(read_project(folder)).items()}
    state, withdrawn = read_state(folder / "ca"), revoked(folder / "ca")
    now = dt.datetime.now(dt.UTC)
    root = root_of(state).not_valid_after_utc
    found = [Certificate("authority", root, "valid" if root > now else "ended")]
    for common, entry in state.items():
        if not isinstance(entry, dict):
            continue
        present = certificate_of(entry)
        ends = present.not_valid_after_utc
        stands: Stands = "valid" if ends > now else "ended"
        if f"{present.serial_number:x}" in withdrawn:
            stands = "revoked"
        before = [dt.datetime.fromisoformat(e["ends"]) for e in _earlier(entry) if e["serial"] not in withdrawn]
        still = tuple(end for end in before if end > now)
        found.append(Certificate(names.get(common, common), ends, stands, common in names, still))
    return found


def ending(folder: Path, days: int) -> list[str]:
    """Names of the parties whose certificates end within ``days``, or have ended; not of those that were shut out.

    Raises:
        ConfigError: as of :func:`certificates`.
    """
    latest = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    return [
        one.name for one in certificates(folder)[1:] if one.listed and one.stands != "revoked" and one.ends <= latest
    ]


def renew(
    folder: Path,
    names: Sequence[str],
    *,
    within_days: int | None = None,
    revoke_old: bool = False,
    readmit: bool = False,
) -> list[Renewed]:
    """Make a new key and certificate for each name; identity keys, policies, ledgers and audit logs are not touched.

    The old certificate is accepted until its own end, unless it is revoked: a site goes on with it until somebody there
    installs the new one.

    Args:
        folder: of the federation.
        names: of kits: sites, users, ``server``.
        within_days: also for all of :func:`ending`, as it is when nobody else changes the federation any more.
        revoke_old: revoke all certificates before the new one at once: their keys may be known to others.
        readmit: also for a party that was shut out.

    Returns:
        What was made, in the order of ``names``. The kits in ``folder/kits`` hold it.

    Raises:
        ConfigError: a name is unknown or was shut out, the authority's file is missing, or its own certificate ends
            before the new one would gain anything. Nothing was changed then.

    Guarantees:
        A new certificate has the subject and extensions of the old one, a key and number of its own, and never holds
        longer than the authority's. The authority's file changes for all names at once, in one step that a crash
        cannot divide, revocations included; kits follow it, and :func:`medveil.connect.provision.provision` brings
        those in line that a crash left behind.
    """
    read_project(folder)
    with alone_with(folder / LOCK_FILE):
        soon = [] if within_days is None else ending(folder, within_days)
        return _renew(folder, read_project(folder), [*names, *soon], revoke_old=revoke_old, readmit=readmit)


def _renew(folder: Path, project: Project, names: Sequence[str], *, revoke_old: bool, readmit: bool) -> list[Renewed]:
    ca, common = folder / "ca", common_names(project)
    state, withdrawn = read_state(ca), revoked(ca)
    made: dict[str, tuple[x509.Certificate, bool]] = {}
    for name in dict.fromkeys(names):
        if name not in common:
            raise ConfigError(
                f"{name} is not in the federation's description",
                expected=", ".join(common),
                remedy="name somebody of federation.toml, or add them there and provision",
            )
        entry = entry_of(state, common[name])
        old = certificate_of(entry)
        shut_out = f"{old.serial_number:x}" in withdrawn
        if shut_out and not readmit:
            raise ConfigError(
                f"The certificate of {name} was revoked",
                remedy=f"leave it so; if {name} is to take part again, with a new key, add --readmit",
            )
        state[common[name]] = _fresh_entry(
            entry, state, project.validity.certificate_days, fresh_key=revoke_old or shut_out, revoke_old=revoke_old
        )
        made[name] = old, shut_out or revoke_old
    replace_file(ca / STATE_FILE, json.dumps(state).encode(), mode=0o600)
    sync_folder(ca)
    files = {name: _deliver(folder, name, state[common[name]]) for name in made}
    if revoke_old:
        hand_out_revocations(folder, revocation_list(ca))
    return [
        Renewed(
            name,
            certificate_of(state[common[name]]).not_valid_after_utc,
            old.not_valid_after_utc,
            gone,
            files[name],
        )
        for name, (old, gone) in made.items()
    ]


def _fresh_entry(
    entry: dict[str, Any], state: dict[str, Any], days: int, *, fresh_key: bool, revoke_old: bool
) -> dict[str, Any]:
    """The entry with a new certificate and key, and the old one among those before."""
    root, old = root_of(state), certificate_of(entry)
    begin, end = dates(root, days)
    if end <= old.not_valid_after_utc and end == root.not_valid_after_utc and not fresh_key:
        raise ConfigError(
            "A new certificate would not hold longer: the authority's own ends then",
            got=f"{end:%Y-%m-%d %H:%M} UTC",
            remedy="before that date describe and provision the federation again in a new folder, and hand out "
            "startup/ of every kit; a site keeps its folder medveil/ with key, policy, ledger and audit log",
        )
    key, public = generate_keys()
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for extension in old.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(public)
        builder = builder.add_extension(value, critical=extension.critical)
    certificate = builder.sign(root_key_of(state), hashes.SHA256())
    when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds") if revoke_old else None
    before = [
        *_earlier(entry),
        {"serial": f"{old.serial_number:x}", "ends": old.not_valid_after_utc.isoformat(), "revoked": None},
    ]
    return {
        "cert": certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "pri_key": serialize_pri_key(key).decode(),
        "earlier": [{**one, "revoked": one["revoked"] or when} for one in before],
    }


def _earlier(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return list(entry.get("earlier", []))


def _deliver(folder: Path, name: str, entry: dict[str, Any]) -> tuple[Path, ...]:
    """Put key and certificate into the kit, the list of revoked ones being left to who changes it."""
    startup = folder / "kits" / name / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    startup.parent.chmod(0o700)
    stem = "server" if name == SERVER_KIT else "client"
    key, certificate = startup / f"{stem}.key", startup / f"{stem}.crt"
    replace_file(key, entry["pri_key"].encode(), mode=0o600)
    replace_file(certificate, entry["cert"].encode(), mode=0o644)
    return certificate, key
