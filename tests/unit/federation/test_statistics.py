"""Secure sums of statistics: exact counts, sound moments, and nothing of one site in the clear."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from medveil.errors import (
    ConfigError,
    DataError,
    GuaranteeError,
    LabelError,
    MessageError,
    TooFewSitesError,
)
from medveil.federation.secure.moments import MomentsPacking
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.statistics import CountPacking, WeightedPacking, secure_confusion
from medveil.federation.secure.sums import secure_sums, sum_parameters
from medveil.federation.secure.tallies import class_counts, confusion_counts, histogram_counts, score_counts
from medveil.secagg import IdentityKey, ServerSession
from medveil.secagg import site as site_module

SITES = ("east", "north", "south", "west")
DEFAULT = SecureAggregation()


def opened(vectors, **options):
    total = secure_sums(vectors, DEFAULT, context="a test", **options)
    return total.total, len(total.included)


def plain_sum(vectors):
    """What a secure sum opens, by Python's integers: for many examples."""
    rows = [vector.tolist() for vector in vectors]
    return np.array([sum(column) % 2**64 for column in zip(*rows, strict=True)], dtype=np.uint64), len(rows)


def generator(seed=0):
    return np.random.default_rng(seed)


# Counts


def test_class_counts_are_those_of_all_labels_together():
    labels = {name: generator(number).integers(0, 5, 30 * number) for number, name in enumerate(SITES)}
    packing = CountPacking((5,), len(SITES))
    got = packing.unpack(*opened({name: packing.pack(class_counts(own, 5)) for name, own in labels.items()}))
    np.testing.assert_array_equal(got, np.bincount(np.concatenate(list(labels.values())), minlength=5))
    assert got.dtype == np.int64


def test_confusion_matrices_are_summed_to_that_of_all_sites():
    rng = generator(1)
    pairs = {name: (rng.integers(0, 3, 50), rng.integers(0, 3, 50)) for name in SITES}
    pooled = confusion_matrix(*(np.concatenate(part) for part in zip(*pairs.values(), strict=True)), labels=range(3))
    np.testing.assert_array_equal(secure_confusion(pairs, 3, DEFAULT, context="a test"), pooled)


def test_an_absent_sites_confusion_is_left_out():
    pairs = {name: (np.array([0, 1]), np.array([0, 0])) for name in SITES[:3]}
    got = secure_confusion(pairs, 2, DEFAULT, context="a test", absent=["west"])
    np.testing.assert_array_equal(got, [[3, 0], [3, 0]])


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=30, deadline=None)
def test_histograms_are_numpys_and_what_lies_outside_is_counted(seed, weighted):
    rng = generator(seed)
    edges = np.unique(rng.normal(0, 2, 9)).tolist()
    images = rng.normal(0, 2, (7, 2, 3, 3))
    images.flat[:9] = [*edges, *[edges[-1]] * (9 - len(edges))]  # numbers on the edges themselves
    weights = rng.random(7) if weighted else None
    got, outside = histogram_counts(images, edges, weights=weights)
    spread = None if weights is None else np.broadcast_to(weights[:, None, None, None], images.shape)
    expected, _ = np.histogram(np.clip(images, edges[0], edges[-1]), edges, weights=spread)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert outside == sum(not edges[0] <= value <= edges[-1] for value in images.ravel().tolist())


def test_histograms_of_bytes_in_many_blocks_are_exact():
    images = generator(2).integers(0, 256, (5, 3, 500, 500), dtype=np.uint8)
    got, outside = histogram_counts(images, np.linspace(0, 1, 33).tolist(), unit=255.0)
    np.testing.assert_array_equal(got, np.histogram(images / 255.0, np.linspace(0, 1, 33))[0])
    assert (got.dtype, outside) == (np.int64, 0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), max_size=40))
@settings(deadline=None)
def test_a_score_reaches_an_edge_exactly_when_its_bin_does(pairs):
    """Bins as exact fractions, not as the code computes them."""
    bins = 64
    got = score_counts([score for score, _ in pairs], np.array([label for _, label in pairs], dtype=int), bins)
    for label in (0, 1):
        for edge in range(bins):
            called = sum(Fraction(score) >= Fraction(edge, bins) for score, of in pairs if of == label)
            assert got[label, edge:].sum() == called


@pytest.mark.parametrize("labels", [[0, 3], [-1], [0.5]], ids=["too large", "negative", "no integers"])
def test_labels_outside_the_classes_are_refused(labels):
    with pytest.raises(LabelError):
        class_counts(labels, 3)


def test_predictions_that_do_not_fit_are_refused():
    with pytest.raises(DataError):
        confusion_counts([0, 1], [0], 2)


@pytest.mark.parametrize("scores", [[0.5, 1.5], [0.5, np.nan], [0.5]])
def test_scores_that_are_no_probabilities_are_refused(scores):
    with pytest.raises(DataError):
        score_counts(scores, [0, 1], 8)


def test_bins_of_scores_are_a_power_of_two():
    with pytest.raises(ConfigError, match="power of two"):
        score_counts([0.5], [1], 10)


@pytest.mark.parametrize("edges", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, np.nan]])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(ConfigError, match="no bins"):
        histogram_counts(np.zeros((1, 1, 2)), edges)


@pytest.mark.parametrize("counts", [np.array([1, -1]), np.array([1, 11]), np.array([1.0, 2.0]), np.array([1])])
def test_counts_out_of_range_are_refused_not_clipped(counts):
    with pytest.raises(ConfigError):
        CountPacking((2,), 3, largest=10).pack(counts)


def test_counts_that_might_wrap_around_are_refused():
    CountPacking((2,), 3, largest=(2**63 - 1) // 3)
    with pytest.raises(ConfigError, match="might not fit"):
        CountPacking((2,), 4, largest=2**61)


def test_a_total_that_no_counts_give_is_refused():
    packing = CountPacking((2,), 3, largest=10)
    for total in ([2**64 - 1, 0], [31, 0], [1, 2, 3]):
        with pytest.raises(MessageError):
            packing.unpack(np.array(total, dtype=np.uint64), 3)


# Weighted sums


def test_weighted_counts_are_summed_within_their_stated_error():
    rng = generator(3)
    labels = {name: rng.integers(0, 4, 25) for name in SITES}
    weights = {name: rng.random(25) for name in SITES}
    packing = WeightedPacking((4,), len(SITES), largest=25.0)
    got = packing.unpack(
        *opened({name: packing.pack(class_counts(labels[name], 4, weights[name])) for name in SITES}),
    )
    pooled = [
        sum((Fraction(w) for name in SITES for w in weights[name][labels[name] == label]), Fraction())
        for label in range(4)
    ]
    # 25 additions at a site add their own rounding to the packing's.
    assert max(abs(Fraction(value) - exact) for value, exact in zip(got.values.tolist(), pooled, strict=True)) <= (
        got.error + 4 * 25 * 2.0**-53 * 25
    )
    assert got.clipped == 0
    assert got.error < 1e-13


def test_weights_out_of_range_are_clipped_and_counted():
    packing = WeightedPacking((3,), 2, largest=2.0)
    vectors = {"a": packing.pack(np.array([5.0, 1.0, -3.0])), "b": packing.pack(np.array([0.5, 2.5, 0.0]))}
    got = packing.unpack(*opened(vectors))
    np.testing.assert_allclose(got.values, [2.5, 3.0, -2.0], atol=got.error)
    assert got.clipped == 3


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.inf]])
def test_weights_that_are_none_are_refused(weights):
    for call in (
        lambda: class_counts([0, 1], 2, weights),
        lambda: histogram_counts(np.zeros((2, 1, 2)), [0, 1], weights=weights),
        lambda: MomentsPacking(1, 0, 1, 2, weighted=True).pack(np.zeros((2, 1, 2)), weights=weights),
    ):
        with pytest.raises(DataError, match="weights"):
            call()


# Mean and variance


def exact_moments(numbers, weights):
    """Mean and population variance in exact arithmetic."""
    numbers, weights = [Fraction(x) for x in numbers], [Fraction(w) for w in weights]
    total = sum(weights)
    mean = sum(w * x for w, x in zip(weights, numbers, strict=True)) / total
    return mean, sum(w * (x - mean) ** 2 for w, x in zip(weights, numbers, strict=True)) / total


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(any),
    weighted=st.booleans(),
    centre=st.sampled_from([0.0, 0.5, -3.0, 1e6]),
    width=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=60, deadline=None)
def test_moments_are_exact_to_the_stated_bound(seed, sizes, weighted, centre, width):
    rng = generator(seed)
    channels = 2
    packing = MomentsPacking(channels, centre - width, centre + width, len(sizes), weighted=weighted)
    images = [rng.normal(centre, width * rng.random(), (size, channels, 3)) for size in sizes]
    weights = [rng.random(size) if weighted else np.ones(size) for size in sizes]
    vectors = [packing.pack(part, weights=own if weighted else None) for part, own in zip(images, weights, strict=True)]
    got = packing.unpack(*plain_sum(vectors))
    low, high = centre - width, centre + width
    pooled, every = np.concatenate(images), np.repeat(np.concatenate(weights), 3)
    assert got.clipped == np.count_nonzero((pooled < low) | (pooled > high))
    for channel in range(channels):
        numbers = np.clip(pooled[:, channel], low, high).ravel().tolist()
        mean, variance = exact_moments(numbers, every.tolist())
        assert abs(Fraction(float(got.mean[channel])) - mean) <= got.mean_error
        assert abs(Fraction(float(got.variance[channel])) - variance) <= got.variance_error


def test_moments_agree_with_numpy_on_all_images_together():
    rng = generator(5)
    images = {name: rng.integers(0, 256, (20 + 10 * k, 3, 28, 28), dtype=np.uint8) for k, name in enumerate(SITES)}
    packing = MomentsPacking(3, 0.0, 1.0, len(SITES))
    got = packing.unpack(*opened({name: packing.pack(own, unit=255.0) for name, own in images.items()}))
    pooled = np.concatenate(list(images.values())).astype(np.float64) / 255.0
    np.testing.assert_allclose(got.mean, pooled.mean((0, 2, 3)), rtol=0, atol=got.mean_error + 1e-14)
    np.testing.assert_allclose(got.variance, pooled.var((0, 2, 3)), rtol=0, atol=got.variance_error + 1e-14)
    assert got.weight == 140 * 28 * 28
    assert max(got.mean_error, got.variance_error) < 1e-10


def test_weighted_moments_agree_with_numpy():
    rng = generator(6)
    images = {name: rng.random((30, 1, 8, 8)) for name in SITES}
    weights = {name: rng.random(30) for name in SITES}
    packing = MomentsPacking(1, 0.0, 1.0, len(SITES), weighted=True)
    got = packing.unpack(*opened({name: packing.pack(images[name], weights=weights[name]) for name in SITES}))
    pooled = np.concatenate(list(images.values())).reshape(120, -1)
    spread = np.repeat(np.concatenate(list(weights.values())), 64)
    mean = np.average(pooled.ravel(), weights=spread)
    assert abs(got.mean[0] - mean) <= got.mean_error + 1e-14
    variance = np.average((pooled.ravel() - mean) ** 2, weights=spread)
    assert abs(got.variance[0] - variance) <= got.variance_error + 1e-14


def test_a_large_offset_cancels_nothing():
    """The textbook formula loses all digits here, which shows that the test could fail."""
    images = 1e6 + generator(7).random((40, 1, 16, 16))
    naive = (images**2).mean() - images.mean() ** 2
    packing = MomentsPacking(1, 1e6, 1e6 + 1, 2)
    got = packing.unpack(*plain_sum([packing.pack(images[:10]), packing.pack(images[10:])]))
    assert abs(got.variance[0] - images.var()) < 1e-9
    assert abs(naive - images.var()) > 1e-6


def test_intensities_beyond_the_range_are_clipped_and_counted():
    images = np.array([0.0, 0.5, 1.0, 7.0, -2.0, 0.25]).reshape(3, 1, 2)
    packing = MomentsPacking(1, 0.0, 1.0, 2)
    got = packing.unpack(*opened({"a": packing.pack(images[:2]), "b": packing.pack(images[2:])}))
    assert got.clipped == 2
    assert got.mean[0] == pytest.approx(np.clip(images, 0, 1).mean(), abs=1e-12)
    assert got.variance[0] == pytest.approx(np.clip(images, 0, 1).var(), abs=1e-12)


def test_moments_refuse_what_they_cannot_sum():
    packing = MomentsPacking(1, 0.0, 1.0, 2, largest=10)
    with pytest.raises(ConfigError, match="more pixels"):
        packing.pack(np.zeros((11, 1, 1)))
    with pytest.raises(ConfigError, match="channels"):
        packing.pack(np.zeros((2, 3, 1)))
    with pytest.raises(ConfigError, match="weights"):
        packing.pack(np.zeros((2, 1, 1)), weights=[1.0, 1.0])
    with pytest.raises(DataError, match="not finite"):
        packing.pack(np.array([[[np.nan]]]))
    with pytest.raises(DataError, match="No site"):
        packing.unpack(*plain_sum([packing.pack(np.zeros((0, 1, 1)))] * 2))
    with pytest.raises(ConfigError, match="range"):
        MomentsPacking(1, 1.0, 1.0, 2)


# The runner


def ones(*names):
    return {name: np.full(3, number + 1, dtype=np.uint64) for number, name in enumerate(names)}


def test_sums_leave_absent_sites_out():
    got = secure_sums(ones("a", "b", "c"), DEFAULT, context="a test", absent=["d"])
    assert got.included == ("a", "b", "c")
    assert got.total.tolist() == [6, 6, 6]


@pytest.mark.parametrize("absent", [["c", "d", "e"], ["d", "e", "f", "g"]])
def test_too_few_sites_open_nothing(absent):
    with pytest.raises(TooFewSitesError):
        secure_sums(ones("a", "b"), DEFAULT, context="a test", absent=absent)


def test_no_more_sites_may_be_absent_than_the_plan_says():
    with pytest.raises(TooFewSitesError):
        secure_sums(ones("a", "b", "c"), SecureAggregation(dropouts=0), context="a test", absent=["d"])


def test_one_site_is_no_sum():
    with pytest.raises(GuaranteeError):
        secure_sums(ones("a"), DEFAULT, context="a test")


def test_vectors_that_do_not_fit_together_are_refused():
    for other in (np.ones(2, np.uint64), np.ones(3, np.uint32), np.ones((3, 1), np.uint64)):
        with pytest.raises(ConfigError, match="do not fit"):
            secure_sums({**ones("a", "b"), "c": other}, DEFAULT, context="a test")


def test_groups_of_the_training_do_not_part_a_statistic():
    """Nine sites in three groups of three: one sum over nine, whose threshold protects nine."""
    names = "abcdefghi"
    plan = SecureAggregation(groups=3, threshold=2)
    got = secure_sums(ones(*names), plan, context="a test")
    assert got.included == tuple(names)
    assert got.total[0] == 45
    keys = {name: IdentityKey.generate().public for name in names}
    assert (sum_parameters(keys, plan, "x").threshold, sum_parameters(keys, plan, "x").min_included) == (5, 6)
    assert sum_parameters(keys, plan, "x").digest() != sum_parameters(keys, plan, "y").digest()


def _seen_by_the_server(monkeypatch, vectors):
    seen = []
    receive = ServerSession.receive
    monkeypatch.setattr(
        ServerSession, "receive", lambda self, site, data: seen.append(data) or receive(self, site, data)
    )
    secure_sums(vectors, DEFAULT, context="a test")
    return b"".join(seen)


@pytest.mark.parametrize("masked", [True, False], ids=["as it is", "with the masks removed"])
def test_no_sites_counts_reach_the_server(monkeypatch, masked):
    if not masked:
        monkeypatch.setattr(site_module, "hide", lambda *_: None)
        monkeypatch.setattr("medveil.secagg.opening.uncover", lambda *_: None)
    packing = CountPacking((16,), 3)
    vectors = {name: packing.pack(generator(number).integers(1, 99, 16)) for number, name in enumerate(SITES[:3])}
    seen = _seen_by_the_server(monkeypatch, vectors)
    for vector in vectors.values():
        assert (vector.astype("<u8").tobytes() in seen) is not masked


def test_no_torch_is_needed():
    code = (
        "import sys, medveil.federation.secure.moments, medveil.federation.secure.statistics; "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
