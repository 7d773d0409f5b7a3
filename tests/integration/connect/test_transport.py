"""The transport against peers that should not get in. The client side here is OpenSSL's, not ours.

What must be refused, logged where it is refused, and answered without a traceback; where that is tested:

===========================================  =========================================================================
no certificate                               test_without_a_certificate_nobody_gets_in
wrong authority                              test_a_certificate_of_another_authority_of_the_same_name_is_refused
expired                                      test_an_expired_certificate_is_refused
revoked                                      test_a_revoked_site_is_cut_off_at_once_and_stays_out,
                                             test_a_site_does_not_stay_with_a_server_whose_certificate_was_revoked
TLS below 1.3                                test_older_tls_is_refused
duplicate identity                           test_connection.py
wrong role                                   test_hardening.py; tests/unit/federation/engine/test_commands.py
tampered job, foreign job, revoked submitter tests/unit/federation/engine/test_parts.py, test_signed.py
unapproved plan                              tests/integration/network/test_network_refusals.py
plan below the privacy floor                 tests/integration/network/test_network_refusals.py
a server that asks for an update in clear    tests/integration/network/test_network_lies.py, test_network_hostile.py
fuzzed messages: typed, bounded memory       tests/unit/federation/engine/test_guard.py, test_streams.py, test_fuzz.py;
                                             tests/unit/federation/test_link.py, test_postman.py, test_messages.py
===========================================  =========================================================================
"""

import datetime as dt
import json
import shutil
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

pytest.importorskip("nvflare")

from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from running import free_port
from sentences import logged

from medveil.connect.provision import revoke
from medveil.connect.renewal import renew
from medveil.errors import ConfigError
from medveil.federation.engine.driver import TlsDriver
from medveil.federation.engine.listener import Listener
from medveil.federation.engine.tls import TlsSocket, client_context
from tiny_federation import provisioned

VALIDITY = "[validity]\nauthority_days = 100\ncertificate_days = 50\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("federation"), VALIDITY)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("strangers"), VALIDITY)


class Server:
    """A listener that greets whoever gets in and remembers their names."""

    def __init__(self, folder, port=None):
        startup = folder / "kits" / "server" / "startup"
        self.port = port or free_port()
        self.names = []
        self.listener = Listener(
            {
                DriverParams.HOST.value: "127.0.0.1",
                DriverParams.PORT.value: str(self.port),
                DriverParams.CA_CERT.value: str(startup / "rootCA.pem"),
                DriverParams.SERVER_CERT.value: str(startup / "server.crt"),
                DriverParams.SERVER_KEY.value: str(startup / "server.key"),
            },
            self.serve,
        )
        self.thread = threading.Thread(target=self.listener.serve)
        self.thread.start()

    def serve(self, tls):
        self.names.append(tls.common_name)
        try:
            tls.send(b"welcome", stalled_s=1)
            byte = bytearray(1)
            while True:
                tls.read_into(memoryview(byte))
        except OSError:
            tls.close()

    def close(self):
        self.listener.close()
        self.thread.join()


@pytest.fixture
def server(folder):
    server = Server(folder)
    yield server
    server.close()


def enter(server, kit=None, authority=None, version=None, ciphers=None):
    """Connect with OpenSSL's own client; what the server says, or the error by which it refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations((authority or kit) / "startup" / "rootCA.pem")
    if kit is not None:
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    if version is not None:
        context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.recv(7), tls.version()


def test_a_site_of_the_federation_gets_in_by_tls_1_3(folder, server):
    assert enter(server, folder / "kits" / "site-1") == (b"welcome", "TLSv1.3")
    assert server.names == ["site-1"]


def test_without_a_certificate_nobody_gets_in(folder, server, caplog):
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        enter(server, authority=folder / "kits" / "site-1")
    assert server.names == []
    logged(caplog, "refused a connection from 127.0.0.1: no certificate was shown")


def test_a_certificate_of_another_authority_of_the_same_name_is_refused(folder, strangers, server, caplog):
    with pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|DECRYPT_ERROR|BAD_CERTIFICATE"):
        enter(server, strangers / "kits" / "site-1", authority=folder / "kits" / "site-1")
    assert server.names == []
    logged(caplog, "refused a connection from 127.0.0.1: its certificate was not accepted")


def test_older_tls_is_refused(folder, server, caplog):
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        enter(server, folder / "kits" / "site-1", version=ssl.TLSVersion.TLSv1_2)
    assert server.names == []
    logged(caplog, "refused a connection from 127.0.0.1: no TLS 1.3 connection")


def expired(folder, kit):
    """A certificate of this authority for site-1 that held until yesterday, made by hand."""
    state = json.loads((folder / "ca" / "cert.json").read_text())
    root = x509.load_pem_x509_certificate(state["root_cert"].encode())
    signing = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    key = rsa.generate_private_key(65537, 2048)
    today = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site-1")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=9))
        .not_valid_after(today - dt.timedelta(days=1))
        .sign(signing, hashes.SHA256())
    )
    (kit / "startup").mkdir(parents=True)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (kit / "startup" / "rootCA.pem").write_text(state["root_cert"])
    (kit / "startup" / "client.crt").write_bytes(made.public_bytes(pem))
    (kit / "startup" / "client.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return kit


def test_an_expired_certificate_is_refused(folder, server, tmp_path, caplog):
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
        enter(server, expired(folder, tmp_path / "old"))
    assert server.names == []
    logged(caplog, "its certificate was not accepted: certificate has expired")


def test_a_revoked_site_is_cut_off_at_once_and_stays_out(tmp_path, caplog):
    kits = provisioned(tmp_path, VALIDITY) / "kits"
    server = Server(tmp_path)
    try:
        context = client_context(*(kits / "site-2" / "startup" / f for f in ("rootCA.pem", "client.crt", "client.key")))
        sock = socket.create_connection(("127.0.0.1", server.port), 5)
        inside = TlsSocket(sock, context, server_side=False, handshake_s=5)
        inside.read_into(memoryview(bytearray(7)))
        revoke(tmp_path, "site-2")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"closed|reset"):
            inside.read_into(memoryview(bytearray(1)))
        assert time.monotonic() - began < 2
        inside.close()
        with pytest.raises(ssl.SSLError, match="REVOKED"):
            enter(server, kits / "site-2")
        logged(caplog, "the certificate of site-2 was revoked: its connection is closed")
        logged(caplog, "its certificate was not accepted: certificate revoked")
        assert enter(server, kits / "site-1")[0] == b"welcome"
    finally:
        server.close()


def test_peers_that_stall_in_the_handshake_delay_nobody(folder, server):
    stalled = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        began = time.monotonic()
        assert enter(server, folder / "kits" / "site-1")[0] == b"welcome"
        assert time.monotonic() - began < 2
    finally:
        for sock in stalled:
            sock.close()


def test_bytes_that_are_no_handshake_do_no_harm(folder, server):
    for noise in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b""):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(noise)
    assert enter(server, folder / "kits" / "site-1")[0] == b"welcome"
    assert server.names == ["site-1"]


def test_a_server_without_its_list_of_revoked_certificates_does_not_start(tmp_path):
    kits = provisioned(tmp_path, VALIDITY) / "kits"
    (kits / "server" / "startup" / "crl.pem").unlink()
    with pytest.raises(ConfigError, match="revoked certificates cannot be read"):
        Server(tmp_path)


@contextmanager
def connecting(port, startup):
    """A driver that connects as site-1 does, in a thread."""
    params = {
        DriverParams.HOST.value: "localhost",
        DriverParams.PORT.value: str(port),
        DriverParams.CA_CERT.value: str(startup / "rootCA.pem"),
        DriverParams.CLIENT_CERT.value: str(startup / "client.crt"),
        DriverParams.CLIENT_KEY.value: str(startup / "client.key"),
    }
    driver = TlsDriver()
    connector = SimpleNamespace(params=params, stopped=threading.Event(), mode=Mode.ACTIVE)
    thread = threading.Thread(target=driver.connect, args=(connector,))
    thread.start()
    try:
        yield driver
    finally:
        driver.shutdown()
        thread.join(10)
    assert not thread.is_alive()


def test_a_site_does_not_stay_with_a_server_whose_certificate_was_revoked(folder, tmp_path, caplog):
    """The key may be somebody else's; the site knows by its own list, and says so."""
    federation = shutil.copytree(folder, tmp_path / "federation")
    server = Server(shutil.copytree(folder, tmp_path / "stolen"))
    renew(federation, ["server"], revoke_old=True)
    try:
        assert enter(server, federation / "kits" / "site-1") == (b"welcome", "TLSv1.3")
        with connecting(server.port, federation / "kits" / "site-1" / "startup"):
            logged(caplog, "The certificate of who answered was revoked")
    finally:
        server.close()


def test_a_server_that_comes_back_with_another_key_is_noticed(folder, tmp_path, monkeypatch):
    """Once the old key is known: not at the first connection, and not when the same server comes back."""
    federation = shutil.copytree(folder, tmp_path / "federation")
    startup, told = federation / "kits" / "site-1" / "startup", []
    monkeypatch.setattr(TlsDriver, "_serve", lambda _driver, tls: tls.close())
    monkeypatch.setattr(TlsDriver, "when_new_key", (lambda: told.append(True),))
    port = free_port()
    for renewed, notices in ((False, 0), (False, 0), (True, 1)):
        if renewed:
            renew(federation, ["server"])
        server = Server(federation, port)
        try:
            with connecting(port, startup):
                end = time.monotonic() + 10
                while not (server.names and len(told) == notices) and time.monotonic() < end:
                    time.sleep(0.02)
        finally:
            server.close()
        assert (server.names[:1], len(told)) == (["site-1"], notices)
