"""The grid of runs, as a user would make it: killed, used again, refused, failed; its table recomputed by hand."""

import csv
import json
import math
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from PIL import Image

import tiny_plans
from medveil.accounting.ledger import Ledger
from medveil.cli.main import cli
from medveil.errors import DataError, DivergedError, ManifestError, MissingDataError, ResumeError, RunError
from medveil.federation.local import LocalWork
from medveil.study import grid_runs
from medveil.study.epsilon_grid import epsilon_grid
from medveil.study.plan import load_plan
from tiny_plans import merged

CENTRAL = merged(
    tiny_plans.CENTRAL,
    """
name = "central"
seed = 0
[data]
partition = { kind = "iid", sites = 2 }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[data.source]
subjects = 80
scanners = 2
[federation]
rounds = 3
[evaluation]
bootstrap = { resamples = 0 }
threshold = 0.5
[privacy.dp]
sampling = { rate = 0.3, nominal_units = 40 }
noise = { multiplier = 1.0 }
""",
)
LOCAL = merged(
    CENTRAL,
    tiny_plans.LOCAL,
    """
name = "local"
[federation]
algorithm = { kind = "fedavg", local_steps = 2 }
""",
)

LONG = 80
"""Rounds of a grid that is stopped in the midst."""


@pytest.fixture
def plan_of(write_plan):
    """``plan_of(text, "federation.rounds=1")`` reads a plan."""

    def make(text=CENTRAL, *overrides):
        return load_plan(write_plan(text), overrides)

    return make


def _records(out):
    return {path.parent.relative_to(out).parts: json.loads(path.read_text()) for path in out.glob("*/*/*/record.json")}


def test_the_tables_say_what_the_records_say(plan_of, tmp_path):
    out, ledgers = tmp_path / "grid", tmp_path / "ledgers"
    plans = [plan_of(CENTRAL), plan_of(LOCAL)]
    grid = epsilon_grid(plans, out, epsilons=(2.0, None), seeds=(1, 4), ledgers=ledgers)
    records = _records(out)
    assert len(records) == len(grid.runs) == 8
    table = json.loads((out / "table.json").read_text())
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(table["rows"]) == len(lines) == 4
    for row, line in zip(table["rows"], lines, strict=True):
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:g}"
        assert (line["plan"], float(line["epsilon"]) if epsilon != "none" else None) == (row["plan"], row["epsilon"])
        found = [records[row["plan"], f"eps-{epsilon}", f"seed-{seed}"] for seed in (1, 4)]
        assert [record["seed"] for record in found] == row["seeds"] == [1, 4]
        for metric in ("auc", "balanced_accuracy"):
            one, two = (record["test"][metric]["value"] for record in found)
            expected = {
                "mean": (one + two) / 2,
                "sd": abs(one - two) / math.sqrt(2),
                "low": min(one, two),
                "high": max(one, two),
            }
            for part, value in expected.items():
                assert row["metrics"][metric][part] == pytest.approx(value)
                assert float(line[f"{metric}_{part}"]) == pytest.approx(value)
        if row["epsilon"] is None:
            assert all(record["privacy"] is None for record in found)
            assert row["epsilon_reached"] is row["noise_multiplier"] is None
        else:
            assert row["epsilon_reached"] == max(record["privacy"]["epsilon"] for record in found) <= row["epsilon"]
            assert row["epsilon_reached"] == pytest.approx(row["epsilon"], rel=0.01)
            assert row["noise_multiplier"] == found[0]["privacy"]["noise_multiplier"]
            assert row["stamp"] is None
    _assert_the_cost_is_told(table, out, ledgers, records)


def _assert_the_cost_is_told(table, out, ledgers, records):
    (together,) = table["spending"]["together"]
    assert together["runs"] == 4
    private = [record["privacy"]["epsilon"] for record in records.values() if record["privacy"]]
    assert max(private) < together["epsilon"] <= sum(private)
    assert table["spending"]["unprotected"] == 4
    text = (out / "table.md").read_text()
    assert "The same patients were used 4 times" in text
    assert f"at most epsilon {together['epsilon']:.3g}" in text
    assert "4 runs without differential privacy" in text
    with Ledger(ledgers / "pool.sqlite") as pool:
        spent = pool.spent("phantom-classification", delta=1e-3)
    assert len(spent.runs) == 2
    assert together["ledgers"] >= spent.epsilon > max(private)


def test_finished_runs_are_verified_and_used_again(plan_of, tmp_path):
    out = tmp_path / "grid"
    first = epsilon_grid([plan_of()], out, epsilons=(2.0,), seeds=(1,))
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*.safetensors")}
    again = epsilon_grid([plan_of()], out, epsilons=(2.0, 5.0), seeds=(1,))
    assert stamps
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.runs[0] == first.runs[0]
    assert again.spending.together[0].runs == 2
    alone = epsilon_grid([plan_of()], out, epsilons=(5.0,), seeds=(1,))
    assert alone.spending.together[0].runs == 2  # the other run of the folder saw the same patients
    record = out / "central" / "eps-2" / "seed-1" / "record.json"
    record.write_text(record.read_text().replace("0.", "0.9", 1))
    with pytest.raises(ManifestError):
        epsilon_grid([plan_of()], out, epsilons=(2.0,), seeds=(1,))


def test_a_changed_plan_is_refused_before_anything_is_trained(plan_of, tmp_path):
    out = tmp_path / "grid"
    epsilon_grid([plan_of()], out, epsilons=(2.0,), seeds=(1,))
    with pytest.raises(ResumeError):
        epsilon_grid([plan_of(CENTRAL, "federation.rounds=4")], out, epsilons=(9.0, 2.0), seeds=(1,))
    assert not (out / "central" / "eps-9").exists()


def test_what_fails_is_kept_with_its_reason_and_the_rest_goes_on(plan_of, tmp_path, monkeypatch):
    out, ledgers = tmp_path / "grid", tmp_path / "ledgers"
    ledgers.mkdir()
    with Ledger(ledgers / "pool.sqlite") as ledger:
        ledger.set_budget("phantom-classification", epsilon=2.5, delta=1e-3, relation="add-remove", unit="patient")
    original = LocalWork.train

    def train_or_diverge(work, *arguments):
        if work.optimiser.lr == 77:
            raise DivergedError("The training diverged")
        return original(work, *arguments)

    monkeypatch.setattr(LocalWork, "train", train_or_diverge)
    wild = plan_of(merged(CENTRAL, 'name = "wild"'), "training.optimiser.lr=77")
    grid = epsilon_grid([plan_of(), wild], out, epsilons=(1.0, 8.0, None), seeds=(1,), ledgers=ledgers)
    failed = {(run.plan, run.epsilon): run.failed for run in grid.runs}
    assert failed["central", 1.0] is None
    assert failed["central", None] is None
    assert "cap" in failed["central", 8.0]
    assert "diverged" in failed["wild", None]
    assert grid.rows[1].failed == {1: failed["central", 8.0]}
    assert grid.rows[1].metrics["auc"] is None
    text = (out / "table.md").read_text()
    assert "## Runs that failed" in text
    assert failed["wild", None] in text
    monkeypatch.setattr(grid_runs, "train", lambda *_, **__: pytest.fail("what diverged is not tried again"))
    with pytest.raises(RunError, match="No run of the grid finished"):
        epsilon_grid([wild], out, epsilons=(None,), seeds=(1,))
    assert failed["wild", None] in (out / "table.md").read_text()


def test_predictions_that_cannot_be_scored_fail_one_run_and_missing_data_stop_all(plan_of, tmp_path, monkeypatch):
    plans, out = [plan_of(), plan_of(merged(CENTRAL, 'name = "huge"'))], tmp_path / "grid"
    original = grid_runs.train

    def failing(error):
        def train(plan, *arguments, **keywords):
            if plan.name == "huge":
                raise error
            return original(plan, *arguments, **keywords)

        return train

    monkeypatch.setattr(grid_runs, "train", failing(DataError("Predictions are not probabilities")))
    failed = [run.failed for run in epsilon_grid(plans, out, epsilons=(2.0,), seeds=(1,)).runs]
    assert failed == [None, "Predictions are not probabilities."]
    monkeypatch.setattr(grid_runs, "train", failing(MissingDataError("The images are not there")))
    with pytest.raises(MissingDataError):
        epsilon_grid(plans, out, epsilons=(2.0,), seeds=(1,))


def _command(plan, out, *more):
    grid = ["study", "epsilon-grid", str(plan), "--out", str(out), "--epsilon", "2,none", "--seed-list", "1"]
    return [sys.executable, "-m", "medveil", *grid, "--set", f"federation.rounds={LONG}", *more]


def _stop_in_the_midst(command, run, end):
    """Start a grid and stop it when the run has got on; return the exit code, what was said, and the run's round."""
    before = _rounds(run)
    with _interrupts_heeded():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(_rounds(run)) < len(before) + 5:
        time.sleep(0.01)
    assert process.poll() is None  # a grid that ends before it is stopped proves nothing
    process.send_signal(end)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said, len(_rounds(run))


@contextmanager
def _interrupts_heeded():
    """A process that is begun here heeds Ctrl-C; in the background of a shell, tests inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _rounds(run):
    """Rounds that are in the metrics of a run, which a process writes anew when it begins."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["round"] for line in lines if line.endswith("}")]


@pytest.mark.slow
def test_a_grid_that_is_killed_and_interrupted_goes_on(write_plan, tmp_path):
    plan, out = write_plan(CENTRAL), tmp_path / "grid"
    run = out / "central" / "eps-2" / "seed-1"
    done = 0
    for end, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        left, said, reached = _stop_in_the_midst(_command(plan, out, "--jobs", "2"), run, end)
        assert left == code, said
        assert "Traceback" not in said
        assert done < reached < LONG
        assert not (out / "table.json").exists()
        done = reached
    answer = CliRunner().invoke(cli, _command(plan, out, "--json")[3:])
    assert answer.exit_code == 0, answer.output
    assert [row["seeds"] for row in json.loads(answer.stdout)["rows"]] == [[1], [1]]
    assert _rounds(run) == list(range(1, LONG + 1))
    record = json.loads((run / "record.json").read_text())
    steps = record["privacy"]["steps"]
    assert LONG <= steps <= LONG + 2  # of each death, at most the round in which it came is paid twice
    assert record["privacy"]["epsilon"] == json.loads(answer.stdout)["rows"][0]["epsilon_reached"]
    with Image.open(out / "epsilon-accuracy.png") as image:
        assert image.size == (1320, 880)
    svg = ET.parse(out / "epsilon-accuracy.svg").getroot()
    assert "none" in "".join(svg.itertext())
