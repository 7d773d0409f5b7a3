"""A job's files, and errors of the login in words."""

import json
import socket
from pathlib import Path
from zipfile import BadZipFile

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.flare_api.api_spec import InternalError, SessionClosed
from nvflare.lighter.utils import load_private_key_file, sign_folders

from medveil.connect.job import Federation, _typed, build_job
from medveil.connect.kit import read_kit
from medveil.connect.provision import provision
from medveil.errors import AuthenticityError, ConfigError, FederationError
from medveil.federation.engine.context import Submitter
from medveil.federation.engine.parts import signer
from medveil.federation.engine.status import (
    JobStatus,
    clear_returned,
    known_jobs,
    read_status,
    status_file,
    write_status,
)

PLAN = b'{"name":"pneumonia"}'


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # free again below: nothing listens
    (folder / "federation.toml").write_text(
        f"""
name = "demo"
server = {{ host = "localhost", port = {port}, org = "hub" }}
sites = [{{ name = "site-1", org = "a" }}]
users = [{{ name = "lead@a.org", org = "hospital_a", role = "lead" }}, {{ name = "x@b.org", org = "b", role = "lead" }}]
"""
    )
    return provision(folder)


@pytest.fixture
def job(tmp_path):
    return build_job(tmp_path, PLAN, name="run-1", sites=["site-1", "site-2"])


def test_a_job_waits_for_all_its_sites_and_names_only_our_classes(job):
    meta = json.loads((job / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": ["server", "site-1", "site-2"]}
    assert (meta["min_clients"], meta["mandatory_clients"]) == (2, ["site-1", "site-2"])
    assert meta["custom_props"]["medveil_version"]
    configs = [json.loads(path.read_text()) for path in sorted((job / "app" / "config").glob("*.json"))]
    assert configs[0]["executors"][0]["executor"]["path"] == "medveil.connect.nvflare_parts.SiteExecutor"
    assert configs[1]["workflows"][0]["path"] == "medveil.connect.nvflare_parts.CoordinatorController"


def test_the_plan_travels_byte_for_byte_and_no_code_with_it(job):
    assert (job / "app" / "plan.json").read_bytes() == PLAN
    assert {path.suffix for path in job.rglob("*") if path.is_file()} == {".json"}


def signed(job, kit):
    startup = kit / "startup"
    sign_folders(str(job / "app"), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))
    return job / "app", startup / "rootCA.pem"


def test_the_submitter_is_read_from_the_signature(job, kits):
    assert signer(*signed(job, kits["lead@a.org"])) == Submitter("lead@a.org", "hospital_a", "lead")


@pytest.mark.parametrize("how", ["changed", "added", "unsigned", "two signers"])
def test_files_that_are_not_as_signed_are_refused(job, kits, how):
    app, authority = signed(job, kits["lead@a.org"])
    if how == "changed":
        (app / "plan.json").write_bytes(PLAN.replace(b"pneumonia", b"everything"))
    elif how == "added":
        (app / "more.json").write_text("{}")
    elif how == "unsigned":
        (app / ".__nvfl_sig.json").unlink()
    else:
        startup = kits["x@b.org"] / "startup"
        key = load_private_key_file(str(startup / "client.key"))
        sign_folders(str(app / "config"), key, str(startup / "client.crt"))
    with pytest.raises(AuthenticityError, match="not as its submitter signed them"):
        signer(app, authority)


def test_a_signature_by_a_stranger_is_refused(job, kits, tmp_path):
    folder = tmp_path / "strangers"
    folder.mkdir()
    (folder / "federation.toml").write_text((kits["server"].parents[1] / "federation.toml").read_text())
    app, _ = signed(job, provision(folder)["lead@a.org"])
    with pytest.raises(AuthenticityError):
        signer(app, kits["lead@a.org"] / "startup" / "rootCA.pem")


def test_a_site_cannot_log_in_as_a_person(kits):
    with pytest.raises(ConfigError, match="the kit of a site"):
        Federation(kits["site-1"])


def test_an_unreachable_server_is_told_in_words(kits, monkeypatch):
    monkeypatch.setattr("medveil.connect.job.CONNECT_S", 2.0)
    before = Path.cwd()
    with pytest.raises(FederationError, match="cannot be reached"):
        Federation(kits["lead@a.org"])
    assert Path.cwd() == before


def test_the_status_of_a_job_survives_and_a_damaged_one_is_not_resumed(tmp_path):
    assert read_status(tmp_path, "a") == JobStatus("waiting", "a", 1)
    second = JobStatus("running", "a", 2, None, 1)
    write_status(tmp_path, "b", second)
    assert read_status(tmp_path, "b") == second
    assert known_jobs(tmp_path) == ["b"]
    status_file(tmp_path, "b").write_text('{"status": "runn')
    assert read_status(tmp_path, "b").status == "failed"


def test_who_returned_before_a_job_began_is_forgotten(tmp_path):
    folder = tmp_path / "medveil" / "returned"
    folder.mkdir(parents=True)
    (folder / "site-1").touch()
    began = (folder / "site-1").stat().st_mtime
    clear_returned(tmp_path, began)
    assert (folder / "site-1").exists()
    clear_returned(tmp_path, began + 1)
    assert not (folder / "site-1").exists()


@pytest.mark.parametrize("raised", [InternalError("what"), SessionClosed("what"), BadZipFile("what"), OSError("what")])
def test_what_the_engines_session_raises_is_told_as_our_error(kits, raised):
    with (
        pytest.raises(FederationError, match="did not do as asked") as told,
        _typed(read_kit(kits["lead@a.org"], "person")),
    ):
        raise raised
    assert told.value.got == f"{type(raised).__name__}: what"


def test_a_defect_of_our_own_is_not_taken_for_the_servers(kits):
    with pytest.raises(AssertionError), _typed(read_kit(kits["lead@a.org"], "person")):
        raise AssertionError
