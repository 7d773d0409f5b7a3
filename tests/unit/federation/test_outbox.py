"""A site's memory of what it contributed, killed at every moment."""

import os
from pathlib import Path

import numpy as np
import pytest

from medveil.errors import AuthenticityError, ProtocolError
from medveil.federation import snapshot
from medveil.federation.secure.origin import fingerprint
from medveil.federation.secure.outbox import Outbox

START = fingerprint(np.zeros(3, np.float32))
OTHER = fingerprint(np.ones(3, np.float32))
ALL = ("a", "b", "c")


class PowerCutError(Exception):
    """Nothing in medveil may catch this."""


class Computing:
    """Draws another vector each time, as noise would be."""

    def __init__(self, dtype=np.uint32):
        self.made, self._dtype = [], dtype

    def __call__(self):
        self.made.append(np.array([len(self.made) + 1, 2**31, 7], self._dtype))
        return self.made[-1]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_the_same_vector_comes_again_in_another_process(tmp_path, dtype):
    compute = Computing(dtype)
    first = Outbox(tmp_path / "site").contribution(3, START, compute)
    again = Outbox(tmp_path / "site").contribution(3, START, compute)
    assert len(compute.made) == 1
    assert again.dtype == dtype
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("number", "start"), [(4, START), (3, OTHER)])
def test_another_round_or_other_weights_are_another_contribution(tmp_path, number, start):
    compute, box = Computing(), Outbox(tmp_path)
    box.contribution(3, START, compute)
    assert not box.has(number, start)
    box.contribution(number, start, compute)
    assert len(compute.made) == 2
    assert box.has(number, start)
    if number == 3:
        assert not box.has(3, START)
    else:
        with pytest.raises(AuthenticityError, match="past"):
            box.has(3, START)


def test_only_a_round_that_was_never_written_down_is_sure_to_be_unsent(tmp_path):
    """Else a server that asks for a round again, from other weights, would get a second release for one charge."""
    compute, box = Computing(), Outbox(tmp_path)
    assert box.unsent(1)
    box.contribution(1, START, compute)
    assert [box.unsent(number) for number in (1, 2)] == [False, True]
    box.contribution(2, START, compute)
    again = Outbox(tmp_path)
    assert [again.unsent(number) for number in (1, 2, 3)] == [False, False, True]


def test_it_opens_over_the_same_sites_only_for_good(tmp_path):
    box = Outbox(tmp_path)
    box.contribution(1, START, Computing())
    box.accept(ALL)
    for attempt in (box, _again(tmp_path, 1)):
        attempt.accept(reversed(ALL))
        for others in (ALL[:2], ("a", "b", "d"), (*ALL, "d"), ()):
            with pytest.raises(AuthenticityError, match="second time"):
                attempt.accept(others)
        attempt.accept(ALL)


def _again(folder, number, start=START):
    """After a restart: the same contribution is asked for before it is opened."""
    box = Outbox(folder)
    box.contribution(number, start, _never)
    return box


def _never():
    raise AssertionError("computed anew")


def test_a_new_round_forgets_the_sites(tmp_path):
    box = Outbox(tmp_path)
    for number in (1, 2):
        box.contribution(number, START, Computing())
        box.accept(ALL[:number])
    with pytest.raises(AuthenticityError):
        box.accept(ALL)


def test_nothing_is_opened_that_was_not_given(tmp_path):
    with pytest.raises(ProtocolError):
        Outbox(tmp_path).accept(ALL)


def _cut_at(monkeypatch, moment, *, before):
    """The power goes at the ``moment``-th write, sync or rename, before or after it."""
    count = [0]

    def cutting(original):
        def call(*arguments, **keywords):
            count[0] += 1
            if count[0] == moment and before:
                raise PowerCutError
            result = original(*arguments, **keywords)
            if count[0] == moment:
                raise PowerCutError
            return result

        return call

    path = type(Path())
    monkeypatch.setattr(os, "fsync", cutting(os.fsync))
    monkeypatch.setattr(path, "replace", cutting(path.replace))
    monkeypatch.setattr(path, "unlink", cutting(path.unlink))
    monkeypatch.setattr(snapshot, "save_file", cutting(snapshot.save_file))
    return count


MOMENTS = [(moment, before) for moment in range(1, 8) for before in (True, False)]


@pytest.mark.parametrize(("moment", "before"), MOMENTS)
def test_killed_at_any_moment_no_vector_opens_over_two_sets_of_sites(tmp_path, monkeypatch, moment, before):
    """Rounds 1 and 2, each opened over all; the power goes at one moment of round 2.

    Whatever vector is left afterwards: if it was ever given to be opened, it opens over the same sites only.
    """
    compute, given, opened = Computing(), {}, {}

    def play(box, number, sites):
        vector = box.contribution(number, START, compute)
        given[number] = vector.tolist()
        box.accept(sites)
        opened[number] = sites

    play(Outbox(tmp_path), 1, ALL)
    with monkeypatch.context() as patched:
        count = _cut_at(patched, moment, before=before)
        box = Outbox(tmp_path)
        try:
            play(box, 2, ALL)
        except PowerCutError:
            assert count[0] == moment
        else:
            raise AssertionError("the cut is past the last write")
    noted = dict(opened)
    for number in (1, 2):
        box = Outbox(tmp_path)
        if number == 1 and not box.unsent(2):
            with pytest.raises(AuthenticityError, match="past"):
                box.has(1, START)
            continue
        if not box.has(number, START):
            assert number not in given
            continue
        vector = box.contribution(number, START, _never)
        if number in given:
            assert vector.tolist() == given[number]
        if number in noted:
            with pytest.raises(AuthenticityError):
                box.accept(ALL[:2])
        box.accept(ALL)


def test_the_cuts_reach_every_write(tmp_path, monkeypatch):
    """The list of moments above misses none."""
    box = Outbox(tmp_path)
    with monkeypatch.context() as patched:
        count = _cut_at(patched, 0, before=True)
        box.contribution(1, START, Computing())
        box.accept(ALL)
    assert count[0] == MOMENTS[-1][0]


def test_a_past_round_is_refused(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.contribution(2, "a", lambda: np.arange(3, dtype=np.uint32))
    with pytest.raises(AuthenticityError, match="past"):
        Outbox(tmp_path).contribution(1, "a", lambda: np.arange(3, dtype=np.uint32))
    assert Outbox(tmp_path).has(2, "a")


def test_scores_of_the_same_weights_open_over_the_same_sites_only(tmp_path):
    Outbox(tmp_path).accept_scores(3, START, ALL)
    again = Outbox(tmp_path)
    again.accept_scores(3, START, reversed(ALL))
    with pytest.raises(AuthenticityError, match="second time"):
        again.accept_scores(3, START, ALL[:2])
    again.accept_scores(4, OTHER, ALL[:2])
    with pytest.raises(AuthenticityError, match="past"):
        again.accept_scores(3, START, ALL)
