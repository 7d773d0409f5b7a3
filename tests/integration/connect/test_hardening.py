"""A live federation with members who mean harm, and an honest server between them and their victim."""

import json
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.live]

SECRET = "Doe, born 1950"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Server, a victim and a hostile site with a job under way; both the site and a person have tried everything."""
    pytest.importorskip("nvflare")
    from running import Running

    running = Running(tmp_path_factory.mktemp("attacked"), sites=("site-1", "site-2"))
    secret = running.kits["site-1"] / "medveil" / "patients.csv"
    secret.write_text(SECRET)
    try:
        running.start("server")
        running.start("site-1")
        running.job_id = None
        running.hold()
        reports = {name: running.folder / f"{name}.json" for name in ("site-2", "member@b.org")}
        running.start("site-2")
        running.until(lambda: _connected(running), 60)
        running.job_id = running.submit()
        running.until(lambda: running.report(running.job_id), 60)
        running.kill("site-2")
        for name, report in reports.items():
            running.start_hostile(name, report, secret, running.job_id)
        running.until(lambda: "connected to localhost" in running.output("hostile-site-2"), 30)
        time.sleep(2)
        (running.folder / "attack").touch()
        running.until(lambda: all(report.exists() for report in reports.values()), 60)
        running.answers = {name: json.loads(report.read_text()) for name, report in reports.items()}
        yield running
    finally:
        running.release()
        running.stop()


def _connected(running):
    from medveil.errors import FederationError

    try:
        with running.login() as login:
            return set(login.connected()) == set(running.sites)
    except FederationError:
        return False


@pytest.mark.parametrize("who", ["site-2", "member@b.org"])
def test_no_member_learns_or_changes_anything_elsewhere(attacked, who):
    answers = attacked.answers[who]
    assert len(answers) == 2 * 29  # everything was tried, under the own name and under the server's
    told = [answer for answer in answers if answer[4] is not None]
    assert told == []
    assert SECRET not in json.dumps(answers)


def test_everybody_is_alive_and_the_job_goes_on(attacked):
    assert attacked.processes["server"].poll() is None
    assert attacked.processes["site-1"].poll() is None
    heard = json.loads((attacked.home / "heard.json").read_text())
    assert time.time() - heard["site-1"] < 5
    assert attacked.state(attacked.job_id)["status"] == "running"
    attacked.release()
    attacked.until(lambda: attacked.state(attacked.job_id)["status"] == "done", 30)


def test_the_attempts_stand_in_the_servers_log(attacked):
    assert "refused a message by 'site-2'" in attacked.output("server")


@pytest.mark.parametrize("command", ["sys_info server", "report_env", "cells", "process_info site-1", "list_sessions"])
def test_even_who_may_look_sees_only_jobs(attacked, command):
    from medveil.errors import FederationError

    with attacked.login("member@b.org") as member:
        reply = member._session.api.server_execute(command)
        assert "this server does not do that" in json.dumps(reply, default=str)
        assert [job.job_id for job in member.jobs()] == [attacked.job_id]
        with pytest.raises(FederationError, match="refuses"):
            member.abort(attacked.job_id)
