"""The whole way as a user goes it: three sites with certificates on this machine, and what a person does with them.

First a trial in which a site that the run cannot spare is killed, and the server after it; then the same federation
with the verbs one by one.
"""

import copy
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from safetensors.numpy import load_file
from verbs import run, running, until

from medveil.accounting.events import flatten
from medveil.accounting.ledger import Ledger
from medveil.cli.main import main
from medveil.connect import mlflow_export
from medveil.connect.audit_verify import LogBreakError
from medveil.connect.deciding import verify_site_log
from medveil.connect.home import Home
from medveil.errors import FederationError
from medveil.study.plan import load_plan

pytestmark = pytest.mark.slow
ROUNDS = 16
SITES = ("scanner-1", "scanner-2", "scanner-3")
SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "record.schema.json"
LEAD = "lead@example.org"
# No site can be spared, and the noise of two runs is the same, so that their weights can be compared bit by bit.
PLAN = f"""
name = "trial"
task = "classification"
seed = 1
[data]
partition = {{ kind = "natural", column = "scanner" }}
[data.preprocess]
channels = "grey"
size = [32, 32]
[data.splits]
kind = "random"
test = 0.25
validation = 0.1
[model]
kind = "scattering"
positions = [5, 5]
[federation]
rounds = {ROUNDS}
algorithm = {{ kind = "fedsgd" }}
weighting = "equal"
validate_every = 8
ema = 0.9
[training]
optimiser = {{ kind = "sgd", lr = 0.1, momentum = 0.9 }}
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-2
trusted = "nobody"
held_out = "public"
[privacy.secure_aggregation]
colluding = 1
dropouts = 0
[privacy.dp]
kind = "distributed"
sampling = {{ rate = 0.25, nominal_units = {{ scanner-1 = 20, scanner-2 = 20, scanner-3 = 20 }} }}
clipping = {{ kind = "flat", l2_clip_norm = 2.0 }}
noise = {{ multiplier = 2.0, generator = "seeded" }}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    from planted import SOURCE, write_patients

    folder = tmp_path_factory.mktemp("plan")
    write_patients(folder, count=90, scanners=3)
    (folder / "trial.toml").write_text(PLAN + SOURCE)
    return folder / "trial.toml"


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    """The same plan in one process: its folder and record."""
    from medveil.study.train import train

    torch.set_num_threads(1)  # as in every process of medveil, so that no sum depends on the number of cores
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, train(load_plan(plan), folder)


@pytest.fixture(scope="module")
def trial(plan, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path_factory.mktemp("federation")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "medveil", "connect", "trial", str(plan), "--out", str(out)),
            *("--port", str(port), "--kill", "scanner-2@step:3", "--kill", "server@step:8", "--timeout", "500"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for victim in ("scanner-2", "server"):
        assert f"killing {victim} after round" in done.stderr
        assert f"starting {victim} again" in done.stderr
    return out


@pytest.fixture(scope="module")
def traces(plan, alone):
    """What would tell of a patient, the scores of the finished model among it."""
    from planted import traces_of

    from medveil.data.sources import load
    from medveil.models.weights import load_weights
    from medveil.study.arms import build_model
    from medveil.study.prepare import prepare
    from medveil.study.scoring import Scorer
    from medveil.training.device import choose_device

    read = load_plan(plan)
    prepared = prepare(read)
    model = build_model(read, prepared.input_shape, prepared.num_classes)
    load_weights(model, alone[0] / "weights.safetensors")
    scorer = Scorer(read, prepared.dataset.class_names, choose_device("cpu"))
    subjects = load(read.data.source, read.data.preprocess, root=read.data_root).subjects
    return traces_of(subjects, scorer.predict(model, prepared.test.data))


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def weights_of(folder):
    """Bytes of the final weights, without what the file says about the plan."""
    return {name: value.tobytes() for name, value in load_file(folder / "weights.safetensors").items()}


def test_the_final_weights_are_bit_by_bit_those_of_one_process(trial, alone):
    """Over the real engine, with a site and the server killed on the way: all seeds are the plan's."""
    assert weights_of(trial / "run") == weights_of(alone[0])


def test_the_weights_of_a_run_with_other_noise_differ(plan, alone, tmp_path):
    """What the test above compares can differ at all."""
    from medveil.study.train import train

    train(load_plan(plan, ["privacy.dp.noise.multiplier=2.1"]), tmp_path / "run")
    assert weights_of(tmp_path / "run") != weights_of(alone[0])


def test_the_record_is_that_of_a_run_in_one_process_and_says_what_happened(trial, alone):
    record, local = record_of(trial / "run"), alone[1]
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record.keys() - local.keys() == {"events"}
    assert local.keys() - record.keys() == set()
    assert (record["transport"], local["transport"]) == ("nvflare", "in-process")
    for part in ("name", "task", "seed", "plan_hash", "model", "schema_version"):
        assert record[part] == local[part]
    assert record["training"]["rounds_run"] == local["training"]["rounds_run"] == ROUNDS
    assert record["training"]["lost_sites"] == {}
    claims = [{key: value for key, value in one["privacy"].items() if key != "ledgers"} for one in (record, local)]
    assert claims[0] == claims[1]
    assert record["privacy"]["steps"] == ROUNDS
    assert record["privacy"]["stamp"] is not None  # noise from a seed protects nobody, and the record says so
    assert record["privacy"]["ledgers"].keys() == local["privacy"]["ledgers"].keys() == set(SITES)
    assert record["details"]["num_subjects"] == local["details"]["num_subjects"] > 0
    (lost,) = [event for event in record["events"] if event["what"] == "lost"]
    assert lost["site"] == "scanner-2"
    assert 3 <= lost["round"] < ROUNDS
    assert (trial / "run" / "report.html").stat().st_size > 10_000


def test_the_record_tells_that_the_server_was_killed(trial):
    (back,) = [event for event in record_of(trial / "run")["events"] if event["what"] == "server-back"]
    assert back["site"] is None
    assert 7 <= back["round"] < ROUNDS  # killed in round 8 or later; in round 8, seven are committed
    assert back["text"].endswith(f"the run goes on after round {back['round']}")


def test_the_run_went_on_in_further_jobs(trial):
    (memory,) = (trial / "kits" / "server" / "medveil" / "runs").glob("*/state/network.json")
    joined = [event for event in record_of(trial / "run")["events"] if event["what"] == "joined"]
    attempts = json.loads(memory.read_text())["attempt"]
    assert attempts >= 2
    assert [event["site"] for event in joined].count("scanner-1") == attempts


def test_no_step_was_charged_twice(trial):
    (memory,) = (trial / "kits" / "server" / "medveil" / "runs").glob("*/state/run-id")
    run = memory.read_text().strip()
    for site in SITES:
        (path,) = (trial / "kits" / site / "medveil" / "ledger").glob("*.sqlite")
        with Ledger(path, create=False) as ledger:
            event = ledger.charged(run, "planted")
            assert sum(count for _, count in flatten(event)) == ROUNDS


def test_every_site_has_an_unbroken_log_that_says_what_it_did(trial):
    for site in SITES:
        kit = trial / "kits" / site
        verified = verify_site_log(kit)
        lines = [json.loads(line) for line in Home(kit).audit_path.read_text().splitlines()]
        assert verified.lines == len(lines)
        assert {
            *("plan-received", "plan-approved", "plan-accepted", "step-asked", "sum-opened", "ledger-closed"),
        } <= {line["event"] for line in lines}


def test_a_changed_line_is_named(trial):
    kit = trial / "kits" / "scanner-3"
    path = Home(kit).audit_path
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    try:
        path.write_text("".join([*lines[:4], lines[4].replace('"number":5', '"number":6'), *lines[5:]]))
        with pytest.raises(LogBreakError) as broken:
            verify_site_log(kit)
        assert broken.value.line == 5
    finally:
        path.write_text(before)


def test_the_verbs_one_by_one(trial, plan, traces, tmp_path):
    """The federation is started again as it stands, with a hospital that decides for itself."""
    kits, lead = trial / "kits", trial / "kits" / LEAD
    roster = json.loads((kits / "server" / "medveil" / "roster.json").read_text())["sites"]
    assert run("identity", kits / "scanner-3").strip() == roster["scanner-3"]
    policy = kits / "scanner-3" / "medveil" / "policy.toml"
    policy.write_text(policy.read_text().replace('rule = "policy"', 'rule = "person"'))
    (again, _) = run("approve", kits / "scanner-3").splitlines()
    assert again == load_plan(plan).digest()  # what the rule had approved, lapsed with the policy

    def stands():
        try:
            return json.loads(run("status", lead, "--json"))
        except FederationError:  # the server is still starting
            return {"sites": [], "jobs": []}

    def connected():
        return {row["site"] for row in stands()["sites"]}

    with running(kits, ("server", *SITES)) as pages:
        until(lambda: connected() == set(SITES), every_s=3)
        told = run("submit", plan, "--kit", lead, "--set", "federation.rounds=2")
        plan_hash = load_plan(plan, ["federation.rounds=2"]).digest()
        assert f"hash {plan_hash}\n" in told
        job = told.split("Job ")[1].split()[0]

        waiting = until(lambda: text if plan_hash in (text := run("approve", kits / "scanner-3")) else None)
        assert "NOT PRIVATE" in waiting  # who approves is told that the noise comes from a seed
        assert run("approve", kits / "scanner-1") == "No plan waits for a decision.\n"
        assert plan_hash in run("status", kits / "scanner-3")
        assert not list((kits / "server" / "medveil" / "runs").glob("*/manifest.json"))[1:]
        told = run("approve", kits / "scanner-3", plan_hash[:16], "--by", "data officer")
        assert told == f"approved: {plan_hash} by data officer\n"
        lines = [json.loads(line) for line in Home(kits / "scanner-3").audit_path.read_text().splitlines()]
        approved = [line["facts"] for line in lines if line["event"] == "plan-approved"][-1]
        assert (approved["plan"], approved["by"], approved["rule"]) == (plan_hash, "data officer", "person")

        until(lambda: {row["job"]: row["status"] for row in stands()["jobs"]}[job] == "FINISHED:COMPLETED", every_s=3)
        assert f"Report: {tmp_path / 'fetched'}" in run("fetch", lead, job, "--out", tmp_path / "fetched")
        fetched = record_of(tmp_path / "fetched")
        assert (fetched["plan_hash"], fetched["training"]["rounds_run"]) == (plan_hash, 2)
        assert "trial-" in run("status", kits / "server")
        assert "done (at 20" in run("status", kits / "server")
        assert len(run("logs", kits / "server", "-n", "5").splitlines()) == 5
        server_log = run("logs", lead, job, "-n", "1000")
        assert "connected to" in server_log

        head = run("verify-log", kits / "scanner-3").split("head ")[1].strip()
        assert head in run("verify-log", kits / "scanner-3", "--expect", head)

        for name, address in pages.items():
            with urllib.request.urlopen(address, timeout=20) as answer:
                page = answer.read()
            assert b"medveil_info" in page
            assert traces.found(page) == set()
            assert (b"medveil_run_finished" if name == "server" else b"medveil_site_steps_total") in page

        assert run("revoke", trial, "scanner-2").startswith("scanner-2 is revoked.\n")
        until(lambda: connected() == {"scanner-1", "scanner-3"}, every_s=3)
    assert traces.found(server_log.encode()) == set()


def test_no_patient_is_in_anything_that_was_written(trial, traces):
    """Logs, events, metrics, ledgers, records, reports, the engine's own files: everything but the sites' data."""
    from planted import search

    found, count = search(traces, [trial / "kits", trial / "run", trial / "ca"])
    assert found == {}
    names = {path.name for path in (trial / "kits").rglob("*")}
    assert count > 100
    assert {"log.txt", "audit.jsonl", "metrics.jsonl", "events.jsonl", "progress.json", "output.txt"} <= names


def test_the_search_finds_patients_where_they_are(trial, plan, alone, traces, tmp_path):
    from planted import BORN, FILE, ID, search

    assert len(traces.scores) >= 8
    shares, count = search(traces, [trial / "data"])
    assert (len(shares), count) == (3, 3)
    assert all(kinds == {"pseudonym", BORN, "digest", "pixels"} for kinds in shares.values())
    assert search(traces, [plan.parent / "patients"])[0][plan.parent / "patients" / "table.csv"] == {ID, FILE, BORN}
    told = tmp_path / "log.txt"
    for text in (f"cannot read {FILE.upper()}1.png", json.dumps([round(score, 6) for score in traces.scores])):
        told.write_text(text)
        assert list(search(traces, [tmp_path])[0]) == [told]
    (tmp_path / "log.txt").write_text("nothing")
    assert search(traces, [tmp_path]) == ({}, 1)


class Store:
    """Takes what MLflow's client is given."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        def call(*positional, **named):
            self.told.append((name, positional, copy.deepcopy(named)))
            return SimpleNamespace(experiment_id="1", info=SimpleNamespace(run_id="r1"))

        return call


def test_what_is_exported_to_mlflow_is_of_the_record_and_of_no_patient(trial, traces, tmp_path, monkeypatch):
    store = Store()
    modules = {
        "mlflow.entities": SimpleNamespace(Metric=lambda *row: row, Param=lambda *row: row, RunTag=lambda *row: row),
        "mlflow.tracking": SimpleNamespace(MlflowClient=lambda tracking_uri: store),
    }
    monkeypatch.setattr(mlflow_export, "import_module", modules.__getitem__)
    assert mlflow_export.export_mlflow(trial / "run", f"sqlite:///{tmp_path}/runs.db") == "r1"
    given = [row for _, _, named in store.told for rows in named.values() if isinstance(rows, list) for row in rows]
    told = {row[0]: row[1] for row in given}
    record = record_of(trial / "run")
    assert told["privacy/epsilon"] == record["privacy"]["epsilon"]
    assert told["test/auc"] == record["test"]["auc"]["value"]
    assert told["medveil.plan_hash"] == record["plan_hash"]
    assert told["federation.rounds"] == str(ROUNDS)
    assert traces.found(json.dumps(given).encode()) == set()


def test_without_mlflow_the_export_says_how_to_get_it(trial, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(SystemExit) as ended:
        main(["connect", "export-mlflow", str(trial / "run"), "--store", f"sqlite:///{tmp_path}/runs.db"])
    assert ended.value.code == 2
    assert 'Remedy: pip install "medveil[mlflow]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_process_is_left(trial):
    found = subprocess.run(["pgrep", "-f", str(trial)], capture_output=True, text=True, check=False)
    assert found.stdout == ""
