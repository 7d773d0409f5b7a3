"""What a hospital's own program does before it takes part, and where it stops."""

import errno
import json
import sqlite3
import time
from datetime import UTC, datetime
from unittest import mock

import pytest
from network_plans import CLEAR, DISTRIBUTED, POLICY, SPARING, SUMS
from network_rig import Wire
from network_steps import Guests, lead

from medveil.accounting.ledger import Ledger
from medveil.connect import site_program
from medveil.connect.audit_log import AuditLog
from medveil.errors import ApprovalError, ConfigError, InterruptedRunError, LedgerError, PolicyError, RunError
from medveil.federation.secure.outbox import Outbox
from medveil.study import arms
from medveil.study.plan import Plan

PERSON = POLICY.replace('rule = "policy"', 'rule = "person"\nwait_minutes = 0')
WAITING = POLICY.replace('rule = "policy"', 'rule = "person"\nwait_minutes = 5')
QUICK = {"dead_after_s": 3.0, "hold_s": 4.0, "answer_s": 60.0}


def _declined(place, ending, errors, error, *names):
    assert set(errors) == set(names)
    for name in names:
        assert type(errors[name]) is error
        assert "run-begun" not in place.events(name)
        assert place.events(name)[-1] == "stopped"
        assert not (place.kit(name) / "medveil" / "runs").exists()
    assert ending in ("failed", "again")


def test_a_plan_that_nobody_approved_trains_nothing(trained, hospitals):
    plan = trained(CLEAR)[0]
    place = hospitals(plan, policy=PERSON)
    wire = Wire()
    ending, errors = place.job("job-1", wire=wire)
    _declined(place, ending, errors, ApprovalError, *place.names)
    assert ending == "failed"
    (path,) = (place.kit("site-1") / "medveil" / "inbox").glob("*.json")
    assert path.stem == plan.digest()
    assert Plan.model_validate(json.loads(path.read_text())).digest() == plan.digest()
    frames = b"".join(frame for _, _, frame in wire.sniffed)
    for secret in (b"Traceback", str(place.root).encode(), b"phantom-1"):
        assert secret not in frames
    assert b"has not approved the plan" in frames


def test_a_plan_that_is_approved_while_it_waits_goes_on(trained, hospitals):
    plan, _, _, weights = trained(CLEAR)
    place = hospitals(plan, policy=WAITING)

    def approve(here, _wire):
        end = time.monotonic() + 60
        for name in here.names:
            while not (here.kit(name) / "medveil" / "inbox" / f"{plan.digest()}.json").exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            home = here.home(name)
            home.approvals().approve(plan.digest(), by="dr.m", at=datetime.now(UTC), policy=home.policy().digest())

    ending, errors = place.job("job-1", during=approve, farewell_s=10.0)
    assert (ending, errors) == ("done", {})
    assert place.weights() == weights


def test_a_site_that_waits_for_a_person_is_told_why_the_job_ends(trained, hospitals):
    place = hospitals(trained(CLEAR)[0], policy=PERSON)
    (place.kit("site-1") / "medveil" / "policy.toml").write_text(WAITING)
    ending, errors = place.job("job-1")
    assert ending == "failed"
    assert type(errors["site-1"]) is InterruptedRunError
    assert errors["site-1"].what.startswith("The server ended the job: Too few sites are there")


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (POLICY.replace("epsilon = 50.0", "epsilon = 0.1"), "privacy.epsilon"),
        (POLICY.replace('"none", "distributed"', '"none"'), "privacy.modes"),
        (POLICY.replace("debug_randomness = true", "debug_randomness = false"), "privacy.debug_randomness"),
        (POLICY.replace("max_rounds = 1000", "max_rounds = 1"), "max_rounds"),
        (POLICY.replace('role = "lead"', 'role = "member"'), "submitters"),
        (POLICY.replace('"phantom-classification", ', ""), "datasets"),
        (POLICY.replace("colluding = 0", "colluding = 1"), "privacy.colluding"),
    ],
)
def test_a_plan_below_the_floor_of_two_hospitals_is_refused_by_them(trained, hospitals, policy, rule):
    plan = trained(DISTRIBUTED)[0]
    place = hospitals(plan)
    for name in ("site-1", "site-3"):
        (place.kit(name) / "medveil" / "policy.toml").write_text(policy)
    wire = Wire()
    ending, errors = place.job("job-1", wire=wire)
    refused = {name: error for name, error in errors.items() if isinstance(error, PolicyError)}
    _declined(place, ending, refused, PolicyError, "site-1", "site-3")
    assert ending == "failed"  # two of four said that they never will
    for name in ("site-1", "site-3"):
        (line,) = [one for one in place.log(name) if one["event"] == "plan-against-policy"]
        assert rule in line["facts"]["rules"]
        frames = b"".join(frame for sender, _, frame in wire.sniffed if sender == name)
        assert b"policy" in frames  # it says what it is
        for secret in (b"Traceback", b'File "', b".npz", str(place.root).encode(), b"phantom-1"):
            assert secret not in frames


def test_a_hospital_without_a_policy_allows_nothing(trained, hospitals):
    place = hospitals(trained(CLEAR)[0])
    (place.kit("site-2") / "medveil" / "policy.toml").unlink()
    ending, errors = place.job("job-1")
    assert ending == "failed"
    assert isinstance(errors["site-2"], PolicyError)
    assert "plan-accepted" not in place.events("site-2")
    assert not place.run_folder().joinpath("record.json").exists()


def test_an_approval_by_rule_ends_with_its_policy(trained, hospitals):
    place = hospitals(trained(CLEAR)[0])
    assert place.job("job-1")[0] == "done"
    for name in place.names:
        (place.kit(name) / "medveil" / "policy.toml").write_text(PERSON)
    ending, errors = place.job("job-2")
    assert ending == "failed"
    assert {type(error) for error in errors.values()} == {ApprovalError}


def test_a_site_of_another_version_is_refused(trained, hospitals, monkeypatch):
    place = hospitals(trained(CLEAR)[0])
    monkeypatch.setattr("medveil.connect.own.__version__", "0.0.1")
    ending, _ = place.job("job-1")
    assert ending == "failed"
    told = (place.run_folder() / "events.jsonl").read_text()
    assert "another version than the server: install the same version" in told
    stands = {name: (place.kit(name) / "medveil" / "progress.json").read_text() for name in place.names}
    sent_away = {name for name in place.names if "another version" in stands[name]}
    assert sent_away  # whoever comes after the last that the run could spare is told that too few are there
    for name in place.names:
        last = place.log(name)[-1]
        assert (last["event"], last["facts"]["ending"]) == ("job-ended", "early")
        assert "another version" not in json.dumps(last)  # the server's words have no place among names and counts
        remedy = (
            "install the same version of medveil everywhere" if name in sent_away else "Too few sites are there: mend"
        )
        assert remedy in stands[name]


def test_a_run_that_ends_before_its_first_step_holds_no_budget_back(trained, hospitals):
    """A site of four does not know the others: they had agreed, and opened their accounts."""
    place = hospitals(trained(DISTRIBUTED)[0])
    for name in ("site-2", "site-3"):
        roster = place.kit(name) / "medveil" / "roster.json"
        named = json.loads(roster.read_text())
        del named["sites"]["site-1"]
        roster.write_text(json.dumps(named))
    ending, errors = place.job("job-1")
    assert ending == "failed"
    assert {name for name, error in errors.items() if isinstance(error, PolicyError)} == {"site-2", "site-3"}
    begun = [name for name in ("site-1", "site-4") if "run-begun" in place.events(name)]
    assert begun
    for name in begun:
        (path,) = place.home(name).ledgers.glob("*.sqlite")
        with Ledger(path) as ledger:
            spent = ledger.spent("phantom-classification", delta=1e-3)
        assert spent.held == 0.0


def test_a_site_with_images_of_another_shape_is_refused(trained, dealt, hospitals):
    place = hospitals(trained(CLEAR)[0])
    other = dealt(trained(CLEAR, "data.source.size=[24,24]")[0])["site-2"]
    config = place.kit("site-2") / "medveil" / "site.toml"
    config.write_text(f'deidentified = true\n[source]\nkind = "share"\npath = "{other.path}"\nnames_patients = true\n')
    ending, _ = place.job("job-1")
    assert ending == "failed"
    assert "images or classes are not those" in (place.run_folder() / "events.jsonl").read_text()


@pytest.mark.parametrize("odd", ["site-1", "site-3"])
def test_whoever_tells_first_does_not_decide_what_images_are_like(trained, dealt, hospitals, odd):
    """One odd hospital of four, which the plan can spare, is left out, also where it is the first to tell."""
    place = hospitals(trained(SPARING)[0])
    other = dealt(trained(CLEAR, "data.source.size=[24,24]")[0])[odd]
    config = place.kit(odd) / "medveil" / "site.toml"
    config.write_text(f'deidentified = true\n[source]\nkind = "share"\npath = "{other.path}"\nnames_patients = true\n')
    ending, ward = lead(Guests(place), "job-1")
    assert (ending, ward.errors) == ("done", {})
    assert list(place.record()["training"]["lost_sites"]) == [odd]
    (lost,) = [event for event in place.record()["events"] if event["what"] == "lost"]
    assert (lost["site"], "most sites" in lost["text"]) == (odd, True)


def test_a_site_without_its_data_says_no_path(trained, hospitals):
    place = hospitals(trained(CLEAR)[0])
    config = place.kit("site-2") / "medveil" / "site.toml"
    config.write_text('deidentified = true\n[source]\nkind = "share"\npath = "/secret/ward/images.npz"\n')
    wire = Wire()
    ending, _ = place.job("job-1", wire=wire)
    assert ending == "failed"
    assert all(b"secret" not in frame for _, _, frame in wire.sniffed)
    assert any(b"share is not there" in frame for _, _, frame in wire.sniffed)


def test_a_full_disk_stops_a_site_for_now(trained, hospitals, monkeypatch):
    plan, _, _, weights = trained(SUMS)
    place = hospitals(plan)
    written = Outbox.contribution
    full = {"on": True}

    def contribution(self, round_number, start, compute):
        if full["on"] and round_number == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(place.root))
        return written(self, round_number, start, compute)

    monkeypatch.setattr(Outbox, "contribution", contribution)
    wire = Wire()
    ending, errors = place.job("job-1", wire=wire, patience=QUICK)
    assert ending == "again"  # too few are left, and none of them for good
    assert RunError in {type(error) for error in errors.values()}
    assert all(str(place.root).encode() not in frame for _, _, frame in wire.sniffed)
    assert any(b"cannot be read or written" in frame for _, _, frame in wire.sniffed)
    full["on"] = False
    ending, errors = place.job("job-2", first="job-1", farewell_s=10.0)
    assert (ending, errors) == ("done", {})
    assert place.weights() == weights


@pytest.mark.parametrize("event", ["run-begun", "step-asked", "sum-opened"])
def test_a_disk_that_is_full_under_the_audit_log_stops_a_site_for_now(trained, hospitals, monkeypatch, event):
    plan, _, _, weights = trained(DISTRIBUTED)
    place = hospitals(plan)
    write = AuditLog._write
    full = {"on": True}

    def fill(self, file, data):
        if full["on"] and "site-2" in str(self.path) and f'"{event}"'.encode() in data:
            with mock.patch("medveil.connect.audit_log.os.write", side_effect=OSError(errno.ENOSPC, "No space left")):
                write(self, file, data)
        else:
            write(self, file, data)

    monkeypatch.setattr(AuditLog, "_write", fill)
    wire = Wire()
    ending, errors = place.job("job-1", wire=wire, patience=QUICK)
    assert {name: (type(error), error.got) for name, error in errors.items() if name == "site-2"} == {
        "site-2": (RunError, "No space left")
    }
    assert any(b"cannot be read or written" in frame for _, _, frame in wire.sniffed)
    full["on"] = False
    if ending != "done":  # the run could not spare the site
        ending, errors = place.job("job-2", first="job-1", farewell_s=10.0)
        assert (ending, errors) == ("done", {})
        assert place.weights() == weights


def _dressed(error, cause, *, shown):
    """The error as it is caught, raised while the cause was handled; ``shown`` says whether it names the cause."""

    def dress():
        try:
            raise cause
        except type(cause) as inner:
            raise error from (inner if shown else None)

    with pytest.raises(type(error)) as caught:
        dress()
    return caught.value


@pytest.mark.parametrize("shown", [True, False])
def test_a_disk_that_is_full_behind_any_error_passes(shown):
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (x)")
    connection.execute("pragma max_page_count = 3")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("insert into t values (zeroblob(1000000))")
    ledger = _dressed(LedgerError("The ledger cannot be written"), full.value, shown=shown)
    assert type(site_program._disk(ledger)) is RunError
    room = OSError(errno.ENOSPC, "No space left on device")
    inbox = _dressed(ApprovalError("The inbox cannot be written"), room, shown=shown)
    assert site_program._disk(inbox).got == "No space left on device"
    denied = _dressed(PolicyError("x"), PermissionError(errno.EACCES, "no"), shown=shown)
    assert site_program._disk(denied) is None
    assert site_program._disk(LedgerError("damaged")) is None


def test_a_full_disk_at_the_server_goes_on_later(trained, hospitals, monkeypatch):
    plan, _, _, weights = trained(SUMS)
    place = hospitals(plan)
    guests = Guests(place)
    write = arms.save_snapshot

    def fill(snapshot, path):
        if snapshot.round == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(snapshot, path)

    monkeypatch.setattr("medveil.connect.coordinator_program._DISK_S", 0.1)
    with monkeypatch.context() as now:
        now.setattr(arms, "save_snapshot", fill)
        ending, ward = lead(guests, "job-1")
    assert (ending, ward.errors) == ("again", {})
    assert "Make room" in place.progress()["stands"]
    ending, ward = lead(guests, "job-2", first="job-1")
    assert (ending, ward.errors) == ("done", {})
    assert place.weights() == weights


def test_settings_of_the_server_that_are_not_valid_are_said_and_waited_for(trained, hospitals, monkeypatch):
    plan, _, _, weights = trained(SUMS)
    place = hospitals(plan)
    guests = Guests(place)
    monkeypatch.setattr("medveil.connect.coordinator_program._DISK_S", 0.1)
    ending, _ = lead(guests, "job-1", patience={"dead_after": 12})
    assert ending == "again"
    assert "dead_after" in place.progress()["stands"]
    (place.kit("server") / "medveil" / "server.json").write_text("{}")
    ending, _ = lead(guests, "job-2", first="job-1")
    assert (ending, place.weights() == weights) == ("done", True)


def test_a_job_without_a_plan_is_declined(trained, hospitals, monkeypatch):
    place = hospitals(trained(CLEAR)[0])
    monkeypatch.setattr(site_program, "_FAREWELL_S", 0.1)
    for content in ("", "[]", '{"name": 3}', "{" * 5000):
        (place.app / "plan.json").write_text(content)
        with pytest.raises(ConfigError):
            site_program.run_site(place.context("job-9", "site-1", names=place.names, channel=Wire().end("site-1")))
    assert place.events("site-1") == ["stopped"] * 4
