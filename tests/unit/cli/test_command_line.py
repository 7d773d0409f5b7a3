"""The verbs, as a user types them."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from medveil.cli.main import VERBS, cli, main
from medveil.cli.output import Watcher, describe
from medveil.study.progress import Tick


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "medveil", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_help_lists_every_verb_and_exit_code():
    answer = CliRunner().invoke(cli, ["--help"])
    assert answer.exit_code == 0
    for verb, text in VERBS.items():
        assert verb in answer.output
        assert text.split()[0] in answer.output
    assert "130  interrupted" in answer.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    answer = CliRunner().invoke(cli, [verb, "--help"])
    assert answer.exit_code == 0, answer.output
    assert "Usage:" in answer.output


def test_help_is_quick():
    """Best of five, to be fair to a busy machine; the promise is 0.3 s."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        _run("--help")
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.3


def test_an_unknown_verb_and_a_missing_option_exit_with_2(tmp_path):
    assert _run("dance").returncode == 2
    answer = _run("train", "phantom")
    assert answer.returncode == 2
    assert "--out" in answer.stderr


def test_dry_run_touches_no_data(monkeypatch):
    monkeypatch.setenv("MEDVEIL_DATA", "/nowhere")
    answer = CliRunner().invoke(cli, ["train", "pneumonia-28", "--dry-run", "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.output)
    assert content["sites"] == 5
    assert content["model"]["parameters"] > 1000
    assert content["privacy"] is None


@pytest.mark.parametrize("plan", ["phantom", "pneumonia-28", "chest-xray-224", "hippocampus-2d", "hippocampus-3d"])
def test_every_shipped_plan_passes_the_dry_run(plan):
    answer = CliRunner().invoke(cli, ["train", plan, "--dry-run"])
    assert answer.exit_code == 0, answer.output
    assert "Nothing was read" in answer.output


def test_progress_in_words():
    tick = Tick("federated", 7, 20, 4, 5, "auc", 0.94, 61.0)
    assert describe(tick) == "Round 7 of 20 · 4 of 5 sites back · AUC 0.940 · 1 min left"
    alone = Tick("local_only/site-1", 2, 20, 1, 1, "dice", None, None)
    assert describe(alone) == "Reference local only/site-1: pass 2 of 20"


def test_plain_progress_is_rare_but_the_end_is_always_said(capsys):
    watcher = Watcher()
    for number in range(1, 21):
        watcher.tick(Tick("federated", number, 20, 5, 5, "auc", 0.9, 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert "Round 20 of 20" in lines[-1]
    assert len(lines) < 5


def test_completion_scripts():
    for shell in ("bash", "zsh", "fish"):
        answer = CliRunner().invoke(cli, ["completion", shell])
        assert "_MEDVEIL_COMPLETE" in answer.output


def test_doctor_finds_this_machine_sound():
    answer = CliRunner().invoke(cli, ["doctor", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(answer.output)}
    assert findings["torch"]["state"] == "ok"
    assert findings["Forward pass"]["state"] == "ok"
    assert findings["Signing key"]["state"] == "ok"
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "problem")


def test_doctor_notices_a_key_that_others_can_read(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path))
    CliRunner().invoke(cli, ["doctor"])
    (tmp_path / "signing.pem").chmod(0o644)
    answer = CliRunner().invoke(cli, ["doctor"])
    assert answer.exit_code == 1
    assert "readable by others" in answer.output


def test_data_list():
    answer = CliRunner().invoke(cli, ["data", "list", "--json"])
    assert {"pneumonia-28", "chest-xray-224", "hippocampus"} <= {row["name"] for row in json.loads(answer.output)}


def test_errors_become_exit_codes(capsys):
    with pytest.raises(SystemExit) as left:
        main(["report", "/nowhere/at/all"])
    assert left.value.code == 6
    assert "Remedy" in capsys.readouterr().err
