"""Two processes of one script, party 0 and party 1: started, awaited, counted. Only Python's own library is used."""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from nets import NETS
from relay import NETWORKS

TIMEOUT_S = 300
# Of Linux's struct tcp_info: tcpi_bytes_received.
_RECEIVED_AT = 128


def bytes_received():
    """What all TCP connections of this process have received so far, whoever opened them."""
    total = 0
    for place in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        try:
            with socket.socket(fileno=os.dup(place)) as sock:
                if sock.type == socket.SOCK_STREAM and sock.family in {socket.AF_INET, socket.AF_INET6}:
                    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("=Q", told, _RECEIVED_AT)[0]
        except OSError:  # no socket, or one that listens
            continue
    return total


def arguments(description):
    """What the user asks for; ``job`` is set where this process is one of the parties."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(script, jobs):
    """Run the script as both parties.

    Args:
        script: its path.
        jobs: two tables, given to the parties as ``--job``.

    Returns:
        What each party said: the table in JSON that it printed last. None where one failed or took too long.
    """
    with ExitStack() as stack:
        said, log = ([stack.enter_context(tempfile.TemporaryFile("w+")) for _ in jobs] for _ in range(2))
        parties = [
            subprocess.Popen([sys.executable, script, "--job", json.dumps(job)], stdout=out, stderr=err)
            for job, out, err in zip(jobs, said, log, strict=True)
        ]
        end = time.monotonic() + TIMEOUT_S
        try:
            while any(party.poll() is None for party in parties) and not any(party.poll() for party in parties):
                if time.monotonic() > end:
                    print(f"    no result within {TIMEOUT_S} s", flush=True)
                    return None
                time.sleep(0.1)
        finally:
            codes = [party.poll() for party in parties]
            for party in parties:
                party.kill()
                party.wait()
        for place, code in enumerate(codes):
            if code:
                print(f"    party {place} ended with {code}: {' | '.join(_lines(log[place])[-3:])}", flush=True)
        if any(codes):
            return None
        return [json.loads([line for line in _lines(each) if line.startswith("{")][-1]) for each in said]


def _lines(file):
    file.seek(0)
    return file.read().splitlines()
