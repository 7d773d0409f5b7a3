"""Certificates, read back with the cryptography library and the openssl that Python links."""

import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from medveil.encrypted.wire.certificates import ROLES, check_private, make_authority, make_certificate
from medveil.errors import ConfigError


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def authority(tmp_path):
    return make_authority(tmp_path / "authority", name="ring of clinics")


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_names_its_role_twice_and_is_signed_by_the_authority(tmp_path, authority, role):
    pair = make_certificate(tmp_path / role, authority=authority, role=role, name="Clinic 7")
    found, signer = load(pair.certificate), load(authority.certificate)
    assert found.subject.rfc4514_string() == f"CN=Clinic 7,OU={role},O=medveil"
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:medveil:role:{role}"]
    found.verify_directly_issued_by(signer)
    assert isinstance(found.public_key(), Ed25519PublicKey)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_authority_signs_no_further_authority(authority):
    constraints = load(authority.certificate).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0


def test_keys_are_for_their_owner_only(tmp_path, authority):
    pair = make_certificate(tmp_path / "new" / "folder", authority=authority, role="vendor", name="v")
    for key in (authority.key, pair.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        check_private(key)
    assert stat.S_IMODE(pair.key.parent.stat().st_mode) == 0o700
    pair.key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"0640.*chmod 600"):
        check_private(pair.key)
    authority.key.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        make_certificate(tmp_path, authority=authority, role="vendor", name="v")


def test_two_certificates_share_neither_key_nor_number(tmp_path, authority):
    one, other = (
        load(make_certificate(tmp_path / name, authority=authority, role="vendor", name="v").certificate)
        for name in ("one", "other")
    )
    assert one.serial_number != other.serial_number
    assert one.public_key() != other.public_key()


def test_lives_are_bounded(tmp_path, authority):
    pair = make_certificate(tmp_path, authority=authority, role="dealer", name="d", days=398)
    found = load(pair.certificate)
    assert found.not_valid_after_utc - found.not_valid_before_utc <= timedelta(days=398)
    assert found.not_valid_before_utc < datetime.now(UTC)
    for days in (0, 399):
        with pytest.raises(ConfigError, match="1 to 398"):
            make_certificate(tmp_path, authority=authority, role="dealer", name="d", days=days)
    short = make_authority(tmp_path / "short", days=30)
    with pytest.raises(ConfigError, match=r"outlive.*fewer days"):
        make_certificate(tmp_path / "x", authority=short, role="dealer", name="d", days=90)
    assert not (tmp_path / "x" / "dealer-key.pem").exists()


def test_nothing_is_overwritten(tmp_path, authority):
    pair = make_certificate(tmp_path, authority=authority, role="dealer", name="d")
    before = pair.key.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        make_certificate(tmp_path, authority=authority, role="dealer", name="d")
    with pytest.raises(ConfigError, match="already"):
        make_authority(authority.key.parent)
    assert pair.key.read_bytes() == before


@pytest.mark.parametrize(("role", "name"), [("surgeon", "s"), ("vendor", ""), ("vendor", "x" * 65), ("vendor", "a\nb")])
def test_bad_roles_and_names_are_refused(tmp_path, authority, role, name):
    with pytest.raises(ConfigError):
        make_certificate(tmp_path, authority=authority, role=role, name=name)


def test_an_authority_of_mixed_files_is_refused(tmp_path, authority):
    other = make_authority(tmp_path / "other")
    with pytest.raises(ConfigError, match="does not belong"):
        make_certificate(tmp_path, authority=authority._replace(key=other.key), role="vendor", name="v")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_certificate(tmp_path, authority=authority._replace(certificate=other.key), role="vendor", name="v")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_certificate(tmp_path, authority=authority._replace(key=tmp_path / "none"), role="vendor", name="v")
