"""One connection over TLS: bytes both ways, hostile frames, two processes of one name."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.connector_info import Mode
from sentences import logged

from medveil.errors import AuthenticityError
from medveil.federation.engine import connection as connections
from medveil.federation.engine.connection import Endpoints, TlsConnection
from medveil.federation.engine.driver import check_peer
from medveil.federation.engine.tls import TlsSocket, client_context, server_context
from tiny_federation import provisioned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def pair(folder):
    """Two ends of one connection."""
    kits = folder / "kits"
    left, right = socket.socketpair()
    server = client_side = None

    def accept():
        nonlocal server
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
