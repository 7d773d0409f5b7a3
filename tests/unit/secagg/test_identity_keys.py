"""Keys agree with the standards' own examples, keep their secrets to themselves, and refuse what is no key."""

import copy
import hashlib
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medveil.errors import AuthenticityError, ConfigError, PrivacyError
from medveil.rng import SecureRandom
from medveil.secagg.identity import IdentityKey, verify
from medveil.secagg.keys import KeyPair, agree, derive, seal, unseal

P = 2**255 - 19


class TestIdentity:
    def test_rfc_8032_section_7_1_test_1(self):
        key = IdentityKey.from_bytes(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
        assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        assert key.sign(b"").hex() == (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        )

    def test_a_signature_holds_for_its_words_and_key_alone(self):
        key, other = IdentityKey.generate(), IdentityKey.generate()
        signature = key.sign(b"words")
        assert verify(key.public, signature, b"words")
        assert not verify(key.public, signature, b"word")
        assert not verify(other.public, signature, b"words")
        assert not verify(key.public, signature[:-1], b"words")
        assert not verify(key.public[:-1], signature, b"words")
        assert not verify(key.public, b"", b"words")
        for place in range(64):
            forged = bytearray(signature)
            forged[place] ^= 1
            assert not verify(key.public, bytes(forged), b"words")

    def test_files_are_for_their_owner(self, tmp_path):
        key = IdentityKey.generate()
        path = tmp_path / "identity.key"
        key.save(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == key.to_bytes()
        assert IdentityKey.load(path).public == key.public
        with pytest.raises(ConfigError, match="cannot be written") as error:
            IdentityKey.generate().save(path)
        assert error.value.remedy
        assert path.read_bytes() == key.to_bytes()
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="Others may use") as error:
            IdentityKey.load(path)
        assert (error.value.got, error.value.expected) == ("mode 0640", "mode 0600")

    @pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
    def test_files_of_another_length(self, tmp_path, content):
        path = tmp_path / "identity.key"
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="no Ed25519 key"):
            IdentityKey.load(path)
        with pytest.raises(ConfigError, match="cannot be read"):
            IdentityKey.load(tmp_path / "missing")

    def test_a_seeded_key_repeats_and_others_do_not(self):
        assert IdentityKey.from_bytes(bytes(32)).public == IdentityKey.from_bytes(bytes(32)).public
        assert len({IdentityKey.generate().public for _ in range(20)}) == 20


class TestAgreement:
    # RFC 7748 section 6.1.
    ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
    BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"

    def test_rfc_7748(self):
        alice, bob = KeyPair(bytes.fromhex(self.ALICE)), KeyPair(bytes.fromhex(self.BOB))
        assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        assert alice.agree(bob.public).hex() == self.SHARED
        assert agree(bob.to_bytes(), alice.public).hex() == self.SHARED

    @pytest.mark.parametrize(
        "public",
        [
            *(number.to_bytes(32, "little") for number in (0, 1, P - 1, P, P + 1)),
            # The two points of order 8, https://cr.yp.to/ecdh.html#validate.
            bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            b"",
            bytes(31),
            bytes(33),
        ],
    )
    def test_points_of_small_order_and_other_lengths_are_refused(self, public):
        with pytest.raises(AuthenticityError, match="known to all") as error:
            KeyPair.generate(SecureRandom()).agree(public)
        assert error.value.got
        assert error.value.expected
        assert error.value.remedy

    def test_secrets_of_another_length(self):
        with pytest.raises(ConfigError, match="no X25519 key"):
            KeyPair(bytes(31))


class TestDerivation:
    @staticmethod
    def hkdf(secret, info):
        """RFC 5869 with SHA-256, no salt, one block, by hand."""
        extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
        return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()

    @given(
        st.binary(min_size=32, max_size=32),
        st.binary(max_size=20),
        st.lists(st.binary(max_size=300), max_size=5),
    )
    def test_is_hkdf_over_parts_with_their_lengths(self, shared, purpose, context):
        info = b"".join(len(part).to_bytes(2, "little") + part for part in (b"medveil secagg 1", purpose, *context))
        assert derive(shared, purpose, *context) == self.hkdf(shared, info)

    def test_parts_cannot_be_moved(self):
        keys = {
            derive(bytes(32), b"mask", b"ab", b"c"),
            derive(bytes(32), b"mask", b"a", b"bc"),
            derive(bytes(32), b"mask", b"abc"),
            derive(bytes(32), b"maska", b"b", b"c"),
            derive(bytes(32), b"mask", b"abc", b""),
            derive(bytes(31) + b"\1", b"mask", b"abc"),
        }
        assert len(keys) == 6

    def test_too_long_a_context(self):
        with pytest.raises(ConfigError, match="too long"):
            derive(bytes(32), b"mask", bytes(65536))


class TestSeals:
    @given(st.binary(max_size=100), st.binary(max_size=50), st.integers(0, 10**6))
    def test_open_with_the_same_key_and_context_alone(self, plain, associated, place):
        key = SecureRandom().bytes(32)
        sealed = seal(key, plain, associated)
        assert len(sealed) == len(plain) + 16
        assert unseal(key, sealed, associated) == plain
        forged = bytearray(sealed)
        forged[place % len(sealed)] ^= 1
        for attempt in (
            (key, bytes(forged), associated),
            (key, sealed, associated + b"x"),
            (SecureRandom().bytes(32), sealed, associated),
            (key, sealed[:-1], associated),
            (key, b"", associated),
        ):
            with pytest.raises(AuthenticityError, match="do not open"):
                unseal(*attempt)


@pytest.mark.parametrize("make", [IdentityKey.from_bytes, KeyPair])
def test_secrets_are_not_printed_copied_or_pickled(make):
    secret = hashlib.sha256(b"secret").digest()
    key = make(secret)
    for text in (repr(key), str(key), f"{key}", repr([key])):
        assert secret.hex() not in text
        assert key.public.hex() in text
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError):
            use(key)
    assert key.to_bytes() == secret
