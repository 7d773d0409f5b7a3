"""Mutual TLS 1.3 between parties whose certificates one authority signed, each with its role.

Names of machines do not matter: a party is known by its role on its certificate, wherever it runs. No other authority
is trusted, the operating system's included.
"""

import socket
import ssl
from pathlib import Path
from typing import Any, Final

from medveil.encrypted.wire.certificates import ORGANISATION, ROLE_URI, ROLES, Role, check_private
from medveil.errors import AuthenticityError, ConfigError, FederationError, ProtocolError

_ACCEPTED: Final = b"\x01"
_NEW_CERTIFICATE: Final = "make new certificates for all parties with medveil keys, under one authority"
_NO_CERTIFICATE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_VERIFY: Final = {
    9: "its life has not begun: see the clocks of both machines",
    10: "it has expired: make a new one with medveil keys",
    18: "another authority signed it: give every party the same authority.pem",
    19: "another authority signed it: give every party the same authority.pem",
    20: "another authority signed it: give every party the same authority.pem",
    21: "another authority signed it: give every party the same authority.pem",
}
_REASONS: Final = {
    _NO_CERTIFICATE: (
        "The other party showed no certificate",
        "start it with its certificate and key",
    ),
    "UNSUPPORTED_PROTOCOL": ("The other party does not speak TLS 1.3", "run medveil with OpenSSL 1.1.1 or newer there"),
    "TLSV1_ALERT_PROTOCOL_VERSION": (
        "The other party does not speak TLS 1.3",
        "run medveil with OpenSSL 1.1.1 or newer there",
    ),
    "WRONG_VERSION_NUMBER": ("The other party does not speak TLS", "see host and port, and use TLS at both ends"),
    "HTTP_REQUEST": ("The other party does not speak TLS", "see host and port, and use TLS at both ends"),
    "UNEXPECTED_EOF_WHILE_READING": ("The other party ended the connection", "see its log"),
}


def server_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Settings of the party that is connected to.

    Args:
        authority: the authority's certificate, in PEM; the only one trusted.
        certificate: this party's.
        key: this party's, mode 0600.

    Raises:
        ConfigError: a file is missing, unreadable or open to others, or the key is another certificate's.

    Guarantees:
        TLS 1.3 only; the other party must show a certificate of the authority. No session is resumed.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, authority, certificate, key)
    context.num_tickets = 0
    return context


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Settings of the party that connects; as :func:`server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, authority, certificate, key)


def secure(sock: socket.socket, context: ssl.SSLContext, *, role: Role, timeout_s: float = 20.0) -> ssl.SSLSocket:
    """Agree on keys with the other party, check its role, and learn that it accepts this party.

    Args:
        sock: connected; belongs to the result from now on, and is closed where this fails.
        context: from :func:`server_context` or :func:`client_context`, which decides the side.
        role: that the other party must have.
        timeout_s: for each of the three steps.

    Raises:
        AuthenticityError: no certificate, one of another authority, out of date or of another role, here or there.
        ProtocolError: no TLS 1.3 at the other end, or it has gone or is silent.

    Guarantees:
        Whoever reads and writes the result holds a key that the authority signed for ``role``, and both sides know
        that they were accepted. Nothing of the protocol was sent before.
    """
    server = context.protocol == ssl.PROTOCOL_TLS_SERVER
    try:
        sock.settimeout(timeout_s)
        secured = context.wrap_socket(sock, server_side=server)
    except (ssl.SSLError, OSError) as error:
        sock.close()
        raise _refusal(error) from None
    try:
        check_role(secured, role)
        if server:
            secured.sendall(_ACCEPTED)
        accepted = secured.recv(len(_ACCEPTED)) == _ACCEPTED
        if accepted and not server:  # after reading: who refuses says why, which writing could push out of the way
            secured.sendall(_ACCEPTED)
        _check_accepted(accepted)
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
        secured.close()
        raise _not_accepted("the end of the connection") from None
    except (ssl.SSLError, OSError) as error:
        secured.close()
        raise _refusal(error) from None
    except FederationError:
        secured.close()
        raise
    return secured


def check_role(sock: ssl.SSLSocket, role: Role) -> str:
    """Compare the other party's role with the one that it must have.

    Args:
        sock: after the handshake.
        role: hospital, vendor or dealer.

    Returns:
        The other party's name, as the authority signed it.

    Raises:
        AuthenticityError: another role, two of them, or subject and alternative name disagree.
        ConfigError: there is no such role.
    """
    if role not in ROLES:
        raise ConfigError("There is no such role", got=role, expected=", ".join(ROLES))
    shown: Any = sock.getpeercert() or {}
    subject = [pair for part in shown.get("subject", ()) for pair in part]
    units = [value for key, value in subject if key == "organizationalUnitName"]
    names = [value for key, value in subject if key == "commonName"]
    organisations = [value for key, value in subject if key == "organizationName"]
    uris = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    if organisations != [ORGANISATION] or units != [role] or uris != [ROLE_URI + role] or len(names) != 1:
        raise AuthenticityError(
            "The other party has another role than it should",
            got=ascii(units)[:100],
            expected=role,
            remedy=f"see host and port, and start the {role} with the certificate that was made for it",
        )
    return str(names[0])


def _context(protocol: int, authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    check_private(key)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # roles are checked instead, by check_role
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=authority)
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            "A certificate or key cannot be used",
            got=getattr(error, "reason", None) or error.strerror or type(error).__name__,
            expected="authority, certificate and key in PEM, made together",
            remedy=_NEW_CERTIFICATE,
        ) from None
    return context


def _no_password() -> str:
    raise ConfigError("A private key is locked with a password", remedy="give a key file that medveil keys made")


def _check_accepted(accepted: bool) -> None:
    if not accepted:
        raise _not_accepted("the end of the connection")


def _not_accepted(got: str) -> AuthenticityError:
    return AuthenticityError(
        "The other party refused this certificate", got=got, remedy="see its log; " + _NEW_CERTIFICATE
    )


def _refusal(error: OSError) -> FederationError:
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = _VERIFY.get(error.verify_code, _NEW_CERTIFICATE)
        return AuthenticityError("The other party's certificate was refused", got=error.verify_message, remedy=remedy)
    if isinstance(error, TimeoutError):
        return ProtocolError(
            "The other party is silent", got="no agreement on keys in time", remedy="see whether it still runs"
        )
    reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or type(error).__name__
    if reason in _REASONS:
        what, remedy = _REASONS[reason]
        kind = AuthenticityError if reason == _NO_CERTIFICATE else ProtocolError
        return kind(what, got=reason, remedy=remedy)
    if "ALERT" in reason:  # what the other party says: certificate required, expired, of an unknown authority, ...
        return _not_accepted(reason)
    return ProtocolError("No secure connection came about", got=reason, remedy="see the other party's log")
