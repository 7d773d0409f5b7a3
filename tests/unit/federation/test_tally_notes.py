"""What a site remembers of statistics it gave."""

import pytest

from medveil.errors import AuthenticityError
from medveil.federation.secure.tally_notes import TallyNotes


def test_a_statistic_has_one_origin_and_one_set_of_sites(tmp_path):
    path = tmp_path / "tallies.json"
    notes = TallyNotes(path)
    notes.begin("evaluation", "a" * 64)
    notes.accept("evaluation", ["b", "a"])
    again = TallyNotes(path)  # another process
    again.begin("evaluation", "a" * 64)
    again.accept("evaluation", ["a", "b"])
    with pytest.raises(AuthenticityError, match="other weights"):
        again.begin("evaluation", "b" * 64)
    with pytest.raises(AuthenticityError, match="other sites"):
        again.accept("evaluation", ["a"])
    again.begin("threshold", "b" * 64)
    again.accept("threshold", ["a"])
    TallyNotes(path).accept("evaluation", ["a", "b"])


def test_what_is_noted_is_noted_before_anything_leaves(tmp_path):
    path = tmp_path / "tallies.json"
    TallyNotes(path).begin("cohort", "c" * 64)
    with pytest.raises(AuthenticityError):
        TallyNotes(path).begin("cohort", "d" * 64)
    assert not path.with_name("tallies.json.tmp").exists()
