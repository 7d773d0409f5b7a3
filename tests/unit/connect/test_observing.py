"""What can be watched at a site and a server: in words, in figures, and nothing about patients."""

import json
import math
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from medveil.connect import mlflow_export, observing
from medveil.connect.kit import read_kit
from medveil.connect.metrics_page import metrics_page, serve_metrics
from medveil.connect.observing import LEAST_S, SiteObserver, coarse, progress_lines
from medveil.connect.provision import provision
from medveil.errors import ConfigError, RunError

HASH = "ab" * 32


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    (folder / "federation.toml").write_text(
        """
name = "demo"
server = { host = "localhost", port = 8153, org = "hub" }
sites = [{ name = "site-1", org = "a" }]
users = [{ name = "lead@a.org", org = "a", role = "lead" }]
"""
    )
    return provision(folder)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when it is told to."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(observing.time, "perf_counter", made)
    return made


def progress(folder):
    return json.loads((folder / "progress.json").read_text(encoding="utf-8"))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def watched(folder, *, private):
    observer = SiteObserver(folder, "job-1")
    observer.plan("chest", HASH, 3, private=private)
    return observer


def train(observer, clock, number, *, compute, secure=0.0):
    """A round: a task that is computed and masked, then one message of the secure sum."""
    observer.step(number)
    with observer.message(1000) as message:
        clock.now += compute + secure
        observer.secure_sum(secure)
        message.sent(400)
    with observer.message(50) as message:
        clock.now += secure
        observer.secure_sum(secure)
        message.sent(20)


@given(st.floats(1e-6, 1e4))
def test_coarse_times_are_powers_of_two_within_a_factor_of_two_above(seconds):
    told = coarse(seconds)
    assert math.frexp(told)[0] == 0.5
    assert told >= seconds or math.isclose(told, seconds)
    assert told < 2 * seconds or told == LEAST_S


def test_nothing_measured_is_the_least_time():
    assert coarse(0.0) == coarse(-1.0) == LEAST_S == 1 / 64


def test_a_step_is_told_when_the_next_begins_or_the_job_ends(tmp_path, clock):
    observer = watched(tmp_path, private=False)
    train(observer, clock, 1, compute=0.3, secure=0.125)
    assert not (tmp_path / "metrics.jsonl").exists()
    train(observer, clock, 2, compute=0.7)
    observer.finished()
    first, second = lines(tmp_path)
    assert (first["round"], second["round"]) == (1, 2)
    assert first["compute_seconds"] == pytest.approx(0.3)
    assert first["secure_sum_seconds"] == pytest.approx(0.25)
    assert (first["bytes_received"], first["bytes_sent"]) == (1050, 420)
    assert second["compute_seconds"] == pytest.approx(0.7)
    assert first["seconds_are"] == "measured"
    totals = progress(tmp_path)["totals"]
    assert (totals["steps"], totals["bytes_received"], totals["bytes_sent"]) == (2, 2100, 840)
    assert totals["compute_seconds"] == pytest.approx(1.0)


def test_what_follows_the_training_is_of_no_step(tmp_path, clock):
    observer = watched(tmp_path, private=False)
    train(observer, clock, 1, compute=0.25)
    observer.trained()
    with observer.message(10):
        clock.now += 9
    observer.finished()
    (line,) = lines(tmp_path)
    assert line["compute_seconds"] == pytest.approx(0.25)
    assert progress(tmp_path)["totals"]["bytes_received"] == 1060


def test_under_differential_privacy_unlike_batches_leave_the_same_lines(tmp_path, clock):
    """The time of a step follows the number of images drawn for it, which must not be told."""
    told = []
    for images in (40, 61):
        folder = tmp_path / str(images)
        folder.mkdir()
        observer = watched(folder, private=True)
        train(observer, clock, 1, compute=0.004 * images, secure=0.0001 * images)
        observer.finished()
        (line,) = lines(folder)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d\+00:00", line["at"])  # the next line's would tell the time too
        totals = progress(folder)["totals"]
        told.append([{key: value for key, value in line.items() if key != "at"}, totals])
    assert told[0] == told[1]
    assert told[0][0]["compute_seconds"] == 0.25
    assert told[0][0]["seconds_are"] == "at most"


def test_without_differential_privacy_the_same_batches_differ(tmp_path, clock):
    seconds = []
    for images in (40, 61):
        folder = tmp_path / str(images)
        folder.mkdir()
        observer = watched(folder, private=False)
        train(observer, clock, 1, compute=0.004 * images)
        observer.finished()
        seconds.append(lines(folder)[0]["compute_seconds"])
    assert seconds[0] != seconds[1]


def test_a_plan_counts_as_private_until_it_is_known(tmp_path, clock):
    observer = SiteObserver(tmp_path, "job-1")
    train(observer, clock, 1, compute=0.3)
    observer.finished()
    assert lines(tmp_path)[0]["compute_seconds"] == 0.5


def test_a_step_that_fails_is_told(tmp_path, clock):
    observer = watched(tmp_path, private=False)
    observer.step(1)

    def fail():
        with observer.message(10):
            clock.now += 0.5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    observer.stopped("The disk is full")
    assert lines(tmp_path)[0]["compute_seconds"] == pytest.approx(0.5)
    assert progress(tmp_path)["state"] == "stopped"


def test_progress_in_words(tmp_path, caplog):
    caplog.set_level("INFO")
    observer = SiteObserver(tmp_path, "job-1")
    assert progress(tmp_path)["stands"] == "received a job"
    observer.plan("chest", HASH, 3, private=True)
    observer.awaits_approval()
    assert "waiting for approval of plan abababababab" in progress_lines(tmp_path)[0]
    observer.begun(2, 7, 3)
    assert progress(tmp_path)["stands"] == "taking part again, from round 7 on, attempt 2, one of 3 sites"
    observer.finished()
    assert progress(tmp_path)["state"] == "finished"
    told = [record.getMessage() for record in caplog.records]
    assert told[-1] == "took part until the server ended the run"
    assert len(told) == 4


def test_a_silent_server_is_told_once_and_so_is_its_return(tmp_path, caplog):
    caplog.set_level("INFO")
    observer = SiteObserver(tmp_path, "job-1")
    for seconds in (0.1, 14.9, 15.2, 15.4, 30.0):
        observer.server_silent(seconds)
    assert progress(tmp_path)["server"] == "silent"
    assert "nothing is heard of the server" in progress_lines(tmp_path)[0]
    observer.server_silent(0.2)
    observer.server_silent(0.1)
    assert progress(tmp_path)["server"] == "heard of"
    assert [record.getMessage() for record in caplog.records] == [
        "nothing was heard of the server for 15 s; waiting for it",
        "the server is heard of again",
    ]
    assert progress(tmp_path)["totals"]["server_lost"] == 1


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path, clock):
    observer = watched(tmp_path / "missing", private=True)
    train(observer, clock, 1, compute=0.1)
    observer.finished()
    assert not (tmp_path / "missing").exists()
    assert progress_lines(tmp_path / "missing") == []


def test_the_metrics_do_not_grow_for_ever(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(observing, "_MOST_BYTES", 2000)
    observer = watched(tmp_path, private=True)
    for number in range(1, 101):
        train(observer, clock, number, compute=0.1)
    observer.finished()
    sizes = [path.stat().st_size for path in tmp_path.glob("metrics.jsonl*")]
    assert len(sizes) == 2
    assert max(sizes) < 2500


def test_steps_from_several_threads_are_all_counted(tmp_path):
    observer = watched(tmp_path, private=True)

    def work():
        for _ in range(200):
            with observer.message(1) as message:
                message.sent(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.finished()
    assert progress(tmp_path)["totals"]["bytes_received"] == 800


def samples(page):
    """Prometheus's own grammar, as far as it is used: name, labels, value."""
    found = {}
    for line in page.splitlines():
        if line.startswith("#"):
            assert line.split()[1] in {"HELP", "TYPE"}
            continue
        key, value = line.rsplit(" ", 1)
        assert key not in found
        found[key] = float(value)
    return found


def test_the_page_of_a_site(kits, clock):
    home = kits["site-1"] / "medveil"
    observer = watched(home, private=True)
    observer.step(1)
    train(observer, clock, 2, compute=0.3)
    observer.finished()
    observer = watched(home, private=True)
    observer.server_silent(20)
    found = samples(metrics_page(read_kit(kits["site-1"], "site")))
    assert found["medveil_site_server_silent"] == 1
    assert found["medveil_site_running"] == 1
    assert found["medveil_site_server_lost_total"] == 1
    assert found['medveil_site_rounds{plan="abababababab"}'] == 3
    assert found["medveil_certificate_expires_seconds"] > 1.7e9
    observer.finished()
    assert samples(metrics_page(read_kit(kits["site-1"], "site")))["medveil_site_server_silent"] == 0


def test_the_page_of_a_server(kits):
    home = kits["server"] / "medveil"
    run = home / "runs" / "chest-0123"
    run.mkdir(parents=True)
    (home / "jobs").mkdir()
    for number, status in enumerate(["again", "again", "done"]):
        (home / "jobs" / f"{number}.json").write_text(json.dumps({"status": status, "of": "0", "attempt": 1}))
    (run / "progress.json").write_text(json.dumps({"round": 4, "rounds": 9, "stands": "training", "sites": {}}))
    rows = [{"round": number, "seconds": 0.5 * number, "sites": 3, "validation": {"auc": 0.9}} for number in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"round": 3, "sec')
    happened = [("lost", "site-2"), ("joined", "site-1"), ("lost", "site-2"), ("note", None)]
    (run / "events.jsonl").write_text(
        "".join(json.dumps({"what": what, "site": site, "text": 'a "secret"'}) + "\n" for what, site in happened)
    )
    page = metrics_page(read_kit(kits["server"], "server"))
    found = samples(page)
    assert found['medveil_run_round{run="chest-0123"}'] == 4
    assert found['medveil_run_seconds{run="chest-0123"}'] == 1.0
    assert found['medveil_run_finished{run="chest-0123"}'] == 0
    assert found['medveil_run_events_total{run="chest-0123",what="lost",site="site-2"}'] == 2
    assert found['medveil_jobs{status="again"}'] == 2
    assert "auc" not in page
    assert "secret" not in page
    (run / "progress.json").write_text('{"rou')
    assert "medveil_run_round" not in metrics_page(read_kit(kits["server"], "server"))


def test_the_page_is_served_on_this_machine_only(kits):
    listener = serve_metrics(kits["site-1"], 0)
    try:
        assert listener.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{listener.server_port}"
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "medveil_info" in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/medveil/identity.key", timeout=5)
        assert refused.value.code == 404
        refused.value.close()
        with pytest.raises(ConfigError, match="cannot be served"):
            serve_metrics(kits["site-1"], listener.server_port)
    finally:
        listener.shutdown()
        listener.server_close()


def test_a_person_has_no_page(kits):
    with pytest.raises(ConfigError, match="no metrics"):
        serve_metrics(kits["lead@a.org"], 0)
    with pytest.raises(ConfigError, match="no kit"):
        serve_metrics(Path("/"), 0)


@pytest.mark.parametrize("store", ["", "sqlite:///", "http://tracking.example:5000", "postgresql://x/y", "file:///x"])
def test_only_a_file_of_this_machine_can_be_a_store(tmp_path, store):
    with pytest.raises(ConfigError, match="no SQLite store"):
        mlflow_export.export_mlflow(tmp_path, store)


def test_a_run_that_is_not_finished_is_not_exported(tmp_path):
    with pytest.raises(RunError):
        mlflow_export.export_mlflow(tmp_path, f"sqlite:///{tmp_path}/runs.db")


def test_without_mlflow_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "plan.json").write_text('{"plan": {}}')
    monkeypatch.setattr(mlflow_export, "verify_manifest", lambda _run: None)
    monkeypatch.setattr(mlflow_export, "import_module", missing)
    with pytest.raises(ConfigError, match=r"medveil\[mlflow\]"):
        mlflow_export.export_mlflow(tmp_path, f"sqlite:///{tmp_path}/runs.db")


RECORD = {
    "test": {"auc": {"value": 0.9, "low": 0.8, "high": None, "reason": None}, "per_site": {}, "per_subgroup": {}},
    "privacy": {"epsilon": 8.0, "epsilon_server": None},
    "cost": {
        "seconds": 2.5,
        "peak_memory_mb": 100.0,
        "rounds": 7,
        "bytes_sent_per_site": {"site-1": 5},
        "bytes_received_per_site": {},
    },
}


def test_figures_for_mlflow_are_those_of_the_record(tmp_path):
    row = {"arm": "federated", "round": 2, "seconds": 0.5, "sites": 3, "train_loss": None, "validation": {"auc": 0.7}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    rows = mlflow_export._metrics(RECORD, mlflow_export.RunFolder(tmp_path))
    assert rows == [
        ("test/auc", 0.9, 2500, 7),
        ("test/auc_low", 0.8, 2500, 7),
        ("privacy/epsilon", 8.0, 2500, 7),
        ("cost/seconds", 2.5, 2500, 7),
        ("cost/peak_memory_mb", 100.0, 2500, 7),
        ("cost/bytes_sent_per_site/site-1", 5.0, 2500, 7),
        ("federated/sites", 3.0, 500, 2),
        ("federated/validation_auc", 0.7, 500, 2),
    ]


def test_a_plan_for_mlflow_is_flat():
    plan = {"a": {"b": 1, "c": None, "d": {"e": [1, 2]}}, "f": "text"}
    assert mlflow_export._flat(plan) == {"a.b": "1", "a.d.e": "[1, 2]", "f": "text"}
