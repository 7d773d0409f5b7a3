"""What a job's submitter signed, checked on the machine that is to run it: who, whether still allowed, and what."""

import datetime as dt
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from medveil.errors import AuthenticityError
from medveil.federation.engine.context import Submitter
from medveil.federation.engine.tls import CRL_FILE

MANIFEST_FILE = "medveil.json"
"""In the folder of a job's own files: what belongs to the job, for whom it is, and its nonce."""

FORMAT = 1
NONCE_BYTES = 16
MOST_BYTES = 1 << 20
_SIGNATURES = {NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE}
_NONCE = re.compile(r"[0-9a-f]{32}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REMEDY = "submit the job again; if this recurs, somebody changes jobs at the server"


@dataclass(frozen=True)
class Manifest:
    """What a submission consists of.

    Attributes:
        name: of the run.
        sites: for whom it is.
        nonce: 32 hexadecimal digits, drawn for this submission; the same in every job that continues its run.
        created: when, ISO 8601, UTC.
        medveil: version that wrote it.
        files: path in the folder -> SHA-256, hexadecimal; all files but this one and the signatures.
    """

    name: str
    sites: tuple[str, ...]
    nonce: str
    created: str
    medveil: str
    files: dict[str, str]


def write_manifest(app: Path, *, name: str, sites: Sequence[str]) -> Manifest:
    """Write the manifest of a job's folder; to be called last, before the folder is signed.

    Args:
        app: folder of the job's own files, complete.
        name: of the run.
        sites: for whom the job is.
    """
    manifest = Manifest(
        name,
        tuple(sites),
        secrets.token_hex(NONCE_BYTES),
        dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        version("medveil"),
        _digests(app),
    )
    (app / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, **vars(manifest)}, indent=2) + "\n", "utf-8")
    return manifest


def read_manifest(app: Path, recipients: Sequence[str]) -> Manifest:
    """Read the manifest and compare it with the folder.

    Signatures hold for one file each: without this list, files of several jobs that one person signed could be mixed.

    Args:
        app: folder of the job's own files, its signatures verified by :func:`signer`.
        recipients: sites that the job must be for: a site's own name; at the server, those it was deployed to.

    Raises:
        AuthenticityError: missing, not for these sites, or the folder holds other files than it lists.
    """
    manifest = _parsed(app / MANIFEST_FILE)
    if manifest.files != _digests(app):
        raise AuthenticityError(
            "The files of this job are not those that its submitter put together",
            got="a file is missing, was added, or comes from another job",
            expected=f"exactly the files that {MANIFEST_FILE} lists",
            remedy=_REMEDY,
        )
    strangers = sorted(set(recipients) - set(manifest.sites))
    if strangers:
        raise AuthenticityError(
            "This job was not submitted for this site",
            got=", ".join(strangers),
            expected=", ".join(manifest.sites)[:300],
            remedy="ask its submitter; if the site should take part, the job has to be submitted again",
        )
    return manifest


def signer(app: Path, authority: Path) -> Submitter:
    """Who signed the files of a job.

    Args:
        app: folder of the job's files.
        authority: certificate of the federation's authority; the list of revoked certificates lies beside it.

    Raises:
        AuthenticityError: a file is unsigned or was changed, more than one signed, or the signer's certificate was
            revoked, or whether it was revoked cannot be told.
    """
    try:
        verified, signers = verify_folder_signature_and_get_signers(str(app), str(authority))
    except Exception:  # noqa: BLE001 - the engine reads here what anybody may have written: what it cannot is unsigned
        verified, signers = False, []
    if not verified or len(signers) != 1:
        raise AuthenticityError(
            "The files of this job are not as its submitter signed them",
            got=f"{len(signers)} signatures that hold",
            expected="every file signed by one person of this federation",
            remedy=_REMEDY,
        )
    name, org, role = signers[0]
    revoked = revocations(authority.with_name(CRL_FILE), authority)
    for path in app.rglob(NVFLARE_SUBMITTER_CRT_FILE):
        if revoked.intersection(_serials(path)):
            raise AuthenticityError(
                "The certificate of this job's submitter was revoked",
                got=str(name),
                remedy="abort the job; somebody who may submit has to submit it anew",
            )
    return Submitter(name or "", org or "", role or "")


def _serials(path: Path) -> set[int]:
    """Of the certificates in a job's folder.

    Raises:
        AuthenticityError: they cannot be read.
    """
    try:
        return {one.serial_number for one in x509.load_pem_x509_certificates(path.read_bytes())}
    except (OSError, ValueError):
        raise AuthenticityError("A certificate in the job cannot be read", remedy=_REMEDY) from None


def revocations(path: Path, authority: Path) -> frozenset[int]:
    """Serial numbers that the authority revoked.

    Args:
        path: its list, PEM.
        authority: its certificate, PEM.

    Raises:
        AuthenticityError: the list is missing, damaged, by somebody else, or out of date.
    """
    got = None
    try:
        root = x509.load_pem_x509_certificate(authority.read_bytes())
        crl = x509.load_pem_x509_crl(path.read_bytes())
        now = dt.datetime.now(dt.UTC)
        if crl.issuer != root.subject or not crl.is_signature_valid(root.public_key()):  # type: ignore[arg-type] # not every kind signs
            got = "a list that the federation's authority did not sign"
        elif crl.next_update_utc is None or crl.next_update_utc < now:
            got = "a list that is out of date"
        else:
            return frozenset(entry.serial_number for entry in crl)
    except FileNotFoundError:
        got = "no list"
    except (OSError, ValueError, TypeError):
        got = "a list that cannot be read"
    raise AuthenticityError(
        "Whether certificates were revoked cannot be told",
        got=got,
        expected=f"startup/{path.name}, signed by the federation's authority and in date",
        remedy=f"ask whoever provisioned the federation for the present {path.name}",
    )


def _digests(app: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(app.rglob("*")):
        if path.is_symlink():
            raise AuthenticityError("A job's folder holds a link", expected="plain files", remedy=_REMEDY)
        if path.is_file() and path.name not in _SIGNATURES and path != app / MANIFEST_FILE:
            found[path.relative_to(app).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _parsed(path: Path) -> Manifest:
    try:
        manifest = _manifest(json.loads(path.read_bytes())) if path.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        manifest = None
    if manifest is None:
        raise AuthenticityError(
            "The job has no manifest that can be read",
            expected=f"{MANIFEST_FILE} of format {FORMAT}, signed with the job",
            remedy="submit the job with this version of medveil",
        )
    return manifest


def _manifest(values: dict[str, Any]) -> Manifest | None:
    """What the file says, or None (or an exception of a look-up) if it is not of the expected form."""
    sites, files = values["sites"], values["files"]
    texts = [values["name"], values["created"], values["medveil"], *sites]
    sound = values.pop("format") == FORMAT and isinstance(sites, list) and isinstance(files, dict)
    sound = sound and all(isinstance(text, str) for text in texts) and _NONCE.fullmatch(values["nonce"]) is not None
    if not sound or not all(_DIGEST.fullmatch(digest) for digest in files.values()):
        return None
    return Manifest(**{**values, "sites": tuple(sites)})
