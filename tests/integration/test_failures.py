"""What a run does when a reference fails, or a person presses Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

from medveil.errors import DivergedError
from medveil.study import train as study_train
from medveil.study.train import train


def test_a_reference_that_diverges_is_recorded_and_the_run_goes_on(small_plan, tmp_path, monkeypatch):
    honest = study_train.train_alone

    def fails_for_site_2(shop, party, arm, **settings):
        if arm == "local_only/site-2":
            raise DivergedError("The training diverged")
        return honest(shop, party, arm, **settings)

    monkeypatch.setattr(study_train, "train_alone", fails_for_site_2)
    record = train(small_plan("federation.rounds=1"), tmp_path / "run")
    assert record["references"]["failed"] == {"local_only/site-2": "The training diverged"}
    assert set(record["references"]["local_only"]["per_site"]) == {"site-1", "site-3"}
    assert record["references"]["central"]["auc"] is not None


@pytest.mark.slow
def test_ctrl_c_ends_the_references_at_once_and_the_run_goes_on_later(small_plan_file, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "medveil", "train", str(small_plan_file), "--out", str(out), "--no-report", "-q"]
    long = ["--set", "federation.rounds=30"]
    process = subprocess.Popen([*command, *long], stderr=subprocess.PIPE, text=True)
    while not (out / "state" / "central.safetensors").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    begun = time.perf_counter()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert time.perf_counter() - begun < 5
    assert "Run the same command again" in said
    assert subprocess.run([*command, *long], check=False).returncode == 0
