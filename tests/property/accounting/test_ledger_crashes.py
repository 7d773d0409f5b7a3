"""A thousand crashes: whatever touched the data is charged exactly once, whatever moment the power went.

The ledger runs over a disk that dies at a chosen moment: between two statements, inside a commit (the log is cut at
any byte), or inside a write of the head file. What is then on that disk is all that the next process gets. A list of
what really touched the data, kept outside, is the oracle; what was charged is read with plain SQL.
"""

import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from medveil.accounting import ledger_store
from medveil.accounting.events import Gaussian
from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_state import Reservation

TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}
EVENT = Gaussian(noise_multiplier=2.0)
RELEASES = ("step-1", "step-2", "step-3")
LIFE = 72
SCHEDULES = 1000
BLOCKS = 10


class Crash(BaseException):
    """The process is gone: no handler of the code under test may go on."""


class Machine:
    """A disk and a process that dies after ``ticks`` steps; ``folder`` is what the disk then holds."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.ticks = None
        self.lives = 0

    @property
    def path(self):
        return self.folder / "ledger.db"

    def start(self, ticks):
        self.ticks = ticks

    def tick(self, act=None, torn=None):
        """One step; the last one may be cut short."""
        if self.ticks is None:
            return act() if act else None
        self.ticks -= 1
        if self.ticks > 0:
            return act() if act else None
        if self.ticks == 0:
            self.die(act, torn)
        raise Crash

    def die(self, act, torn):
        ending = self.rng.choice(("before", "after", "torn"))
        if act and ending == "torn" and torn:
            torn()
        elif act and ending != "before":
            act()
        self.snapshot()

    def snapshot(self):
        self.lives += 1
        after = self.folder.with_name(f"life-{self.lives}")
        after.mkdir()
        for name in ("ledger.db", "ledger.db-wal", "ledger.db.head", "ledger.db.head.tmp"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, after / name)
        self.after = after

    def restart(self):
        self.folder, self.ticks = self.after, None

    def cut_log(self, commit):
        """A commit of which only some bytes reach the disk."""
        log = self.folder / "ledger.db-wal"
        before = log.stat().st_size if log.exists() else 0
        commit()
        if log.exists() and log.stat().st_size > before:
            os.truncate(log, self.rng.randint(before, log.stat().st_size))


@pytest.fixture
def disk(tmp_path):
    """A folder in memory where there is one: thousands of small files are slow on a busy disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def machine(disk, monkeypatch):
    machine = Machine(disk, random.Random(0))

    class Connection(sqlite3.Connection):
        def execute(self, statement, *arguments):
            def act():
                return super(Connection, self).execute(statement, *arguments)

            if "synchronous" in statement:  # nothing here survives the process anyway: be quick
                return super().execute("PRAGMA synchronous=OFF")
            return machine.tick(act, (lambda: machine.cut_log(act)) if statement == "COMMIT" else None)

    connect = sqlite3.connect
    monkeypatch.setattr(ledger_store.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    monkeypatch.setattr(os, "fsync", lambda _handle: None)
    pwrite = os.pwrite

    def dying_pwrite(handle, data, at):
        cut = machine.rng.randrange(len(data))
        return machine.tick(lambda: pwrite(handle, data, at), lambda: pwrite(handle, data[:cut], at))

    monkeypatch.setattr(os, "pwrite", dying_pwrite)
    yield machine
    monkeypatch.undo()


class World:
    """What happened outside the ledger; it survives every crash."""

    def __init__(self):
        self.touched = []
        self.done = set()
        self.crashes = 0


def live(machine, world, kind):
    """One life of a site's process: it goes on with what is not done yet."""
    ledger = kind(machine.path)
    try:
        for release in RELEASES:
            if release in world.done:
                continue
            reservation = ledger.reserve(
                run="r", release=release, attempt=ledger.next_attempt("r", release), event=EVENT, **TERMS
            )
            assert reservation.fresh
            machine.tick()
            world.touched.append((release, reservation.attempt))
            machine.tick()
            ledger.commit(reservation)
            machine.tick()
            world.done.add(release)
    finally:
        ledger.close()


def charged(path):
    """Keys of all charges, by SQL alone."""
    if not path.exists():
        return Counter()
    with closing(sqlite3.Connection(path)) as connection:
        bodies = connection.execute("SELECT body FROM entries WHERE kind = 'reserve'").fetchall()
    return Counter((body["release"], body["attempt"]) for body in (json.loads(text) for (text,) in bodies))


def judge(machine, world):
    """The promise; the broken ledgers below do not keep it."""
    found = charged(machine.path)
    assert all(count == 1 for count in Counter(world.touched).values()), "data touched twice under one charge"
    assert all(found[key] >= 1 for key in world.touched), "charged zero times"
    assert all(count == 1 for count in found.values()), "charged twice"
    assert len(found) - len(world.touched) <= world.crashes, "charged without a crash"


def play(machine, seed, kind=Ledger):
    """A site that crashes up to three times and then ends its work; judged after each life."""
    machine.rng = random.Random(seed)
    world = World()
    for _ in range(machine.rng.randint(1, 3)):
        machine.start(machine.rng.randint(1, LIFE))
        try:
            live(machine, world, kind)
        except Crash:
            world.crashes += 1
            machine.restart()
        machine.ticks = None
        judge(machine, world)
    live(machine, world, kind)
    judge(machine, world)
    return world


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_crash_charges_once_and_never_zero(machine, disk, block):
    crashes = 0
    for seed in range(block * SCHEDULES // BLOCKS, (block + 1) * SCHEDULES // BLOCKS):
        place(machine, disk / str(seed))
        crashes += play(machine, seed).crashes
        with Ledger(machine.path) as ledger:
            assert ledger.verify().ok
            assert ledger.state().datasets["chest"].charged("*").total() == len(charged(machine.path))
        shutil.rmtree(disk / str(seed))
    assert crashes >= SCHEDULES / BLOCKS


def test_crashes_come_at_every_step_of_a_life(machine, disk):
    place(machine, disk / "whole")
    machine.start(10**6)
    live(machine, World(), Ledger)
    steps = 10**6 - machine.ticks
    assert LIFE <= steps <= LIFE + 10


def place(machine, home):
    machine.folder, machine.lives = home / "life-0", 0
    machine.folder.mkdir(parents=True)


class ChargesAtCommit(Ledger):
    """Broken on purpose: nothing is on disk when the data are touched."""

    def reserve(self, **charge):
        self.waiting = charge
        return Reservation(0, charge["run"], charge["release"], charge["attempt"], fresh=True)

    def commit(self, reservation):
        super().commit(super().reserve(**self.waiting))


class ChargesTwice(Ledger):
    """Broken on purpose: the commit charges once more."""

    def commit(self, reservation):
        super().commit(reservation)
        super().reserve(run="r", release=reservation.release, event=EVENT, **TERMS)


class ForgetsAttempts(Ledger):
    """Broken on purpose: after a crash the same attempt is used again, under the old charge."""

    def next_attempt(self, run, release):
        return 1

    def reserve(self, **charge):
        made = super().reserve(**charge)
        return Reservation(made.number, made.run, made.release, made.attempt, fresh=True)


@pytest.mark.parametrize("broken", [ChargesAtCommit, ChargesTwice, ForgetsAttempts])
def test_the_crash_test_finds_a_broken_ledger(machine, disk, broken):
    def all_of_them():
        for seed in range(60):
            place(machine, disk / str(seed))
            play(machine, seed, broken)

    with pytest.raises(AssertionError, match=r"charged|touched"):
        all_of_them()
