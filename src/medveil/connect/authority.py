"""The certificate authority of a federation: how long certificates hold, and which were revoked."""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.lighter.constants import ParticipantType, PropKey
from nvflare.lighter.entity import Participant
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import generate_keys

from medveil.disk import replace_file
from medveil.errors import ConfigError

STATE_FILE = "cert.json"
REVOKED_FILE = "revoked.json"
LOCK_FILE = ".lock"  # beside the folder of the authority: whoever changes the federation is alone


class DatedCertBuilder(CertBuilder):  # type: ignore[misc]
    """The engine's certificates, with a validity of our choice.

    Args:
        authority_days: of the authority, when it is made.
        certificate_days: of each new certificate; never beyond the authority's end.
    """

    def __init__(self, authority_days: int, certificate_days: int) -> None:
        super().__init__(root_valid_days=authority_days)
        self._certificate_days = certificate_days

    def get_pri_key_cert(self, participant: Participant) -> tuple[Any, x509.Certificate]:
        """A new key and its certificate."""
        secret, public = generate_keys()
        begin, end = dates(self.root_cert, self._certificate_days)
        certificate = self._generate_cert(
            participant.subject,
            participant.org,
            self.issuer,
            self.pri_key,
            public,
            role=participant.get_prop(PropKey.ROLE) if participant.type == ParticipantType.ADMIN else None,
            server=participant if participant.type == ParticipantType.SERVER else None,
            not_valid_before=begin,
            not_valid_after=end,
        )
        return secret, certificate


def dates(root: x509.Certificate, days: int) -> tuple[dt.datetime, dt.datetime]:
    """Begin and end of a certificate that is made now: ``days`` long, never beyond the end of the authority's own.

    Raises:
        ConfigError: the authority's certificate has ended.
    """
    now = dt.datetime.now(dt.UTC)
    check_authority(root)
    return now - dt.timedelta(minutes=5), min(now + dt.timedelta(days=days), root.not_valid_after_utc)


def check_authority(root: x509.Certificate) -> None:
    """Whether the authority can still sign.

    Raises:
        ConfigError: its certificate has ended, and with it every certificate that it signed.
    """
    if root.not_valid_after_utc <= dt.datetime.now(dt.UTC):
        raise ConfigError(
            "The authority's certificate has ended, and with it every certificate of this federation",
            got=f"{root.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            remedy="describe and provision the federation again in a new folder, and hand out startup/ of every kit; "
            "a site keeps its folder medveil/ with key, policy, ledger and audit log",
        )


def revoke_certificate(ca: Path, name: str, *, old: bool = False) -> bytes:
    """Add every certificate of ``name`` to those revoked, and return the new signed list, PEM.

    Args:
        ca: folder of the authority.
        name: common name on the certificate.
        old: leave the present certificate alone: only those that a renewal replaced.

    Raises:
        ConfigError: there is no such certificate.
    """
    entry = entry_of(read_state(ca), name)
    serials = [one["serial"] for one in entry.get("earlier", [])]
    if not old:
        serials.append(f"{certificate_of(entry).serial_number:x}")
    elif not serials:
        raise ConfigError(
            "No certificate of this name was replaced by a renewal",
            got=name,
            remedy="medveil connect renew FOLDER lists the certificates; without --old the present one is revoked",
        )
    when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    record = _revoked_record(ca)
    for serial in serials:
        record.setdefault(serial, when)
    replace_file(ca / REVOKED_FILE, (json.dumps(record, indent=2) + "\n").encode())
    return revocation_list(ca)


def revocation_list(ca: Path) -> bytes:
    """The signed list of revoked certificates, PEM; valid until the authority's own certificate ends."""
    state = read_state(ca)
    root, key = root_of(state), root_key_of(state)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(min(now, root.not_valid_after_utc) - dt.timedelta(minutes=5))
        .next_update(root.not_valid_after_utc)
    )
    for serial, when in revoked(ca).items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(int(serial, 16))
            .revocation_date(dt.datetime.fromisoformat(when))
            .build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_state(ca: Path) -> dict[str, Any]:
    """The authority's file: its own certificate and key, and those of everyone that it certified.

    An entry besides ``root_cert`` and ``root_pri_key`` is common name -> ``cert``, ``pri_key`` (PEM) and, after a
    renewal, ``earlier``: serial number, end and revocation of each certificate before the present one.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        state: dict[str, Any] = json.loads((ca / STATE_FILE).read_text("utf-8"))
        root_of(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if not ca.exists() and not (ca.parent / "kits").exists():
            raise ConfigError(
                "This federation has no authority yet", remedy="medveil connect provision makes it, and the kits"
            ) from None
        raise ConfigError(
            "The authority's files cannot be read",
            expected=f"ca/{STATE_FILE}, as provisioning left it",
            remedy="restore the ca folder from its backup; without it nobody can be added, renewed or revoked",
        ) from None
    return state


def entry_of(state: dict[str, Any], name: str) -> dict[str, Any]:
    """What the authority keeps of ``name``.

    Raises:
        ConfigError: nothing.
    """
    entry = state.get(name)
    if not isinstance(entry, dict) or "cert" not in entry:
        raise ConfigError("No certificate was made for this name", got=name, remedy="see federation.toml for the names")
    return entry


def certificate_of(entry: dict[str, Any]) -> x509.Certificate:
    """The present certificate of an entry."""
    return x509.load_pem_x509_certificate(entry["cert"].encode())


def root_of(state: dict[str, Any]) -> x509.Certificate:
    """The authority's own certificate."""
    return x509.load_pem_x509_certificate(state["root_cert"].encode())


def root_key_of(state: dict[str, Any]) -> rsa.RSAPrivateKey:
    """The authority's private key."""
    key = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def revoked(ca: Path) -> dict[str, str]:
    """Serial numbers, hexadecimal, of all revoked certificates, with the time of each.

    Those that a renewal revoked stand with the renewed certificate, so that both came about at once.
    """
    entries: Sequence[Any] = list(read_state(ca).values())
    renewed = [one for entry in entries if isinstance(entry, dict) for one in entry.get("earlier", [])]
    return {**{one["serial"]: one["revoked"] for one in renewed if one["revoked"]}, **_revoked_record(ca)}


def _revoked_record(ca: Path) -> dict[str, str]:
    path = ca / REVOKED_FILE
    if not path.exists():
        return {}
    try:
        record: dict[str, str] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            "The record of revoked certificates cannot be read",
            expected=f"ca/{REVOKED_FILE}",
            remedy="restore the ca folder from its backup",
        ) from None
    return record
