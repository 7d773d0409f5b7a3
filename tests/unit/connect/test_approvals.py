"""Approvals: of one hash, by a person or a rule, on disk, and never of what a file merely claims."""

import json
import os
import threading
from datetime import UTC, datetime

import pytest

from medveil.connect.approvals import Approvals
from medveil.errors import ApprovalError, ConfigError
from medveil.study.plan import load_plan

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
POLICY, NEWER = "ab" * 32, "cd" * 32


def approvals(folder):
    return Approvals(folder / "approvals.json")


def test_an_approval_is_of_one_hash(tmp_path):
    plan = load_plan("phantom-private")
    changed = load_plan("phantom-private", ["privacy.dp.noise.epsilon=8.1"])
    kept = approvals(tmp_path)
    assert kept.state(plan.digest(), policy=POLICY) == "pending"
    kept.approve(plan.digest(), by="Dr A", at=NOW, policy=POLICY, note="seen")
    assert approvals(tmp_path).state(plan.digest(), policy=POLICY) == "approved"
    assert approvals(tmp_path).require(plan.digest(), policy=POLICY).by == "Dr A"
    assert kept.state(changed.digest(), policy=POLICY) == "pending"
    with pytest.raises(ApprovalError, match="no decision"):
        kept.require(changed.digest(), policy=POLICY)


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "name='other'",
        "federation.rounds=51",
        "privacy.delta=2e-4",
        "privacy.secure_aggregation.colluding=0",
        "privacy.secure_aggregation.dropouts=0",
        "privacy.dp.clipping.l2_clip_norm=2.5",
        "privacy.dp.noise.generator='seeded'",
        "training.optimiser.lr=0.5",
        "model.positions=[4, 4]",
        "data.source.seed=2",
        "architecture_hash='" + "0" * 64 + "'",
        "initial_weights='w.safetensors'",
    ],
)
def test_any_change_of_the_plan_lapses_it(tmp_path, override):
    kept = approvals(tmp_path)
    kept.approve(load_plan("phantom-private").digest(), by="A", at=NOW, policy=POLICY)
    assert kept.state(load_plan("phantom-private", [override]).digest(), policy=POLICY) == "pending"


def test_a_rules_approval_lapses_with_the_policy_and_a_persons_stays(tmp_path):
    kept = approvals(tmp_path)
    kept.approve("1" * 64, by="policy", at=NOW, policy=POLICY, rule="policy")
    kept.approve("2" * 64, by="A", at=NOW, policy=POLICY)
    assert [kept.state(name * 64, policy=POLICY) for name in "12"] == ["approved", "approved"]
    assert [kept.state(name * 64, policy=NEWER) for name in "12"] == ["pending", "approved"]
    with pytest.raises(ApprovalError, match="another policy"):
        kept.require("1" * 64, policy=NEWER)


def test_the_last_decision_counts_and_all_are_kept(tmp_path):
    kept = approvals(tmp_path)
    kept.approve("1" * 64, by="A", at=NOW, policy=POLICY)
    kept.revoke("1" * 64, by="B", at=NOW, policy=POLICY, note="no")
    assert kept.state("1" * 64, policy=POLICY) == kept.state("1" * 64, policy=NEWER) == "refused"
    with pytest.raises(ApprovalError, match="refused"):
        kept.require("1" * 64, policy=POLICY)
    with pytest.raises(ApprovalError, match="overrule"):
        kept.approve("1" * 64, by="policy", at=NOW, policy=NEWER, rule="policy")
    kept.approve("1" * 64, by="C", at=NOW, policy=POLICY)
    assert kept.state("1" * 64, policy=POLICY) == "approved"
    assert [one.by for one in kept.history()] == ["A", "B", "C"]


def test_the_inbox_believes_content_and_not_names(tmp_path):
    kept, plan = approvals(tmp_path), load_plan("phantom-private")
    name = kept.receive(plan)
    assert name == plan.digest() == kept.receive(plan)
    assert kept.plan(name).model_dump(mode="json") == plan.model_dump(mode="json")
    assert kept.waiting(policy=POLICY) == (name,)
    file = kept.inbox / f"{name}.json"
    values = json.loads(file.read_text())
    values["privacy"]["dp"]["noise"]["epsilon"] = 80.0
    file.write_text(json.dumps(values))
    with pytest.raises(ApprovalError, match="not the one"):
        kept.plan(name)
    file.write_text("{")
    with pytest.raises(ApprovalError, match="damaged"):
        kept.plan(name)
    kept.discard(name)
    with pytest.raises(ApprovalError, match="no such plan"):
        kept.plan(name)
    with pytest.raises(ApprovalError, match="no hash"):
        kept.plan("../approvals")
    assert kept.waiting(policy=POLICY) == ()


@pytest.mark.parametrize("name", ["pneumonia-28", "pneumonia-28-private-local", "hippocampus-2d-private-monet"])
def test_plans_come_out_of_the_inbox_as_they_went_in(tmp_path, name):
    kept = approvals(tmp_path)
    assert kept.plan(kept.receive(load_plan(name))).digest() == load_plan(name).digest()


def test_what_is_decided_no_longer_waits(tmp_path):
    kept = approvals(tmp_path)
    name = kept.receive(load_plan("phantom-private"))
    kept.approve(name, by="policy", at=NOW, policy=POLICY, rule="policy")
    assert kept.waiting(policy=POLICY) == ()
    assert kept.waiting(policy=NEWER) == (name,)
    kept.revoke(name, by="A", at=NOW, policy=POLICY)
    assert kept.waiting(policy=NEWER) == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":2}', b'{"decisions":[{}]}', b"\xff", b"[" * 99999])
def test_a_damaged_file_approves_nothing(tmp_path, content):
    (tmp_path / "approvals.json").write_bytes(content)
    for act in (
        lambda kept: kept.state("1" * 64, policy=POLICY),
        lambda kept: kept.require("1" * 64, policy=POLICY),
        lambda kept: kept.approve("1" * 64, by="A", at=NOW, policy=POLICY),
    ):
        with pytest.raises(ApprovalError):
            act(approvals(tmp_path))
    assert (tmp_path / "approvals.json").read_bytes() == content


@pytest.mark.parametrize("change", [{"plan_hash": "12"}, {"by": ""}, {"at": datetime(2026, 1, 1)}, {"policy": ""}])  # noqa: DTZ001
def test_a_decision_says_who_when_and_what(tmp_path, change):
    with pytest.raises(ConfigError):
        approvals(tmp_path).approve(**{"plan_hash": "1" * 64, "by": "A", "at": NOW, "policy": POLICY, **change})
    assert not (tmp_path / "approvals.json").exists()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    kept = approvals(tmp_path)
    kept.approve("1" * 64, by="A", at=NOW, policy=POLICY)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ApprovalError, match="No space left"):
        kept.revoke("1" * 64, by="B", at=NOW, policy=POLICY)
    monkeypatch.undo()
    assert kept.state("1" * 64, policy=POLICY) == "approved"
    assert (tmp_path / "approvals.json").stat().st_mode & 0o777 == 0o600


def test_writers_do_not_lose_each_others_decisions(tmp_path):
    """Each opens and locks the file on its own, as processes do."""

    def write(start):
        for number in range(start, start + 10):
            approvals(tmp_path).approve(f"{number:064x}", by="A", at=NOW, policy=POLICY)

    writers = [threading.Thread(target=write, args=(start,)) for start in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(approvals(tmp_path).history()) == 30
