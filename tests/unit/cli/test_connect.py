"""``medveil connect`` where no server runs: as a hospital and a coordinating office type it, and what they are told."""

import json
import socket
import stat
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from medveil.cli.main import cli, main
from medveil.study.plan import load_plan

pytest.importorskip("nvflare")

from medveil.connect.home import Home
from medveil.connect.jobs import plan_bytes

LEAD = "lead@example.org"


def run(*arguments):
    answer = CliRunner().invoke(cli, ["connect", *map(str, arguments)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


@pytest.fixture
def refused(capsys):
    """``refused(words...)``: exit code and what stands on standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["connect", *map(str, arguments)])
        told = capsys.readouterr().err
        assert told.startswith("Error: ")
        assert "Traceback" not in told
        return ended.value.code, told

    return call


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """A federation whose server nobody starts, on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("federation") / "fed"
    run("init", folder, "--sites", "north,south", "--port", port)
    run("provision", folder)
    return folder / "kits"


def test_init_says_what_to_do_next_and_writes_nothing_twice(tmp_path, refused):
    assert run("init", tmp_path, "--sites", "2") == (
        f"Wrote {tmp_path / 'federation.toml'}. Edit it, then: medveil connect provision {tmp_path}\n"
    )
    before = (tmp_path / "federation.toml").read_text()
    assert before.count("[[sites]]") == 2
    code, told = refused("init", tmp_path, "--sites", "5")
    assert (code, "described already" in told) == (2, True)
    assert (tmp_path / "federation.toml").read_text() == before


def test_provision_names_every_kit_and_keeps_keys(tmp_path):
    run("init", tmp_path, "--sites", "north,south")
    told = run("provision", tmp_path)
    for name in ("server", "north", "south", LEAD):
        assert any(line.split() == [name, str(tmp_path / "kits" / name)] for line in told.splitlines())
    key = tmp_path / "kits" / "north" / "startup" / "client.key"
    before = key.read_bytes()
    assert run("provision", tmp_path) == told
    assert key.read_bytes() == before


def test_an_identity_is_made_once_and_is_nobody_elses_to_read(tmp_path):
    first = run("identity", tmp_path).strip()
    assert len(bytes.fromhex(first)) == 32
    assert run("identity", tmp_path).strip() == first
    assert stat.S_IMODE((tmp_path / "medveil" / "identity.key").stat().st_mode) == 0o600


def test_how_a_kit_stands_before_anything_happened(kits):
    assert run("status", kits / "server") == "runs:\n  none\n"
    assert json.loads(run("status", kits / "north", "--json")) == {"stands": [], "waiting": [], "events": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify-log", "north"], "no audit log yet"),
        (["logs", "north"], "no log yet"),
        (["logs", LEAD], "Which job's log?"),
        (["approve", "server"], "kit"),
        (["status", "nowhere"], "kit"),
        (["verify-log", "server"], "kit"),
    ],
)
def test_what_is_not_there_is_said(kits, refused, arguments, said):
    verb, name = arguments
    code, told = refused(verb, kits / name)
    assert code != 0
    assert said in told


@pytest.mark.parametrize("verb", ["submit", "status", "fetch", "logs"])
def test_a_server_that_cannot_be_reached(kits, refused, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("medveil.connect.job.CONNECT_S", 1.0)
    lead = kits / LEAD
    words = {
        "submit": ["phantom-private", "--kit", lead],
        "status": [lead],
        "fetch": [lead, "some-job", "--out", tmp_path / "run"],
        "logs": [lead, "some-job"],
    }
    code, told = refused(verb, *words[verb])
    assert code != 0
    assert "The server cannot be reached" in told
    assert "Remedy: check that the server runs" in told
    assert not (tmp_path / "run").exists()


@pytest.fixture
def waiting(kits):
    """A plan that waits at a site; gives the site's kit and the plan's hash."""
    plan = load_plan("phantom-private")
    inbox = Home(kits / "north").approvals().inbox
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / f"{plan.digest()}.json").write_bytes(plan_bytes(plan))
    return kits / "north", plan.digest()


def test_a_plan_is_listed_with_what_it_asks_and_approved_by_its_first_digits(waiting, refused):
    kit, plan_hash = waiting
    assert run("approve", kit.parent / "south") == "No plan waits for a decision.\n"
    listed = run("approve", kit)
    assert listed.startswith(f"{plan_hash}\n  phantom-private: classification")
    assert "epsilon 8.00 at delta 0.0001 for one patient" in listed

    for digits, said in ((plan_hash[:15], "no hash of a plan"), ("0" * 16, "no such plan"), ("*" * 16, "no hash")):
        code, told = refused("approve", kit, digits)
        assert code != 0
        assert said in told
    assert run("approve", kit) == listed

    assert run("approve", kit, plan_hash[:16], "--by", "data officer") == f"approved: {plan_hash} by data officer\n"
    assert run("approve", kit) == "No plan waits for a decision.\n"
    assert run("approve", kit, plan_hash, "--refuse", "--by", "data officer").startswith(f"refused: {plan_hash}")
    policy = Home(kit).policy().digest()
    assert Home(kit).approvals().state(plan_hash, policy=policy) == "refused"
    told = run("verify-log", kit)
    assert told.startswith("2 lines, unbroken and signed; head ")
    events = [json.loads(line) for line in Home(kit).audit_path.read_text().splitlines()]
    assert [(line["event"], line["facts"]["by"]) for line in events] == [
        ("plan-approved", "data officer"),
        ("plan-refused", "data officer"),
    ]
    assert abs((datetime.fromisoformat(events[0]["at"]) - datetime.now(UTC)).total_seconds()) < 600
    assert run("verify-log", kit, "--expect", told.split("head ")[1].strip())
    code, told = refused("verify-log", kit, "--expect", "0" * 64)
    assert code != 0
    code, told = refused("verify-log", kit, "--key", "12")
    assert code != 0


@pytest.mark.parametrize("store", ["http://tracking.example", "runs.db"])
def test_mlflow_stays_on_this_machine(tmp_path, refused, store):
    code, told = refused("export-mlflow", tmp_path, "--store", store)
    assert (code, "no SQLite store" in told) == (2, True)
