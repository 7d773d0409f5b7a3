"""Zips that are whole, broken or hostile."""

import io
import stat
import struct
import zipfile

import pytest

from medveil.errors import ArchiveError, MissingDataError
from medveil.imaging.archive import ArchiveLimits, open_archive

SECRET = "Ferrand"


def build(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def read_all(path, limits):
    with open_archive(path, limits) as archive:
        return [archive.read(name) for name in archive.names()]


def refuse(path, limits=None, match=None):
    with pytest.raises(ArchiveError, match=match) as caught:
        read_all(path, limits)
    assert SECRET not in str(caught.value)


def test_names_and_contents(tmp_path):
    path = build(tmp_path / "a.zip", {"b/": "", "b/two.png": b"22", "a.png": b"1"})
    with open_archive(path) as archive:
        assert archive.names() == ("a.png", "b/two.png")
        assert archive.read("b/two.png") == b"22"
        assert archive.size("b/two.png") == 2
        with pytest.raises(ArchiveError):
            archive.read("c.png")


def test_missing(tmp_path):
    with pytest.raises(MissingDataError) as caught, open_archive(tmp_path / f"{SECRET}.zip"):
        pass
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [f"../{SECRET}", f"a/../../{SECRET}", f"/{SECRET}", f"C:/{SECRET}", f"a\\..\\{SECRET}", f"a\0{SECRET}"],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    buffer = io.BytesIO()
    placeholder = "x" * len(name)
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(placeholder, b"1")
    path = tmp_path / "a.zip"
    path.write_bytes(buffer.getvalue().replace(placeholder.encode(), name.encode()))
    refuse(path, match="leads out")


def test_links_encryption_methods_and_repeats_are_refused(tmp_path):
    link = zipfile.ZipInfo(f"{SECRET}.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    refuse(tmp_path / "link.zip", match="link")

    content = bytearray(build(tmp_path / "a.zip", {SECRET: b"1"}).read_bytes())
    at = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, at + 8, 1)
    (tmp_path / "encrypted.zip").write_bytes(content)
    refuse(tmp_path / "encrypted.zip", match="encrypted")

    with zipfile.ZipFile(tmp_path / "bz2.zip", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr(SECRET, b"1")
    refuse(tmp_path / "bz2.zip", match="method")

    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr(SECRET, b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(SECRET, b"2")
    refuse(tmp_path / "twice.zip", match="share")


def test_truncated_and_damaged(tmp_path):
    whole = build(tmp_path / "a.zip", {SECRET: bytes(range(256)) * 40}).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:cut])
        refuse(tmp_path / "cut.zip")
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    refuse(tmp_path / "damaged.zip")


def test_limits(tmp_path):
    path = build(tmp_path / "a.zip", {f"{at}": bytes(1000) for at in range(5)})
    with open_archive(path, ArchiveLimits(5, 1000, 5000)) as archive:
        assert len(archive.read("0")) == 1000
    refuse(path, ArchiveLimits(max_members=4), match="too many")
    refuse(path, ArchiveLimits(max_member_bytes=999), match="beyond")
    refuse(path, ArchiveLimits(max_total_bytes=4999), match="beyond")


def test_bombs_by_ratio(tmp_path):
    path = build(tmp_path / "bomb.zip", {"a": bytes(20_000_000)})
    refuse(path, match="unusually compressed")
    with open_archive(path, ArchiveLimits(max_ratio=2000)) as archive:
        assert len(archive.read("a")) == 20_000_000


def test_a_header_that_lies_about_the_size_is_refused(tmp_path):
    content = bytearray(build(tmp_path / "a.zip", {SECRET: bytes(5_000_000)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", content, content.index(signature) + offset, 100)
    (tmp_path / "lie.zip").write_bytes(content)
    refuse(tmp_path / "lie.zip")


def test_overlapping_members_are_refused(tmp_path):
    content = bytearray(build(tmp_path / "a.zip", {"a": b"1" * 50, "b": b"2" * 50}).read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    struct.pack_into("<L", content, second + 42, 0)
    (tmp_path / "overlap.zip").write_bytes(content)
    refuse(tmp_path / "overlap.zip", match="overlap")


def test_a_directory_that_claims_to_be_huge_is_refused_first(tmp_path):
    content = bytearray(build(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
    struct.pack_into("<L", content, content.rindex(b"PK\x05\x06") + 12, 2_000_000_000)
    (tmp_path / "directory.zip").write_bytes(content)
    refuse(tmp_path / "directory.zip", match="directory")
