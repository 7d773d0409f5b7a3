"""How long the engine takes: to start a job, and to carry a frame there and back. Real processes, TLS, loopback.

    python benchmarks/engine_latency.py [SITES]

The peer in the same run is a bare TCP connection between two processes' threads: what the machine itself needs.
"""

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration" / "connect"))

from running import PARTS, Running

from medveil.errors import FederationError


def everybody_is_there(federation):
    try:
        with federation.login() as login:
            return set(login.connected()) == set(federation.sites)
    except FederationError:
        return False


def bare_round_trips(size, count):
    """Seconds of round trips over a bare loopback connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo():
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(1 << 20):
                sock.sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    frame, times = bytes(size), []
    with socket.create_connection(listener.getsockname()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            threading.Thread(target=sock.sendall, args=(frame,)).start()
            left = size
            while left:
                left -= len(sock.recv(left))
            times.append(time.perf_counter() - began)
    listener.close()
    return times


def memory(federation):
    """Resident megabytes of every process of the federation."""
    lines = {}
    for name, process in federation.processes.items():
        parent = psutil.Process(process.pid)
        lines[name] = parent.memory_info().rss / 1e6
        for child in parent.children():
            lines[f"{name}, its job"] = child.memory_info().rss / 1e6
    return lines


def main():
    sites = tuple(f"site-{n + 1}" for n in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
    with tempfile.TemporaryDirectory() as folder:
        federation = Running(Path(folder), sites)
        began = time.time()
        federation.start_all()
        try:
            federation.until(lambda: everybody_is_there(federation), 90)
            ready = time.time()
            with federation.login() as login:
                federation.hold()
                submitted = time.time()
                job = login.submit(b'{"measure": true}', name="latency", sites=sites, parts=PARTS)
            report = federation.until(lambda: federation.report(job), 120)
            used = memory(federation)
            federation.release()
            federation.until(lambda: federation.state(job).get("status") == "done", 60)
        finally:
            federation.release()
            federation.stop()
    print(f"{len(sites)} sites, mutual TLS 1.3 on loopback")
    print(f"  processes started -> all sites registered   {ready - began:8.2f} s")
    print(f"  submitted -> every site's first message     {report['at'] - submitted:8.2f} s")
    print(f"  {'round trip of a frame':<30}{'p50':>10}{'p99':>10}{'bare p50':>10}{'ratio':>8}")
    for size, times in json.loads(json.dumps(report["round_trips"])).items():
        bare = statistics.median(bare_round_trips(int(size), len(times)))
        middle, worst = statistics.median(times), sorted(times)[int(len(times) * 0.99)]
        row = f"{middle * 1e3:8.2f}ms{worst * 1e3:8.2f}ms{bare * 1e3:8.2f}ms{middle / bare:8.1f}"
        print(f"  {int(size):>9} bytes               {row}")
    print("  resident memory, MB")
    for name, megabytes in used.items():
        print(f"    {name:<26}{megabytes:8.1f}")


if __name__ == "__main__":
    main()
