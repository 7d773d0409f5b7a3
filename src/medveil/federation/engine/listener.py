"""Accept connections; every handshake has a thread and a time limit of its own."""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from medveil.errors import ConfigError, MedveilError
from medveil.federation.engine.tls import CRL_FILE, TlsSocket, server_context

HANDSHAKE_S = 10.0
POLL_S = 0.5
MAX_HANDSHAKES = 64
"""Handshakes at a time; a further peer waits in the kernel's queue."""
PART_S = 1.0
ALERTS = {
    "CERTIFICATE_REVOKED": "the certificate was revoked",
    "CERTIFICATE_EXPIRED": "the certificate has expired, or a clock is wrong",
    "UNKNOWN_CA": "the certificate is not of this federation",
    "DECRYPT_ERROR": "the certificate is not of this federation",
    "BAD_CERTIFICATE": "the certificate is not accepted",
    "CERTIFICATE_REQUIRED": "no certificate was shown",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
}

_log = logging.getLogger("medveil.network")


class Listener:
    """One listening port.

    Args:
        params: of the engine: host, port, and the paths of the certificates.
        serve: runs one connection until it ends.
    Guarantees:
        A peer that stalls in its handshake delays nobody else. A certificate that is added to the list of revoked ones
        is refused from then on, and its open connections are closed within a second.
    """

    def __init__(self, params: Mapping[str, Any], serve: Callable[[TlsSocket], None]) -> None:
        self._serve = serve
        self._files = own_files(params)
        self._crl = _revocation_list(params)
        self._crl_time = 0
        self._revoked: frozenset[int] = frozenset()
        self._context = self._load()
        self._open: set[TlsSocket] = set()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._closed = threading.Event()
        host = params.get(DriverParams.HOST.value) or "0.0.0.0"  # noqa: S104 - the engine's way to say: any address
        self._sock = socket.create_server((host, int(params[DriverParams.PORT.value])), backlog=128)
        self._sock.settimeout(POLL_S)

    def serve(self) -> None:
        """Accept until :meth:`close`."""
        while not self._closed.is_set():
            self._reload()
            try:
                sock, address = self._sock.accept()
            except TimeoutError:
                continue
            except OSError:
                break
            self._slots.acquire()
            threading.Thread(target=self._one, args=(sock, address[0]), daemon=True, name="medveil-peer").start()

    def _one(self, sock: socket.socket, address: str) -> None:
        try:
            tls = TlsSocket(sock, self._context, server_side=True, handshake_s=HANDSHAKE_S)
        except (OSError, MedveilError) as error:
            _log.warning("refused a connection from %s: %s", address, in_words(error))
            _part(sock)
            return
        finally:
            self._slots.release()
        with self._lock:
            self._open.add(tls)
        try:
            self._serve(tls)
        finally:
            with self._lock:
                self._open.discard(tls)

    def _load(self) -> ssl.SSLContext:
        if self._crl is not None:
            self._crl_time = _changed(self._crl)
            self._revoked = revoked_serials(self._crl)
        return server_context(*self._files, self._crl)

    def _reload(self) -> None:
        if self._crl is None or _changed(self._crl) == self._crl_time:
            return
        try:
            self._context = self._load()
        except ConfigError as error:
            _log.error("the list of revoked certificates cannot be read; the former one stays in force: %s", error)
            return
        with self._lock:
            cut = [tls for tls in self._open if tls.serial in self._revoked]
        for tls in cut:
            _log.warning("the certificate of %s was revoked: its connection is closed", tls.common_name)
            tls.close()

    def close(self) -> None:
        """Stop accepting."""
        self._closed.set()
        self._sock.close()


def own_files(params: Mapping[str, Any]) -> tuple[Path, Path, Path]:
    """Paths of the authority, the own certificate and its key."""
    authority = params.get(DriverParams.CA_CERT.value)
    for certificate, key in (
        (DriverParams.SERVER_CERT, DriverParams.SERVER_KEY),
        (DriverParams.CLIENT_CERT, DriverParams.CLIENT_KEY),
    ):
        if authority and params.get(certificate.value) and params.get(key.value):
            return Path(authority), Path(params[certificate.value]), Path(params[key.value])
    raise ConfigError("A connection needs a certificate, its key and the authority", remedy="start from a complete kit")


def _revocation_list(params: Mapping[str, Any]) -> Path | None:
    """The server's list, without which it does not serve; a site's listener serves its own machine only."""
    path = Path(params[DriverParams.CA_CERT.value]).with_name(CRL_FILE)
    if not params.get(DriverParams.SERVER_CERT.value) and not path.exists():
        return None
    return path


def revoked_serials(path: Path) -> frozenset[int]:
    """Serial numbers in a list of revoked certificates.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return frozenset(entry.serial_number for entry in x509.load_pem_x509_crl(path.read_bytes()))
    except (OSError, ValueError):
        raise ConfigError(
            "The list of revoked certificates cannot be read",
            expected=path.name,
            remedy="unpack the server's kit again",
        ) from None


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _part(sock: socket.socket) -> None:
    """Close after a refusal so that the peer can still read why: what it had sent is thrown away first."""
    with contextlib.suppress(OSError), sock:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(PART_S)
        end = time.monotonic() + PART_S
        while time.monotonic() < end and sock.recv(65536):
            continue


def in_words(error: Exception) -> str:
    """Why a connection failed, for a log line: no addresses, no traceback."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "handshake failed"
        return next((words for word, words in ALERTS.items() if word in reason), f"no TLS 1.3 connection: {reason}")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or "connection lost"
    return str(error)
