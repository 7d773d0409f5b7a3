"""Who signed a job, whether still allowed, and that the files of several jobs cannot be mixed."""

import datetime as dt
import json
import re
import shutil

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

pytest.importorskip("nvflare")

from nvflare.lighter.utils import load_private_key_file, sign_folders

from medveil.connect.job import build_job
from medveil.connect.provision import revoke
from medveil.errors import AuthenticityError, ConfigError
from medveil.federation.engine.signed import MANIFEST_FILE, read_manifest, revocations, signer, write_manifest
from tiny_federation import provisioned


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "federation")


def submitted(folder, place, plan, sites=("site-1", "site-2")):
    place.mkdir()
    app = build_job(place, plan, name="run", sites=list(sites)) / "app"
    sign(folder, app)
    return app


def sign(folder, app):
    startup = folder / "kits" / "lead@a.org" / "startup"
    sign_folders(str(app), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))


def authority(folder):
    return folder / "kits" / "site-1" / "startup" / "rootCA.pem"


def test_the_manifest_names_every_file_and_a_nonce_of_this_submission(folder, tmp_path):
    first, second = (submitted(folder, tmp_path / name, b"{}") for name in ("one", "two"))
    manifests = [read_manifest(app, ["site-1"]) for app in (first, second)]
    for app, manifest in zip((first, second), manifests, strict=True):
        assert signer(app, authority(folder)).name == "lead@a.org"
        own = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
        assert set(manifest.files) == {path for path in own if "__nvfl" not in path} - {MANIFEST_FILE}
        assert re.fullmatch("[0-9a-f]{32}", manifest.nonce)
        assert manifest.sites == ("site-1", "site-2")
        assert abs(dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(manifest.created)) < dt.timedelta(minutes=2)
    assert manifests[0].nonce != manifests[1].nonce
    assert read_manifest(first, ["site-1"]) == manifests[0]


def mixed(one, other, name):
    """``other`` with one file of ``one``, and the signature of that file."""
    signatures = other / ".__nvfl_sig.json"
    content = json.loads(signatures.read_text()) | {name: json.loads((one / ".__nvfl_sig.json").read_text())[name]}
    signatures.write_text(json.dumps(content))
    shutil.copy(one / name, other / name)


@pytest.mark.parametrize("name", ["plan.json", MANIFEST_FILE])
def test_files_of_two_jobs_of_one_person_cannot_be_mixed(folder, tmp_path, name):
    one, other = (submitted(folder, tmp_path / plan, plan.encode()) for plan in ("1", "2"))
    mixed(one, other, name)
    assert signer(other, authority(folder)).name == "lead@a.org"  # every signature holds
    with pytest.raises(AuthenticityError, match="not those that its submitter put together"):
        read_manifest(other, ["site-1"])


def test_a_file_besides_and_a_missing_one_are_noticed(folder, tmp_path):
    app = submitted(folder, tmp_path / "job", b"{}")
    (app / "config" / "more.json").write_text("{}")
    with pytest.raises(AuthenticityError, match="put together"):
        read_manifest(app, ["site-1"])
    (app / "config" / "more.json").unlink()
    read_manifest(app, ["site-1"])
    (app / "plan.json").unlink()
    with pytest.raises(AuthenticityError, match="put together"):
        read_manifest(app, ["site-1"])


def test_a_second_manifest_deeper_down_and_a_link_are_noticed(folder, tmp_path):
    app = submitted(folder, tmp_path / "job", b"{}")
    shutil.copy(app / MANIFEST_FILE, app / "config" / MANIFEST_FILE)
    with pytest.raises(AuthenticityError, match="put together"):
        read_manifest(app, ["site-1"])
    (app / "config" / MANIFEST_FILE).unlink()
    (app / "link").symlink_to(app / "plan.json")
    with pytest.raises(AuthenticityError, match="link"):
        read_manifest(app, ["site-1"])


def test_a_job_for_other_sites_is_refused(folder, tmp_path):
    app = submitted(folder, tmp_path / "job", b"{}", sites=["site-2", "site-3"])
    with pytest.raises(AuthenticityError, match="not submitted for this site"):
        read_manifest(app, ["site-1"])
    with pytest.raises(AuthenticityError, match="not submitted for this site"):
        read_manifest(app, ["site-1", "site-2"])  # the server, of a job deployed to one more
    assert read_manifest(app, ["site-2"]).sites == ("site-2", "site-3")


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "00"},
        {"nonce": "A" * 32},
        {"nonce": 7},
        {"format": 2},
        {"sites": "site-1"},
        {"sites": [1]},
        {"files": []},
        {"files": {"plan.json": "short"}},
        {"files": {"plan.json": 7}},
        {"more": 1},
        {"name": None},
        None,
    ],
    ids=str,
)
def test_what_is_no_manifest_is_refused(tmp_path, change):
    (tmp_path / "plan.json").write_text("{}")
    write_manifest(tmp_path, name="run", sites=["site-1"])
    read_manifest(tmp_path, ["site-1"])
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change) if change else "[" * 100_000)
    with pytest.raises(AuthenticityError, match="no manifest that can be read"):
        read_manifest(tmp_path, ["site-1"])


def test_a_job_without_a_manifest_is_refused(folder, tmp_path):
    app = submitted(folder, tmp_path / "job", b"{}")
    (app / MANIFEST_FILE).unlink()
    with pytest.raises(AuthenticityError, match="no manifest"):
        read_manifest(app, ["site-1"])


def test_a_revoked_submitters_jobs_are_refused_at_every_kit(folder, tmp_path):
    app = submitted(folder, tmp_path / "job", b"{}")
    assert signer(app, authority(folder)).name == "lead@a.org"
    revoke(folder, "lead@a.org")
    for kit in ("site-1", "server"):
        with pytest.raises(AuthenticityError, match="submitter was revoked"):
            signer(app, folder / "kits" / kit / "startup" / "rootCA.pem")


def crl_of(folder, *, days, by=None):
    """A list of nothing, made by hand: valid for ``days``, signed by the authority of the folder ``by``."""
    root_state = json.loads((folder / "ca" / "cert.json").read_text())
    key_state = json.loads(((by or folder) / "ca" / "cert.json").read_text())
    root = x509.load_pem_x509_certificate(root_state["root_cert"].encode())
    key = serialization.load_pem_private_key(key_state["root_pri_key"].encode(), None)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(now - dt.timedelta(days=90))
        .next_update(now + dt.timedelta(days=days))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_without_a_sound_list_of_revoked_certificates_nothing_is_accepted(folder, tmp_path):
    strangers = provisioned(tmp_path / "strangers")
    app = submitted(folder, tmp_path / "job", b"{}")
    crl = authority(folder).with_name("crl.pem")
    for content, why in (
        (crl_of(folder, days=-1), "out of date"),
        (crl_of(folder, days=9, by=strangers), "did not sign"),
        ((strangers / "kits" / "site-1" / "startup" / "crl.pem").read_bytes(), "did not sign"),
        (b"", "cannot be read"),
        (None, "no list"),
    ):
        crl.unlink()
        if content is not None:
            crl.write_bytes(content)
        with pytest.raises(AuthenticityError, match=why):
            signer(app, authority(folder))
        if content is None:
            crl.touch()
    crl.write_bytes(crl_of(folder, days=9))
    assert signer(app, authority(folder)).role == "lead"


def test_a_site_does_not_start_without_its_list(folder):
    from medveil.connect.process import run_site

    kit = folder / "kits" / "site-1"
    assert revocations(kit / "startup" / "crl.pem", authority(folder)) == frozenset()
    (kit / "startup" / "crl.pem").unlink()
    with pytest.raises(AuthenticityError, match="cannot be told"):
        run_site(kit)


@pytest.mark.parametrize(("name", "kind"), [("server", "server"), ("site-1", "site"), ("lead@a.org", "person")])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_private_key_that_others_may_read_is_not_used(folder, name, kind, mode):
    from medveil.connect.kit import read_kit

    kit = folder / "kits" / name
    key = next((kit / "startup").glob("*.key"))
    assert read_kit(kit, kind).name
    key.chmod(mode)
    with pytest.raises(ConfigError, match="Others on this machine"):
        read_kit(kit, kind)
    key.unlink()
    with pytest.raises(ConfigError, match="damaged"):
        read_kit(kit, kind)
