"""A correlation is given out once: after crashes at every step, by several processes."""

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from store_rig import deal, opened, seed_of, took

from medveil.encrypted.stores import journal as store_journal
from medveil.encrypted.stores import manifest as store_manifest
from medveil.errors import MedveilError, ProtocolError


class StoppedError(OSError):
    """What the disk says at the step that a test chose."""


STEPS = ("fsync", "rename", "unlink", "link", "pwrite", "ftruncate", "replace", "open")


def fail_at(monkeypatch, which, step):
    """Let the n-th of all steps that change the disk raise, before or after it took effect."""
    seen = []

    def wrap(name, act):
        def wrapped(*given, **named):
            seen.append(name)
            if len(seen) == which and step == "before":
                raise StoppedError(5, f"before {name}")
            result = act(*given, **named)
            if len(seen) == which and step == "after":
                if name == "open":
                    os.close(result)
                raise StoppedError(5, f"after {name}")
            return result

        return wrapped

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return seen


@pytest.mark.parametrize("step", ["before", "after"])
def test_an_error_at_any_step_of_taking_gives_nothing_twice(tmp_path, step):
    which, finished = 0, False
    while not finished:
        which += 1
        folder = deal(tmp_path / f"{which}" / "store", count=2)
        given = []
        with pytest.MonkeyPatch.context() as patch:
            seen = fail_at(patch, which, step)
            with suppress(MedveilError, StoppedError):
                given.append(took(opened(folder)).seed)
            finished = len(seen) < which
        with suppress(ProtocolError):
            while True:
                given.append(took(opened(folder)).seed)
        assert len(given) == len(set(given)), (which, seen)
        assert set(given) <= {seed_of(0), seed_of(1)}
        assert seed_of(1) in given, (which, seen)  # at most one is lost
    assert which > 6
    assert given == [seed_of(0), seed_of(1)]


@pytest.mark.parametrize("step", ["before", "after"])
def test_an_error_at_any_step_of_dealing_leaves_no_half_store(tmp_path, step):
    which, finished = 0, False
    while not finished:
        which += 1
        folder = tmp_path / f"{which}" / "store"
        folder.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            seen = fail_at(patch, which, step)
            with suppress(MedveilError, OSError):
                deal(folder, count=2)
            finished = len(seen) < which
        if folder.exists():
            assert [took(opened(folder)).seed for _ in range(2)] == [seed_of(0), seed_of(1)]
    assert which > 6


CHILD = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from medveil.encrypted.stores.store import Store

    folder, journals, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

    def take():
        store = Store(folder, party="vendor", program="ab" * 32, journals=journals)
        taken = store.take()
        os.write(1, f"{taken.number} {taken.seed.hex()}\\n".encode())
        return taken

    def killed_at(which, after):
        count = 0
        def wrap(act):
            def wrapped(*given, **named):
                nonlocal count
                count += 1
                if count == which and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = act(*given, **named)
                if count == which:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return wrapped
        for name in ("open", "fsync", "unlink", "link", "pwrite", "ftruncate", "lseek"):
            setattr(os, name, wrap(getattr(os, name)))

    if mode == "all":
        try:
            while True:
                take().close()
        except Exception as error:
            assert "No correlation is left" in str(error), error
    else:
        for which in range(1, 25):
            for after in (False, True):
                if (child := os.fork()) == 0:
                    killed_at(which, after)
                    take()
                    os._exit(0)
                assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
""")


def start(folder, mode):
    command = [sys.executable, "-c", CHILD, str(folder), str(folder.parent / "journals"), mode]
    environment = {**os.environ, "PYTHONPATH": str(Path(store_manifest.__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, bufsize=0)  # nothing read ahead is lost


def given_by(*children):
    """Number and seed of what the processes gave out."""
    lines = []
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode in (0, -9)
        lines += out.decode().splitlines()
    return [line.split() for line in lines]


def test_two_processes_share_a_store_without_taking_the_same(tmp_path):
    folder = deal(tmp_path / "store", count=120, size=700)
    given = given_by(start(folder, "all"), start(folder, "all"))
    assert sorted(int(number) for number, _ in given) == list(range(120))
    assert all(bytes.fromhex(seed) == seed_of(int(number)) for number, seed in given)


def test_without_the_lock_two_processes_would_take_the_same(tmp_path, monkeypatch):
    """The defence removed: a process that read the journal before the other one wrote takes the same number."""
    folder = deal(tmp_path / "store")
    monkeypatch.setattr(store_journal.fcntl, "flock", lambda *_: None)
    store = opened(folder)
    with store._journal.hold() as early:
        first = took(store)
        assert first.number == store._smallest(early, 0) == 0


def test_killed_at_any_step_nothing_is_given_twice(tmp_path):
    """A child dies of SIGKILL before or after each of its system calls; the next one goes on with the same store."""
    folder = deal(tmp_path / "store", count=60, size=700)
    given = given_by(start(folder, "kill"))
    assert len(given) > 10  # children that died late, or not at all
    assert len({number for number, _ in given}) == len(given)
    left = given_by(start(folder, "all"))
    numbers = [int(number) for number, _ in given + left]
    assert len(set(numbers)) == len(numbers)
    assert 12 <= len(numbers) < 60  # some were burnt


def test_killed_by_another_process_at_any_moment_nothing_is_given_twice(tmp_path):
    folder = deal(tmp_path / "store", count=120, size=700)
    numbers = []
    for wait in (1, 7):
        child = start(folder, "all")
        numbers += [int(child.stdout.readline().split()[0]) for _ in range(wait)]
        child.kill()
        numbers += [int(number) for number, _ in given_by(child)]
    numbers += [int(number) for number, _ in given_by(start(folder, "all"))]
    assert len(set(numbers)) == len(numbers)
    assert 120 - 2 <= len(numbers) <= 120  # a kill costs one at most
