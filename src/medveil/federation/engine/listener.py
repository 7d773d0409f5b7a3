"""Accept connections; every handshake has a thread and a time limit of its own."""

import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from medveil.errors import ConfigError, MedveilError
from medveil.federation.engine.tls import CRL_FILE, TlsSocket, server_context

HANDSHAKE_S = 10.0
HELLO_S = 4.0
"""Until then a peer must have sent the first byte of its handshake; before that byte it costs no thread."""
POLL_S = 0.5
MAX_HANDSHAKES = 64
MAX_SILENT = 256
"""Peers at a time that are in their handshake, and that have not begun it. One more pushes out another."""
PART_S = 1.0
PAUSE_S = 0.05
TELL_EVERY_S = 15.0
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
        Peers without a certificate, however many, keep nobody else out: one that stays silent is closed after a few
        seconds; when there are too many, the one that waited longest goes, of the address that has most of them; and
        nothing here waits for a place. A certificate that is added to the list of revoked ones is refused from then
        on, and its open connections are closed within a second.
    """

    def __init__(self, params: Mapping[str, Any], serve: Callable[[TlsSocket], None]) -> None:
        self._serve = serve
        self._files = own_files(params)
        self._crl = _revocation_list(params)
        self._crl_time = self._failed = 0
        self._revoked: frozenset[int] = frozenset()
        self._context = self._load()
        self._open: set[TlsSocket] = set()
        self._lock = threading.Lock()
        self._silent = Crowd(MAX_SILENT)
        self._shaking = Crowd(MAX_HANDSHAKES)
        self._told = -TELL_EVERY_S
        self._closed = threading.Event()
        host = params.get(DriverParams.HOST.value) or "0.0.0.0"  # noqa: S104 - the engine's way to say: any address
        self._sock = socket.create_server((host, int(params[DriverParams.PORT.value])), backlog=1024)
        self._sock.setblocking(False)

    def serve(self) -> None:
        """Accept until :meth:`close`."""
        if self._crl is not None:
            threading.Thread(target=self._watch, daemon=True, name="medveil-revoked").start()
        with selectors.DefaultSelector() as ready:
            try:
                ready.register(self._sock, selectors.EVENT_READ)
            except (OSError, ValueError):
                return  # closed before it began
            while not self._closed.is_set():
                for key, _ in ready.select(POLL_S):
                    if key.fileobj is self._sock:
                        self._accept(ready)
                    else:
                        self._begin(ready, cast("socket.socket", key.fileobj))
                for sock in self._silent.older_than(HELLO_S):
                    self._drop(ready, sock)
            for sock in self._silent.older_than(-1):
                self._drop(ready, sock)

    def _accept(self, ready: selectors.BaseSelector) -> None:
        """Take one connection; its handshake begins when its first byte is there."""
        try:
            sock, address = self._sock.accept()
        except BlockingIOError:
            return  # gone again
        except OSError:  # no more descriptors, or closed
            self._closed.wait(PAUSE_S)
            return
        sock.setblocking(False)
        out = self._silent.add(sock, address[0])
        ready.register(sock, selectors.EVENT_READ)
        if out is not None:
            self._drop(ready, out)

    def _begin(self, ready: selectors.BaseSelector, sock: socket.socket) -> None:
        ready.unregister(sock)
        address = self._silent.remove(sock)
        try:
            begun = bool(sock.recv(1, socket.MSG_PEEK))
        except OSError:
            begun = False
        if address is None or not begun:
            sock.close()
            return
        sock.setblocking(True)
        out = self._shaking.add(sock, address)
        if out is not None:
            self._tell()
            _cut(out)  # its thread closes it
        threading.Thread(target=self._one, args=(sock, address), daemon=True, name="medveil-peer").start()

    def _drop(self, ready: selectors.BaseSelector, sock: socket.socket) -> None:
        self._tell()
        self._silent.remove(sock)
        ready.unregister(sock)
        sock.close()

    def _tell(self) -> None:
        if time.monotonic() - self._told >= TELL_EVERY_S and not self._closed.is_set():
            self._told = time.monotonic()
            _log.warning("connections without a handshake are closed; %s has most of them", self._silent.greediest())

    def _one(self, sock: socket.socket, address: str) -> None:
        try:
            tls = TlsSocket(sock, self._context, server_side=True, handshake_s=HANDSHAKE_S)
        except (OSError, MedveilError) as error:
            self._shaking.remove(sock)
            _log.warning("refused a connection from %s: %s", address, in_words(error))
            _part(sock)
            return
        self._shaking.remove(sock)
        with self._lock:
            revoked = tls.serial in self._revoked  # since its handshake began
            if not revoked:
                self._open.add(tls)
        if revoked:
            tls.close()
            return
        try:
            self._serve(tls)
        finally:
            with self._lock:
                self._open.discard(tls)

    def _load(self) -> ssl.SSLContext:
        if self._crl is None:
            return server_context(*self._files, None)
        changed, revoked = _changed(self._crl), revoked_serials(self._crl)
        context = server_context(*self._files, self._crl)
        self._crl_time, self._revoked = changed, revoked
        return context

    def _watch(self) -> None:
        """Look for a new list of revoked certificates, whatever goes on at the port."""
        while not self._closed.wait(POLL_S):
            self._reload()

    def _reload(self) -> None:
        if self._crl is None or _changed(self._crl) == self._crl_time:
            return
        try:
            self._context = self._load()
        except ConfigError as error:
            if _changed(self._crl) != self._failed:  # tried again every time, told once
                self._failed = _changed(self._crl)
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


class Crowd:
    """Connections that are not through yet, by their address; no more than ``most``.

    Args:
        most: at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._members: dict[socket.socket, tuple[str, float]] = {}

    def add(self, sock: socket.socket, address: str) -> socket.socket | None:
        """Let one in; when that is one too many, the oldest of the address with most members, which is to go."""
        with self._lock:
            self._members[sock] = (address, time.monotonic())
            if len(self._members) <= self._most:
                return None
            greedy = self._greediest()
            out = next(one for one, (of, _) in self._members.items() if of == greedy)
            del self._members[out]
        return out

    def remove(self, sock: socket.socket) -> str | None:
        """Forget one; its address, or None when it is not in."""
        with self._lock:
            address, _ = self._members.pop(sock, (None, 0.0))
        return address

    def older_than(self, seconds: float) -> list[socket.socket]:
        """Those that came more than ``seconds`` ago, the oldest first."""
        before = time.monotonic() - seconds
        with self._lock:
            return [sock for sock, (_, came) in self._members.items() if came < before]

    def greediest(self) -> str:
        """The address with most members, or ``"nobody"``."""
        with self._lock:
            return self._greediest()

    def _greediest(self) -> str:
        return next(iter(Counter(address for address, _ in self._members.values()).most_common(1)), ("nobody", 0))[0]


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        sock.shutdown(socket.SHUT_RDWR)


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
            remedy="unpack the kit again",
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
