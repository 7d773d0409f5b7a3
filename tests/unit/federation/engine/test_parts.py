"""A job that is not what its submitter signed: nothing of it runs, and the site's audit log says so."""

import json
import logging
import shutil

import pytest

pytest.importorskip("nvflare")

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.lighter.utils import load_private_key_file, sign_folders

from medveil.connect import site_program
from medveil.connect.audit_verify import verify
from medveil.connect.home import Home
from medveil.connect.job import build_job
from medveil.connect.nvflare_parts import SiteExecutor
from medveil.connect.provision import revoke
from tiny_federation import provisioned

JOB = "2f72b35a-56ea-4786-b0ca-3d2f5cb3e3aa"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("federation"))


class Cell:
    def __init__(self):
        self.core_cell = self

    def register_request_cb(self, *_):
        pass


class Site:
    """What the engine hands to a site's executor, with a job as deployed."""

    def __init__(self, original, place, sites=("site-1", "site-2")):
        self.folder = shutil.copytree(original, place / "federation")
        self.kit = self.folder / "kits" / "site-1"
        self.workspace = Workspace(str(self.kit), "site-1")
        built = build_job(place, b"{}", name="run", sites=list(sites)) / "app"
        startup = self.folder / "kits" / "lead@a.org" / "startup"
        sign_folders(str(built), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))
        (self.kit / JOB).mkdir()
        self.app = self.kit / JOB / "app_site-1"
        shutil.copytree(built, self.app)
        self.ran = []

    def get_workspace(self):
        return self.workspace

    def get_cell(self):
        return Cell()

    def new_context(self):
        context = FLContext()
        for key, value in {"ENGINE": self, "RUN_NUM": JOB, "IDENTITY_NAME": "site-1"}.items():
            context.set_prop(getattr(ReservedKey, key), value, private=True, sticky=False)
        return context

    def start(self):
        """Begin and end the job as the engine does."""
        executor, context = SiteExecutor(), self.new_context()
        executor.handle_event(EventType.START_RUN, context)
        executor._thread.join(20)
        executor.handle_event(EventType.ABOUT_TO_END_RUN, context)

    def lines(self):
        """The site's audit log, verified."""
        path = self.kit / "medveil" / "audit.jsonl"
        if not path.exists():
            return []
        verify(path, public_key=Home(self.kit).identity().public)
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def site(original, tmp_path, monkeypatch):
    site = Site(original, tmp_path)
    monkeypatch.setattr(site_program, "run_site", site.ran.append)
    return site


def tamper(site):
    (site.app / "plan.json").write_text('{"rounds": 1}')


def add(site):
    (site.app / "config" / "more.json").write_text("{}")


def unsign(site):
    (site.app / ".__nvfl_sig.json").unlink()


def confuse(site):
    (site.app / ".__nvfl_sig.json").write_text("[1, {")


def withdraw(site):
    revoke(site.folder, "lead@a.org")
    shutil.copy(site.folder / "kits" / "server" / "startup" / "crl.pem", site.kit / "startup" / "crl.pem")


def lose_list(site):
    (site.kit / "startup" / "crl.pem").unlink()


def test_a_job_as_it_was_signed_is_run(site):
    site.start()
    assert [job.job_id for job in site.ran] == [JOB]
    assert site.lines() == []


@pytest.mark.parametrize("change", [tamper, add, unsign, withdraw, lose_list])
def test_a_changed_job_is_not_run_and_stands_in_the_audit_log(site, change):
    change(site)
    site.start()
    assert site.ran == []
    (line,) = site.lines()
    assert (line["event"], line["facts"]) == ("job-refused", {"job": JOB, "error": "AuthenticityError"})


def test_a_job_for_other_sites_is_refused_and_noted(original, tmp_path, monkeypatch):
    site = Site(original, tmp_path, sites=("site-2", "site-3"))
    monkeypatch.setattr(site_program, "run_site", site.ran.append)
    site.start()
    assert site.ran == []
    assert [line["event"] for line in site.lines()] == ["job-refused"]


def test_a_job_whose_signatures_cannot_be_read_is_refused_and_noted(site):
    confuse(site)
    site.start()
    assert site.ran == []
    assert [line["event"] for line in site.lines()] == ["job-refused"]


def test_the_sites_people_are_told(site):
    tamper(site)
    site.start()
    told = (site.kit / "medveil" / "progress.json").read_text()
    assert "does not take part: The files of this job" in told


def test_where_the_audit_log_cannot_be_written_the_job_is_refused_all_the_same(site, caplog):
    tamper(site)
    (site.kit / "medveil" / "audit.jsonl").mkdir()
    with caplog.at_level(logging.ERROR):
        site.start()
    assert site.ran == []
    assert "could not be noted" in caplog.text
    assert "not as its submitter signed them" in caplog.text
