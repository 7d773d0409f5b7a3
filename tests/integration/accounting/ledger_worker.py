"""Run as a program: processes that share one ledger, and are killed without warning.

``kill LEDGER LOG COUNT``: starts and kills COUNT sites, one after the other. Each writes to LOG, durably, what
touched the data. ``race LEDGER COUNT``: reserves COUNT releases of its own and as many that every racer reserves.
``charge LEDGER RUN EPSILON``: one release; exit code 7 when it is refused.
"""

import os
import random
import signal
import sys
import time

from medveil.accounting.events import Gaussian, Stated
from medveil.accounting.ledger import Ledger
from medveil.errors import BudgetError

TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}
EVENT = Gaussian(noise_multiplier=3.0)


def site(ledger, log):
    """Release for ever."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    number = sum(1 for _ in ledger.export()) // 2
    while True:
        number += 1
        release = f"step-{number % 5}"
        made = ledger.reserve(run="r", release=release, attempt=ledger.next_attempt("r", release), event=EVENT, **TERMS)
        os.write(handle, f"{made.release} {made.attempt}\n".encode())
        os.fsync(handle)
        ledger.commit(made)


def kill(path, log, count):
    rng = random.Random(1)
    inherited = Ledger(path)
    inherited.note("opened before the first fork")
    for _ in range(int(count)):
        child = os.fork()
        if child == 0:
            site(inherited if rng.random() < 0.5 else Ledger(path), log)
        time.sleep(rng.uniform(0.01, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def race(path, count):
    with Ledger(path) as ledger:
        for number in range(int(count)):
            mine = ledger.reserve(run=f"run-{os.getpid()}", release=f"{number}", event=EVENT, **TERMS)
            shared = ledger.reserve(run="shared", release=f"{number}", attempt=1, event=EVENT, **TERMS)
            sys.stdout.write(f"{int(shared.fresh)}\n")
            ledger.commit(mine)
            ledger.commit(shared)


def charge(path, run, epsilon):
    try:
        with Ledger(path) as ledger:
            ledger.reserve(run=run, release="x", event=Stated(epsilon=float(epsilon), delta=0), **TERMS)
    except BudgetError:
        sys.exit(7)


if __name__ == "__main__":
    {"kill": kill, "race": race, "charge": charge}[sys.argv[1]](*sys.argv[2:])
