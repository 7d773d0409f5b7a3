"""New certificates for old ones: checked with cryptography and OpenSSL, not with the code that made them."""

import datetime as dt
import json
import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from medveil import disk
from medveil.connect import authority, renewal
from medveil.connect.authority import LOCK_FILE
from medveil.connect.kit import read_kit
from medveil.connect.provision import provision, revoke
from medveil.connect.renewal import certificates, ending, renew
from medveil.errors import ConfigError
from tiny_federation import FEDERATION, LEAD, provisioned

VALIDITY = "[validity]\nauthority_days = 1000\ncertificate_days = 100\n"
TEXT = FEDERATION + VALIDITY
STEM = {"server": "server", "site-1": "client", "site-2": "client", LEAD: "client"}
EVERYONE = list(STEM)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return provisioned(tmp_path_factory.mktemp("fed"), VALIDITY)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "fed")


def startup(folder, name):
    return folder / "kits" / name / "startup"


def certificate(folder, name):
    return x509.load_pem_x509_certificate((startup(folder, name) / f"{STEM[name]}.crt").read_bytes())


def root(folder):
    return x509.load_pem_x509_certificate((startup(folder, "server") / "rootCA.pem").read_bytes())


def serials_on_the_list(folder, name="server"):
    crl = x509.load_pem_x509_crl((startup(folder, name) / "crl.pem").read_bytes())
    assert crl.is_signature_valid(root(folder).public_key())
    return {entry.serial_number for entry in crl}


def every_file(folder):
    """What stands in the federation's files; the lock is nobody's content."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def changed(before, after):
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def later(monkeypatch, days):
    """The same federation, some days on."""
    today = dt.datetime.now(dt.UTC)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return today + dt.timedelta(days=days)

    for module in (authority, renewal):
        monkeypatch.setattr(module, "dt", SimpleNamespace(datetime=Clock, timedelta=dt.timedelta, UTC=dt.UTC))


@pytest.mark.parametrize("name", EVERYONE)
def test_a_new_certificate_differs_in_key_number_and_dates_alone(folder, name):
    old, old_key = certificate(folder, name), (startup(folder, name) / f"{STEM[name]}.key").read_bytes()
    before = every_file(folder)
    (made,) = renew(folder, [name])
    new = certificate(folder, name)
    new.verify_directly_issued_by(root(folder))
    root(folder).public_key().verify(
        new.signature, new.tbs_certificate_bytes, padding.PKCS1v15(), new.signature_hash_algorithm
    )
    assert new.subject == old.subject  # name, organisation, and a person's role
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key()
    assert new.not_valid_after_utc - new.not_valid_before_utc == dt.timedelta(days=100, minutes=5)
    assert made.ends == new.not_valid_after_utc
    assert made.old_ends == old.not_valid_after_utc
    own = x509.SubjectKeyIdentifier
    assert new.extensions.get_extension_for_class(own).value == own.from_public_key(new.public_key())
    assert [e for e in new.extensions if e.oid != own.oid] == [e for e in old.extensions if e.oid != own.oid]
    key = startup(folder, name) / f"{STEM[name]}.key"
    assert load_pem_private_key(key.read_bytes(), None).public_key() == new.public_key()
    assert key.read_bytes() != old_key
    assert key.stat().st_mode & 0o777 == 0o600
    assert (folder / "ca" / "cert.json").stat().st_mode & 0o777 == 0o600
    # Nothing else changed: not the identity key, the roster, the list of revoked ones, or anybody else's kit.
    inner = f"kits/{name}/startup/{STEM[name]}"
    assert changed(before, every_file(folder)) == {"ca/cert.json", f"{inner}.crt", f"{inner}.key"}
    assert {path.as_posix() for path in made.files} == {
        (folder / f"{inner}{end}").as_posix() for end in (".crt", ".key")
    }


def test_openssl_accepts_the_new_kit_and_so_does_the_start_of_a_site(folder):
    renew(folder, EVERYONE)
    for name in EVERYONE:
        inside = startup(folder, name)
        trusted = ["-crl_check", "-CRLfile", inside / "crl.pem", "-CAfile", inside / "rootCA.pem"]
        checked = subprocess.run(
            ["openssl", "verify", *trusted, inside / f"{STEM[name]}.crt"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(inside / f"{STEM[name]}.crt", inside / f"{STEM[name]}.key")  # raises unless they match
    kit = read_kit(folder / "kits" / LEAD, "person")
    assert (kit.name, kit.org) == (LEAD, "a")


def test_the_old_one_is_accepted_until_it_ends_unless_it_is_revoked(folder):
    old = certificate(folder, "site-1").serial_number
    renew(folder, ["site-1"])
    assert serials_on_the_list(folder) == set()
    middle = certificate(folder, "site-1").serial_number
    (made,) = renew(folder, ["site-1"], revoke_old=True)
    assert made.old_revoked
    for name in EVERYONE:
        assert serials_on_the_list(folder, name) == {old, middle}
    assert certificate(folder, "site-1").serial_number not in {old, middle}


def test_provisioning_again_keeps_what_was_renewed_and_revoked(folder):
    renew(folder, ["site-1"], revoke_old=True)
    before, revoked = every_file(folder), serials_on_the_list(folder)
    provision(folder)
    assert {path for path in changed(before, every_file(folder)) if not path.endswith("crl.pem")} == set()
    assert serials_on_the_list(folder) == revoked
    assert len(revoked) == 1


def test_who_is_shut_out_is_shut_out_with_every_certificate(folder):
    serials = {certificate(folder, "site-1").serial_number}
    for _ in range(2):
        renew(folder, ["site-1"])
        serials.add(certificate(folder, "site-1").serial_number)
    revoke(folder, "site-1")
    assert len(serials) == 3
    assert serials_on_the_list(folder) == serials


def test_the_overlap_can_be_ended_early(folder):
    old = certificate(folder, "site-1").serial_number
    with pytest.raises(ConfigError, match="was replaced by a renewal"):
        revoke(folder, "site-1", old=True)
    renew(folder, ["site-1"])
    revoke(folder, "site-1", old=True)
    assert serials_on_the_list(folder) == {old}
    assert renew(folder, ["site-1"])  # not shut out


def test_who_was_shut_out_gets_a_certificate_only_when_that_is_said(folder):
    revoke(folder, "site-1")
    before = every_file(folder)
    with pytest.raises(ConfigError, match=r"certificate of site-1 was revoked.*--readmit"):
        renew(folder, ["site-2", "site-1"])
    assert ending(folder, 1000) == ["server", "site-2", LEAD]
    assert changed(before, every_file(folder)) == set()
    old = certificate(folder, "site-1").serial_number
    renew(folder, ["site-1"], readmit=True)
    assert serials_on_the_list(folder) == {old}
    assert certificate(folder, "site-1").serial_number != old


@pytest.mark.parametrize("name", ["site-9", "authority", "root_cert", "fed.example.org", ""])
def test_a_name_that_is_nobodys_is_refused(folder, name):
    before = every_file(folder)
    with pytest.raises(ConfigError, match=r"not in the federation's description.*site-1"):
        renew(folder, ["site-1", name])
    assert changed(before, every_file(folder)) == set()


def test_a_site_that_was_not_provisioned_yet_is_refused(folder):
    (folder / "federation.toml").write_text(TEXT + '[[sites]]\nname = "site-3"\norg = "c"\n')
    with pytest.raises(ConfigError, match="No certificate was made for this name"):
        renew(folder, ["site-3"])


@pytest.mark.parametrize("action", [certificates, lambda folder: renew(folder, ["site-1"]), provision])
def test_without_the_authority_nothing_is_done(folder, action):
    shutil.rmtree(folder / "ca")
    before = every_file(folder)
    with pytest.raises(ConfigError, match=r"authority's files cannot be read.*backup"):
        action(folder)
    assert changed(before, every_file(folder)) == set()
    assert not (folder / "ca").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"root_cert": 3}', '{"root_cert": "x"}'])
def test_a_damaged_authority_is_named(folder, content):
    (folder / "ca" / "cert.json").write_text(content)
    with pytest.raises(ConfigError, match=r"authority's files cannot be read"):
        renew(folder, ["site-1"])


def test_a_federation_on_paper_has_no_certificates(tmp_path):
    (tmp_path / "federation.toml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"no authority yet.*provision"):
        certificates(tmp_path)
    assert provision(tmp_path)


def test_a_kit_that_was_given_away_is_made_anew_without_an_identity(folder):
    shutil.rmtree(folder / "kits" / "site-1")
    renew(folder, ["site-1"])
    assert {
        path.relative_to(folder / "kits" / "site-1").as_posix() for path in (folder / "kits/site-1").rglob("*.*")
    } == {
        "startup/client.crt",
        "startup/client.key",
    }
    assert (folder / "kits" / "site-1").stat().st_mode & 0o777 == 0o700


# Dates


def test_a_certificate_never_outlives_its_authority(folder, monkeypatch):
    later(monkeypatch, 950)
    (made,) = renew(folder, ["site-1"])
    assert made.ends == root(folder).not_valid_after_utc
    assert made.old_ended
    with pytest.raises(ConfigError, match=r"would not hold longer: the authority's own ends.*new folder"):
        renew(folder, ["site-1"])
    old = certificate(folder, "site-1").serial_number
    renew(folder, ["site-1"], revoke_old=True)  # for another key, not for longer
    assert old in serials_on_the_list(folder)


@pytest.mark.parametrize("action", [lambda folder: renew(folder, ["site-1"], revoke_old=True), provision])
def test_an_authority_that_ended_signs_nothing(folder, monkeypatch, action):
    before = every_file(folder)
    later(monkeypatch, 1001)
    with pytest.raises(ConfigError, match=r"authority's certificate has ended.*new folder"):
        action(folder)
    assert changed(before, every_file(folder)) == set()


def test_the_list_of_certificates(folder, monkeypatch):
    (folder / "federation.toml").write_text(TEXT.replace("certificate_days = 100", "certificate_days = 300"))
    old = certificate(folder, "site-2").not_valid_after_utc
    renew(folder, ["site-2"])
    revoke(folder, LEAD)
    text = TEXT.replace('[[sites]]\nname = "site-1"\norg = "a"\n', "")
    (folder / "federation.toml").write_text(text)
    before = every_file(folder)
    found = {one.name: one for one in certificates(folder)}
    assert [one.name for one in certificates(folder)] == ["authority", *EVERYONE]
    assert {name: one.days_left for name, one in found.items() if name != "authority"} == {
        **dict.fromkeys(EVERYONE, 99),
        "site-2": 299,
    }
    assert found["authority"].ends == root(folder).not_valid_after_utc
    assert found["site-2"].earlier == (old,)
    assert found[LEAD].stands == "revoked"
    assert [name for name, one in found.items() if not one.listed] == ["site-1"]
    later(monkeypatch, 101)
    found = {one.name: one for one in certificates(folder)}
    assert (found["server"].stands, found["server"].days_left) == ("ended", -2)
    assert (found["site-2"].stands, found["site-2"].earlier) == ("valid", ())
    assert changed(before, every_file(folder)) == set()


def test_those_that_end_soon(folder):
    assert ending(folder, 99) == []
    assert ending(folder, 100) == EVERYONE
    (folder / "federation.toml").write_text(TEXT.replace("certificate_days = 100", "certificate_days = 300"))
    renew(folder, ["server"])
    assert ending(folder, 100) == EVERYONE[1:]


@pytest.mark.parametrize(
    "action", [provision, lambda folder: revoke(folder, "site-1"), lambda folder: renew(folder, ["site-1"])]
)
def test_two_people_at_once_wait_for_each_other(folder, action):
    before = every_file(folder)
    with ThreadPoolExecutor() as pool:
        with disk.alone_with(folder / LOCK_FILE):
            told = pool.submit(action, folder)
            with pytest.raises(TimeoutError):
                told.result(timeout=1.5)
            assert changed(before, every_file(folder)) == set()
        told.result(timeout=60)
    assert changed(before, every_file(folder))


# A crash


@pytest.mark.parametrize("revoke_old", [False, True])
def test_a_crash_leaves_the_authority_old_or_new_and_provisioning_mends_the_kits(folder, monkeypatch, revoke_old):
    """Whichever file it comes before; the same command without a crash writes ``count`` files."""
    whole = shutil.copytree(folder, folder.with_name("whole"))
    count = _writes(monkeypatch, whole, revoke_old, crash_at=None)
    assert count == (7 if revoke_old else 3)
    for crash_at in range(count):
        broken = shutil.copytree(folder, folder.with_name(f"broken-{crash_at}"))
        old = {name: certificate(broken, name).serial_number for name in EVERYONE}
        before = (broken / "ca" / "cert.json").read_bytes()
        with pytest.raises(OSError, match="power cut"):
            _writes(monkeypatch, broken, revoke_old, crash_at=crash_at)
        is_old = (broken / "ca" / "cert.json").read_bytes() == before
        assert is_old == (crash_at == 0)
        provision(broken)
        entry = json.loads((broken / "ca" / "cert.json").read_text())["site-1"]
        new = certificate(broken, "site-1")
        assert new == x509.load_pem_x509_certificate(entry["cert"].encode())
        assert (new.serial_number == old["site-1"]) == is_old
        key = load_pem_private_key((startup(broken, "site-1") / "client.key").read_bytes(), None)
        assert key.public_key() == new.public_key()
        for name in EVERYONE:
            assert serials_on_the_list(broken, name) == ({old["site-1"]} if revoke_old and not is_old else set())


def _writes(monkeypatch, folder, revoke_old, crash_at):
    """How many files a renewal replaces; the power is cut before one of them."""
    count = 0

    def write(real):
        def counted(path, data, *, mode=0o666):
            nonlocal count
            if count == crash_at:
                raise OSError("power cut")
            count += 1
            real(path, data, mode=mode)

        return counted

    with monkeypatch.context() as patch:
        for module in ("renewal", "provision", "authority"):
            patch.setattr(f"medveil.connect.{module}.replace_file", write(disk.replace_file))
        renew(folder, ["site-1"], revoke_old=revoke_old)
    return count
