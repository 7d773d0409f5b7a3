"""Any single change of a log is named at its line."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.connect.audit_log import AuditLog, LogBreakError, verify
from medveil.secagg.identity import IdentityKey

KEY = IdentityKey.from_bytes(bytes(range(32)))
LINES = 7


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    made = AuditLog(path, key=KEY)
    for step in range(LINES):
        made.append("step-done", step=step % 3, sites=("a", "b"), epsilon=0.5 * step)
    return path.read_bytes(), made.head().head, path.with_name("changed.jsonl")


def by_hand(values):
    """A line whose own hash is recomputed with nothing but hashlib."""
    values = {name: value for name, value in values.items() if name != "hash"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["hash"] = hashlib.sha256(b"medveil audit line 1\n" + text.encode()).hexdigest()
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def named(path: Path, content, head):
    path.write_bytes(content)
    with pytest.raises(LogBreakError) as caught:
        verify(path, public_key=KEY.public, expect=head)
    without = None
    try:
        verify(path)
    except LogBreakError as error:
        without = error.line
    return caught.value.line, without


def line_at(content, place):
    return content[:place].count(b"\n") + 1


places = st.integers(0, 1 << 30)


@given(places, st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_a_changed_byte(log, place, change):
    content, head, path = log
    place %= len(content)
    changed = bytearray(content)
    changed[place] ^= change
    line = line_at(content, place)
    assert named(path, bytes(changed), head) == (line, line)


@given(places)
@settings(max_examples=200, deadline=None)
def test_a_lost_byte(log, place):
    content, head, path = log
    place %= len(content)
    line = line_at(content, place)
    assert named(path, content[:place] + content[place + 1 :], head) == (line, line)


@given(places, st.binary(min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_bytes_put_in(log, place, more):
    content, head, path = log
    place %= len(content)
    changed = content[:place] + more + content[place:]
    first = next(at for at, (old, new) in enumerate(zip(content, changed, strict=False)) if old != new)
    assert named(path, changed, head)[0] == line_at(content, first)


@given(places)
@settings(max_examples=100, deadline=None)
def test_a_cut_end(log, place):
    content, head, path = log
    place %= len(content)
    assert named(path, content[:place], head)[0] == line_at(content, place)


@given(st.integers(0, LINES - 1))
@settings(deadline=None)
def test_a_dropped_line(log, index):
    content, head, path = log
    lines = content.splitlines(keepends=True)
    line, without = named(path, b"".join(lines[:index] + lines[index + 1 :]), head)
    assert line == index + 1
    assert without == (None if index == LINES - 1 else index + 1)


@given(st.integers(0, LINES - 1), st.integers(0, LINES - 1))
@settings(deadline=None)
def test_two_lines_that_change_places(log, one, two):
    content, head, path = log
    lines = content.splitlines(keepends=True)
    if one == two:
        return
    lines[one], lines[two] = lines[two], lines[one]
    first = min(one, two) + 1
    assert named(path, b"".join(lines), head) == (first, first)


@given(st.integers(0, LINES - 1), st.integers(0, LINES))
@settings(deadline=None)
def test_a_line_that_stands_twice(log, index, place):
    content, head, path = log
    lines = content.splitlines(keepends=True)
    lines.insert(place, lines[index])
    wrong = place + 1 if place != index else index + 2  # a copy right before its original is the first of the two
    assert named(path, b"".join(lines), head) == (wrong, wrong)


facts = st.fixed_dictionaries({"step": st.integers(100, 10**6)})


@given(st.integers(0, LINES - 1), facts)
@settings(deadline=None)
def test_an_edited_line_that_was_hashed_anew(log, index, changed):
    content, head, path = log
    lines = content.splitlines(keepends=True)
    lines[index] = by_hand({**json.loads(lines[index]), "facts": changed})
    line, without = named(path, b"".join(lines), head)
    assert line == index + 1
    assert without == (None if index == LINES - 1 else index + 1)  # the chain ties the last line to nothing


@given(st.integers(0, LINES - 1), facts)
@settings(deadline=None)
def test_a_forged_line_put_in(log, index, changed):
    content, head, path = log
    lines = content.splitlines(keepends=True)
    lines.insert(index, by_hand({**json.loads(lines[index]), "facts": changed}))
    line, without = named(path, b"".join(lines), head)
    assert (line, without) == (index + 1, index + 1)
