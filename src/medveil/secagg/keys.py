"""Keys that two sites agree on over an untrusted server, what is derived from them, and sealed bytes."""

import struct
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medveil.errors import AuthenticityError, ConfigError, PrivacyError
from medveil.rng import SecureRandom

KEY_BYTES = 32
SEAL_BYTES = 16
"""How much longer sealed bytes are than open ones."""

_LABEL = b"medveil secagg 1"
# A key seals once, so that a constant nonce never repeats under it.
_NONCE = bytes(12)


class KeyPair:
    """An X25519 key pair. It never prints its secret, and can be neither copied nor pickled.

    Args:
        secret: 32 uniform bytes.

    Raises:
        ConfigError: another length.

    Reference:
        RFC 7748 (X25519).
    """

    __slots__ = ("_key", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ConfigError("This is no X25519 key", got=f"{len(secret)} bytes", expected=f"{KEY_BYTES} bytes")
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()
        """32 bytes, for everyone."""

    @classmethod
    def generate(cls, random: SecureRandom) -> "KeyPair":
        """A fresh pair from secure randomness."""
        return cls(random.bytes(KEY_BYTES))

    def to_bytes(self) -> bytes:
        """The 32 secret bytes: never send or log them."""
        return self._key.private_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """The 32 bytes that this pair and the holder of ``public`` share; use them through :func:`derive` only.

        Raises:
            AuthenticityError: not a key, or one of the few with which the result would be known to all.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise AuthenticityError(
                "A public key would make the shared secret known to all",
                got=f"{len(public)} bytes that are no key, or a point of small order",
                expected="a fresh X25519 public key",
                remedy="the sender is broken or hostile: leave that site out",
            ) from None

    def __repr__(self) -> str:
        return f"<KeyPair public={self.public.hex()}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("A key pair is not copied or pickled", remedy="use to_bytes where that is intended")


def agree(secret: bytes, public: bytes) -> bytes:
    """As :meth:`KeyPair.agree`, from the 32 secret bytes."""
    return KeyPair(secret).agree(public)


def derive(shared: bytes, purpose: bytes, *context: bytes) -> bytes:
    """A 32-byte key for one purpose and context, from a shared secret.

    HKDF with SHA-256, no salt; its ``info`` is the label ``medveil secagg 1``, the purpose and each part of the
    context in this order, each after its length as a little-endian 16-bit number. So no two lists give one ``info``.

    Raises:
        ConfigError: a part longer than 65535 bytes.

    Guarantees:
        Keys of different purposes or contexts tell nothing about each other or about ``shared`` (HKDF as a
        pseudorandom function; RFC 5869).

    >>> derive(bytes(32), b"mask", b"ab", b"c") == derive(bytes(32), b"mask", b"a", b"bc")
    False
    """
    parts = (_LABEL, purpose, *context)
    if max(map(len, parts)) > 0xFFFF:  # noqa: PLR2004 - what 16 bits hold
        raise ConfigError("The context of a key is too long", got=max(map(len, parts)), expected="at most 65535 bytes")
    info = b"".join(struct.pack("<H", len(part)) + part for part in parts)
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(shared)


def seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """Encrypt and authenticate ``plain``, and authenticate ``associated``; 16 bytes longer.

    Args:
        key: 32 bytes that seal nothing else, ever: the nonce is zero.
        plain: any bytes.
        associated: what the receiver must know to open it.

    Reference:
        RFC 8439 (ChaCha20-Poly1305).
    """
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """What :func:`seal` was given.

    Raises:
        AuthenticityError: another key or other associated bytes, or the sealed bytes were changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        raise AuthenticityError(
            "Sealed bytes do not open",
            expected="bytes sealed by the site that they are said to come from, unchanged",
            remedy="the server or that site changed them: leave it out",
        ) from None
