"""A correlation is given out once, and only whole: from copies, damaged files, for its owner."""

import hashlib
import json
import os
import shutil
import stat
import tracemalloc

import numpy as np
import pytest
from store_rig import OTHER, PROGRAM, deal, dealt_of, files, opened, seed_of, the_journal, took

from medveil.encrypted.stores.journal import record
from medveil.encrypted.stores.store import Store
from medveil.encrypted.stores.writer import StoreWriter
from medveil.errors import ChecksumError, ConfigError, LedgerError, MissingDataError, ProtocolError


@pytest.fixture
def folder(tmp_path):
    return deal(tmp_path / "store")


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
