"""The certificate authority of a federation: how long certificates hold, and which were revoked."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from nvflare.lighter.constants import ParticipantType, PropKey
from nvflare.lighter.entity import Participant
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import generate_keys

from medveil.errors import ConfigError

STATE_FILE = "cert.json"
REVOKED_FILE = "revoked.json"


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
        now = dt.datetime.now(dt.UTC)
        end = min(now + dt.timedelta(days=self._certificate_days), self.root_cert.not_valid_after_utc)
        if end <= now:
            raise ConfigError("The authority's certificate has expired", remedy="provision the federation anew")
        certificate = self._generate_cert(
            participant.subject,
            participant.org,
            self.issuer,
            self.pri_key,
            public,
            role=participant.get_prop(PropKey.ROLE) if participant.type == ParticipantType.ADMIN else None,
            server=participant if participant.type == ParticipantType.SERVER else None,
            not_valid_before=now - dt.timedelta(minutes=5),
            not_valid_after=end,
        )
        return secret, certificate


def revoke_certificate(ca: Path, name: str) -> bytes:
    """Add the certificate of ``name`` to those revoked, and return the new signed list, PEM.

    Raises:
        ConfigError: there is no such certificate.
    """
    entry = _state(ca).get(name)
    if not isinstance(entry, dict) or "cert" not in entry:
        raise ConfigError("No certificate was made for this name", got=name, remedy="see federation.toml for the names")
    certificate = x509.load_pem_x509_certificate(entry["cert"].encode())
    revoked = _revoked(ca)
    revoked.setdefault(f"{certificate.serial_number:x}", dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    (ca / REVOKED_FILE).write_text(json.dumps(revoked, indent=2) + "\n", "utf-8")
    return revocation_list(ca)


def revocation_list(ca: Path) -> bytes:
    """The signed list of revoked certificates, PEM; valid until the authority's own certificate ends."""
    state = _state(ca)
    root = x509.load_pem_x509_certificate(state["root_cert"].encode())
    key = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(min(now, root.not_valid_after_utc) - dt.timedelta(minutes=5))
        .next_update(root.not_valid_after_utc)
    )
    for serial, when in _revoked(ca).items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(int(serial, 16))
            .revocation_date(dt.datetime.fromisoformat(when))
            .build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def _state(ca: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((ca / STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            "The authority's files cannot be read",
            expected=f"ca/{STATE_FILE}, as provisioning left it",
            remedy="restore the ca folder from its backup; without it nobody can be added or revoked",
        ) from None
    return state


def _revoked(ca: Path) -> dict[str, str]:
    path = ca / REVOKED_FILE
    if not path.exists():
        return {}
    try:
        revoked: dict[str, str] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            "The record of revoked certificates cannot be read",
            expected=f"ca/{REVOKED_FILE}",
            remedy="restore the ca folder from its backup",
        ) from None
    return revoked
