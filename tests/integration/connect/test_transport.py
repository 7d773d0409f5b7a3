"""The transport against peers that should not get in. The client side here is OpenSSL's, not ours.

What must be refused, logged where it is refused, and answered without a traceback; where that is tested:

===========================================  =========================================================================
no certificate                               test_without_a_certificate_nobody_gets_in
wrong authority                              test_a_certificate_of_another_authority_of_the_same_name_is_refused
expired                                      test_an_expired_certificate_is_refused
revoked                                      test_a_revoked_site_is_cut_off_at_once_and_stays_out
TLS below 1.3                                test_older_tls_is_refused
duplicate identity                           test_a_second_process_of_the_same_identity_is_refused_and_logged
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
import logging
import socket
import ssl
import threading
import time
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

pytest.importorskip("nvflare")

from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from medveil.connect.provision import provision, revoke
from medveil.errors import AuthenticityError, ConfigError
from medveil.federation.engine import connection as connections
from medveil.federation.engine.connection import Endpoints, TlsConnection
from medveil.federation.engine.driver import check_peer
from medveil.federation.engine.listener import Listener
from medveil.federation.engine.tls import TlsSocket, client_context

FEDERATION = """
name = "demo"
server = { host = "localhost", port = 8102, org = "hub" }
sites = [{ name = "site-1", org = "a" }, { name = "site-2", org = "b" }]
users = [{ name = "lead@a.org", org = "a", role = "lead" }]
validity = { authority_days = 100, certificate_days = 50 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    (folder / "federation.toml").write_text(FEDERATION)
    provision(folder)
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "federation.toml").write_text(FEDERATION)
    provision(folder)
    return folder


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A listener that greets whoever gets in and remembers their names."""

    def __init__(self, folder):
        startup = folder / "kits" / "server" / "startup"
        self.port = free_port()
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


def logged(caplog, words, count=1):
    """Wait for a line of the server's log that says so; it says it in a sentence."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [record for record in caplog.records if words in record.getMessage()]
        if len(found) >= count:
            break
        time.sleep(0.02)
    assert len(found) == count, caplog.text
    for record in found:
        assert (record.name, record.exc_info) == ("medveil.network", None)
        assert record.levelno >= logging.WARNING
        assert "\n" not in record.getMessage()


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
    (tmp_path / "federation.toml").write_text(FEDERATION)
    kits = provision(tmp_path)
    server = Server(tmp_path)
    try:
        context = client_context(*(kits["site-2"] / "startup" / f for f in ("rootCA.pem", "client.crt", "client.key")))
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
            enter(server, kits["site-2"])
        logged(caplog, "the certificate of site-2 was revoked: its connection is closed")
        logged(caplog, "its certificate was not accepted: certificate revoked")
        assert enter(server, kits["site-1"])[0] == b"welcome"
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
    (tmp_path / "federation.toml").write_text(FEDERATION)
    kits = provision(tmp_path)
    (kits["server"] / "startup" / "crl.pem").unlink()
    with pytest.raises(ConfigError, match="revoked certificates cannot be read"):
        Server(tmp_path)


@pytest.fixture
def pair(folder):
    """Two ends of one connection."""
    kits = folder / "kits"
    left, right = socket.socketpair()
    server = client_side = None

    def accept():
        nonlocal server
        from medveil.federation.engine.tls import server_context

        startup = kits / "server" / "startup"
        context = server_context(startup / "rootCA.pem", startup / "server.crt", startup / "server.key", None)
        server = TlsSocket(_Tcp(left), context, server_side=True, handshake_s=5)

    thread = threading.Thread(target=accept)
    thread.start()
    startup = kits / "site-1" / "startup"
    context = client_context(startup / "rootCA.pem", startup / "client.crt", startup / "client.key")
    client_side = TlsSocket(_Tcp(right), context, server_side=False, handshake_s=5)
    thread.join()
    yield server, client_side
    server.close()
    client_side.close()


class _Tcp:
    """A socket pair has no TCP options."""

    def __init__(self, sock):
        self._sock = sock

    def setsockopt(self, *_):
        pass

    def getsockname(self):
        return ("local", 0)

    getpeername = getsockname

    def __getattr__(self, name):
        return getattr(self._sock, name)


def test_both_directions_at_once_arrive_whole(pair):
    """Many megabytes each way at the same time, in pieces of all sizes, with several writers."""
    sent = bytes(range(256)) * 40_000

    def write(end):
        for start in range(0, len(sent), 700_001):
            end.send(sent[start : start + 700_001], stalled_s=5)

    got = {}

    def read(end, name):
        got[name] = bytearray(len(sent))
        end.read_into(memoryview(got[name]))

    threads = [threading.Thread(target=write, args=(end,)) for end in pair]
    threads += [threading.Thread(target=read, args=(end, n)) for n, end in enumerate(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got[0] == got[1] == sent


def test_a_peer_that_does_not_read_is_given_up(pair):
    server, _ = pair
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        server.send(bytes(64 << 20), stalled_s=0.3)
    assert time.monotonic() - began < 5


def endpoint(tls):
    return TlsConnection(tls, SimpleNamespace(mode=Mode.PASSIVE))


def frame(payload, kind, length=None):
    from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

    buffer = bytearray(PREFIX_LEN)
    Prefix(length or PREFIX_LEN + len(payload), 0, kind, 0, 0, 0, 1, 1).to_buffer(buffer, 0)
    return bytes(buffer) + payload


@pytest.mark.parametrize(
    "hostile",
    [
        frame(b"", 4, length=1 << 31),
        frame(b"", 4, length=3),
        frame(b"\xc1\xc1\xc1", 4),
        frame(b"\x80", 4),
        frame(b"anything", 1),
        bytes(64),
    ],
    ids=["huge", "short", "no msgpack", "no name", "no greeting", "zeros"],
)
def test_hostile_frames_end_the_connection_quietly(pair, hostile, monkeypatch):
    server, client = pair
    seen = []
    served = endpoint(server)
    monkeypatch.setattr(served, "process_frame", seen.append)
    client.send(hostile, stalled_s=1)
    served.read_until_closed()
    assert seen == []
    with pytest.raises(OSError, match=r"closed|reset|descriptor"):
        client.read_into(memoryview(bytearray(1)))


class Named:
    def __init__(self, silent_s=0.0):
        self.silent_s = silent_s
        self.closed = False

    def close(self):
        self.closed = True


def test_a_second_process_of_the_same_identity_is_refused_while_the_first_lives():
    endpoints, first, second = Endpoints(), Named(), Named()
    assert endpoints.claim(("site-1", "site-1"), first)
    assert not endpoints.claim(("site-1", "site-1"), second)
    assert endpoints.claim(("site-1.job", "site-1"), second)  # its job's process is another endpoint
    assert endpoints.claim(("site-1", "site-2"), Named())  # who claims a name that is not theirs pushes nobody out
    first.silent_s = connections.ALIVE_S + 1
    assert endpoints.claim(("site-1", "site-1"), second)
    assert first.closed
    endpoints.release(second)
    assert endpoints.claim(("site-1", "site-1"), first)


def test_a_second_process_of_the_same_identity_is_refused_and_logged(pair, monkeypatch, caplog):
    """Over TLS: a site greets with its own name and certificate while another process of it is connected."""
    import msgpack
    from nvflare.fuel.f3.sfm.constants import HandshakeKeys, Types

    endpoints, first = Endpoints(), Named()
    assert endpoints.claim(("site-1", "site-1"), first)
    monkeypatch.setattr(connections, "_ENDPOINTS", endpoints)
    server, client = pair
    served, seen = endpoint(server), []
    monkeypatch.setattr(served, "process_frame", seen.append)
    client.send(frame(msgpack.packb({HandshakeKeys.ENDPOINT_NAME: "site-1"}), Types.HELLO), stalled_s=1)
    served.read_until_closed()
    assert (seen, first.closed) == ([], False)
    with pytest.raises(OSError, match=r"closed|reset|descriptor"):  # not a byte of an answer
        client.read_into(memoryview(bytearray(1)))
    logged(caplog, "a second process calls itself site-1 and was refused")
    logged(caplog, "site-1 is connected already")


def test_a_stalled_connection_reports_the_engines_own_error(pair, monkeypatch):
    monkeypatch.setattr(connections, "STALLED_S", 0.2)
    server, _ = pair
    with pytest.raises(CommError):
        endpoint(server).send_frame(bytes(64 << 20))


def test_a_site_cannot_answer_in_place_of_the_server(folder):
    own = folder / "kits" / "site-1" / "startup" / "client.crt"
    check_peer("localhost", "localhost", own)
    check_peer("site-1", "127.0.0.1", own)  # its own parent process
    for name, host in (("site-2", "localhost"), ("site-1", "localhost"), ("site-2", "127.0.0.1")):
        with pytest.raises(AuthenticityError, match="Another participant answers"):
            check_peer(name, host, own)
