"""The engine's transport: one TLS 1.3 connection a peer, certificates and their revocation checked."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from nvflare.fuel.f3 import communicator
from nvflare.fuel.f3.drivers import net_utils
from nvflare.fuel.f3.drivers.base_driver import BaseDriver
from nvflare.fuel.f3.drivers.connector_info import ConnectorInfo
from nvflare.fuel.f3.drivers.driver_params import DriverCap, DriverParams
from nvflare.fuel.utils import url_utils

from medveil.errors import AuthenticityError, MedveilError
from medveil.federation.engine.connection import TlsConnection
from medveil.federation.engine.guard import install_guard
from medveil.federation.engine.listener import Listener, in_words, own_files, revoked_serials
from medveil.federation.engine.tls import CRL_FILE, TlsSocket, client_context

SCHEME = "medveil"
LOOPBACK = "127.0.0.1"
HANDSHAKE_S = 10.0
CONNECT_S = 5.0
RETRY_S = 1.0
TELL_EVERY_S = 15.0
KEYS: dict[tuple[str, int], bytes] = {}
"""Host and port that this process connected to -> key of who answered first."""

_log = logging.getLogger("medveil.network")


class TlsDriver(BaseDriver):  # type: ignore[misc] # the engine has no types
    """Connects and listens for the scheme ``medveil``: always mutual TLS 1.3, whatever else a configuration asks."""

    when_new_key: ClassVar[tuple[Callable[[], None], ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._listener: Listener | None = None
        self._stopped = threading.Event()

    @staticmethod
    def supported_transports() -> list[str]:
        """The one scheme."""
        return [SCHEME]

    @staticmethod
    def capabilities() -> dict[str, Any]:
        """The engine sends its heartbeats, and may ask for a secure connection."""
        return {DriverCap.SEND_HEARTBEAT.value: True, DriverCap.SUPPORT_SSL.value: True}

    @staticmethod
    def get_urls(scheme: str, resources: dict[str, Any]) -> tuple[str, str]:
        """Where a listener for the job processes of this machine is reached, and where it listens: loopback."""
        port = net_utils.get_open_tcp_port(resources)
        return f"{scheme}://{LOOPBACK}:{port}", f"{scheme}://{LOOPBACK}:{port}"

    def listen(self, connector: ConnectorInfo) -> None:
        """Serve until :meth:`shutdown`."""
        self.connector = connector
        self._listener = Listener(connector.params, self._serve)
        self._listener.serve()

    def connect(self, connector: ConnectorInfo) -> None:
        """Connect, patiently, and read until the connection ends."""
        self.connector = connector
        authority, certificate, key = own_files(connector.params)
        context = client_context(authority, certificate, key)
        address = (connector.params[DriverParams.HOST.value], int(connector.params[DriverParams.PORT.value]))
        told = -TELL_EVERY_S
        while not self._stopped.is_set() and not connector.stopped.is_set():
            sock = None
            try:
                sock = socket.create_connection(address, CONNECT_S)
                tls = TlsSocket(sock, context, server_side=False, handshake_s=HANDSHAKE_S)
                check_peer(tls.common_name, address[0], certificate)
                check_not_revoked(tls.serial, authority.with_name(CRL_FILE))
                renewed = KEYS.setdefault(address, tls.public_key) != tls.public_key
            except (OSError, MedveilError) as error:
                if sock is not None:
                    sock.close()
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    _log.warning("%s:%s cannot be reached (%s); trying again", *address, in_words(error))
                self._stopped.wait(RETRY_S)
                continue
            _log.info("connected to %s:%s, which is %s", *address, tls.common_name)
            if renewed and self.when_new_key:
                tls.close()
                for call in self.when_new_key:
                    call()
                return
            self._serve(tls)
            return

    def _serve(self, tls: TlsSocket) -> None:
        """Run one connection in the calling thread, from its first frame to its end."""
        connection = TlsConnection(tls, self.connector)
        self.add_connection(connection)
        if self._stopped.is_set():  # shut down meanwhile: nobody else would close this one
            connection.close()
        try:
            connection.read_until_closed()
        finally:
            self.close_connection(connection)

    def shutdown(self) -> None:
        """Close the listener and every connection."""
        self._stopped.set()
        if self._listener is not None:
            self._listener.close()
        self.close_all()


def check_not_revoked(serial: int, revoked: Path) -> None:
    """Whether the certificate of who answered still holds, by the list in one's own kit.

    Args:
        serial: number of the peer's certificate.
        revoked: the list, PEM; a kit without one knows of nobody.

    Raises:
        AuthenticityError: it was revoked.
        ConfigError: the list cannot be read.
    """
    if revoked.exists() and serial in revoked_serials(revoked):
        raise AuthenticityError(
            "The certificate of who answered was revoked",
            remedy="ask whoever runs the server to install its present certificate",
        )


def check_peer(name: str, host: str, own_certificate: Path) -> None:
    """Whether who answered is whom we called: the server by its host's name, or on this machine our own parent.

    Args:
        name: common name of the peer's certificate.
        host: what was connected to.
        own_certificate: of this process.

    Raises:
        AuthenticityError: somebody else of the federation answered.
    """
    expected = {host}
    if host == LOOPBACK:
        own = x509.load_pem_x509_certificate(own_certificate.read_bytes())
        expected.add(str(own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value))
    if name not in expected:
        raise AuthenticityError(
            "Another participant answers in place of the one that was called",
            got=name,
            expected=" or ".join(sorted(expected)),
            remedy="ask the network's administrator where this name leads",
        )


def install(when_new_key: Callable[[], None] | None = None) -> None:
    """Make the engine of this process know the scheme, and hear only what a run needs.

    To be called before its first cell starts, by every process of the engine.

    Args:
        when_new_key: called, in a thread of the engine, when who is connected to has another key than the first time:
            the token that the engine got then is signed with the old one, and the engine never asks for another.
    """
    TlsDriver.when_new_key = () if when_new_key is None else (when_new_key,)
    install_guard()
    net_utils.SECURE_SCHEMES.add(SCHEME)  # identities of peers are then bound to their certificates
    url_utils._SECURE_SCHEME_MAPPING.setdefault(SCHEME, SCHEME)  # noqa: SLF001 - the engine's list has no door
    if communicator.driver_mgr.find_driver_class(SCHEME) is None:
        communicator.driver_mgr.register(TlsDriver)
