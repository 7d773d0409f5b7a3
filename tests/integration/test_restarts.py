"""A run that dies again and again, at every place where it writes, ends as one that never died."""

import json

import pytest

import medveil.study.train as running
from medveil.errors import DivergedError
from medveil.federation.local import LocalWork
from medveil.study import arms
from medveil.study.manifest import verify_manifest
from medveil.study.train import train

SMALL = (
    "data.source.subjects=60",
    "data.partition.sites=2",
    "references.local_only=false",
    "federation.rounds=4",
    "evaluation.bootstrap.resamples=20",
    "performance.workers=1",
)
SMALL_MASKS = (
    "data.source.subjects=16",
    "references.local_only=false",
    "evaluation.bootstrap.resamples=5",
    "performance.workers=1",
)
NEVER_BETTER = "federation.early_stopping={metric='loss', patience=3, min_delta=100.0}"
FED_SGD = ("federation.algorithm={kind='fedsgd'}", "training.optimiser={kind='adam', lr=0.02}")
MOMENTUM = "federation.algorithm={kind='fedavg', local_steps=2, server={kind='sgd', lr=0.5, momentum=0.9}}"
# Early rounds are the best: a rate that grows with the momentum overshoots.
OVERSHOOTING = ("federation.algorithm={kind='fedsgd'}", "training.optimiser={kind='sgd', lr=0.3, momentum=0.95}")
BEST = ("federation.select='best'", "federation.select_metric='loss'")

PLANS = {
    "adam everywhere": ("references.local_only=true",),
    "early stopping": ("federation.rounds=5", NEVER_BETTER),
    "select best": (*OVERSHOOTING, *BEST, "federation.rounds=6"),
    "fedsgd with adam": FED_SGD,
    "server with momentum": (MOMENTUM, "training.schedule={kind='cosine'}"),
    "norm bound": ("privacy.stages=[{kind='norm_bound', l2_norm=0.05}]",),
    "equal weights, seldom validated": ("federation.weighting='equal'", "federation.validate_every=3"),
    "all at once": (*OVERSHOOTING, *BEST, "federation.rounds=6", NEVER_BETTER, "training.augmentation.noise=0.1"),
}


class PowerCutError(Exception):
    """No error of medveil's: nothing in it may catch this."""


def _cut(monkeypatch, module, name, *, after, before_the_write=False):
    """Let ``name`` work ``after`` times, then cut the power: for good, whoever calls."""
    original, calls = getattr(module, name), []

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) > after or (before_the_write and len(calls) == after):
            raise PowerCutError
        original(*arguments, **keywords)
        if len(calls) == after:
            raise PowerCutError

    monkeypatch.setattr(module, name, failing)
    return calls


def _rows(folder):
    """The metrics without the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return sorted(rows, key=lambda row: (row["arm"], row["round"]))


def _ending(folder, record):
    """Everything of a run that must not depend on how often it died."""
    return {
        "weights": (folder / "weights.safetensors").read_bytes(),
        "references": {path.name: path.read_bytes() for path in (folder / "references").iterdir()},
        "seen": (folder / "state" / "seen.txt").read_bytes(),
        "rows": _rows(folder),
        "record": {part: record[part] for part in ("data", "model", "training", "test", "details", "references")},
    }


def _run_with_cuts(plan, folder, monkeypatch, *, every, before_the_write=False):
    """Cut the power after every ``every`` checkpoints until the run ends; return its record and the cuts."""
    for cuts in range(60):
        with monkeypatch.context() as patched:
            _cut(patched, arms, "save_snapshot", after=every, before_the_write=before_the_write)
            try:
                return train(plan, folder), cuts
            except PowerCutError:
                assert not (folder / "record.json").exists()
                if before_the_write:  # what a cut in the midst of a write leaves behind
                    (folder / "state" / "federated.safetensors.tmp").write_bytes(b"half")
    raise AssertionError("the run makes no progress")


def _assert_ends_alike(plan, tmp_path, monkeypatch, **cuts):
    straight = train(plan, tmp_path / "straight")
    broken, count = _run_with_cuts(plan, tmp_path / "broken", monkeypatch, **cuts)
    assert _ending(tmp_path / "broken", broken) == _ending(tmp_path / "straight", straight)
    assert verify_manifest(tmp_path / "broken")
    return straight, count


@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS.keys())
def test_a_run_that_dies_after_every_round_ends_alike(small_plan, tmp_path, monkeypatch, settings):
    plan = small_plan(*SMALL, *settings)
    straight, cuts = _assert_ends_alike(plan, tmp_path, monkeypatch, every=1)
    rows = _rows(tmp_path / "straight")
    assert cuts == len(rows)  # every round of every arm was the last of a process
    assert {"federated", "central"} <= {row["arm"] for row in rows}
    training = straight["training"]
    if NEVER_BETTER in settings:
        assert training["stopped_early"]
        assert training["rounds_run"] == 4  # the first validation, and patience
        assert len(rows) == 4 * 2
    if BEST[0] in settings:
        assert training["best_round"] < training["rounds_run"]


def test_segmentation_ends_alike(small_masks, tmp_path, monkeypatch):
    plan = small_masks(*SMALL_MASKS)
    _assert_ends_alike(plan, tmp_path, monkeypatch, every=1)


def test_a_round_whose_checkpoint_was_never_written_is_done_again(small_plan, tmp_path, monkeypatch):
    plan = small_plan(*SMALL, MOMENTUM, *BEST)
    _, cuts = _assert_ends_alike(plan, tmp_path, monkeypatch, every=3, before_the_write=True)
    assert cuts == 3  # of eight rounds, two a life


def test_a_site_that_was_lost_stays_lost(small_plan, tmp_path, monkeypatch):
    """The smaller site fails in round 2 and would be well again in round 3; a new process must not ask it."""
    original = LocalWork.train

    def failing(work, round_number, weights, buffers):
        if work.num_examples < 20 and round_number == 2:
            raise DivergedError("The training diverged")
        return original(work, round_number, weights, buffers)

    monkeypatch.setattr(LocalWork, "train", failing)
    partition = "data.partition={kind='quantity', fractions=[0.7, 0.3]}"
    plan = small_plan(*SMALL, partition, "federation.min_sites=1", "references.central=false")
    straight, cuts = _assert_ends_alike(plan, tmp_path, monkeypatch, every=1)
    assert cuts == 4
    assert straight["training"]["lost_sites"] == {"site-2": "The training diverged"}
    assert [row["sites"] for row in _rows(tmp_path / "straight")] == [2, 1, 1, 1]


def test_workers_that_die_together_end_alike(small_plan, tmp_path, monkeypatch):
    plan = small_plan(*SMALL, MOMENTUM, "references.local_only=true", "performance.workers=3")
    _, cuts = _assert_ends_alike(plan, tmp_path, monkeypatch, every=3)
    assert cuts >= 3


WRITES = (
    ("save_examples", 1),
    ("save_weights", 1),
    ("save_weights", 2),
    ("write_text", 1),
    ("write_json", 1),
    ("write_json", 2),
    ("write_manifest", 1),
)


@pytest.mark.parametrize("before_the_write", [True, False], ids=["before", "after"])
def test_a_run_that_dies_while_it_writes_its_results_ends_alike(small_plan, tmp_path, monkeypatch, before_the_write):
    plan = small_plan(*SMALL, "federation.rounds=1")
    straight = train(plan, tmp_path / "straight")
    for function, after in WRITES:
        with monkeypatch.context() as patched:
            calls = _cut(patched, running, function, after=after, before_the_write=before_the_write)
            with pytest.raises(PowerCutError):
                train(plan, tmp_path / "broken")
        assert calls == [function] * after
    broken = train(plan, tmp_path / "broken")
    assert _ending(tmp_path / "broken", broken) == _ending(tmp_path / "straight", straight)
    assert verify_manifest(tmp_path / "broken")
