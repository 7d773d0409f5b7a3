"""Secure randomness: published vectors, streams that never repeat, and draws without bias."""

import copy
import hashlib
import hmac
import pickle
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest

from medveil import rng
from medveil.errors import ConfigError, PrivacyError
from medveil.rng import SecureRandom, Seeds


class Crafted(SecureRandom):
    """Hands out the given words first."""

    __slots__ = ("_given",)

    def __init__(self, *given):
        super().__init__()
        self._given = list(given)

    def words(self, count):
        taken, self._given = self._given[:count], self._given[count:]
        return np.concatenate([np.array(taken, np.uint64), super().words(count - len(taken))])


def test_the_key_stream_is_aes_256_in_counter_mode():
    # NIST SP 800-38A, F.5.5, all four blocks.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = rng._counter_mode(key, bytes(range(0xF0, 0x100))).update(bytes(64))
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)) == cipher


def test_a_stream_begins_at_block_zero():
    # NIST CAVP, AES-256 with key and block zero.
    drawn = SecureRandom._from_key(bytes(32), secure=False).bytes(16)
    assert drawn == bytes.fromhex("dc95c078a2408989ad48a21492842087")


def test_a_child_key_is_hkdf_expand():
    key = bytes(range(32))
    child = SecureRandom._from_key(key, secure=False).child("noise")
    # RFC 5869 section 2.3: the first block is HMAC(key, info | 1).
    assert child._key == hmac.new(key, b"medveil random child 1 noise\x01", hashlib.sha256).digest()


def test_no_two_streams_share_a_block():
    parent = SecureRandom()
    streams = [parent, SecureRandom(), parent.child("noise"), parent.child("noise"), parent.child("masks")]
    streams.append(streams[2].child("noise"))
    blocks = Counter(block for stream in streams for block in stream.words(1000).tolist())
    assert len(blocks) == 6000


def test_seeded_streams_repeat_and_say_so():
    def draw():
        random = SecureRandom.seeded(Seeds(3).child("debug"))
        return [random.bytes(8), random.child("a").bytes(8), random.child("a").bytes(8), random.child("b").bytes(8)]

    assert draw() == draw()
    assert len(set(draw())) == 4
    assert draw() != [SecureRandom.seeded(Seeds(4).child("debug")).bytes(8)]
    assert not SecureRandom.seeded(Seeds(3)).child("a").secure
    assert SecureRandom().child("a").secure


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("make", [SecureRandom, lambda: SecureRandom.seeded(Seeds(1))])
def test_no_copies(take, make):
    with pytest.raises(PrivacyError, match="cannot be copied"):
        take(make())


def test_the_key_is_not_printed():
    random = SecureRandom()
    shown = f"{random} {random!r}"
    assert shown == "<SecureRandom secure=True> <SecureRandom secure=True>"
    assert not hasattr(random, "__dict__")


_FORK = """
import os, sys
from medveil.rng import SecureRandom, Seeds
defended, hook, secure = (word == "1" for word in sys.argv[1:])
if not defended:
    SecureRandom._owned = lambda self: self._lock
if not hook:
    from medveil import rng
    rng._mark_new_process.__code__ = (lambda: None).__code__
random = SecureRandom() if secure else SecureRandom.seeded(Seeds(1))
random.bytes(5)
drawn = []
for _ in range(2):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, random.bytes(16) + random.child("noise").bytes(16))
        os._exit(0)
    os.waitpid(child, 0)
    drawn.append(os.read(read, 32))
drawn.append(random.bytes(16) + random.child("noise").bytes(16))
print(len({text[:16] for text in drawn}), len({text[16:] for text in drawn}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(
    ("defended", "hook", "secure", "streams"),
    [("1", "1", "1", "3 3"), ("1", "0", "1", "3 3"), ("1", "1", "0", "3 3"), ("0", "1", "1", "1 1")],
)
def test_a_forked_process_draws_its_own_numbers(defended, hook, secure, streams):
    """The last case takes the defence away: the same test then finds one stream three times."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK, defended, hook, secure], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == streams


def test_threads_share_a_stream_without_overlap():
    shared, alone = SecureRandom.seeded(Seeds(5)), SecureRandom.seeded(Seeds(5))
    drawn, begin = [], threading.Barrier(4)

    def work():
        begin.wait()
        drawn.extend(shared.bytes(16) for _ in range(2000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == sorted(alone.bytes(16) for _ in range(8000))


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.0, 0),
        (2.0**-64, 1),
        (1.9 * 2.0**-64, 1),
        (0.5, 2**63),
        # 0.1 as float64 is 0x1.999999999999ap-4 exactly.
        (0.1, 0x1999999999999A << 8),
        (1.0 - 2.0**-53, 2**64 - 2**11),
    ],
)
def test_a_coin_compares_all_64_bits(rate, threshold):
    words = [word for word in (0, threshold - 1, threshold, threshold + 1, 2**64 - 1) if 0 <= word < 2**64]
    coins = Crafted(*words).bernoulli(rate, len(words))
    assert coins.tolist() == [word < threshold for word in words]


def test_certain_coins_are_certain():
    extremes = (0, 2**64 - 1)
    assert Crafted(*extremes).bernoulli(1.0, 2).all()
    assert not Crafted(*extremes).bernoulli(0.0, 2).any()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_probability(rate):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        SecureRandom().bernoulli(rate, 3)


def test_biased_words_are_redrawn():
    limit = 3 * 2**61
    # 2**64 holds the limit twice; words from 2 * limit on would favour small numbers.
    drawn = Crafted(2 * limit, 2 * limit - 1, 5).below(limit, 2)
    assert drawn.tolist() == [5, limit - 1]
    assert Crafted(2**64 - 1).below(2**63, 1).tolist() == [2**63 - 1]
    assert Crafted(2**64 - 1).below(1, 1).tolist() == [0]


def test_equal_keys_are_redrawn():
    assert sorted(Crafted(4, 4, 9, 3, 2, 1).permutation(3).tolist()) == [0, 1, 2]
    assert Crafted(4, 4, 9, 3, 2, 1).permutation(3).tolist() == [2, 1, 0]


def test_choosing():
    random = SecureRandom()
    assert random.choose(5, 0).tolist() == []
    assert random.choose(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert random.choose(0, 0).tolist() == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.bytes(-1),
        lambda random: random.words(-1),
        lambda random: random.below(0, 1),
        lambda random: random.below(2**63 + 1, 1),
        lambda random: random.choose(3, 4),
        lambda random: random.choose(3, -1),
        lambda random: random.bernoulli(1.0, -1),
    ],
)
def test_impossible_draws_are_refused(draw):
    with pytest.raises(ConfigError):
        draw(SecureRandom())


def test_start_up_loads_neither_cryptography_nor_torch():
    script = "import sys, medveil.rng; print([m for m in ('torch', 'cryptography', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_a_seeded_source_replays_its_streams():
    source = SecureRandom.seeded(Seeds(3))
    first = source.replay("step 1").bytes(32)
    source.bytes(7)
    assert source.replay("step 1").bytes(32) == first
    assert SecureRandom.seeded(Seeds(3)).replay("step 1").bytes(32) == first
    assert source.replay("step 2").bytes(32) != first
    assert not source.replay("step 1").secure
    with pytest.raises(PrivacyError):
        SecureRandom().replay("step 1")
