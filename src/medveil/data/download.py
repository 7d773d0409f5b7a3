"""Bring a public data set onto this machine, and believe only what matches its published hash."""

import hashlib
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit
from urllib.request import Request

from medveil.data.catalogue import Origin, entry
from medveil.data.git_tree import Blob, blob_id, tree_id
from medveil.errors import ArchiveError, ChecksumError, ConfigError, MissingDataError

Progress = Callable[[int], None]
"""Told the number of bytes received so far."""

Fetch = Callable[[str, Path, int, Progress | None], None]
"""Write what an address serves to a path, at most so many bytes, telling a :data:`Progress` on the way."""

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_MAX_FILES = 100_000


def download(name: str, *, into: Path, fetch: Fetch | None = None, progress: Progress | None = None) -> Path:
    """Download a set of the catalogue, check it and unpack it.

    Args:
        name: in the catalogue.
        into: folder to put the set's folder in, usually :func:`medveil.data.catalogue.cache_folder`.
        fetch: how bytes come; None takes :func:`fetch_https`.
        progress: told bytes received.

    Returns:
        The set's folder. Where it exists already nothing is fetched.

    Raises:
        ConfigError: no such set.
        MissingDataError: the address could not be read.
        ChecksumError: the bytes are not those that were published.
        ArchiveError: the archive is damaged, too large or hostile.

    Guarantees:
        The folder appears whole and checked, or not at all.
    """
    known = entry(name)
    target = into / known.folder
    if target.is_dir():
        return target
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as temporary:
        archive, unpacked = Path(temporary) / "archive", Path(temporary) / "unpacked"
        unpacked.mkdir()
        (fetch or fetch_https)(known.origin.address, archive, known.origin.max_bytes, progress)
        _check_size(archive, known.origin.max_bytes)
        if known.origin.md5:
            check_md5(archive, known.origin.md5)
        if known.origin.unpack:
            _unpack(archive, unpacked, known.origin)
        else:
            archive.rename(unpacked / Path(urlsplit(known.origin.address).path).name)
        unpacked.rename(target)
    return target


def fetch_https(address: str, target: Path, max_bytes: int, progress: Progress | None = None) -> None:
    """Read an https address into a file.

    Args:
        address: must begin with https://; redirects away from https are refused.
        target: written.
        max_bytes: more than that stops the transfer.
        progress: told bytes received.

    Raises:
        ConfigError: not an https address.
        MissingDataError: the server could not be reached or refused.
        ArchiveError: more than ``max_bytes``.
    """
    opener = urllib.request.build_opener(_HttpsOnly)
    _check_https(address)
    request = Request(address, headers={"User-Agent": "medveil"})  # noqa: S310 - https checked above
    received = 0
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer, target.open("wb") as out:
            while chunk := answer.read(_CHUNK):
                received += len(chunk)
                _check_bytes(received, max_bytes)
                out.write(chunk)
                if progress is not None:
                    progress(received)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise MissingDataError(
            "The data set could not be downloaded",
            got=type(error).__name__,
            expected="an answer from the public server",
            remedy="check the network, or copy the set here and set MEDVEIL_DATA",
        ) from error


def check_md5(path: Path, expected: str) -> None:
    """Compare a file with its published MD5.

    Raises:
        ChecksumError: they differ.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ChecksumError(
            "The downloaded file is not the one that was published",
            got=f"MD5 {digest.hexdigest()}",
            expected=f"MD5 {expected}",
            remedy="download again; if it stays so, the publisher has changed the file",
        )


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_https(address: str) -> None:
    if urlsplit(address).scheme != "https":
        raise ConfigError("Data are downloaded over https only", got=urlsplit(address).scheme, expected="https")


def _check_size(path: Path, max_bytes: int) -> None:
    if not path.is_file():
        raise MissingDataError("The download wrote no file", expected="one file")
    _check_bytes(path.stat().st_size, max_bytes)


def _check_bytes(count: int, max_bytes: int) -> None:
    if count > max_bytes:
        raise ArchiveError(
            "The download is larger than the data set can be",
            got=f"more than {max_bytes} bytes",
            expected=f"at most {max_bytes} bytes",
        )


def _unpack(archive: Path, target: Path, origin: Origin) -> None:
    """Unpack regular files, checking git tree ids where the origin names them."""
    trees: dict[str, dict[str, Blob]] = {folder: {} for folder in origin.trees or {}}
    for path, executable, content in _members(archive, origin.max_bytes):
        # An archive by commit has one top folder named after it; ids are of folders below.
        inside = PurePosixPath(*path.parts[1:]) if origin.trees is not None else path
        folder = next((name for name in trees if inside.is_relative_to(name)), None)
        if origin.trees is not None and folder is None:
            continue
        if folder is not None:
            key = inside.relative_to(folder).as_posix()
            trees[folder][key] = Blob(blob_id(content), executable=executable)
        out = target.joinpath(*inside.parts[origin.strip :])
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_new(out, content)
    for folder, files in trees.items():
        _check_tree(tree_id(files), (origin.trees or {})[folder])


def _write_new(path: Path, content: bytes) -> None:
    if path.exists():
        raise ArchiveError("The downloaded archive holds one file twice", expected="each file once")
    path.write_bytes(content)


def _check_tree(got: str, expected: str) -> None:
    if got != expected:
        raise ChecksumError(
            "The downloaded folder is not the one that was published",
            got=f"git tree {got}",
            expected=f"git tree {expected}",
            remedy="download again; if it stays so, the publisher has changed the files",
        )


def _members(archive: Path, max_bytes: int) -> Iterator[tuple[PurePosixPath, bool, bytes]]:
    total = count = 0
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.isdir():
                    continue
                total, count = total + member.size, count + 1
                _check_bytes(total, max_bytes)
                _check_member(member, count)
                stream = tar.extractfile(member)
                if stream is not None:
                    yield PurePosixPath(member.name), bool(member.mode & 0o100), stream.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ArchiveError(
            "The downloaded archive is damaged",
            got=type(error).__name__,
            expected="a tar archive",
            remedy="download again",
        ) from error


def _check_member(member: tarfile.TarInfo, count: int) -> None:
    path = PurePosixPath(member.name)
    if not member.isfile() or path.is_absolute() or ".." in path.parts or count > _MAX_FILES:
        raise ArchiveError(
            "The downloaded archive holds something that is not a plain file inside it",
            got="a link, a device, a path that leads out, or too many files",
            expected=f"at most {_MAX_FILES} plain files",
        )
