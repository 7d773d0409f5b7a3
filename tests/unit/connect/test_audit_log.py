"""The audit log: hashes recomputed by hand, crashes, processes, and every kind of change named at its line."""

import hashlib
import json
import multiprocessing
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from medveil.connect import audit_log as module
from medveil.connect.audit_log import AuditLog, LogBreakError, verify
from medveil.errors import AuditLogError, ConfigError
from medveil.secagg.identity import IdentityKey

KEY = IdentityKey.from_bytes(bytes(range(32)))
OTHER = IdentityKey.from_bytes(bytes(range(1, 33)))


def filled(path, lines=5, key=None):
    log = AuditLog(path, key=key)
    for number in range(lines):
        log.append("step-done", step=number)
    return log


def rows(path):
    return path.read_bytes().splitlines(keepends=True)


def by_hand(values):
    """A line whose own hash is recomputed with nothing but hashlib."""
    values = {name: value for name, value in values.items() if name != "hash"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["hash"] = hashlib.sha256(b"medveil audit line 1\n" + text.encode()).hexdigest()
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def broken(path, **options):
    with pytest.raises(LogBreakError) as caught:
        verify(path, **options)
    return caught.value.line, caught.value.kind


def test_a_line_is_what_hashlib_says(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, key=KEY)
    first = log.append("plan-approved", plan="ab" * 32, by="nurse@a.org", at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    second = log.append("job-started", sites=("a", "b"), round=1)
    one, two = (json.loads(raw) for raw in rows(path))
    assert one["number"] == 1
    assert one["at"] == "2026-01-02T03:04:05.000+00:00"
    assert one["previous"] == hashlib.sha256(b"medveil audit log 1").hexdigest()
    assert two["previous"] == one["hash"] == first.hash
    assert two["facts"] == {"sites": ["a", "b"], "round": 1}
    assert rows(path) == [by_hand(one), by_hand(two)]
    signed = {name: value for name, value in two.items() if name not in {"hash", "signature"}}
    text = b"medveil audit signature 1\n" + json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    assert bytes.fromhex(two["signature"]) == KEY.sign(text)
    assert verify(path, public_key=KEY.public) == module.Verified(2, second.hash)
    assert log.head() == module.Verified(2, second.hash)


def test_the_file_is_its_owners_only(tmp_path):
    filled(tmp_path / "new" / "audit.jsonl", 1)
    assert (tmp_path / "new" / "audit.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], (3, "missing")),
        (lambda lines: lines[2:], (1, "missing")),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], (2, "reordered")),
        (lambda lines: [lines[4], *lines[1:4], lines[0]], (1, "reordered")),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], (4, "repeated")),
        (lambda lines: [*lines, lines[0]], (6, "repeated")),
        (lambda lines: [*lines[:2], b"{}\n", *lines[2:]], (3, "changed")),
        (lambda lines: [*lines[:2], b"words\n", *lines[2:]], (3, "changed")),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], (3, "changed")),
        (lambda lines: [*lines[:2], lines[2].replace(b'"step":2', b'"step":3'), *lines[3:]], (3, "changed")),
        (lambda lines: [*lines[:2], b" " + lines[2], *lines[3:]], (3, "changed")),
        (lambda lines: [*lines[:4], lines[4][:-1]], (5, "torn")),
        (lambda lines: [*lines[:4], lines[4][:-20]], (5, "torn")),
        (lambda lines: [], (1, "missing")),
    ],
)
def test_the_first_line_that_is_wrong_is_named(tmp_path, change, expected):
    path = tmp_path / "audit.jsonl"
    filled(path)
    path.write_bytes(b"".join(change(rows(path))))
    assert broken(path) == expected


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_edited_line_with_a_hash_of_its_own_is_named(tmp_path, number):
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = rows(path)
    values = json.loads(lines[number - 1])
    lines[number - 1] = by_hand({**values, "facts": {"step": 99}})
    path.write_bytes(b"".join(lines))
    assert broken(path) == (number, "changed")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_line_whose_link_was_rewritten_is_named(tmp_path, number):
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = rows(path)
    lines[number - 1] = by_hand({**json.loads(lines[number - 1]), "previous": "0" * 64})
    path.write_bytes(b"".join(lines))
    assert broken(path) == (number, "changed")


@pytest.mark.parametrize("before", [True, False])
def test_a_forged_line_among_true_ones_is_named(tmp_path, before):
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = rows(path)
    forged = by_hand({**json.loads(lines[2]), "event": "plan-approved"})
    lines.insert(2 if before else 3, forged)
    path.write_bytes(b"".join(lines))
    assert broken(path) == (3 if before else 4, "inserted")


def rewritten(lines, change, key=None):
    """All lines anew, with hashes (and signatures) that fit: what somebody does who may write the file."""
    made, previous = [], hashlib.sha256(b"medveil audit log 1").hexdigest()
    for number, raw in enumerate(lines, start=1):
        values = change(number, {**json.loads(raw), "previous": previous})
        if key is not None:
            signed = {name: value for name, value in values.items() if name not in {"hash", "signature"}}
            text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
            values["signature"] = key.sign(b"medveil audit signature 1\n" + text).hex()
        made.append(by_hand(values))
        previous = json.loads(made[-1])["hash"]
    return b"".join(made)


def test_a_chain_rewritten_as_a_whole_passes_without_a_key_and_not_with_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    head = filled(path, key=KEY).head().head

    def change(number, values):
        return {**values, "event": "nothing-happened"} if number == 3 else values

    true = rows(path)
    path.write_bytes(rewritten(true, change))
    assert verify(path).lines == 5  # the chain alone cannot tell
    assert broken(path, expect=head) == (6, "truncated")
    assert broken(path, public_key=KEY.public) == (3, "signature")
    with pytest.raises(LogBreakError):
        AuditLog(path, key=KEY).append("step-done")
    path.write_bytes(rewritten(true, change, OTHER))
    assert broken(path, public_key=KEY.public) == (1, "signature")
    path.write_bytes(rewritten(true, change, KEY))
    assert verify(path, public_key=KEY.public).lines == 5  # whoever has the key can


def test_an_unsigned_line_at_the_end_is_named_and_not_built_upon(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = filled(path, key=KEY)
    AuditLog(path).append("plan-approved")
    assert verify(path).lines == 6
    assert broken(path, public_key=KEY.public) == (6, "signature")
    for one in (log, AuditLog(path, key=KEY)):
        with pytest.raises(LogBreakError, match="line 6: signature"):
            one.append("step-done")


def test_a_head_noted_earlier_shows_a_cut(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    earlier, lines = log.head().head, rows(path)
    log.append("step-done")
    assert verify(path, expect=earlier).lines == 6
    path.write_bytes(b"".join(lines[:4]))
    assert verify(path).lines == 4
    assert broken(path, expect=earlier) == (5, "truncated")


@pytest.mark.parametrize("kept", [1, 17, -2, -1])
def test_a_torn_line_stays_and_the_next_event_tells_of_it(tmp_path, kept):
    path = tmp_path / "audit.jsonl"
    filled(path, 3, KEY)
    lines = rows(path)
    torn = lines[2][:kept]
    path.write_bytes(b"".join(lines[:2]) + torn)
    assert broken(path) == (3, "torn")
    last = AuditLog(path, key=KEY).append("step-done", step=7)
    recovered = json.loads(rows(path)[-2])
    assert recovered["event"] == "recovered"
    whole = kept == -1  # nothing but the line feed was lost
    said = b"" if whole else torn + b"\n"
    assert recovered["facts"] == {"torn_bytes": len(said), "torn_hash": hashlib.sha256(said).hexdigest()}
    assert path.read_bytes().startswith(b"".join(lines[:2]) + torn + b"\n")
    assert verify(path, public_key=KEY.public) == module.Verified(5 if whole else 4, last.hash)
    changed = path.read_bytes().replace(torn + b"\n", torn[:-1] + b"?\n", 1)
    path.write_bytes(changed)
    assert broken(path)[0] == 3
    path.write_bytes(path.read_bytes().replace(torn[:-1] + b"?\n", b"", 1))
    assert broken(path)[0] == 3


@pytest.mark.parametrize("first", [1, 2, 40])
def test_a_crash_while_healing_a_crash_is_healed(tmp_path, first):
    """Every beginning of what healing writes, left by a second crash, is healed too."""
    path = tmp_path / "audit.jsonl"
    filled(path, 2)
    torn = path.read_bytes()[:-first]
    path.write_bytes(torn)
    AuditLog(path).append("step-done")
    written = path.read_bytes()
    for end in [len(torn), *range(len(torn) + 1, len(written), 23), len(written) - 1]:
        path.write_bytes(written[:end])
        last = AuditLog(path).append("job-started")
        assert verify(path).head == last.hash


def test_a_garbled_last_line_is_not_taken_for_a_crash(tmp_path):
    path = tmp_path / "audit.jsonl"
    filled(path, 3)
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step";2'))
    with pytest.raises(LogBreakError, match="line 3: changed"):
        AuditLog(path).append("step-done")


def test_a_log_notices_what_is_taken_from_under_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    lines = rows(path)
    path.write_bytes(b"".join(lines[:4]))
    with pytest.raises(LogBreakError, match="truncated"):
        log.append("step-done")
    path.write_bytes(b"".join([*lines[:4], by_hand({**json.loads(lines[4]), "facts": {"step": 9}})]))
    with pytest.raises(LogBreakError, match="line 5"):
        log.append("step-done")
    path.rename(tmp_path / "moved")
    with pytest.raises(LogBreakError):
        log.append("step-done")


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("Plan Approved", {}),
        ("", {}),
        ("step-done", {"patient": "x"}),
        ("step-done", {"by": "Doe,\tJohn"}),
        ("step-done", {"by": "a  b"}),
        ("step-done", {"by": "x" * 129}),
        ("step-done", {"plan": "ab"}),
        ("step-done", {"round": -1}),
        ("step-done", {"round": True}),
        ("step-done", {"round": 1.5}),
        ("step-done", {"epsilon": float("nan")}),
        ("step-done", {"sites": "a"}),
        ("step-done", {"sites": ("a", "\n")}),
        ("step-done", {"private": 1}),
    ],
)
def test_no_line_holds_free_text(tmp_path, event, facts):
    path = tmp_path / "audit.jsonl"
    with pytest.raises(ConfigError) as caught:
        AuditLog(path).append(event, **facts)
    assert "John" not in str(caught.value)
    assert not path.exists()


def _append(path, count):
    log = AuditLog(path)
    for step in range(count):
        log.append("step-done", step=step)


def test_processes_and_threads_share_a_log(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(path, 20)) for _ in range(2)]
    shared = AuditLog(path)
    threads = [threading.Thread(target=lambda: [shared.append("step-done") for _ in range(10)]) for _ in range(3)]
    for one in [*workers, *threads]:
        one.start()
    for one in [*workers, *threads]:
        one.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert verify(path).lines == 70


def test_nobody_writes_between_anothers_reading_and_writing(tmp_path, monkeypatch):
    """Each opens and locks the file on its own, as processes do; writing is slow enough to come between."""
    path, write = tmp_path / "audit.jsonl", os.write
    monkeypatch.setattr(os, "write", lambda handle, data: (time.sleep(0.01), write(handle, data))[1])
    logs = [AuditLog(path) for _ in range(3)]
    threads = [threading.Thread(target=lambda log=log: [log.append("step-done") for _ in range(5)]) for log in logs]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert verify(path).lines == 15


def test_a_full_disk_is_an_error_and_the_rest_is_healed(tmp_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    log = filled(path, 1)
    write, calls = os.write, []

    def short(handle, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(handle, bytes(data)[:30])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(AuditLogError, match="No space left"):
        log.append("step-done")
    monkeypatch.undo()
    log.append("step-done")
    assert [json.loads(raw)["event"] for raw in rows(path) if raw.endswith(b"}\n")] == [
        "step-done",
        "recovered",
        "step-done",
    ]
    assert verify(path).lines == 3


def test_an_event_is_on_disk_before_the_call_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), fsync(handle)))
    path = tmp_path / "audit.jsonl"
    filled(path, 3)
    assert synced[-1] == path.stat().st_size
    assert len(synced) == 4  # the folder once, the file for every line


def test_a_log_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(AuditLogError, match="cannot be read"):
        verify(tmp_path / "none.jsonl")
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditLogError, match="cannot be written"):
        AuditLog(tmp_path / "audit.jsonl").append("step-done")
