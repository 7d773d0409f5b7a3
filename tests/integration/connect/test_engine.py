"""Programs as jobs of the engine: a live federation, and the four ways in which its processes are killed."""

import hashlib
import json
import os
import signal
import time

import pytest

from medveil.connect.renewal import renew
from medveil.errors import ConfigError, FederationError

pytestmark = [pytest.mark.slow, pytest.mark.live]


def ended(running, job_id):
    return running.state(job_id).get("status") in {"done", "failed", "again", "aborted"}


def under_way(running, job_id):
    return running.state(job_id).get("status") == "running" and running.report(job_id)


def test_frames_go_round_between_all_sites_and_the_coordinator(running):
    job_id = running.submit({"measure": True})
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id) == {"status": "done", "of": job_id, "attempt": 1, "next": None, "unstarted": 0}
    report = running.report(job_id)
    lead = {"name": "lead@a.org", "org": "a", "role": "lead"}
    assert report["sites"] == list(running.sites)
    assert report["submitter"] == lead
    assert [len(times) for times in report["round_trips"].values()] == [200, 30]
    assert sorted(report["round_trips"]["1024"])[100] < 0.1  # no polling: the engine's tasks take seconds
    for site in running.sites:
        seen = json.loads((running.kits[site] / f"seen-{job_id}.json").read_text())
        assert (seen["me"], seen["sites"], seen["submitter"]) == (site, [], lead)
        assert (seen["plan"], seen["home"]) == ('{"measure": true}', str(running.kits[site]))
        running.until(lambda site=site: (running.kits[site] / f"ended-{job_id}").exists())
    with running.login() as federation:
        running.until(lambda: federation.job(job_id).status == "FINISHED:COMPLETED")


def test_a_result_of_hundreds_of_mebibytes_comes_whole(running, tmp_path):
    job_id = running.submit({"result_mib": 300})
    running.until(lambda: ended(running, job_id), 120)
    with running.login() as federation:
        running.until(lambda: federation.job(job_id).status == "FINISHED:COMPLETED", 120)
        folder = federation.fetch(job_id, tmp_path / "run")
    weights = (folder / "weights.safetensors").read_bytes()
    assert len(weights) == 300 << 20
    assert hashlib.sha256(weights).hexdigest() == json.loads((folder / "record.json").read_text())


def test_sites_come_back_to_a_server_with_a_new_certificate(running):
    """Its old key signed their tokens; a site's program begins again, under the same process number."""
    before = {name: process.pid for name, process in running.processes.items()}
    renew(running.folder, ["server"])
    running.kill("server")
    running.start("server")
    running.until(lambda: all("starts again" in running.output(site) for site in running.sites), 60)

    def back():
        try:
            with running.login() as federation:
                return set(federation.connected()) == set(running.sites)
        except FederationError:
            return False

    running.until(back, 90, every_s=2)
    assert {name: running.processes[name].pid for name in running.sites} == {
        name: before[name] for name in running.sites
    }
    job_id = running.submit()
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "done"


def test_a_killed_process_of_a_site_ends_nothing_and_the_site_may_come_back(running):
    running.hold()
    job_id = running.submit()
    running.until(lambda: under_way(running, job_id))
    os.kill(running.job_process("site-2").pid, signal.SIGKILL)
    running.until((running.home / "medveil" / "returned" / "site-2").exists, 10)
    time.sleep(4)
    heard = json.loads((running.home / "heard.json").read_text())
    now = time.time()
    assert now - heard["site-2"] > 3
    assert max(now - heard["site-1"], now - heard["site-3"]) < 2
    running.release()
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "done"


def test_a_killed_site_ends_nothing_and_is_noted_when_it_returns(running):
    running.hold()
    job_id = running.submit()
    running.until(lambda: under_way(running, job_id))
    returned = running.home / "medveil" / "returned" / "site-3"
    assert not returned.exists()
    running.kill("site-3")
    with running.login() as federation:
        began = time.monotonic()
        running.until(lambda: "site-3" not in federation.connected(), 20)
        assert time.monotonic() - began < 15
    assert running.state(job_id)["status"] == "running"
    running.start("site-3")
    running.until(returned.exists, 20)
    running.release()
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "done"


@pytest.mark.parametrize("victim", ["the job's process", "the server"])
def test_a_run_whose_coordinator_is_killed_goes_on_in_a_further_job(running, victim):
    running.hold()
    first = running.submit()
    running.until(lambda: under_way(running, first))
    if victim == "the server":
        running.kill("server")
        time.sleep(5)
        running.start("server")
    else:
        os.kill(running.job_process("server").pid, signal.SIGKILL)
    second = running.until(lambda: running.state(first).get("next"), 40)
    running.until(lambda: under_way(running, second), 60)
    assert running.state(second) == {"status": "running", "of": first, "attempt": 2, "next": None, "unstarted": 0}
    assert running.report(second)["submitter"]["name"] == "lead@a.org"
    running.release()
    running.until(lambda: ended(running, second))
    assert running.state(second)["status"] == "done"


def test_a_program_that_asks_to_go_on_again_does(running):
    running.hold()
    first = running.submit({"ending": "again"})
    running.until(lambda: under_way(running, first))
    running.release()
    second = running.until(lambda: running.state(first).get("next"), 30)
    running.hold()
    running.until(lambda: under_way(running, second), 40)
    assert running.state(first)["status"] == "again"
    with running.login() as federation:
        assert federation.job(second).continues == first
        federation.abort(second)
    running.release()
    running.until(lambda: running.state(second)["status"] != "running", 30)
    time.sleep(5)
    # an aborted job is not continued, whatever its program would have liked
    assert running.state(second)["next"] is None
    assert running.state(second)["status"] == "aborted"


def test_defects_of_programs_stay_on_the_machine_where_they_happened(running):
    job_id = running.submit({"broken": True, "defect": "site-1", "patience_s": 4})
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "failed"
    running.until(lambda: "SECRET of the server" in running.output("server"))
    running.until(lambda: "SECRET of the site" in running.output("site-1"))
    for name in running.sites:
        assert "SECRET of the server" not in running.output(name)
    assert "SECRET of the site" not in running.output("server")


def test_a_member_may_look_and_not_submit_and_a_lead_aborts_only_own_jobs(running):
    running.hold()
    job_id = running.submit()
    with running.login("member@b.org") as member:
        assert member.job(job_id).submitter == "lead@a.org"
        with pytest.raises(FederationError, match=r"refuses this to member@b\.org"):
            member.submit(b"{}", name="forbidden", sites=running.sites)
        with pytest.raises(FederationError, match="refuses"):
            member.abort(job_id)
    with running.login("other@b.org") as other, pytest.raises(FederationError, match="refuses"):
        other.abort(job_id)
    running.until(lambda: under_way(running, job_id))
    running.release()
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "done"


def test_a_second_process_with_the_same_kit_is_refused(running):
    first = running.processes.pop("site-1")
    running.start("site-1")
    try:
        running.until(lambda: "a second process calls itself site-1" in running.output("server"), 20)
        with running.login() as federation:
            time.sleep(3)
            assert set(federation.connected()) == set(running.sites)
    finally:
        running.kill("site-1")
        running.processes["site-1"] = first
    job_id = running.submit()
    running.until(lambda: ended(running, job_id))
    assert running.state(job_id)["status"] == "done"


def test_unknown_jobs_and_a_taken_port_are_told_in_words(running):
    with running.login() as federation, pytest.raises((ConfigError, FederationError)):
        federation.job("00000000-0000-0000-0000-000000000000")
    from medveil.connect.process import run_server

    with pytest.raises(ConfigError, match="is taken"):
        run_server(running.kits["server"])


def test_a_class_that_is_not_allowed_never_runs_at_a_site(running):
    with running.login() as federation:
        parts = ("subprocess.Popen", "echo_parts.EchoController")
        job_id = federation.submit(b'{"patience_s": 5}', name="hostile", sites=running.sites, parts=parts)
    running.until(lambda: ended(running, job_id))
    for site in running.sites:
        assert "subprocess.Popen" in running.output(site)
        assert "not in allow_list" in running.output(site)


def test_a_class_that_is_not_allowed_never_runs_at_the_server(running):
    with running.login() as federation:
        parts = ("echo_parts.EchoExecutor", "subprocess.Popen")
        first = federation.submit(b"{}", name="hostile", sites=running.sites, parts=parts)
        second = running.until(lambda: running.state(first).get("next"), 60)
        assert federation.job(first).status == "FINISHED:EXECUTION_EXCEPTION"
        running.until(lambda: federation.job(second).status == "RUNNING", 20)
        federation.abort(second)
        running.until(lambda: running.state(second)["status"] == "aborted", 30)
    assert "not in allow_list" in running.output("server")


def test_code_that_a_job_brings_along_is_refused(running, monkeypatch):
    from medveil.connect import job as jobs

    build = jobs.build_job

    def with_code(*arguments, **options):
        folder = build(*arguments, **options)
        (folder / "app" / "custom").mkdir()
        (folder / "app" / "custom" / "sitecustomize.py").write_text("raise SystemExit('code of the job ran')")
        return folder

    monkeypatch.setattr(jobs, "build_job", with_code)
    with running.login() as federation:
        job_id = federation.submit(b"{}", name="code", sites=running.sites)
        running.until(lambda: federation.job(job_id).status == "FINISHED:FAILED_TO_RUN", 60)
    running.until(lambda: running.state(job_id).get("status") == "failed", 10)  # refused, so it is not tried again
    assert all("code of the job ran" not in running.output(name) for name in ("server", *running.sites))


def test_a_revoked_site_is_told_and_loses_its_connection(running):
    from medveil.connect.provision import revoke

    revoke(running.folder, "site-3")
    running.until(lambda: "the certificate was revoked" in running.output("site-3"), 20)
    assert "the certificate of site-3 was revoked" in running.output("server")
    with running.login() as federation:
        running.until(lambda: "site-3" not in federation.connected(), 20)
