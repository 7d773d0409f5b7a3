"""A network between two processes on one machine: loopback, or a relay with a delay and a rate.

The relay is `relay.c`, compiled at the start with the system's compiler; without one it is this file (threads in
Python, which takes more of the processors that the parties need). Both are called
``relay BYTES_A_SECOND DELAY_NANOSECONDS PARTY:LISTEN:TARGET ...``. Only Python's own library is used: the peers run
this in environments of their own.
"""

import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

NETWORKS = {"loopback": (0.0, 0.0), "lan": (1e9 / 8, 1e-3), "wan": (1e8 / 8, 40e-3)}
"""Bytes a second each way (0: no limit), and seconds one way."""
_HERE = Path(__file__).resolve()
_BUILT = []


def built():
    """The command that starts a relay."""
    if not _BUILT:
        folder = tempfile.TemporaryDirectory(prefix="relay")
        compiler, target = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"), f"{folder.name}/relay"
        command = [target]
        source = str(_HERE.with_name("relay.c"))
        if compiler is None or subprocess.run([compiler, "-O2", "-o", target, source], check=False).returncode:
            print("note: no C compiler that works; the network is simulated by a relay in Python, which is slower")
            command = [sys.executable, str(_HERE)]
        _BUILT.append((command, folder))
    return _BUILT[0][0]


def free_ports(count):
    """Ports of 127.0.0.1 that nobody uses now, below those that the system gives to whoever connects."""
    found = []
    while len(found) < count:
        port = random.randrange(15_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found


@contextmanager
def relayed(network, targets):
    """Ports through which two parties reach each other.

    Args:
        network: one of ``NETWORKS``.
        targets: (party that connects, port of the other) for each.

    Yields:
        The ports to connect to, and a list that holds the bytes of both parties afterwards (empty without a relay).
    """
    rate, delay = NETWORKS[network]
    carried = []
    if not delay:
        yield [target for _, target in targets], carried
        return
    ports = free_ports(len(targets))
    routes = [f"{party}:{port}:{target}" for port, (party, target) in zip(ports, targets, strict=True)]
    words = [*built(), str(rate), str(round(1e9 * delay)), *routes]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        try:
            yield ports, carried
        finally:
            said, _ = process.communicate("", timeout=30)
            carried += map(int, said.split())


@contextmanager
def connected(network):
    """Two sockets with the network between them, for party 0 and party 1; the caller closes them."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        relayed(network, [(0, server.getsockname()[1])]) as (ports, _),
    ):
        ours = socket.create_connection(("127.0.0.1", ports[0]))
        theirs, _ = server.accept()
        _hurry(ours, theirs)
        yield ours, theirs
        ours.close()
        theirs.close()


def measure(network, pings=31):
    """What the network really delivers: bytes a second, and seconds one way (median of ``pings`` round trips / 2).

    Loopback gives (0.0, 0.0): it is no part of the bound.
    """
    rate, _ = NETWORKS[network]
    if not rate:
        return 0.0, 0.0
    size = int(rate * 0.2)
    with connected(network) as (ours, theirs):
        child = os.fork()
        if child == 0:
            for _ in range(pings):
                theirs.sendall(theirs.recv(1))
            _read(theirs, size)
            theirs.sendall(b"k")
            os._exit(0)
        trips = []
        for _ in range(pings):
            begun = time.perf_counter()
            ours.sendall(b"p")
            ours.recv(1)
            trips.append(time.perf_counter() - begun)
        trip = sorted(trips)[pings // 2]
        begun = time.perf_counter()
        ours.sendall(bytes(size))
        ours.recv(1)
        taken = time.perf_counter() - begun - trip
        os.waitpid(child, 0)
    return size / taken, trip / 2


def _read(sock, size):
    while size:
        size -= len(sock.recv(min(size, 1 << 18)))


def _hurry(*socks):
    for each in socks:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Relay:
    """The relay in Python."""

    def __init__(self, rate, delay):
        self.rate, self.delay = rate, delay
        self.free, self.carried, self.lock = [0.0, 0.0], [0, 0], threading.Lock()

    def pump(self, source, target, line):
        """Pass on what one end sends, until it ends."""
        waiting = queue.SimpleQueue()
        threading.Thread(target=self.deliver, args=(target, waiting), daemon=True).start()
        while data := source.recv(1 << 14):
            with self.lock:
                taken = len(data) / self.rate if self.rate else 0.0
                self.free[line] = max(self.free[line], time.monotonic()) + taken
                self.carried[line] += len(data)
                due = self.free[line] + self.delay
            waiting.put((due, data))
        waiting.put((0.0, None))

    @staticmethod
    def deliver(target, waiting):
        """Hand on what waits when it is due."""
        try:
            while (item := waiting.get())[1] is not None:
                time.sleep(max(0.0, item[0] - time.monotonic()))
                target.sendall(item[1])
            target.shutdown(socket.SHUT_WR)
        except OSError:  # nobody listens any more
            return

    def welcome(self, server, party, target):
        """Accept connections."""
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection(("127.0.0.1", target))
            except OSError:  # the other party does not listen yet
                near.close()
                continue
            _hurry(near, far)
            for pair in ((near, far, party), (far, near, 1 - party)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()


def _serve(rate, delay, routes):
    """Relay until standard input ends."""
    relay = _Relay(rate, delay)
    for route in routes:
        party, port, target = map(int, route.split(":"))
        server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=relay.welcome, args=(server, party, target), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    print(*relay.carried, flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(float(sys.argv[1]), float(sys.argv[2]) / 1e9, sys.argv[3:])
