"""A masked vector looks uniform whatever it holds, and the same test notices ONE missing mask. Alpha 1e-4, fixed keys.

Every site of a sum carries a mask for each other site and one of its own. Whoever knows all of them but one must still
see uniform words; whoever knows all of them sees the vector.
"""

import struct

import numpy as np
import pytest
from scipy import stats

from medveil.rng import SecureRandom, Seeds
from medveil.secagg.encoding import FixedPoint
from medveil.secagg.ring import add_mask, mask
from medveil.secagg.shamir import PRIME, split_many

pytestmark = pytest.mark.statistical
_ALPHA = 1e-4
_LENGTH = 200_000
_SITES = 5


def _values(bits):
    """What sites send: small numbers around 0, most of the ring unused."""
    values = 1e-3 * Seeds(9).child("update").numpy().standard_normal(_LENGTH)
    return FixedPoint.fitting(1.0, _SITES, bits).encode(values)[0]


def _keys(bits, seed):
    random = SecureRandom.seeded(Seeds(seed).child(bits))
    return [random.bytes(32) for _ in range(_SITES)]


def _masked(vector, keys):
    """One mask of its own, and one for each other site, half of them subtracted."""
    masked = vector.copy()
    for place, key in enumerate(keys):
        add_mask(masked, key, -1 if place % 2 else 1)
    return masked


def _byte_p_values(vector):
    """Chi-square of the 256 values at each byte of the words."""
    rows = vector.astype(vector.dtype.newbyteorder("<")).view(np.uint8).reshape(vector.size, -1)
    return [stats.chisquare(np.bincount(column, minlength=256)).pvalue for column in rows.T]


def _looks_uniform(vector):
    """Each byte, the words in 1000 cells, and pairs of neighbouring words in 16 * 16 cells."""
    bits = 8 * vector.itemsize
    cells = (vector >> np.array(bits - 32, vector.dtype)).astype(np.uint64) * np.uint64(1000) >> np.uint64(32)
    high = (vector >> np.array(bits - 4, vector.dtype)).astype(np.int64)
    p_values = [
        *_byte_p_values(vector),
        # The cells' sizes differ by less than one word in four million.
        stats.chisquare(np.bincount(cells.astype(np.int64), minlength=1000)).pvalue,
        stats.chisquare(np.bincount(16 * high[::2] + high[1::2], minlength=256)).pvalue,
    ]
    return min(p_values) > _ALPHA / len(p_values)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_mask_is_uniform(bits, seed):
    assert _looks_uniform(mask(_keys(bits, seed)[0], _LENGTH, bits))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_masked_vector_is_uniform(bits, seed):
    assert _looks_uniform(_masked(_values(bits), _keys(bits, seed)))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("known", [(0,), (1, 4), (0, 1, 2, 3), (1, 2, 3, 4)])
def test_all_masks_but_one_known_is_still_uniform(bits, known):
    keys = _keys(bits, 4)
    masked = _masked(_values(bits), keys)
    for place in known:
        add_mask(masked, keys[place], 1 if place % 2 else -1)
    assert _looks_uniform(masked)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("missing", range(_SITES))
def test_one_mask_that_was_never_added_is_noticed(bits, missing):
    """The defence with a single mask left out, seen by one who knows the four others."""
    keys = _keys(bits, 4)
    others = [place for place in range(_SITES) if place != missing]
    masked = _values(bits)
    for place in others:
        add_mask(masked, keys[place], -1 if place % 2 else 1)
    for place in others:
        add_mask(masked, keys[place], 1 if place % 2 else -1)
    assert not _looks_uniform(masked)


@pytest.mark.parametrize("bits", [32, 64])
def test_one_mask_for_two_vectors_is_noticed(bits):
    """Why a key is for one vector only: their difference shows."""
    vector = _values(bits)
    keys = _keys(bits, 5)
    assert not _looks_uniform(_masked(vector, keys) - _masked(np.roll(vector, 1), keys))
    assert _looks_uniform(_masked(vector, keys) - _masked(np.roll(vector, 1), _keys(bits, 6)))


@pytest.mark.parametrize("bits", [32, 64])
def test_masks_that_do_not_fill_the_ring_are_noticed(bits):
    """A mask half as wide as the ring, one whose top bit is always clear, and one a thousandth too narrow."""
    words = mask(_keys(bits, 7)[0], _LENGTH, bits)
    vector = _values(bits)
    assert not _looks_uniform(vector + (words >> np.array(bits // 2, words.dtype)))
    assert not _looks_uniform(vector + (words >> np.array(1, words.dtype)))
    top = np.array((1 << bits) - (1 << bits) // 1000, words.dtype)
    assert not _looks_uniform(vector + np.where(words < top, words, words >> np.array(1, words.dtype)))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_mask_tells_nothing_about_its_vector(bits):
    """Words masked where the vector is positive and where it is negative have one distribution."""
    vector = _values(bits)
    negative = vector >> np.array(bits - 1, vector.dtype) == 1
    keys = _keys(bits, 8)

    def p_value(words):
        high = (words >> np.array(bits - 4, words.dtype)).astype(np.int64)
        table = [np.bincount(high[side], minlength=16) for side in (negative, ~negative)]
        return stats.chi2_contingency(np.array(table)[:, np.sum(table, axis=0) > 0]).pvalue

    assert p_value(_masked(vector, keys)) > _ALPHA
    assert p_value(_masked(vector, [])) < _ALPHA


def _share_limbs(random, x, threshold=3, count=4000):
    """One holder's shares of a secret of all ones, as fractions of the field."""
    batch = split_many([b"\xff" * 32] * count, threshold, [1, 2, 3, 4, x], random)
    return np.array([struct.unpack("<9I", shares[x]) for shares in batch]).ravel() / PRIME


class _SmallCoefficients:
    """Coefficients from a millionth of the field: NOT SECRET. (Larger ones wrap around at distant points.)"""

    def __init__(self):
        self._random = SecureRandom.seeded(Seeds(11))

    def below(self, limit, count):
        return self._random.below(limit // 10**6, count)


@pytest.mark.parametrize("x", [5, 100])
def test_one_share_is_uniform_in_the_field(x):
    fractions = _share_limbs(SecureRandom.seeded(Seeds(10)), x)
    assert stats.chisquare(np.histogram(fractions, 100, (0, 1))[0]).pvalue > _ALPHA
    narrow = _share_limbs(_SmallCoefficients(), x)
    assert stats.chisquare(np.histogram(narrow, 100, (0, 1))[0]).pvalue < _ALPHA


def test_two_shares_below_the_threshold_are_independent():
    """Threshold 3: two holders' limbs fill a 10 * 10 table evenly; with threshold 2 they would lie on one line."""

    def p_value(threshold):
        batch = split_many([b"\xff" * 32] * 4000, threshold, [1, 2, 3], SecureRandom.seeded(Seeds(12)))
        pairs = [np.array([struct.unpack("<9I", shares[x]) for shares in batch]).ravel() / PRIME for x in (1, 2)]
        return stats.chisquare(np.histogram2d(*pairs, 10, [(0, 1), (0, 1)])[0].ravel()).pvalue

    assert p_value(3) > _ALPHA
    assert p_value(2) < _ALPHA
