"""The run folder: one plan and one set of data each, writes that cannot tear, names that cannot collide."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import medveil.study.folder as module
from medveil.errors import ResumeError, RunError
from medveil.study.folder import MetricsLog, RoundLines, RunFolder, file_name, read_json, write_bytes, write_json

INPUTS = {"data": "d", "network": "n", "first weights": "w"}


def test_a_folder_keeps_its_plan(tmp_path):
    folder = RunFolder(tmp_path)
    folder.bind_plan({"plan_hash": "a" * 64, "plan": {}})
    folder.bind_plan({"plan_hash": "a" * 64, "plan": {}})
    with pytest.raises(ResumeError, match="another plan"):
        folder.bind_plan({"plan_hash": "b" * 64, "plan": {}})
    assert read_json(folder.plan)["plan_hash"] == "a" * 64


@pytest.mark.parametrize("changed", INPUTS)
def test_a_folder_keeps_what_it_trains_on(tmp_path, changed):
    folder = RunFolder(tmp_path)
    folder.state.mkdir()
    folder.bind_inputs(INPUTS)
    folder.bind_inputs(INPUTS)
    with pytest.raises(ResumeError, match=changed):
        folder.bind_inputs({**INPUTS, changed: "other"})


def test_checkpoints_without_their_plan_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.claim():
        folder.checkpoint("central").write_bytes(b"")
        with pytest.raises(ResumeError, match="not the plan"):
            folder.bind_plan({"plan_hash": "a"})
    assert not folder.plan.exists()


@pytest.mark.parametrize("count", [None, [{"round": 1, "loss": 0.5}]])
def test_metrics_of_another_version_are_refused_and_left_alone(tmp_path, count):
    path = tmp_path / "federated.jsonl"
    path.write_bytes(b"a line\n")
    with pytest.raises(ResumeError, match="kept its metrics otherwise"):
        RoundLines(path, count)
    assert path.read_bytes() == b"a line\n"


def test_metrics_that_the_checkpoint_does_not_vouch_for_are_done_again(tmp_path):
    path = tmp_path / "federated.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    lines = RoundLines(path, 2)
    assert lines.read() == [b"1\n", b"2\n"]
    assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(ResumeError, match="damaged"):
        RoundLines(path, 3)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"")
    with pytest.raises(RunError, match="not empty"), RunFolder(tmp_path).claim():
        pass
    assert not (tmp_path / "state").exists()


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=6, unique=True))
def test_no_two_sites_share_a_file(sites):
    names = [file_name(f"local_only/{site}") for site in sites]
    assert len(set(names)) == len(sites)
    for name in names:
        assert "/" not in name
        assert name.isascii()
        assert 0 < len(name.encode()) < 200
        assert name not in {".", ".."}


@pytest.mark.parametrize("other", ["central", "federated", "local_only/a-b", "local_only/a b", "local_only/a/b"])
def test_a_site_takes_no_other_arm_s_file(other):
    assert file_name("local_only/a--b") != file_name(other)
    assert file_name("local_only/central") != file_name(other)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(module.os, "fsync", _broken_disk)
    with pytest.raises(OSError, match="disk"):
        write_bytes(path, b'{"new": 2}')
    assert read_json(path) == {"old": 1}


def _broken_disk(_handle):
    raise OSError("disk")


def test_a_write_is_on_disk_before_it_takes_the_old_file_s_place(tmp_path, monkeypatch):
    path, seen = tmp_path / "x", []
    path.write_bytes(b"old")
    monkeypatch.setattr(module.os, "fsync", lambda _handle: seen.append(path.read_bytes()))
    write_bytes(path, b"new")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_a_record_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(("content", "said"), [(b"{", "damaged"), (b"[1]", "damaged"), (b"\xff", "damaged")])
def test_damaged_files_are_said(tmp_path, content, said):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunError, match=said):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="lacks"):
        read_json(tmp_path / "y.json")


def test_metrics_of_several_threads_stay_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"of an": "earlier process')
    log = MetricsLog(path)

    def write(arm):
        for number in range(50):
            log.append([{"arm": arm, "round": number, "filler": "x" * 500}])

    threads = [threading.Thread(target=write, args=(arm,)) for arm in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for arm in "abc":
        assert [row["round"] for row in rows if row["arm"] == arm] == list(range(50))
