"""Links over TCP with mutual TLS between dealer, vendor and hospital."""

import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from medveil.encrypted.wire.certificates import Role
from medveil.encrypted.wire.link import Link
from medveil.encrypted.wire.tls import check_role, client_context, secure, server_context
from medveil.errors import ConfigError, ProtocolError

_WAITING = 16
_PAUSE_S = 0.1
Address = tuple[str, int]


@dataclass(frozen=True)
class Identity:
    """What a party shows, and whom it trusts.

    Args:
        authority: the authority's certificate.
        certificate: this party's.
        key: this party's.
    """

    authority: Path
    certificate: Path
    key: Path


def address(text: str) -> Address:
    """``HOST:PORT``.

    Raises:
        ConfigError: anything else.

    >>> address("127.0.0.1:7001")
    ('127.0.0.1', 7001)
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ConfigError("An address has another form", got=text, expected="HOST:PORT, for example 127.0.0.1:7001")
    return host.strip("[]"), int(port)


def connect(to: Address, identity: Identity, *, role: Role, patience_s: float = 30.0, timeout_s: float = 60.0) -> Link:
    """Connect to a party that has this role.

    Args:
        to: where it listens.
        identity: of this party.
        role: that the other one must have.
        patience_s: how long to try while nobody listens.
        timeout_s: as of :class:`~medveil.encrypted.wire.link.Link`.

    Raises:
        AuthenticityError: another role, or certificates that are refused.
        ProtocolError: nobody listens, or the other party is silent.
    """
    context = client_context(identity.authority, identity.certificate, identity.key)
    until = time.monotonic() + patience_s
    while True:
        try:
            sock = socket.create_connection(to, timeout=max(_PAUSE_S, until - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() >= until:
                raise ProtocolError(
                    f"No {role} answers",
                    got=error.strerror or type(error).__name__,
                    expected=f"a {role} at {to[0]}:{to[1]}",
                    remedy=f"start the {role}, or correct the address",
                ) from None
            time.sleep(_PAUSE_S)
    return _linked(secure(sock, context, role=role), role, timeout_s)


class Listener:
    """Waits for parties of one role.

    Args:
        at: host and port; port 0 takes a free one.
        identity: of this party.
        role: that those who connect must have.
        timeout_s: as of :class:`~medveil.encrypted.wire.link.Link`.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(self, at: Address, identity: Identity, *, role: Role, timeout_s: float = 60.0) -> None:
        self._context = server_context(identity.authority, identity.certificate, identity.key)
        self._role, self._timeout_s = role, timeout_s
        try:
            self._socket = socket.create_server(at, backlog=_WAITING)
        except OSError as error:
            raise ConfigError(
                "Nothing can listen at this address", got=error.strerror, expected="a free port of this machine"
            ) from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def accept(self) -> Link:
        """The next party.

        Raises:
            AuthenticityError: it has another role or a certificate that is refused; the next one may be better.
            ProtocolError: it is silent.
        """
        sock, _ = self._socket.accept()
        return _linked(secure(sock, self._context, role=self._role), self._role, self._timeout_s)

    def close(self) -> None:
        """Stop listening."""
        with closing(self._socket):
            pass


def _linked(sock: ssl.SSLSocket, role: Role, timeout_s: float) -> Link:
    return Link(sock, timeout_s=timeout_s, peer=check_role(sock, role))
