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


def test_a_later_round_is_another_contribution_and_the_earlier_is_past(tmp_path):
    compute, box = Computing(), Outbox(tmp_path)
    box.contribution(3, START, compute)
    assert not box.has(4, OTHER)
    box.contribution(4, OTHER, compute)
    assert len(compute.made) == 2
    assert box.has(4, OTHER)
    with pytest.raises(AuthenticityError, match="past"):
        box.has(3, START)


@pytest.mark.parametrize("ask", [Outbox.has, lambda box, *asked: box.contribution(*asked, _never)])
def test_a_round_is_answered_from_one_set_of_weights_only(tmp_path, ask):
    """Else a server has the others make new vectors in between, and averages all noise away but one site's."""
    compute = Computing()
    Outbox(tmp_path).contribution(3, START, compute)
    again = Outbox(tmp_path)
    with pytest.raises(AuthenticityError, match="other weights"):
        ask(again, 3, OTHER)
    assert again.contribution(3, START, _never).tolist() == compute.made[0].tolist()


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


def test_other_weights_may_open_over_other_sites(tmp_path):
    box = Outbox(tmp_path)
    for number, start in ((1, START), (2, OTHER)):
        box.contribution(number, start, Computing())
        box.accept(ALL[:number])
    with pytest.raises(AuthenticityError):
        box.accept(ALL)


def test_the_same_weights_open_over_the_same_sites_whatever_the_round_is_called(tmp_path):
    """Else a plain sum, which has no noise, is had twice, the second time without one site."""
    box = Outbox(tmp_path)
    box.contribution(1, START, Computing())
    box.accept(ALL)
    again = Outbox(tmp_path)
    again.contribution(2, START, Computing())
    with pytest.raises(AuthenticityError, match="second time"):
        again.accept(ALL[:2])
    again.accept(ALL)


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
    assert 2 not in opened or Outbox(tmp_path).has(2, START)
    begun = Outbox(tmp_path).has(2, START)
    for number in (2,) if begun else (1, 2):
        box = Outbox(tmp_path)
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
    with pytest.raises(AuthenticityError, match="second time"):
        again.accept_scores(4, START, ALL[:2])
    again.accept_scores(4, OTHER, ALL[:2])
    with pytest.raises(AuthenticityError, match="past"):
        again.accept_scores(3, START, ALL)
