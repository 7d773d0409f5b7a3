"""Contributions as ring vectors: what comes out of a sum is what went in, and what may not be told is not in it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from medveil.dp.noise import NoiseMechanism
from medveil.dp.plan import Shares
from medveil.errors import ConfigError, MessageError, ProtocolError
from medveil.federation.secure.packing import LOSS_RANGE, NoisyPacking, PlainPacking, ScorePacking, fitting_grid
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.update import Contribution, Update
from medveil.rng import SecureRandom, Seeds


def plain(*, dimension=3, buffers=0, sites=5, weighted=False, silent=False, **settings):
    return PlainPacking(
        dimension=dimension,
        buffers=buffers,
        sites=sites,
        settings=SecureAggregation(**settings),
        weighted=weighted,
        silent=silent,
    )


def change(values, weight=1.0, loss=0.5, buffers=()):
    return Contribution(Update.from_mean(np.array(values, float), weight, np.array(buffers, float)), loss)


def summed(packing, contributions):
    """The sum of the sites' vectors, with Python's integers."""
    rows = [packing.pack(one).tolist() for one in contributions]
    total = [sum(column) % 2**packing.bits for column in zip(*rows, strict=True)]
    return packing.unpack(np.array(total, f"uint{packing.bits}"), len(contributions))


FLOATS = st.floats(-1, 1, allow_subnormal=False)
SITE = st.tuples(arrays(np.float64, 4, elements=FLOATS), st.integers(1, 500), st.floats(0, LOSS_RANGE))


@given(
    sites=st.lists(SITE, min_size=1, max_size=6),
    weighted=st.booleans(),
    bits=st.sampled_from([32, 64, "auto"]),
    absent=st.integers(0, 4),
)
def test_the_mean_is_that_of_federated_averaging(sites, weighted, bits, absent):
    """Oracle: McMahan et al. 2017, sum of n_k w_k over sum of n_k, in plain floats; error half a step a site."""
    weights = [float(examples) if weighted else 1.0 for _, examples, _ in sites]
    packing = plain(
        dimension=3, buffers=1, sites=len(sites) + absent, weighted=weighted, modulus_bits=bits, largest_site=500
    )
    given_ = [
        change(values[:3], weight, loss, values[3:]) for (values, _, loss), weight in zip(sites, weights, strict=True)
    ]
    got = summed(packing, given_)
    expected = np.average([values for values, _, _ in sites], axis=0, weights=weights)
    assert got.update.weight == sum(weights)
    cap = 500 if weighted else 1
    step = packing.describe()["resolution"]
    assert step <= 2.0 ** -(packing.bits - 1) * (len(sites) + absent) * 2
    tolerance = step / 2 * cap * len(sites) / sum(weights) + 1e-12
    np.testing.assert_allclose(got.update.mean(), expected[:3], rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.update.mean_buffers(), expected[3:], rtol=0, atol=tolerance)
    loss = np.average([loss for _, _, loss in sites], weights=weights)
    assert got.loss == pytest.approx(loss, rel=0, abs=LOSS_RANGE * tolerance * 2)
    assert got.clipped == 0


def test_auto_takes_32_bits_only_where_small_sites_are_not_rounded_away():
    assert plain().bits == 32
    assert plain(weighted=True, largest_site=1000).bits == 32
    assert plain(weighted=True, largest_site=65_536).bits == 64
    wide = plain(weighted=True, largest_site=65_536)
    got = summed(wide, [change([1e-4, 0.0, 0.0], weight=1.0), change([0.0] * 3, weight=2.0)])
    assert got.update.mean()[0] == pytest.approx(1e-4 / 3, rel=1e-6)


def test_a_large_model_over_many_sites_packs():
    """More coordinates times sites than half the ring: the count of clipped ones may not make that an error."""
    packing = plain(dimension=2**25, sites=100)
    assert packing.bits == 32


@pytest.mark.parametrize("untold", [0, 1, 2])
def test_the_loss_comes_out_only_where_all_told_it(untold):
    losses = [None] * untold + [1.0, 3.0, 2.0][untold:]
    got = summed(plain(weighted=True, largest_site=9), [change([0.1] * 3, 4.0, loss) for loss in losses])
    assert got.loss == (None if untold else pytest.approx(2.0, abs=1e-6))


def test_what_is_out_of_range_is_clipped_and_counted():
    packing = plain(value_range=0.5)
    got = summed(packing, [change([0.5, 0.7, -9.0]), change([0.0, 0.0, 0.6], loss=LOSS_RANGE * 2)])
    np.testing.assert_allclose(got.update.vector, [0.5, 0.5, 0.0], atol=1e-6)
    assert got.clipped == 4  # the loss beyond its range is one of them
    assert got.loss == pytest.approx((0.5 + LOSS_RANGE) / 2, abs=1e-4)


def test_the_range_is_that_of_the_mean_for_small_sites_too():
    """Else a site of one example could move the sum as far as one of the largest size."""
    packing = plain(weighted=True, largest_site=1000, modulus_bits=64, value_range=0.5)
    got = summed(packing, [change([9.0, 0.5, -0.7], 1.0), change([0.0] * 3, 9.0)])
    np.testing.assert_allclose(got.update.vector, [0.5, 0.5, -0.5], atol=1e-9)
    assert got.clipped == 2


def test_one_site_moves_the_sum_by_the_range_and_no_more():
    """Whatever a site trained; a site that does not keep to the encoding is another matter."""
    got = summed(plain(), [change([1e30, -1e30, 0.0]), change([0.0] * 3)])
    np.testing.assert_array_equal(got.update.vector, [1.0, -1.0, 0.0])


@given(values=arrays(np.float64, 3, elements=st.floats(-5, 5)), loss=st.none() | st.floats(0, 99))
def test_a_silent_site_tells_neither_loss_nor_clipping(values, loss):
    """The bytes of the vector are those of a site without a loss whose values were in range to begin with."""
    packing = plain(silent=True)
    shown = packing.pack(change(values, loss=loss))
    np.testing.assert_array_equal(shown, packing.pack(change(np.clip(values, -1, 1), loss=None)))
    got = packing.unpack(shown, 1)
    assert (got.loss, got.clipped) == (None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("silent", [True, False])
def test_what_is_not_finite_is_refused(value, silent):
    packing = plain(silent=silent, buffers=1)
    with pytest.raises(MessageError, match="not finite"):
        packing.pack(change([0.0, value, 0.0], buffers=[0.0]))
    with pytest.raises(MessageError, match="not finite"):
        packing.pack(change([0.0] * 3, buffers=[value]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(MessageError, match="not finite"):
        plain().pack(change([0.0] * 3, loss=value))


def test_a_site_larger_than_the_plan_says_is_refused_and_not_measured():
    packing = plain(weighted=True, largest_site=100)
    packing.pack(change([0.1] * 3, 100.0))
    with pytest.raises(ConfigError, match="largest_site = 100") as refused:
        packing.pack(change([0.1] * 3, 137.0))
    assert "137" not in str(refused.value)


def test_contributions_of_the_other_kind_are_refused():
    with pytest.raises(ProtocolError, match="kind"):
        plain().pack(Contribution(np.zeros(3, np.int64), None))
    noisy = NoisyPacking(NoiseMechanism(1.0, 1.0, 3), 1.0, 32)
    with pytest.raises(ProtocolError, match="kind"):
        noisy.pack(change([0.0] * 3))


def test_a_sum_that_cannot_be_one_is_refused():
    packing = plain(sites=2)
    vector = packing.pack(change([1.0] * 3))
    with pytest.raises(MessageError, match="no sum"):
        packing.unpack(np.full_like(vector, 2**31), 2)
    with pytest.raises(ConfigError):
        packing.unpack(vector, 3)


def grid(**options):
    chosen = {"noise_multiplier": 1.0, "sites": 5, "dimension": 10_000, "expected_units": 100.0, "modulus_bits": "auto"}
    return fitting_grid(shares=Shares(5, 1, 1), **(chosen | options))


def largest_total(grid_bits, options):
    """Oracle: everybody who can be drawn, and the noise that a union bound over coordinates leaves at 2**-60."""
    units = math.ceil(options["expected_units"] + 12 * math.sqrt(options["expected_units"]) + 12)
    std = options["noise_multiplier"] * (2**grid_bits + math.sqrt(options["dimension"])) * math.sqrt(5 / 3)
    tail = std * math.sqrt(2 * (math.log(options["dimension"]) + 60 * math.log(2)))
    return units * 2**grid_bits + tail + options["sites"] / 2


OPTIONS = st.fixed_dictionaries(
    {
        "noise_multiplier": st.floats(0.3, 300),
        "expected_units": st.floats(1, 1e6),
        "dimension": st.integers(1, 10**7),
        "modulus_bits": st.sampled_from([32, 64, "auto"]),
    }
)


@given(OPTIONS)
def test_the_grid_is_the_finest_that_is_sure_to_fit_the_narrowest_modulus(options):
    loss = 0.01 if options["modulus_bits"] == 32 else 0.001
    known = options | {"sites": 5}
    precise = [bits for bits in range(10, 21) if math.sqrt(options["dimension"]) <= loss * 2.0**bits]
    fits = {bits: largest_total(bits, known) < 2**31 for bits in precise}
    near = any(abs(largest_total(bits, known) / 2**31 - 1) < 1e-6 for bits in precise)
    if near:  # the two computations round differently
        return
    narrow = max((bits for bits, fit in fits.items() if fit), default=None)
    try:
        got = grid(**options)
    except ConfigError:
        assert options["modulus_bits"] == 32
        assert narrow is None
        return
    assert got == ((20, 64) if options["modulus_bits"] == 64 or narrow is None else (narrow, 32))


def test_the_last_unit_that_fits_fits():
    """One drawn unit more than there is room for, and the grid is coarser: no slack, no overflow."""

    def edge(units):
        return largest_total(20, {"expected_units": units, "noise_multiplier": 1.0, "dimension": 100, "sites": 5})

    low, high = 1.0, 1e6  # the noise's tail is far below half a ring
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if edge(middle) < 2**31 else (low, middle)
    assert grid(expected_units=low - 0.01, dimension=100) == (20, 32)
    assert grid(expected_units=high + 0.5, dimension=100) == (19, 32)
    units = math.ceil(low - 0.01 + 12 * math.sqrt(low - 0.01) + 12)
    assert edge(low - 0.01) < 2**31 <= edge(low - 0.01) + 2 * 2**20
    assert (units + 1) * 2**20 < 2**31


@pytest.mark.parametrize("bits", [32, 64])
def test_the_ring_holds_exactly_half_of_it(bits):
    """At 2**(bits-1) - 1 a sum comes back, one further it wraps around: so capacity must stay below."""
    noise = NoiseMechanism(1.0, 1.0, 2, grid_bits=20)
    packing = NoisyPacking(noise, 1.0, bits)
    edge = 2 ** (bits - 1)
    parts = [np.array([edge - 2, -edge + 1], np.int64), np.array([1, -1], np.int64)]
    total = sum(packing.pack(Contribution(part, None)) for part in parts)
    np.testing.assert_allclose(packing.unpack(total, 2).update.vector * 2**20, [edge - 1, -edge], rtol=1e-15)
    beyond = total + packing.pack(Contribution(np.array([1, -1], np.int64), None))
    wrapped = packing.unpack(beyond, 3).update.vector * 2**20
    np.testing.assert_allclose(wrapped, [-edge, edge - 1], rtol=1e-15)


DIMENSION = 1_000_000
SIGMA = 1.3


@pytest.fixture(scope="module")
def shares_of_noise():
    """One step's noise of each of five sites, one colluding and one absent tolerated, on a grid that fits 32 bits."""
    noise = NoiseMechanism(
        l2_clip_norm=0.5, noise_multiplier=SIGMA, dimension=DIMENSION, sites=5, tolerated=1, absent=1, grid_bits=19
    )
    packing = NoisyPacking(noise, 7.0, 32)
    totals = np.zeros(DIMENSION)
    vectors = []
    for site in range(5):
        random = SecureRandom.seeded(Seeds(11).child("site", site))
        vectors.append(packing.pack(Contribution(noise.encode(totals, random), None)))
    return packing, vectors


@pytest.mark.statistical
@pytest.mark.parametrize(("missing", "colluding"), [(0, 0), (1, 0), (1, 1)])
def test_the_decoded_sum_has_the_noise_that_the_guarantee_counts_on(shares_of_noise, missing, colluding):
    """Within 0.5 %: seven standard errors of a million coordinates; a share more or less is 12 % off at least."""
    packing, vectors = shares_of_noise
    present = vectors[colluding : 5 - missing]
    total = np.sum(present, axis=0, dtype=np.uint32)
    decoded = packing.unpack(total, len(present)).update
    # What one patient can move, rounding included, times sigma; more where more noise is there than was counted on.
    sensitivity = 0.5 * (1 + math.sqrt(DIMENSION) * 2.0**-19)
    target = SIGMA * sensitivity * math.sqrt((5 - missing - colluding) / 3)
    assert decoded.vector.std() == pytest.approx(target, rel=0.005)
    assert decoded.mean().std() == pytest.approx(target / 7, rel=0.005)
    assert abs(decoded.vector.mean()) < 6 * target / math.sqrt(DIMENSION)
    # Alpha 1e-6 on the variance, and it tells the noise of one site more or fewer apart.
    low, high = chi2.ppf([5e-7, 1 - 5e-7], DIMENSION - 1) * target**2
    spread = float(((decoded.vector - decoded.vector.mean()) ** 2).sum())
    assert low < spread < high
    assert not low < spread * (len(present) + 1) / len(present) < high
    assert not low < spread * (len(present) - 1) / len(present) < high


def test_scores_are_means_over_validation_examples():
    packing = ScorePacking(("loss", "auc", "dice"), 3)
    sites = [
        ({"loss": 0.5, "auc": 0.75}, 30),
        ({"loss": 1.5, "auc": None, "dice": None}, 10),
        ({}, 0),
    ]
    total = sum(packing.pack(scores, examples) for scores, examples in sites)
    got = packing.unpack(total, 3)
    assert {name: weight for name, (weight, _) in got.items()} == {"loss": 40, "auc": 30, "dice": 0}
    assert got["loss"][1] / 40 == pytest.approx((0.5 * 30 + 1.5 * 10) / 40, abs=1e-8)
    assert got["auc"][1] / 30 == pytest.approx(0.75, abs=1e-8)


@given(
    sites=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2**24)), min_size=1, max_size=50),
)
def test_scores_of_any_sizes(sites):
    packing = ScorePacking(("auc",), 50)
    total = sum(packing.pack({"auc": score}, examples) for score, examples in sites)
    weight, value = packing.unpack(total, len(sites))["auc"]
    assert weight == sum(examples for _, examples in sites)
    assert value == pytest.approx(math.fsum(score * examples for score, examples in sites), abs=1e-5 * len(sites))


def test_scores_beyond_the_encoding_are_refused():
    packing = ScorePacking(("loss",), 3)
    with pytest.raises(ConfigError, match="validation examples"):
        packing.pack({"loss": 0.5}, 2**24 + 1)
    with pytest.raises(MessageError, match="not finite"):
        packing.pack({"loss": math.nan}, 3)
    weight, value = packing.unpack(packing.pack({"loss": 1e9}, 2), 1)["loss"]
    assert value / weight == LOSS_RANGE
