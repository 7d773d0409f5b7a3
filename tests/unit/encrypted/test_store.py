"""A correlation is given out once: after crashes at every step, by several processes, from copies."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from medveil.encrypted.stores import journal as store_journal
from medveil.encrypted.stores import manifest as store_manifest
from medveil.encrypted.stores.journal import record
from medveil.encrypted.stores.store import Store
from medveil.encrypted.stores.writer import StoreWriter
from medveil.errors import ChecksumError, ConfigError, LedgerError, MedveilError, MissingDataError, ProtocolError

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


@pytest.fixture
def folder(tmp_path):
    return deal(tmp_path / "store")


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


def test_what_was_dealt_is_read_back(folder):
    store = opened(folder)
    assert (store.manifest.batch, store.manifest.run, store.left) == (2, "run 1", 3)
    for number in range(3):
        with store.take() as taken:
            assert (taken.number, taken.seed, taken.size) == (number, seed_of(number), 1000)
            assert bytes(taken.read(1)) + bytes(taken.read(600)) == dealt_of(number)[:601]
            assert np.frombuffer(taken.read(100), np.uint8).ctypes.data % 8 == 0
            assert taken.left == 299
            with pytest.raises(ProtocolError, match="at most 299"):
                taken.read(300)
            assert bytes(taken.read(299)) == dealt_of(number)[701:]
        assert store.left == 2 - number
        assert f"{number:08d}.correlation" not in files(folder)
    with pytest.raises(ProtocolError, match="No correlation is left"):
        store.take()


def test_the_hospital_holds_seeds_only(tmp_path):
    folder = deal(tmp_path / "hospital", party="hospital")
    with opened(folder, "hospital").take(2) as taken:
        assert (taken.seed, taken.size) == (seed_of(2), 0)
    assert (folder / "00000000.correlation").read_bytes() == seed_of(0)


def test_both_parties_agree_on_the_larger_number(tmp_path):
    vendor = opened(deal(tmp_path / "v"))
    hospital = Store(
        deal(tmp_path / "h", party="hospital"), party="hospital", program=PROGRAM, journals=tmp_path / "journals"
    )
    took(hospital)
    number = vendor.next(hospital.next(vendor.next()))
    assert number == 1
    assert took(vendor, number).number == took(hospital, number).number == 1
    assert (vendor.next(), hospital.next()) == (0, 2)


def test_a_number_is_taken_once(folder):
    store = opened(folder)
    took(store, 1)
    for again in (store, opened(folder)):
        with pytest.raises(ProtocolError, match=r"used before.*Got: 1\. Expected.*Remedy: go on with the next"):
            again.take(1)
        with pytest.raises(ProtocolError, match="used before"):
            again.check(1)
        assert again.left == 2
    assert [took(opened(folder)).number for _ in range(2)] == [0, 2]


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_number_out_of_range_is_refused(folder, number):
    store = opened(folder)
    with pytest.raises(ProtocolError, match="Expected: 0 to 2"):
        store.take(number)
    assert store.left == 3


def test_a_copy_of_a_used_store_gives_nothing_twice(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    took(opened(folder), 0)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    for again in (folder, tmp_path / "copy"):
        assert "00000000.correlation" in files(again)
        store = opened(again)
        assert files(again) == ["00000001.correlation", "00000002.correlation"]
        with pytest.raises(ProtocolError, match="used before"):
            store.take(0)


def test_a_file_copied_back_under_an_open_store_is_refused(folder):
    store = opened(folder)
    kept = (folder / "00000000.correlation").read_bytes()
    took(store, 0)
    (folder / "00000000.correlation").write_bytes(kept)
    with pytest.raises(ProtocolError, match="used before"):
        store.take(0)
    assert opened(folder).left == 2
    assert "00000000.correlation" not in files(folder)


def test_without_the_journal_a_file_copied_back_would_be_given_out_again(folder):
    """The defence removed; and what the store cannot see, as its docstring says."""
    kept = (folder / "00000000.correlation").read_bytes()
    took(opened(folder), 0)
    the_journal(folder).unlink()
    (folder / "00000000.correlation").write_bytes(kept)
    assert took(opened(folder), 0).seed == seed_of(0)


def test_a_lost_journal_of_a_used_store_is_refused(folder):
    took(opened(folder), 0)
    the_journal(folder).unlink()
    with pytest.raises(LedgerError, match=r"journal is not here.*Remedy"):
        opened(folder)


def test_a_foreign_program_or_party_is_refused(folder):
    with pytest.raises(ProtocolError, match=rf"another program.*Got: {PROGRAM}\. Expected: '{OTHER}'\. Remedy"):
        opened(folder, program=OTHER)
    with pytest.raises(ProtocolError, match="other party's"):
        opened(folder, party="hospital")
    with pytest.raises(MissingDataError, match="no store"):
        opened(folder.parent / "none")


@pytest.mark.parametrize("change", ["flip seed", "flip last", "shorter", "longer", "empty"])
def test_a_damaged_correlation_is_refused_and_passed_over(folder, change):
    path = folder / "00000000.correlation"
    data = bytearray(path.read_bytes())
    if change == "flip seed":
        data[3] ^= 1
    elif change == "flip last":
        data[-1] ^= 128
    path.write_bytes({"shorter": data[:-1], "longer": data + b"x", "empty": b""}.get(change, data))
    store = opened(folder)
    with pytest.raises(ChecksumError, match=r"damaged.*Got: \d+ bytes.*Expected: 1032 bytes.*Remedy"):
        store.check(0)
    assert store.left == 3
    with pytest.raises(ChecksumError, match="damaged"):
        store.take()
    assert store.left == 2
    assert took(store).number == 1


def test_a_missing_correlation_is_refused_and_passed_over(folder):
    store = opened(folder)
    (folder / "00000000.correlation").unlink()
    with pytest.raises(MissingDataError):
        store.take()
    assert took(store).number == 1


def test_a_correlation_checked_ahead_is_hashed_once_unless_it_changes(folder, monkeypatch):
    store = opened(folder)
    for number in (0, 1):
        store.check(number)
    path = folder / "00000001.correlation"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    read = os.read
    calls = []
    monkeypatch.setattr(os, "read", lambda *given: calls.append(given) or read(*given))
    took(store, 0)
    assert not calls
    with pytest.raises(ChecksumError):
        store.take(1)
    assert calls


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"batch":2', '"batch":3'),
        lambda text: text.replace("run 1", "run 2"),
        lambda text: text.replace('"party":"vendor"', '"party":"hospital"'),
        lambda text: text.replace('"size":1032', '"size":1033', 1),
        lambda text: text[:-5],
        lambda _: "",
        lambda _: "[" * 10**5,
        lambda _: "[]",
        lambda text: text.replace('"version":1', '"version":2'),
    ],
)
def test_a_changed_manifest_is_refused(folder, change):
    path = folder / "manifest.json"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(ChecksumError):
        opened(folder)


def test_the_manifest_holds_the_hashes_of_the_files(folder):
    """Against hashlib alone."""
    kept = json.loads((folder / "manifest.json").read_text())
    assert [item["sha256"] for item in kept["content"]["items"]] == [
        hashlib.sha256(seed_of(number) + dealt_of(number)).hexdigest() for number in range(3)
    ]
    text = json.dumps(kept["content"], sort_keys=True, separators=(",", ":"))
    assert kept["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_line_that_a_crash_cut_short_counts_for_nothing(folder):
    took(opened(folder), 0)
    journal = the_journal(folder)
    whole = journal.read_bytes()
    line = record(opened(folder).manifest.digest, 1)
    for cut in range(1, len(line)):
        journal.write_bytes(whole + line[:cut])
        assert opened(folder).left == 2
    assert took(opened(folder)).number == 1
    assert journal.read_bytes() == whole + line


@pytest.mark.parametrize("place", [0, 20, -3, -15, -26])
def test_a_damaged_journal_is_refused(folder, place):
    took(opened(folder), 0)
    journal = the_journal(folder)
    data = bytearray(journal.read_bytes())
    data[place] ^= 1
    journal.write_bytes(data)
    with pytest.raises(LedgerError, match=r"damaged.*Remedy"):
        opened(folder)


def test_a_repeated_line_loses_no_other(folder):
    took(opened(folder), 0)
    took(opened(folder), 1)
    journal = the_journal(folder)
    journal.write_bytes(journal.read_bytes() + record(opened(folder).manifest.digest, 0))
    assert took(opened(folder)).number == 2
    with pytest.raises(ProtocolError, match="used before"):
        opened(folder).take(1)


def test_everything_is_for_its_owner_only(folder):
    took(opened(folder), 0)
    for path in (*folder.iterdir(), the_journal(folder)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_writer_refuses_what_is_there_and_bad_values(folder, tmp_path):
    with pytest.raises(ConfigError, match="already"):
        deal(folder)
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(ConfigError, match="begun"):
        deal(tmp_path / "new")
    with pytest.raises(ConfigError):
        StoreWriter(tmp_path / "x", party="vendor", program="short", batch=1, run="r")
    with (
        pytest.raises(ConfigError, match="16 bytes"),
        StoreWriter(tmp_path / "y", party="vendor", program=PROGRAM, batch=1, run="r") as writer,
        writer.correlation(bytes(16)),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.partial", "store"]


def test_memory_is_bounded_by_what_is_read(tmp_path):
    chunk, count = os.urandom(1 << 20), 40
    tracemalloc.start()
    with (
        StoreWriter(tmp_path / "s", party="vendor", program=PROGRAM, batch=1, run="r") as writer,
        writer.correlation(bytes(32)) as part,
    ):
        for _ in range(count):
            part.write(chunk)
    with opened(tmp_path / "s").take() as taken:
        assert all(bytes(taken.read(len(chunk))) == chunk for _ in range(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(chunk)


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


def test_without_the_lock_two_processes_would_take_the_same(folder, monkeypatch):
    """The defence removed: a process that read the journal before the other one wrote takes the same number."""
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
