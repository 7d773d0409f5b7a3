"""A site's long-lived signing key, which all parties know by its public half."""

import os
import stat
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medveil.errors import ConfigError, PrivacyError
from medveil.rng import SecureRandom

KEY_BYTES = 32
SIGNATURE_BYTES = 64


class IdentityKey:
    """An Ed25519 signing key. It never prints its secret, and can be neither copied nor pickled.

    Reference:
        RFC 8032 (Ed25519).

    >>> key = IdentityKey.generate()
    >>> verify(key.public, key.sign(b"words"), b"words"), verify(key.public, key.sign(b"words"), b"other words")
    (True, False)
    """

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        """32 bytes, for everyone."""

    @classmethod
    def generate(cls, random: SecureRandom | None = None) -> "IdentityKey":
        """A fresh key, from ``random`` or from the operating system."""
        return cls.from_bytes((random or SecureRandom()).bytes(KEY_BYTES))

    @classmethod
    def from_bytes(cls, secret: bytes) -> "IdentityKey":
        """The key whose 32 secret bytes these are.

        Raises:
            ConfigError: another length.
        """
        if len(secret) != KEY_BYTES:
            raise ConfigError("This is no Ed25519 key", got=f"{len(secret)} bytes", expected=f"{KEY_BYTES} bytes")
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """The 32 secret bytes: never send or log them."""
        return self._key.private_bytes_raw()

    @classmethod
    def load(cls, path: Path) -> "IdentityKey":
        """Read a key that :meth:`save` wrote.

        Raises:
            ConfigError: no such file, not 32 bytes, or other users of the machine may read it.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                secret = file.read(KEY_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                "The identity key cannot be read", got=error.strerror, remedy="create one, or correct its path"
            ) from None
        if os.name == "posix" and mode & 0o077:
            raise ConfigError(
                "Others may use this identity key",
                got=f"mode {mode:04o}",
                expected="mode 0600",
                remedy="make a new key, or chmod 600 if nobody has read it",
            )
        return cls.from_bytes(secret)

    def save(self, path: Path) -> None:
        """Write the 32 secret bytes to a new file that only its owner may read.

        Raises:
            ConfigError: the file exists already, or cannot be written.
        """
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(
                "The identity key cannot be written",
                got=error.strerror,
                expected="a new file in a folder that can be written",
                remedy="an existing key is never overwritten: move it away first if it is to be replaced",
            ) from None
        with os.fdopen(handle, "wb") as file:
            file.write(self.to_bytes())

    def sign(self, data: bytes) -> bytes:
        """Signature of ``data``: 64 bytes, the same every time."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"<IdentityKey public={self.public.hex()}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("An identity key is not copied or pickled", remedy="use to_bytes where that is intended")


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` of ``data`` was made with the key whose public half is ``public``.

    False for malformed keys and signatures too.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
