"""A small store of correlations, and what a test asks of it."""

import hashlib

import numpy as np

from medveil.encrypted.stores.store import Store
from medveil.encrypted.stores.writer import StoreWriter

PROGRAM, OTHER = "ab" * 32, "cd" * 32


def seed_of(number):
    return hashlib.sha256(f"seed {number}".encode()).digest()


def dealt_of(number, size=1000):
    return hashlib.shake_256(f"dealt {number}".encode()).digest(size)


def deal(folder, count=3, party="vendor", size=1000, program=PROGRAM):
    with StoreWriter(folder, party=party, program=program, batch=2, run="run 1") as writer:
        for number in range(count):
            with writer.correlation(seed_of(number)) as part:
                if party == "vendor":
                    part.write(dealt_of(number, size)[:600])
                    part.write(np.frombuffer(dealt_of(number, size)[600:], np.uint8))
    return folder


def opened(folder, party="vendor", program=PROGRAM):
    return Store(folder, party=party, program=program, journals=folder.parent / "journals")


def took(store, number=None):
    """A correlation that was taken and is done with."""
    with store.take(number) as taken:
        return taken


def the_journal(folder):
    (found,) = (folder.parent / "journals").iterdir()
    return found


def files(folder):
    return sorted(path.name for path in folder.glob("*.correlation"))
