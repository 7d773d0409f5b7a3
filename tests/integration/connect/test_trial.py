"""The whole way as a user goes it: three sites with certificates on this machine, one of them killed on the way."""

import json
import socket
import subprocess
import sys

import pytest

from medveil.connect.audit_verify import LogBreakError
from medveil.connect.deciding import verify_site_log, waiting_plans
from medveil.connect.home import Home
from medveil.connect.standing import standing

pytestmark = pytest.mark.slow
_ROUNDS = 12
_CHANGES = (
    "data.source={ kind = 'phantom', subjects = 90, scanners = 3, seed = 1, difficulty = 0.2 }",
    f"federation.rounds={_ROUNDS}",
    "federation.validate_every=6",
    "privacy.delta=1e-2",
    "privacy.dp.sampling={ rate = 0.25, nominal_units = { scanner-1 = 20, scanner-2 = 20, scanner-3 = 20 } }",
    "privacy.secure_aggregation={ colluding = 1, dropouts = 0 }",  # the run waits for the site that is killed
)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path_factory.mktemp("federation")
    changes = [word for change in _CHANGES for word in ("--set", change)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "medveil", "connect", "trial", "phantom-private", "--out", str(out)),
            *("--port", str(port), "--kill", "scanner-2@step:3", "--timeout", "400"),
            *changes,
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_record_is_that_of_a_run_in_one_process_and_says_what_happened(trial):
    record = json.loads((trial / "run" / "record.json").read_text())
    assert record["transport"] == "nvflare"
    assert record["training"]["rounds_run"] == _ROUNDS
    assert record["privacy"]["stamp"] is None
    assert record["privacy"]["steps"] == _ROUNDS
    assert record["privacy"]["epsilon"] <= record["privacy"]["epsilon_target"]
    assert set(record["privacy"]["ledgers"]) == {"scanner-1", "scanner-2", "scanner-3"}
    assert record["details"]["num_subjects"] > 0
    assert "lost" in {event["what"] for event in record["events"] if event["site"] == "scanner-2"}
    (lost,) = [event for event in record["events"] if event["what"] == "lost"]
    assert lost["round"] >= 3
    assert record["training"]["lost_sites"] == {}
    assert (trial / "run" / "report.html").stat().st_size > 10_000
    assert (trial / "run" / "weights.safetensors").exists()


def test_no_step_was_charged_twice(trial):
    record = json.loads((trial / "run" / "record.json").read_text())
    entries = {site: ledger["entries"] for site, ledger in record["privacy"]["ledgers"].items()}
    # A cap and the plan, two lines a step (reserved, completed), and the plan's end.
    assert entries["scanner-1"] == entries["scanner-3"] == 2 * _ROUNDS + 3
    # It may have been killed after its contribution was on disk and before the step was noted as completed.
    assert entries["scanner-2"] in {2 * _ROUNDS + 2, 2 * _ROUNDS + 3}


def test_every_site_has_an_unbroken_log_that_says_what_it_did(trial):
    for site in ("scanner-1", "scanner-2", "scanner-3"):
        kit = trial / "kits" / site
        verified = verify_site_log(kit)
        lines = [json.loads(line) for line in Home(kit).audit_path.read_text().splitlines()]
        assert verified.lines == len(lines)
        events = {line["event"] for line in lines}
        assert {
            "plan-received",
            "plan-approved",
            "plan-accepted",
            "step-asked",
            "sum-opened",
            "ledger-closed",
        } <= events
        assert waiting_plans(kit) == []
        assert standing(kit)["events"]


def test_a_changed_line_is_named(trial, tmp_path):
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


def test_no_process_is_left(trial):
    found = subprocess.run(["pgrep", "-f", str(trial)], capture_output=True, text=True, check=False)
    assert found.stdout == ""
