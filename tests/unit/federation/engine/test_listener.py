"""Connections of people without a certificate: many, silent, or slow. The client side here is OpenSSL's."""

import contextlib
import socket
import ssl
import threading
import time

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.drivers.driver_params import DriverParams

from medveil.connect.provision import revoke
from medveil.federation.engine import listener as listeners
from medveil.federation.engine.listener import Crowd, Listener
from tiny_federation import provisioned


@pytest.fixture
def folder(tmp_path):
    return provisioned(tmp_path)


@pytest.fixture
def port(folder):
    startup = folder / "kits" / "server" / "startup"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]

    def serve(tls):
        with contextlib.suppress(OSError):
            tls.send(b"welcome", stalled_s=1)
            tls.read_into(memoryview(bytearray(1)))
        tls.close()

    files = {"CA_CERT": "rootCA.pem", "SERVER_CERT": "server.crt", "SERVER_KEY": "server.key"}
    listener = Listener(
        {DriverParams[key].value: str(startup / file) for key, file in files.items()}
        | {DriverParams.HOST.value: "127.0.0.1", DriverParams.PORT.value: number},
        serve,
    )
    thread = threading.Thread(target=listener.serve)
    thread.start()
    yield number
    listener.close()
    thread.join(10)
    assert not thread.is_alive()


def enter(port, kit):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(kit / "startup" / "rootCA.pem")
    context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    with (
        socket.create_connection(("127.0.0.1", port), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.recv(7)


class Stallers:
    """Threads that connect, say ``begin``, and wait until they are thrown out, again and again."""

    def __init__(self, port, count, begin):
        self._port, self._begin, self._stopped = port, begin, threading.Event()
        self.connected = 0
        self._threads = [threading.Thread(target=self._stall) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _stall(self):
        while not self._stopped.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as sock:
                self.connected += 1
                sock.sendall(self._begin)
                sock.settimeout(0.2)
                while not self._stopped.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not sock.recv(1):
                            break

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01\x02\x00"], ids=["silent", "begun"])
def test_many_that_stall_keep_nobody_out_and_no_revocation_back(folder, port, begin):
    stallers = Stallers(port, 130, begin)
    try:
        end = time.monotonic() + 20
        while stallers.connected < 130 and time.monotonic() < end:
            time.sleep(0.05)
        assert stallers.connected >= 130
        for _ in range(3):
            began = time.monotonic()
            assert enter(port, folder / "kits" / "site-1") == b"welcome"
            assert time.monotonic() - began < 5
        revoke(folder, "site-2")
        time.sleep(2)
        with pytest.raises(ssl.SSLError, match="REVOKED"):
            enter(port, folder / "kits" / "site-2")
    finally:
        stallers.stop()


def test_who_says_nothing_is_closed_after_a_few_seconds(port, monkeypatch):
    monkeypatch.setattr(listeners, "HELLO_S", 0.5)
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.settimeout(5)
        began = time.monotonic()
        assert sock.recv(1) == b""
        assert 0.4 < time.monotonic() - began < 4


class Sock:
    """Stands for a connection."""


def test_of_too_many_the_oldest_of_the_greediest_address_goes():
    crowd = Crowd(4)
    first, theirs, rest = Sock(), Sock(), [Sock() for _ in range(3)]
    assert crowd.greediest() == "nobody"
    assert crowd.add(theirs, "10.0.0.9") is None
    assert crowd.add(first, "10.0.0.1") is None
    assert [crowd.add(sock, "10.0.0.1") for sock in rest] == [None, None, first]
    assert crowd.greediest() == "10.0.0.1"
    assert (crowd.remove(first), crowd.remove(theirs)) == (None, "10.0.0.9")
    assert crowd.older_than(60) == []
    assert crowd.older_than(-1) == rest


def test_an_attacker_with_one_address_never_pushes_out_another():
    crowd = Crowd(8)
    site = Sock()
    crowd.add(Sock(), "10.0.0.1")
    crowd.add(site, "10.0.0.9")
    assert site not in [crowd.add(Sock(), "10.0.0.1") for _ in range(500)]
    assert crowd.remove(site) == "10.0.0.9"
