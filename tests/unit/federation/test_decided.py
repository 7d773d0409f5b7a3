"""Over which sites a sum is opened is written down before, and asked for again."""

import pytest

from medveil.errors import ResumeError, TooFewSitesError
from medveil.federation.secure.decided import Decided, check_there


def test_it_is_on_disk_and_of_the_latest_round(tmp_path):
    path = tmp_path / "decided.json"
    told = []
    decided = Decided(path, watch=told.append)
    decided.note("round", 3, {"a": True, "b": False, "c": True})
    decided.note("scores", 3, {"a": True, "b": False, "c": False})
    again = Decided(path)
    assert again.of("round", 3) == {"a": True, "b": False, "c": True}
    assert again.of("scores", 3) == {"a": True, "b": False, "c": False}
    assert again.of("round", 2) == again.of("round", 4) == {}
    assert told == [["b"]]  # who is missing in scores is still in the round
    again.note("round", 4, {"a": True, "b": True, "c": True})
    assert Decided(path).of("round", 3) == Decided(path).of("scores", 3) == {}


def test_groups_decide_one_after_the_other(tmp_path):
    decided = Decided(tmp_path / "decided.json")
    decided.note("round", 1, {"a": True, "b": False})
    assert decided.of("round", 1).get("c") is None
    decided.note("round", 1, {"c": True, "d": True})
    assert Decided(tmp_path / "decided.json").of("round", 1) == {"a": True, "b": False, "c": True, "d": True}


@pytest.mark.parametrize("other", [{"a": True, "b": True}, {"a": False, "b": False}, {"a": False, "b": True}])
def test_another_set_is_refused_and_changes_nothing(tmp_path, other):
    path = tmp_path / "decided.json"
    Decided(path).note("round", 1, {"a": True, "b": False})
    before = path.read_bytes()
    with pytest.raises(TooFewSitesError, match="before an interruption"):
        Decided(path).note("round", 1, other)
    assert path.read_bytes() == before


def test_a_site_that_was_in_the_sum_must_be_there():
    check_there({"a": True, "b": False}, ["a"])
    with pytest.raises(TooFewSitesError, match="a"):
        check_there({"a": True, "b": False}, ["b"])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"round": 1}', '{"round": "x", "sites": {}}', '{"round": 1, "sites": [1]}']
)
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "decided.json"
    path.write_text(text)
    with pytest.raises(ResumeError, match="damaged"):
        Decided(path)
