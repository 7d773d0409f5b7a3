"""Mutual TLS 1.3 on a socket that one thread reads while others write."""

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from medveil.errors import ConfigError, FederationError

CHUNK_BYTES = 256 * 1024
"""Plaintext that is encrypted at a time, so that a reader is never kept waiting for a large write."""

CRL_FILE = "crl.pem"
UNACKNOWLEDGED_S = 10.0
"""A connection whose peer has acknowledged nothing for so long is lost: a new one is up sooner than TCP's next try."""


def server_context(authority: Path, certificate: Path, key: Path, revoked: Path | None) -> ssl.SSLContext:
    """The context of a listener.

    Args:
        authority: the federation's certificate authority, PEM; no other authority is trusted.
        certificate: the listener's own certificate.
        key: its private key.
        revoked: list of revoked certificates, PEM; None where the listener serves only its own machine.
    Guarantees:
        TLS 1.3 or nothing; a peer without a valid certificate of this authority is refused in the handshake, and one
        whose certificate stands in ``revoked``.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _filled(context, authority, certificate, key, revoked)


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """The context of a connector: as :func:`server_context`, for the side that opens the connection.

    Who the other side is, the connection checks by the certificate's common name, which the engine's identities are.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _filled(context, authority, certificate, key, None)


def _filled(
    context: ssl.SSLContext, authority: Path, certificate: Path, key: Path, revoked: Path | None
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
        if revoked is not None:
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "A certificate of this kit cannot be used",
            got=f"{type(error).__name__}: {getattr(error, 'reason', None) or error.strerror}",
            expected=f"{authority.name}, {certificate.name}, {key.name}" + (f", {revoked.name}" if revoked else ""),
            remedy="unpack the kit again, or ask whoever provisioned it for a new one",
        ) from None
    return context


class TlsSocket:
    """A connected socket under TLS.

    One thread may read while others write: the cipher state is only touched under a lock, which ``ssl.SSLSocket`` does
    not give, and neither waits for the network while it holds that lock.

    Args:
        sock: connected.
        context: from this module.
        server_side: whether this side accepted the connection.
        handshake_s: limit of the handshake, in seconds.

    Raises:
        ssl.SSLError: the handshake failed.
        TimeoutError: it took too long.
        OSError: the connection was lost.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, handshake_s: float) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._cipher = threading.Lock()
        self._order = threading.Lock()
        self.last_read = time.monotonic()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of RFC 5482; Linux has it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNACKNOWLEDGED_S))
        self._handshake(handshake_s)
        sock.settimeout(None)
        certificate = self._tls.getpeercert() or {}
        self.serial = int(str(certificate.get("serialNumber", "0")), 16)
        self.public_key = _public_key(self._tls.getpeercert(binary_form=True))
        self.common_name = _common_name(certificate)

    def _handshake(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                self._sock.settimeout(max(0.01, deadline - time.monotonic()))
                data = self._sock.recv(16384)
                if not data:
                    raise ConnectionResetError("closed during the handshake") from None
                self._incoming.write(data)
                if time.monotonic() > deadline:
                    raise TimeoutError("the handshake took too long") from None
            except ssl.SSLError:
                self._flush(deadline)  # the alert that tells the peer why
                raise
            else:
                self._flush(deadline)
                return

    def _flush(self, deadline: float) -> None:
        data = self._outgoing.read()
        if data:
            self._sock.settimeout(max(0.01, deadline - time.monotonic()))
            self._sock.sendall(data)

    def send(self, data: bytes | bytearray | memoryview, *, stalled_s: float) -> None:
        """Send all of ``data``, in one piece among other writers.

        Raises:
            TimeoutError: nothing could be sent for ``stalled_s`` seconds; the stream is then broken: close it.
            OSError: the connection is lost.
        """
        view = memoryview(data).cast("B")
        with self._order:
            for start in range(0, len(view), CHUNK_BYTES):
                with self._cipher:
                    self._tls.write(view[start : start + CHUNK_BYTES])
                    encrypted = self._outgoing.read()
                self._send_raw(encrypted, stalled_s)

    def _send_raw(self, data: bytes, stalled_s: float) -> None:
        view = memoryview(data)
        with selectors.DefaultSelector() as ready:
            try:
                ready.register(self._sock, selectors.EVENT_WRITE)
            except ValueError:
                raise ConnectionResetError("closed meanwhile") from None
            while view:
                if not ready.select(stalled_s):
                    raise TimeoutError(f"nothing could be sent for {stalled_s:g} s")
                try:
                    view = view[self._sock.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``; blocks until it is full.

        Raises:
            ConnectionResetError: the peer closed the connection.
            OSError: the connection is lost.
        """
        while view:
            with self._cipher:
                try:
                    count = cast("int", self._tls.read(len(view), cast("bytearray", view)))
                except ssl.SSLWantReadError:
                    count = -1
            if count == 0:
                raise ConnectionResetError("closed by the peer")
            if count > 0:
                view = view[count:]
                continue
            data = self._sock.recv(CHUNK_BYTES)
            if not data:
                raise ConnectionResetError("closed by the peer")
            self.last_read = time.monotonic()
            with self._cipher:
                self._incoming.write(data)

    def close(self) -> None:
        """Close at once; a reader or writer in another thread fails."""
        with contextlib.suppress(OSError):  # closed already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    @property
    def addresses(self) -> tuple[str, str]:
        """Own and the peer's address, for log lines."""
        try:
            mine, theirs = self._sock.getsockname(), self._sock.getpeername()
        except OSError:
            return "closed", "closed"
        return f"{mine[0]}:{mine[1]}", f"{theirs[0]}:{theirs[1]}"


def _public_key(certificate: bytes | None) -> bytes:
    """The key of a certificate in DER; empty where the peer showed none."""
    if certificate is None:
        return b""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _common_name(certificate: Mapping[str, Any]) -> str:
    subject = certificate.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) != 1:
        raise FederationError("A peer's certificate has not exactly one common name", got=len(names), expected=1)
    return str(names[0])
