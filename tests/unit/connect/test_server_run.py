"""What the server remembers between jobs."""

from medveil.connect.server_run import Events, RunMemory, note_returned, returned_sites
from medveil.federation.remote import Happening
from medveil.study.folder import RunFolder, read_json


def test_attempts_grow_and_the_first_jobs_sites_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.state.mkdir(parents=True)
    first = RunMemory(folder, ("b", "a"), first_job="j", rounds_done=0)
    assert (first.sites, first.attempt) == (("a", "b"), 1)
    again = RunMemory(folder, ("a",), first_job="j", rounds_done=1)
    assert (again.sites, again.attempt) == (("a", "b"), 2)
    third = RunMemory(folder, ("a", "b", "c"), first_job="j", rounds_done=1)
    assert third.sites == ("a", "b")
    assert [one.fruitless for one in (first, again, third)] == [0, 0, 1]


def test_a_job_that_did_not_come_to_its_end_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    folder.state.mkdir(parents=True)
    memories = []
    for ends in (True, False, True):
        memories.append(RunMemory(folder, ("a",), first_job="j", rounds_done=0))
        if ends:
            memories[-1].ended()
    assert [one.cut_off for one in memories] == [False, False, True]
    events = Events(folder, ("a",))
    events.cut_off(7)
    (told,) = events.told()
    assert (told["what"], told["site"], told["round"]) == ("server-back", None, 7)
    assert told["text"].endswith("goes on after round 7")


def test_what_happened_is_kept_over_jobs_without_notices(tmp_path):
    events = Events(RunFolder(tmp_path), ("a", "b"))
    events.note("begins")
    events.joined("a")
    events.happened(Happening("notice", "b", "reads"))
    Events(RunFolder(tmp_path), ("a", "b")).happened(Happening("lost", "b", "gone"))
    told = Events(RunFolder(tmp_path), ("a", "b")).told()
    assert [(one["what"], one["site"], one["text"]) for one in told] == [
        ("joined", "a", "takes part"),
        ("lost", "b", "gone"),
    ]
    status = read_json(tmp_path / "progress.json")
    assert status["sites"] == {"a": "not heard of yet", "b": "gone"}


def test_sites_that_came_back(tmp_path):
    assert returned_sites(tmp_path / "returned") == frozenset()
    note_returned(tmp_path / "returned", "a")
    note_returned(tmp_path / "returned", "a")
    assert returned_sites(tmp_path / "returned") == {"a"}
