"""Read members of a zip that may be truncated or hostile; nothing is written to disk."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

from medveil.errors import ArchiveError, MissingDataError

_CHUNK = 1 << 20
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER = 30
_DIRECTORY_BYTES = 512  # allowed for one entry of the directory: 46 and its name
_RATIO_FREE = 1 << 20  # small members may be as compressible as they like

# What zipfile raises on damaged bytes, listed so that a fault of ours still surfaces.
_DAMAGE = (
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may cost.

    Args:
        max_members: files and folders.
        max_member_bytes: of one member, inflated.
        max_total_bytes: of all members, inflated.
        max_ratio: inflated to compressed size, of the whole and of each member above 1 MiB.
    """

    max_members: int = 200_000
    max_member_bytes: int = 2 << 30
    max_total_bytes: int = 64 << 30
    max_ratio: float = 300.0


@dataclass(frozen=True, eq=False)
class Archive:
    """An open, checked zip. Use :func:`open_archive`."""

    _zip: zipfile.ZipFile = field(repr=False)
    _members: dict[str, zipfile.ZipInfo] = field(repr=False)
    _limits: ArchiveLimits

    def names(self) -> tuple[str, ...]:
        """Names of the files (not the folders), POSIX style, sorted. They may hold identities."""
        return tuple(sorted(self._members))

    def size(self, name: str) -> int:
        """Inflated size of a member in bytes, as its header states it (:meth:`read` holds it to that).

        Raises:
            ArchiveError: there is no such member.
        """
        return self._member(name).file_size

    def read(self, name: str) -> bytes:
        """Read one member, counting real bytes.

        Raises:
            ArchiveError: there is no such member, it is damaged, or it is longer than it says.
        """
        info = self._member(name)
        parts: list[bytes] = []
        total = 0
        with _archive_errors(), self._zip.open(info) as stream:
            while part := stream.read(_CHUNK):
                total += len(part)
                if total > self._limits.max_member_bytes:
                    _refuse("A member of the archive inflates beyond the limit", f"more than {total} bytes")
                parts.append(part)
        if total != info.file_size:
            _refuse(
                "A member of the archive has another size than it states",
                f"{total} bytes",
                f"{info.file_size} bytes",
            )
        return b"".join(parts)

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise ArchiveError("The archive has no such member", remedy="list the archive's names and compare them")
        return self._members[name]


@contextmanager
def open_archive(path: Path, limits: ArchiveLimits | None = None) -> Iterator[Archive]:
    """Open a zip and check all of its directory before anything is inflated.

    Args:
        path: of the zip file.
        limits: None for the defaults.

    Yields:
        The archive, open until the block ends.

    Raises:
        MissingDataError: there is no such file.
        ArchiveError: not a complete zip; names that are absolute, leave the archive or repeat; links,
            encrypted, overlapping or unusually compressed members; a limit is passed. No message holds a
            member's name.
    """
    limits = limits or ArchiveLimits()
    if not path.is_file():
        raise MissingDataError("There is no archive at the path given", remedy="check the path")
    with _archive_errors():
        _check_directory_size(path, limits)
        file = zipfile.ZipFile(path)
    with file:
        _check_members(file.infolist(), path.stat().st_size, limits)
        members = {info.filename: info for info in file.infolist() if not info.is_dir()}
        yield Archive(file, members, limits)


@contextmanager
def _archive_errors() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        # zipfile's messages quote member names.
        raise ArchiveError(
            "The archive is not a complete zip file",
            got=type(error).__name__,
            remedy="download or copy it again",
        ) from None


def _refuse(what: str, got: object = None, expected: object = None) -> NoReturn:
    raise ArchiveError(
        what, got=got, expected=expected, remedy="use the archive as its publisher made it, or raise the limit"
    )


def _check_directory_size(path: Path, limits: ArchiveLimits) -> None:
    """The directory is read into memory whole: hold its stated size to the limit first."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 200))
        tail = file.read()
    stated = 0
    end = tail.rfind(b"PK\x05\x06")
    if 0 <= end <= len(tail) - 22:
        stated = struct.unpack_from("<L", tail, end + 12)[0] % 0xFFFFFFFF
    end64 = tail.rfind(b"PK\x06\x06")
    if 0 <= end64 <= len(tail) - 56:
        stated = max(stated, struct.unpack_from("<Q", tail, end64 + 40)[0])
    if stated > limits.max_members * _DIRECTORY_BYTES:
        _refuse("The archive's directory is too large", f"{stated} bytes")


def _check_members(members: list[zipfile.ZipInfo], archive_bytes: int, limits: ArchiveLimits) -> None:
    if len(members) > limits.max_members:
        _refuse("The archive has too many members", len(members), f"at most {limits.max_members}")
    if len({info.filename for info in members}) != len(members):
        _refuse("Members of the archive share a name")
    for info in members:
        _check_name(info.orig_filename)
        _check_member(info, limits)
    total = sum(info.file_size for info in members)
    if total > limits.max_total_bytes:
        _refuse("The archive inflates beyond the limit", f"{total} bytes", f"at most {limits.max_total_bytes}")
    if total > _RATIO_FREE and total > limits.max_ratio * archive_bytes:
        _refuse("The archive is unusually compressed", f"{total} from {archive_bytes} bytes")
    _check_overlap(members)


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        _refuse("A member's name is absolute or leads out of the archive")


def _check_member(info: zipfile.ZipInfo, limits: ArchiveLimits) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        _refuse("A member of the archive is a link or a device")
    if info.flag_bits & _ENCRYPTED:
        _refuse("A member of the archive is encrypted")
    if info.compress_type not in _METHODS:
        _refuse("A member is compressed by another method than deflate", info.compress_type)
    if info.file_size > limits.max_member_bytes:
        _refuse(
            "A member of the archive inflates beyond the limit",
            f"{info.file_size} bytes",
            f"at most {limits.max_member_bytes}",
        )
    if info.file_size > _RATIO_FREE and info.file_size > limits.max_ratio * max(1, info.compress_size):
        _refuse(
            "A member of the archive is unusually compressed",
            f"{info.file_size} from {info.compress_size} bytes",
        )


def _check_overlap(members: list[zipfile.ZipInfo]) -> None:
    """Members that share their compressed bytes multiply what a small file inflates to."""
    end = 0
    for info in sorted(members, key=lambda member: member.header_offset):
        if info.header_offset < end:
            _refuse("Members of the archive overlap")
        end = info.header_offset + _LOCAL_HEADER + info.compress_size
