"""Masks are AES-256-CTR as the standard's vectors and another library call show it, and cancel exactly."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from medveil.errors import ConfigError
from medveil.secagg.ring import add_mask, mask, word

_KEYS = st.binary(min_size=32, max_size=32)
_BITS = st.sampled_from([32, 64])
# Around the size of a block: 32768 words of 32 bits, 16384 of 64.
_LENGTHS = [0, 1, 3, 16383, 16384, 16385, 32767, 32768, 32769, 65536, 70001]


def _mask_block_by_block(key, length, bits):
    """AES in codebook mode over the counters 0, 1, 2, ... as Python integers."""
    size = bits // 8
    counters = b"".join(block.to_bytes(16, "big") for block in range(-(-length * size // 16)))
    stream = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
    return [int.from_bytes(stream[at : at + size], "little") for at in range(0, length * size, size)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("length", _LENGTHS)
def test_a_mask_is_the_key_stream_in_little_endian_words(bits, length):
    key = bytes(range(32))
    found = mask(key, length, bits)
    assert found.dtype == word(bits)
    assert found.tolist() == _mask_block_by_block(key, length, bits)


def test_published_vector():
    """AES-256 of the zero block under the zero key: NIST AESAVS, used as ECB vector in many libraries."""
    assert mask(bytes(32), 4, 32).astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    assert mask(bytes(32), 2, 64).astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@given(key=_KEYS, bits=_BITS, sign=st.sampled_from([1, -1]), data=st.data())
def test_masking_is_addition_modulo_the_ring(key, bits, sign, data):
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))
    vector = np.array(values, word(bits))
    assert add_mask(vector, key, sign) is None
    expected = [
        (value + sign * part) % 2**bits
        for value, part in zip(values, _mask_block_by_block(key, len(values), bits), strict=True)
    ]
    assert vector.tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("length", _LENGTHS)
def test_the_other_sign_takes_the_mask_away(bits, length):
    vector = np.random.default_rng(length).integers(0, 2**bits, length, dtype=word(bits))
    before = vector.copy()
    add_mask(vector, b"k" * 32, 1)
    assert length == 0 or not np.array_equal(vector, before)
    add_mask(vector, b"k" * 32, -1)
    assert np.array_equal(vector, before)


@given(sites=st.integers(2, 6), bits=_BITS, seed=st.integers(0, 2**32 - 1))
def test_pairwise_masks_cancel_in_the_sum(sites, bits, seed):
    generator = np.random.default_rng(seed)
    plain = generator.integers(0, 2**bits, (sites, 20), dtype=word(bits))
    masked = plain.copy()
    for low in range(sites):
        for high in range(low + 1, sites):
            key = generator.bytes(32)
            add_mask(masked[low], key, 1)
            add_mask(masked[high], key, -1)
    assert not np.array_equal(masked, plain)
    expected = [sum(int(value) for value in column) % 2**bits for column in plain.T]
    assert masked.sum(axis=0, dtype=word(bits)).tolist() == expected


def test_every_word_is_masked_and_keys_matter():
    first, second = mask(b"a" * 32, 100_000, 64), mask(b"b" * 32, 100_000, 64)
    assert np.count_nonzero(first) == 100_000
    assert np.count_nonzero(first == second) == 0
    assert np.unique(first).size == 100_000


def test_a_part_of_a_larger_array_is_masked_where_it_lies():
    whole = np.zeros(40_000, np.uint32)
    add_mask(whole[5:39_999], b"k" * 32, 1)
    assert not whole[:5].any()
    assert whole[39_999] == 0
    assert np.array_equal(whole[5:39_999], mask(b"k" * 32, 39_994, 32))
    strided = np.zeros(80_000, np.uint32)
    add_mask(strided[::2], b"k" * 32, 1)
    assert not strided[1::2].any()
    assert np.array_equal(strided[::2], mask(b"k" * 32, 40_000, 32))


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4),
        np.zeros((2, 2), np.uint32),
        np.zeros(4, ">u4"),
        np.zeros(4, bool),
        np.frombuffer(bytes(16), np.uint32),
    ],
)
def test_other_vectors_are_refused(vector):
    before = vector.copy()
    with pytest.raises(ConfigError, match="unsigned words"):
        add_mask(vector, bytes(32), 1)
    assert np.array_equal(vector, before)


@pytest.mark.parametrize(("key", "sign"), [(bytes(16), 1), (bytes(31), 1), (b"", 1), (bytes(32), 0), (bytes(32), 2)])
def test_other_keys_and_signs_are_refused(key, sign):
    with pytest.raises(ConfigError, match=f"{len(key)} bytes, sign {sign}"):
        add_mask(np.zeros(4, np.uint32), key, sign)


def test_no_key_stands_in_an_error():
    with pytest.raises(ConfigError) as caught:
        add_mask(np.zeros(4, np.uint32), b"very secret", 1)
    assert "very secret" not in str(caught.value)


@pytest.mark.parametrize("bits", [0, 8, 31, 33, 128])
def test_other_rings_are_refused(bits):
    with pytest.raises(ConfigError, match=f"{bits} bits"):
        mask(bytes(32), 4, bits)


def test_negative_lengths_are_refused():
    with pytest.raises(ConfigError, match="-1"):
        mask(bytes(32), -1, 32)
