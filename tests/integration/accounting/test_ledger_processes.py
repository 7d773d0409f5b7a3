"""Threads and processes that share a ledger, and processes that are killed."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from medveil.accounting.events import Gaussian, Stated
from medveil.accounting.ledger import Ledger
from medveil.errors import BudgetError, LedgerError

WORKER = Path(__file__).with_name("ledger_worker.py")
TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}


def start(*arguments):
    return subprocess.Popen([sys.executable, WORKER, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def charged(path):
    """Keys of all charges, by SQL alone."""
    with closing(sqlite3.connect(path)) as connection:
        bodies = [json.loads(text) for (text,) in connection.execute("SELECT body FROM entries WHERE kind='reserve'")]
    return Counter((body["run"], body["release"], body["attempt"]) for body in bodies)


def test_killed_processes_are_charged_once(tmp_path):
    """25 sites, each killed after 10 to 120 ms; what touched the data is in a log that was flushed to disk."""
    path, log, kills = tmp_path / "ledger.db", tmp_path / "touched", 25
    with start("kill", path, log, kills) as killer:
        killer.communicate()
    assert killer.returncode == 0
    touched = [("r", release, int(attempt)) for release, attempt in map(str.split, log.read_text().splitlines())]
    found = charged(path)
    assert len(touched) > kills
    assert len(set(touched)) == len(touched)
    assert set(touched) <= set(found)
    assert set(found.values()) == {1}
    assert len(found) - len(touched) <= kills
    with Ledger(path) as ledger:
        assert ledger.verify().ok


def test_processes_share_a_ledger(tmp_path):
    path, count = tmp_path / "ledger.db", 15
    racers = [start("race", path, count) for _ in range(3)]
    fresh = [[int(word) for word in racer.communicate()[0].split()] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert [sum(each) for each in zip(*fresh, strict=True)] == [1] * count  # exactly one may compute
    found = charged(path)
    assert len(found) == 4 * count
    assert set(found.values()) == {1}
    with Ledger(path) as ledger:
        assert ledger.verify().ok
        assert ledger.head[0] == 8 * count


def test_processes_cannot_pass_a_cap_together(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.set_budget("chest", epsilon=2.5, delta=1e-5, relation="add-remove", unit="patient")
    racers = [start("charge", path, f"run-{number}", 2) for number in range(2)]
    for racer in racers:
        racer.communicate()
    assert sorted(racer.returncode for racer in racers) == [0, 7]


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_a_ledger(tmp_path, shared):
    path, threads, count = tmp_path / "ledger.db", 4, 10
    one = Ledger(path)

    def work(_):
        ledger = one if shared else Ledger(path)
        fresh = []
        for number in range(count):
            made = ledger.reserve(
                run="r", release=f"{number}", attempt=1, event=Gaussian(noise_multiplier=3.0), **TERMS
            )
            fresh.append(made.fresh)
            ledger.commit(made)
        if not shared:
            ledger.close()
        return fresh

    with ThreadPoolExecutor(threads) as pool:
        fresh = list(pool.map(work, range(threads)))
    assert [sum(each) for each in zip(*fresh, strict=True)] == [1] * count
    assert one.verify().ok
    assert one.head[0] == 2 * count
    one.close()


def test_threads_cannot_pass_a_cap_together(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.set_budget("chest", epsilon=2.5, delta=1e-5, relation="add-remove", unit="patient")

        def work(number):
            try:
                ledger.open_run(f"run-{number}", planned=Stated(epsilon=1, delta=0), **TERMS)
            except BudgetError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(6))) == 2
        assert ledger.head[0] == 3


def test_a_busy_ledger_is_a_typed_error(tmp_path, monkeypatch):
    monkeypatch.setattr("medveil.accounting.ledger_store._BUSY_S", 0.05)
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        ledger.note("first")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="busy"):
            ledger.note("second")
        other.execute("ROLLBACK")
        ledger.note("second")
        assert ledger.head[0] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_a_typed_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerError, match="cannot be read or written"):
        Ledger(tmp_path / "ledger.db")
