"""A run's files with their SHA-256, signed with this machine's Ed25519 key."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from medveil.errors import ManifestError
from medveil.study.folder import RunFolder, read_json, write_json


def key_path() -> Path:
    """Where this user's signing key lies: ``MEDVEIL_HOME`` or ``~/.config/medveil``, file ``signing.pem``."""
    home = os.environ.get("MEDVEIL_HOME")
    folder = Path(home) if home else Path.home() / ".config" / "medveil"
    return folder / "signing.pem"


def signing_key() -> Ed25519PrivateKey:
    """This user's key; made on first use, readable by the user only.

    Raises:
        ManifestError: the key file is not an Ed25519 private key.
    """
    path = key_path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
        return key
    try:
        loaded = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        loaded = None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise ManifestError(
            "The signing key cannot be read",
            got="another kind of file",
            expected="an unencrypted Ed25519 private key in PEM",
            remedy="move the file away; a new key is made on the next run",
        )
    return loaded


def write_manifest(run: Path, plan_hash: str, *, files: Sequence[str] = ()) -> None:
    """Hash the run's files (not its state, nor the report, which can be made again) and sign the list.

    Args:
        run: its folder, or one that holds other evidence.
        plan_hash: of the plan that they belong to.
        files: names in the folder; those of a run by default.
    """
    key = signing_key()
    content = {"plan_hash": plan_hash, "files": _hashes(run, files)}
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signed = {
        **content,
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(key.sign(_message(content))).decode(),
    }
    write_json(run / "manifest.json", signed)


def verify_manifest(run: Path, *, files: Sequence[str] = ()) -> str:
    """Check that no file changed since it was signed; arguments as for :func:`write_manifest`.

    Returns:
        The signer's public key in base64; whether to trust it is the reader's decision.

    Raises:
        ManifestError: a file differs, is missing or was added, or the signature is not valid.
    """
    manifest = read_json(run / "manifest.json")
    try:
        content = {"plan_hash": manifest["plan_hash"], "files": manifest["files"]}
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(manifest["public_key"]))
        key.verify(base64.b64decode(manifest["signature"]), _message(content))
    except (KeyError, ValueError, InvalidSignature):
        raise ManifestError(
            "The manifest's signature is not valid",
            expected="an unchanged manifest.json",
            remedy="do not trust the run",
        ) from None
    found = _hashes(run, files)
    changed = sorted(
        name for name in found.keys() | content["files"].keys() if found.get(name) != content["files"].get(name)
    )
    if changed:
        raise ManifestError(
            "Files of the run differ from its signed manifest",
            got=", ".join(changed[:5]),
            expected="unchanged files",
            remedy="do not trust the run, or train it again",
        )
    return str(manifest["public_key"])


def _hashes(run: Path, files: Sequence[str]) -> dict[str, str]:
    paths = [run / name for name in files if (run / name).is_file()] if files else RunFolder(run).artifacts()
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _message(content: dict[str, Any]) -> bytes:
    return b"medveil manifest 1\n" + json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
