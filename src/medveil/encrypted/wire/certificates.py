"""An authority and the certificates by which hospital, vendor and dealer know each other.

The authority is a key pair of its own; whoever holds its private key can pose as any party. So it must not lie with the
dealer, who knows every mask, nor with one of the two parties alone if the other does not trust it with that.
"""

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medveil.errors import ConfigError

Role = Literal["hospital", "vendor", "dealer"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
MAX_DAYS: Final = 398
"""Longest life of a party's certificate, in days."""
MAX_AUTHORITY_DAYS: Final = 3650
ORGANISATION: Final = "medveil"
ROLE_URI: Final = "urn:medveil:role:"

_MAX_NAME: Final = 64
_CLOCK_SKEW: Final = timedelta(minutes=5)
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644


class KeyPair(NamedTuple):
    """Where a certificate and its private key lie, both in PEM.

    Args:
        certificate: for everyone.
        key: for its owner; mode 0600.
    """

    certificate: Path
    key: Path


def make_authority(folder: Path, *, name: str = "authority", days: int = 1825, now: datetime | None = None) -> KeyPair:
    """Make a new authority: ``authority.pem``, which every party gets, and ``authority-key.pem``, which none needs.

    Args:
        folder: made where there is none, mode 0700.
        name: printable, 1 to 64 characters.
        days: of its life, 1 to 3650.
        now: begin of its life; None is the present.

    Raises:
        ConfigError: a name or number out of range, or there is an authority already.

    Guarantees:
        The key is fresh Ed25519 from the operating system, and was never readable by others. The authority signs
        parties' certificates only, no further authorities.
    """
    _check_name(name)
    _check_days(days, MAX_AUTHORITY_DAYS)
    pair = KeyPair(folder / "authority.pem", folder / "authority-key.pem")
    key = Ed25519PrivateKey.generate()
    subject = _subject(name, "authority")
    builder = (
        _builder(subject, subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _write(pair, builder.sign(key, None), key)


def make_certificate(
    folder: Path, *, authority: KeyPair, role: Role, name: str, days: int = 90, now: datetime | None = None
) -> KeyPair:
    """Make a party's certificate, ``<role>.pem``, and its key, ``<role>-key.pem``.

    The role stands in the subject (organisational unit) and, as ``urn:medveil:role:<role>``, in the alternative name.

    Args:
        folder: made where there is none, mode 0700.
        authority: who signs.
        role: what the party may do.
        name: of the organisation; printable, 1 to 64 characters. The other parties see it.
        days: of its life, 1 to 398.
        now: begin of its life; None is the present.

    Raises:
        ConfigError: a name, role or number out of range; the authority cannot be read, or its life ends before the
            certificate's; or there is a certificate already.

    Guarantees:
        The key is fresh Ed25519 from the operating system, and was never readable by others.
    """
    if role not in ROLES:
        raise ConfigError("There is no such role", got=role, expected=", ".join(ROLES))
    _check_name(name)
    _check_days(days, MAX_DAYS)
    signer, signing_key = _load_authority(authority)
    key = Ed25519PrivateKey.generate()
    public = signing_key.public_key()
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        _builder(_subject(name, role), signer.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ROLE_URI + role)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    certificate = builder.sign(signing_key, None)
    if certificate.not_valid_after_utc > signer.not_valid_after_utc:
        raise ConfigError(
            "The certificate would outlive its authority",
            got=f"{certificate.not_valid_after_utc:%Y-%m-%d}",
            expected=f"at most {signer.not_valid_after_utc:%Y-%m-%d}",
            remedy="give fewer days, or make a new authority",
        )
    return _write(KeyPair(folder / f"{role}.pem", folder / f"{role}-key.pem"), certificate, key)


def check_private(key: Path) -> None:
    """Refuse a private key that others on this machine can read.

    Raises:
        ConfigError: they can, or there is no such file.
    """
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            "A private key cannot be read", got=error.strerror, remedy="give the key file that medveil keys made"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            "A private key can be read by others", got=f"mode {mode:04o}", expected="0600", remedy="chmod 600 it"
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey, now: datetime | None, days: int
) -> x509.CertificateBuilder:
    begin = (now or datetime.now(UTC)) - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _subject(name: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(authority: KeyPair) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    check_private(authority.key)
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
        key = load_pem_private_key(authority.key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            "The authority cannot be read", got=type(error).__name__, remedy="give the two files that medveil keys made"
        ) from None
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(
            "The authority's key does not belong to its certificate", remedy="give the two files made together"
        )
    return certificate, key


def _write(pair: KeyPair, certificate: x509.Certificate, key: Ed25519PrivateKey) -> KeyPair:
    pair.key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if taken := [path.name for path in pair if path.exists()]:
        raise ConfigError(
            "There is a key or certificate already", got=", ".join(taken), remedy="give another folder, or move it away"
        )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data, mode in (
        (pair.key, secret, _PRIVATE),
        (pair.certificate, certificate.public_bytes(Encoding.PEM), _PUBLIC),
    ):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
    return pair


def is_name(name: str) -> bool:
    """Whether a certificate may carry this name."""
    return 1 <= len(name) <= _MAX_NAME and name.isprintable()


def _check_name(name: str) -> None:
    if not is_name(name):
        raise ConfigError("A name on a certificate is not usable", expected=f"1 to {_MAX_NAME} printable characters")


def _check_days(days: int, most: int) -> None:
    if not 1 <= days <= most:
        raise ConfigError("A certificate cannot live so long", got=f"{days} days", expected=f"1 to {most}")
