"""Certificates and kits: checked with OpenSSL's view of them, not with the code that made them."""

import datetime as dt
import json
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding

from medveil.connect.kit import read_kit
from medveil.connect.project import read_project
from medveil.connect.provision import provision, revoke
from medveil.errors import ConfigError
from medveil.secagg.identity import IdentityKey
from tiny_federation import FEDERATION, LEAD

THIRD = '\n[[sites]]\nname = "site-3"\norg = "c"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "federation.toml").write_text(FEDERATION)
    return tmp_path


def certificate(kit, name):
    return x509.load_pem_x509_certificate((kit / "startup" / name).read_bytes())


def every_file(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everyone_gets_a_kit_whose_certificate_openssl_accepts(folder):
    kits = provision(folder)
    assert set(kits) == {"server", "site-1", "site-2", LEAD}
    for name, kit in kits.items():
        file = "server.crt" if name == "server" else "client.crt"
        startup = kit / "startup"
        checked = subprocess.run(
            ["openssl", "verify", "-CAfile", startup / "rootCA.pem", startup / file],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
    subject = certificate(kits[LEAD], "client.crt").subject.rfc4514_string()
    assert "CN=lead@a.org" in subject
    assert "O=a" in subject


def test_secrets_are_readable_by_their_owner_alone(folder):
    provision(folder)
    secrets = [*folder.rglob("*.key"), folder / "ca" / "cert.json"]
    assert len(secrets) == 4 + 2 + 1
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert {(folder / inner).stat().st_mode & 0o777 for inner in ("ca", "kits")} == {0o700}


def test_no_kit_holds_the_key_of_the_authority_or_of_another(folder):
    kits = provision(folder)
    keys = {name: next((kit / "startup").glob("*.key")).read_bytes().splitlines()[2] for name, kit in kits.items()}
    authority = json.loads((folder / "ca" / "cert.json").read_text())["root_pri_key"].encode().splitlines()[2]
    for name, kit in kits.items():
        everything = b"".join(every_file(kit).values())
        assert authority not in everything
        assert [other for other, key in keys.items() if key in everything] == [name]


def test_a_second_run_changes_nothing(folder):
    kits = provision(folder)
    before = every_file(folder)
    provision(folder)
    after = every_file(folder)
    crls = {path for path in before if path.name == "crl.pem"}  # signed afresh
    assert {path.parts[1] for path in crls} == set(kits)
    assert {path: after[path] for path in set(after) - crls} == {path: before[path] for path in set(before) - crls}


def test_a_site_added_later_is_known_to_all_and_changes_no_key(folder):
    provision(folder)
    before = every_file(folder)
    (folder / "federation.toml").write_text(FEDERATION + THIRD)
    kits = provision(folder)
    after = every_file(folder)
    changed = {str(path) for path in before if after[path] != before[path] and path.name != "crl.pem"}
    rosters = {f"kits/{name}/medveil/roster.json" for name in ("server", "site-1", "site-2")}
    assert changed == rosters | {"federation.toml", "ca/cert.json"}
    roster = json.loads((kits["site-1"] / "medveil" / "roster.json").read_text())["sites"]
    assert roster == {
        f"site-{n}": IdentityKey.load(kits[f"site-{n}"] / "medveil" / "identity.key").public.hex() for n in (1, 2, 3)
    }


def test_settings_that_a_site_changed_stay(folder):
    kits = provision(folder)
    own = kits["site-1"] / "local" / "authorization.json"
    own.write_text('{"format_version": "1.0", "permissions": {}}')
    provision(folder)
    assert own.read_text() == '{"format_version": "1.0", "permissions": {}}'


def test_an_identity_that_the_hospital_made_itself_is_used_and_no_other_is_made(folder):
    public = IdentityKey.from_bytes(bytes(range(32))).public.hex()
    text = FEDERATION.replace('org = "b"', f'org = "b"\nidentity = "{public}"')
    (folder / "federation.toml").write_text(text)
    kits = provision(folder)
    assert not (kits["site-2"] / "medveil" / "identity.key").exists()
    assert json.loads((kits["site-1"] / "medveil" / "roster.json").read_text())["sites"]["site-2"] == public


def test_a_site_whose_kit_was_given_away_keeps_its_identity(folder):
    kits = provision(folder)
    before = (kits["server"] / "medveil" / "roster.json").read_bytes()
    shutil.rmtree(kits["site-1"])
    kits = provision(folder)
    assert (kits["server"] / "medveil" / "roster.json").read_bytes() == before
    assert not (kits["site-1"] / "medveil" / "identity.key").exists()
    assert (kits["site-2"] / "medveil" / "identity.key").exists()


def test_a_roster_that_cannot_be_read_is_named(folder):
    roster = provision(folder)["server"] / "medveil" / "roster.json"
    for content in ("", "[]", "{}"):
        roster.write_text(content)
        with pytest.raises(ConfigError, match="roster of sites cannot be read"):
            provision(folder)


def test_certificates_hold_as_long_as_asked(folder):
    (folder / "federation.toml").write_text(FEDERATION + "\n[validity]\nauthority_days = 40\ncertificate_days = 7\n")
    kits = provision(folder)
    made, root = certificate(kits["site-1"], "client.crt"), certificate(kits["site-1"], "rootCA.pem")
    assert made.not_valid_after_utc - made.not_valid_before_utc == dt.timedelta(days=7, minutes=5)
    assert root.not_valid_after_utc - root.not_valid_before_utc == dt.timedelta(days=40)


def test_revoking_adds_the_serial_for_good(folder):
    kits = provision(folder)
    revoke(folder, "site-2")
    provision(folder)
    crl = x509.load_pem_x509_crl((kits["server"] / "startup" / "crl.pem").read_bytes())
    assert [entry.serial_number for entry in crl] == [certificate(kits["site-2"], "client.crt").serial_number]
    root = certificate(kits["server"], "rootCA.pem")
    root.public_key().verify(
        crl.signature, crl.tbs_certlist_bytes, padding.PKCS1v15(), crl.signature_hash_algorithm
    )  # raises if another key signed it
    assert crl.next_update_utc == root.not_valid_after_utc


def test_nobody_runs_commands_or_code_of_a_job(folder):
    kits = provision(folder)
    for name in ("server", "site-1", "site-2"):
        rights = json.loads((kits[name] / "local" / "authorization.json").read_text())["permissions"]
        assert set(rights) == {"project_admin", "org_admin", "lead", "member"}
        assert {role for role, may in rights.items() if may["submit_job"] != "none"} == {"project_admin", "lead"}
        assert {may[right] for may in rights.values() for right in ("byoc", "shell_commands")} == {"none"}
        resources = json.loads((kits[name] / "local" / "resources.json").read_text())
        assert resources["class_list_enforcement_mode"] == "enforce"
        assert {path.partition(".")[0] for path in resources["class_allow_list"]} == {"medveil"}
        startup = json.loads(next((kits[name] / "startup").glob("fed_*.json")).read_text())
        assert startup["require_signed_jobs"] is True


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("port = 8102", "port = 80", "server.port"),
        ('name = "site-1"', 'name = "Site 1"', "sites.0.name"),
        ('name = "site-1"', 'name = "yes"', "no number, not yes or no"),
        ('name = "site-1"', 'name = "localhost"', "a name of its own"),
        ('name = "site-2"', 'name = "site-1"', "a name of its own"),
        ('role = "lead"', 'role = "boss"', "users.0.role"),
        ('org = "hub"', 'org = "hub"\nspeed = 3', "server.speed"),
        ("[server]", "[server", "no TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_words(folder, old, new, said):
    (folder / "federation.toml").write_text(FEDERATION.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        provision(folder)
    assert not (folder / "ca").exists()


def test_a_changed_role_is_refused(folder):
    provision(folder)
    (folder / "federation.toml").write_text(FEDERATION.replace('role = "lead"', 'role = "member"'))
    with pytest.raises(ConfigError, match="could not be made"):
        provision(folder)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_project(tmp_path / "nowhere")
    provision(folder)
    with pytest.raises(ConfigError, match="No certificate was made"):
        revoke(folder, "site-9")


def test_a_kit_of_the_wrong_kind_is_refused(folder):
    kits = provision(folder)
    with pytest.raises(ConfigError, match=r"not the kit of a server.*the kit of a site"):
        read_kit(kits["site-1"], "server")
    with pytest.raises(ConfigError, match="a folder that is no kit"):
        read_kit(folder, "site")
    assert read_kit(kits["site-1"], "site").name == "site-1"
    assert (read_kit(kits[LEAD], "person").host, read_kit(kits["server"], "server").port) == (
        "localhost",
        8102,
    )


@pytest.mark.parametrize(("days", "said"), [(-30, "not valid yet"), (4000, "has expired")])
def test_a_wrong_clock_is_named(folder, monkeypatch, days, said):
    kits = provision(folder)
    today = dt.datetime.now(dt.UTC)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return today + dt.timedelta(days=days)

    monkeypatch.setattr("medveil.connect.kit.dt.datetime", Clock)
    with pytest.raises(ConfigError, match=said):
        read_kit(kits["site-1"], "site")


def test_a_damaged_kit_is_named(folder):
    kits = provision(folder)
    (kits["site-1"] / "startup" / "client.crt").write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="damaged"):
        read_kit(kits["site-1"], "site")
