"""The grid noise against high-precision quantiles, brute force, and its own promises."""

import math

import mpmath
import numpy as np
import pytest
from scipy.special import ndtri

from medveil.dp.noise import GRID_BITS, NoiseMechanism, delta_slack, rounded_gaussian, total_variation
from medveil.errors import ConfigError, GuaranteeError, PrivacyError
from medveil.rng import SecureRandom, Seeds

mpmath.mp.prec = 400


class Crafted(SecureRandom):
    """Hands out given words, and one byte over and over."""

    __slots__ = ("_asked_for", "_fill", "_given")

    def __init__(self, given, fill=b"\0"):
        super().__init__()
        self._given, self._fill, self._asked_for = np.array(given, np.uint64), fill, 0

    def words(self, count):
        assert count == len(self._given)
        return self._given

    def bytes(self, count):
        self._asked_for += 1
        return self._fill * count


def _beyond(point):
    return mpmath.erfc(point / mpmath.sqrt(2)) / 2


def _exact(tail, std, fill):
    """The magnitude of a 63-bit tail by bisection over integers, in 400 bits."""
    probability = (tail + int.from_bytes(fill * 24, "big") / mpmath.mpf(2) ** 192) / mpmath.mpf(2) ** 64
    low, high = 0, int(20 * std) + 2
    while low < high:
        middle = (low + high) // 2
        if probability >= _beyond((middle + mpmath.mpf("0.5")) / mpmath.mpf(std)):
            high = middle
        else:
            low = middle + 1
    return low


_TAILS = [0, 1, 2, 3, 10, 2**20, 2**39, 2**40 - 1, 2**40, 2**40 + 1, 2**52 + 1, 2**60, 2**62, 2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize("std", [1.0, 3.7, 2.0**20 + 500, 1.3 * 2.0**31])
def test_magnitudes_equal_high_precision_quantiles(std):
    tails = _TAILS + np.random.default_rng(0).integers(2**63, size=60).tolist()
    tails += [1 << bits for bits in range(40, 63, 3)]
    drawn = rounded_gaussian(std, len(tails), Crafted([2 * tail for tail in tails], b"\x80"))
    assert drawn.tolist() == [_exact(tail, std, b"\x80") for tail in tails]


def test_the_last_bit_is_the_sign():
    tails = [5, 2**50, 2**62]
    words = [2 * tail + sign for sign in (0, 1) for tail in tails]
    drawn = rounded_gaussian(1e6, 6, Crafted(words)).tolist()
    assert drawn[3:] == [-value for value in drawn[:3]]
    assert min(drawn[:3]) > 0


@pytest.mark.parametrize("value", [0, 1, 700_000, 1_048_576, 5_000_000])
def test_a_word_that_holds_both_answers_is_decided_by_further_bits(value):
    """The boundary lies inside the word's cell: 64 bits cannot know, so neither answer alone would be right."""
    std = 2.0**20 + 519.6
    tail = int(mpmath.floor(_beyond((value + mpmath.mpf("0.5")) / mpmath.mpf(std)) * 2**64))
    low, high = Crafted([2 * tail], b"\0"), Crafted([2 * tail], b"\xff")
    assert rounded_gaussian(std, 1, low).tolist() == [value + 1]
    assert rounded_gaussian(std, 1, high).tolist() == [value]
    assert (low._asked_for, high._asked_for) == (1, 1)


def test_words_beside_the_boundary_are_right():
    std, value = 2.0**20 + 519.6, 900_001
    boundary = int(mpmath.floor(_beyond((value + mpmath.mpf("0.5")) / mpmath.mpf(std)) * 2**64))
    tails = [boundary + offset for bits in range(0, 41, 2) for offset in (-(1 << bits), 1 << bits)]
    drawn = rounded_gaussian(std, len(tails), Crafted([2 * tail for tail in tails], b"\x55"))
    assert drawn.tolist() == [value + 1 if tail < boundary else value for tail in tails]


def test_few_numbers_need_further_bits():
    class Counting(SecureRandom):
        __slots__ = ("more",)

        def bytes(self, count):
            self.more = getattr(self, "more", 0) + (count == 24)
            return super().bytes(count)

    random = Counting._from_key(bytes(32), secure=False)
    rounded_gaussian(2.0**20, 2_000_000, random)
    # Expected about one (2**-21 a number); a hundred would mean a wrong threshold.
    assert random.more < 20


def test_six_sigma_is_exceeded_by_the_right_share_of_words():
    std = 2.0**20
    beyond = int(mpmath.floor(_beyond(6 + mpmath.mpf("0.5") / 2**20) * 2**64))
    # 9.87e-10 on one side: Abramowitz & Stegun, table 26.1.
    assert beyond / 2.0**64 == pytest.approx(9.86588e-10, rel=1e-5)
    drawn = rounded_gaussian(std, 2, Crafted([2 * (beyond - 1), 2 * (beyond + 1)]))
    assert drawn.tolist() == [6 * 2**20 + 1, 6 * 2**20]


def test_the_largest_magnitude():
    assert rounded_gaussian(2.0**20, 1, Crafted([0], b"\0"))[0] / 2**20 == pytest.approx(18.633, abs=0.001)
    assert rounded_gaussian(2.0**20, 1, Crafted([0], b"\xff"))[0] / 2**20 == pytest.approx(9.08, abs=0.01)


def test_the_quantile_is_as_exact_as_the_argument_needs():
    """The threshold for asking further bits assumes a relative error of 2**-47."""
    generator = np.random.default_rng(0)
    points = np.concatenate(
        [
            2.0 ** -generator.uniform(1, 65, 1200),
            generator.uniform(0.0, 0.5, 400),
            generator.uniform(0.13, 0.14, 200),
            0.5 - 2.0 ** -generator.uniform(2, 50, 200),
            2.0 ** -generator.uniform(65, 256, 100),
        ]
    )
    with mpmath.workprec(160):
        worst = 0.0
        for point, quantile in zip(points, ndtri(points), strict=True):
            root = mpmath.mpf(float(quantile))
            for _ in range(2):
                residual = _beyond(-root) - mpmath.mpf(float(point))
                root -= residual / mpmath.npdf(root)
            worst = max(worst, float(abs((mpmath.mpf(float(quantile)) - root) / root)))
    assert worst < 2.0**-49


@pytest.mark.parametrize("std", [0.5, 2.0**33, float("nan"), float("inf")])
def test_impossible_sizes_are_refused(std):
    with pytest.raises(ConfigError, match="size"):
        rounded_gaussian(std, 3, SecureRandom())


def _rounded_pmf(std, span):
    edges = np.arange(-span, span + 2) - 0.5
    return np.diff([float(mpmath.ncdf(edge / std)) for edge in edges])


def _smeared_pmf(std, honest, span):
    """Law of round(N(0, honest std^2) + honest - 1 uniforms): Gaussian against Irwin-Hall, by the trapezium rule."""
    step = 1 / 256
    box = np.full(256, step)
    weights = np.ones(1)
    for _ in range(honest):
        weights = np.convolve(weights, box)
    offsets = (np.arange(weights.size) - (weights.size - 1) / 2) * step
    values = np.arange(-span, span + 1)
    spread = std * math.sqrt(honest)
    density = np.exp(-(((values[:, None] - offsets) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    return density @ weights


@pytest.mark.parametrize("honest", [2, 3, 5])
def test_sums_of_rounded_gaussians_are_within_the_bound(honest):
    std, span = 1.0, 30
    single = _rounded_pmf(std, span)
    summed = np.ones(1)
    for _ in range(honest):
        summed = np.convolve(summed, single)
    middle = summed.size // 2
    summed = summed[middle - span : middle + span + 1]
    distance = np.abs(summed - _smeared_pmf(std, honest, span)).sum() / 2
    assert distance < total_variation(1, 1, std, honest)
    # Without the uniform numbers the sum is not close: their variance, 1/12 each, is missing.
    plain = _rounded_pmf(std * math.sqrt(honest), span)
    assert np.abs(summed - plain).sum() / 2 > 4 * distance


def test_the_slack_of_a_long_run_is_nothing():
    distance = total_variation(10**6, 10**5, 2.0**20, honest=10)
    assert 0 < distance < 2.0**-180
    assert delta_slack(10**6, 10**5, 2.0**20, epsilon=0.0, honest=10) == pytest.approx(2 * distance)
    assert delta_slack(10**6, 10**5, 2.0**20, epsilon=math.log(9), honest=10) == pytest.approx(10 * distance)


def test_the_slack_of_coarse_noise_is_much():
    assert total_variation(1, 1, 1.0, honest=2) < 0.1
    assert total_variation(10**6, 1, 1.0, honest=2) == 1.0
    assert delta_slack(10**6, 1, 1.0, honest=2, epsilon=1e9) == 1.0


@pytest.mark.parametrize("arguments", [(0, 1, 2.0, 1), (1, 0, 2.0, 1), (1, 1, 0.5, 1), (1, 1, 2.0, 0)])
def test_no_bound_for_nonsense(arguments):
    with pytest.raises(ConfigError):
        total_variation(*arguments)


def test_epsilon_is_not_negative():
    with pytest.raises(ConfigError):
        delta_slack(1, 1, 2.0, epsilon=-1.0)


def test_released_values_lie_on_the_grid():
    mechanism = NoiseMechanism(l2_clip_norm=0.3, noise_multiplier=1.5, dimension=1000)
    released = mechanism.release(np.random.default_rng(0).normal(size=1000), SecureRandom())
    assert (np.rint(released / mechanism.grid) * mechanism.grid == released).all()
    assert mechanism.grid * 2**GRID_BITS == 0.3


def test_a_total_comes_back_within_the_noise():
    mechanism = NoiseMechanism(l2_clip_norm=2.0, noise_multiplier=1e-5, dimension=3)
    released = mechanism.release(np.array([1.0, -5.0, 1e3]), SecureRandom())
    np.testing.assert_allclose(released, [1.0, -5.0, 1e3], atol=20 * 2e-5)


def test_rounding_is_to_nearest():
    mechanism = NoiseMechanism(l2_clip_norm=2.0**GRID_BITS, noise_multiplier=1.0, dimension=4)
    assert mechanism._rounded(np.array([1.4, 1.6, -1.4, -1.6])).tolist() == [1, 2, -1, -2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**33, -(2.0**33)])
def test_a_total_that_cannot_be_is_refused(value):
    with pytest.raises(PrivacyError, match="not a sum of clipped units"):
        NoiseMechanism(1.0, 1.0, 2).release(np.array([0.0, value]), SecureRandom())


@pytest.mark.parametrize("total", [np.zeros(3), np.zeros(2, np.float32), np.zeros((2, 1))])
def test_a_total_of_another_shape_is_refused(total):
    with pytest.raises(ConfigError, match="does not fit"):
        NoiseMechanism(1.0, 1.0, 2).release(total, SecureRandom())


@pytest.mark.parametrize(
    "arguments",
    [
        {"l2_clip_norm": 0.0},
        {"l2_clip_norm": math.inf},
        {"l2_clip_norm": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": 1e9},
        {"noise_multiplier": 1e-9},
        {"dimension": 0},
    ],
)
def test_impossible_mechanisms_are_refused(arguments):
    with pytest.raises(ConfigError):
        NoiseMechanism(**({"l2_clip_norm": 1.0, "noise_multiplier": 1.0, "dimension": 2} | arguments))


@pytest.mark.parametrize("arguments", [(2, 2, 0), (3, 1, 2), (0, 0, 0), (3, -1, 0), (3, 1, -1)])
def test_somebody_honest_must_be_left(arguments):
    with pytest.raises(GuaranteeError, match="coalition"):
        NoiseMechanism(1.0, 1.0, 2, *arguments)


def test_shares_of_noise():
    mechanism = NoiseMechanism(1.0, 2.0, 10_000, sites=5, tolerated=1)
    assert mechanism.std_grid == pytest.approx(2.0 * (2**20 + 100) / 2)
    # protocols: insiders face sigma, the server alone sigma sqrt(n / (n - t)), 1.12 for five sites.
    assert mechanism.multiplier_against(1) == pytest.approx(2.0)
    assert mechanism.multiplier_against(0) == pytest.approx(2.0 * math.sqrt(5 / 4))
    with pytest.raises(GuaranteeError):
        mechanism.multiplier_against(2)


@pytest.mark.parametrize(("sites", "tolerated", "absent"), [(5, 1, 0), (5, 4, 0), (7, 2, 3), (1, 0, 0)])
def test_whoever_is_left_carries_the_full_noise(sites, tolerated, absent):
    mechanism = NoiseMechanism(1.0, 0.8, 100, sites, tolerated, absent)
    for colluding in range(tolerated + 1):
        left = sites - absent - colluding
        faced = math.sqrt(left) * mechanism.std_grid / mechanism.sensitivity_grid
        assert faced == pytest.approx(mechanism.multiplier_against(colluding))
        assert faced >= 0.8 * (1 - 1e-12)


def test_sites_shares_add_up():
    random = SecureRandom.seeded(Seeds(1))
    mechanism = NoiseMechanism(1.0, 1.0, 50_000, sites=4, tolerated=1)
    summed = sum(mechanism.encode(np.full(50_000, 0.25), random) for _ in range(4))
    released = mechanism.decode(summed)
    # Standard errors: 1.155 / sqrt(50000) = .0052, and .0037.
    assert released.mean() == pytest.approx(1.0, abs=0.026)
    assert released.std() == pytest.approx(math.sqrt(4 / 3) * (1 + math.sqrt(50_000) / 2**20), abs=0.018)
