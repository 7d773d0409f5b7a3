"""Each way of clipping against its closed form in NumPy; counts; the price of the noisy count."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from medveil.configuration import parse_config
from medveil.dp.clipping import (
    MARGIN,
    MAX_UNITS,
    AdaptiveClipping,
    AutoClipping,
    ClipCounts,
    Clipping,
    FlatClipping,
    PerLayerClipping,
    adapted,
    clip_and_sum,
    encode_count,
    follow_quantile,
    layer_bounds,
    sum_noise_multiplier,
)
from medveil.errors import ConfigError, GuaranteeError, PrivacyError
from medveil.rng import SecureRandom, Seeds

_SHAPES = [(4, 3, 3, 3), (4,), (), (2, 5000)]


def _drawn(units=9, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(-3, 3, units) * scale
    return [
        torch.randn(units, *shape, generator=generator) * lengths.reshape(-1, *[1] * len(shape)) for shape in _SHAPES
    ]


def _flat(gradients):
    return np.concatenate([g.reshape(g.shape[0], -1).double().numpy() for g in gradients], axis=1)


def _summed(clipping, gradients):
    total = torch.zeros(sum(math.prod(g.shape[1:]) for g in gradients), dtype=torch.float64)
    counts = clip_and_sum(clipping, gradients, total)
    return total.numpy(), counts


def test_flat():
    gradients = _drawn()
    rows = _flat(gradients)
    norms = np.linalg.norm(rows, axis=1)
    total, counts = _summed(FlatClipping(l2_clip_norm=2.0), gradients)
    expected = (rows * np.minimum(1, 2.0 * MARGIN / norms)[:, None]).sum(0)
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-14)
    assert counts == ClipCounts(9, int((norms > 2.0 * MARGIN).sum()), 0)
    assert 0 < counts.clipped < 9


def test_automatic():
    gradients = _drawn()
    rows = _flat(gradients)
    factors = 2.0 * MARGIN / (np.linalg.norm(rows, axis=1) + 0.01)
    total, _ = _summed(AutoClipping(l2_clip_norm=2.0), gradients)
    np.testing.assert_allclose(total, (rows * factors[:, None]).sum(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("split", ["equal", "dimension"])
def test_per_layer(split):
    gradients = _drawn()
    sizes = [108, 4, 1, 10_000]
    bounds = [2.0 / 2] * 4 if split == "equal" else [2.0 * math.sqrt(size / 10_113) for size in sizes]
    parts, hit = [], np.zeros(9, bool)
    for gradient, bound in zip(gradients, bounds, strict=True):
        rows = _flat([gradient])
        norms = np.linalg.norm(rows, axis=1)
        parts.append((rows * np.minimum(1, bound * MARGIN / norms)[:, None]).sum(0))
        hit |= norms > bound * MARGIN
    clipping = PerLayerClipping(l2_clip_norm=2.0, split=split)
    total, counts = _summed(clipping, gradients)
    np.testing.assert_allclose(total, np.concatenate(parts), rtol=1e-12, atol=1e-14)
    assert counts.clipped == hit.sum()
    assert math.hypot(*layer_bounds(clipping, sizes)) == pytest.approx(2.0)


def test_units_that_are_not_finite_add_nothing_and_hide_nobody():
    gradients = _drawn()
    sound = [gradient[[0, 1, 3, 4, 5, 7, 8]] for gradient in gradients]
    expected, before = _summed(FlatClipping(l2_clip_norm=2.0), sound)
    gradients[0][2, 0, 0, 0, 0] = math.nan
    gradients[3][6, 1, 4999] = -math.inf
    total, counts = _summed(FlatClipping(l2_clip_norm=2.0), gradients)
    np.testing.assert_array_equal(total, expected)
    assert counts == ClipCounts(9, before.clipped, 2)
    assert counts.unclipped == before.unclipped


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [0, 0, 1, 2], [3, 2, 1, 0]])
@pytest.mark.parametrize("cut", [slice(None), slice(0, 9, 2), slice(0, 1)])
def test_columns_of_one_matrix_in_any_order(order, cut):
    """Tensors that follow each other in memory are read as one; those that do not must not be."""
    matrix = torch.from_numpy(_flat(_drawn())).float()[cut]
    columns = [matrix.split([108, 4, 1, 10_000], dim=1)[place] for place in order]
    rows = np.concatenate([part.double().numpy() for part in columns], axis=1)
    expected = (rows * np.minimum(1, 2.0 * MARGIN / np.linalg.norm(rows, axis=1))[:, None]).sum(0)
    total, _ = _summed(FlatClipping(l2_clip_norm=2.0), columns)
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("units", [1, 103, 104, 300])
def test_more_units_than_are_held_at_a_time(units):
    gradients = _drawn(units)
    rows = _flat(gradients)
    gradients[1][units // 2, 0] = math.nan
    norms = np.linalg.norm(rows, axis=1)
    scaled = np.delete(rows * np.minimum(1, 2.0 * MARGIN / norms)[:, None], units // 2, axis=0)
    total, counts = _summed(FlatClipping(l2_clip_norm=2.0), gradients)
    np.testing.assert_allclose(total, scaled.sum(0), rtol=1e-11, atol=1e-12)
    assert counts == ClipCounts(units, int((np.delete(norms, units // 2) > 2.0 * MARGIN).sum()), 1)


def test_nobody():
    total, counts = _summed(FlatClipping(l2_clip_norm=1.0), [torch.zeros(0, 3, 2), torch.zeros(0)])
    assert total.tolist() == [0.0] * 7
    assert counts == ClipCounts(0, 0, 0)


def test_a_total_grows_and_gradients_stay():
    gradients = _drawn(3)
    kept = [gradient.clone() for gradient in gradients]
    total = torch.ones(10_113, dtype=torch.float64)
    clip_and_sum(FlatClipping(l2_clip_norm=1.0), gradients, total)
    np.testing.assert_allclose(total.numpy() - 1, _summed(FlatClipping(l2_clip_norm=1.0), gradients)[0], atol=1e-15)
    for gradient, before in zip(gradients, kept, strict=True):
        assert torch.equal(gradient, before)


def test_half_precision_and_odd_strides():
    gradients = [torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).T.half()[:, ::2]]
    rows = _flat(gradients)
    total, _ = _summed(FlatClipping(l2_clip_norm=1.0), gradients)
    factors = np.minimum(1, MARGIN / np.linalg.norm(rows, axis=1))
    np.testing.assert_allclose(total, (rows * factors[:, None]).sum(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("gradients", "total"),
    [
        ([torch.zeros(2, 3)], torch.zeros(3)),
        ([torch.zeros(2, 3)], torch.zeros(4, dtype=torch.float64)),
        ([torch.zeros(2, 3), torch.zeros(3, 1)], torch.zeros(4, dtype=torch.float64)),
        ([torch.zeros(2, 3, dtype=torch.float64)], torch.zeros(3, dtype=torch.float64)),
        ([torch.tensor(1.0)], torch.zeros(1, dtype=torch.float64)),
        ([], torch.zeros(0, dtype=torch.float64)),
    ],
)
def test_what_does_not_fit_is_refused(gradients, total):
    with pytest.raises(ConfigError, match="do not fit"):
        clip_and_sum(FlatClipping(l2_clip_norm=1.0), gradients, total)
    assert not total.any()


def test_more_units_than_the_margin_covers():
    most = ClipCounts(MAX_UNITS)
    with pytest.raises(PrivacyError, match="rounding"):
        most + ClipCounts(1)
    # Two sums of n units, n^2 C / 2**53 each at worst, and the margin that is left for them.
    assert 2 * MAX_UNITS**2 * 2.0**-53 < 1 - MARGIN


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"kind": "flat", "l2_clip_norm": 1}, FlatClipping),
        ({"kind": "auto-s", "l2_clip_norm": 1}, AutoClipping),
        ({"kind": "per-layer", "l2_clip_norm": 1}, PerLayerClipping),
        ({"kind": "adaptive", "l2_clip_norm": 1, "count_noise_multiplier": 3}, AdaptiveClipping),
    ],
)
def test_tables(table, kind):
    assert type(TypeAdapter(Clipping).validate_python(table)) is kind


@pytest.mark.parametrize("table", [{}, {"l2_clip_norm": 0}, {"l2_clip_norm": math.nan}, {"l2_clip_norm": 1, "x": 1}])
def test_tables_that_are_wrong(table):
    with pytest.raises(ConfigError):
        parse_config(FlatClipping, table, where="plan.toml")


@pytest.mark.parametrize(("total", "count"), [(1.0, 10.0), (0.6, 0.31), (5.0, 2.6), (1.0, math.nextafter(0.5, 1))])
def test_sum_and_count_together_cost_the_total(total, count):
    """Andrew et al. 2021, Theorem 1."""
    summed = sum_noise_multiplier(total, count)
    assert (summed**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(total)
    assert summed > total


@pytest.mark.parametrize(("total", "count"), [(1.0, 0.5), (1.0, 0.1), (0.0, 1.0), (math.nan, 1.0)])
def test_a_count_that_costs_everything_is_refused(total, count):
    with pytest.raises(GuaranteeError, match="noisy count"):
        sum_noise_multiplier(total, count)


def _adaptive(**options):
    return AdaptiveClipping(**({"l2_clip_norm": 2.0, "count_noise_multiplier": 1e-3} | options))


@pytest.mark.parametrize(("counts", "share"), [((100, 0, 0), 1.0), ((100, 100, 0), 0.0), ((100, 50, 20), 0.3)])
def test_the_bound_moves_towards_the_quantile(counts, share):
    """Andrew et al. 2021, Algorithm 1: C exp(-eta (share - quantile)); the noise is a hundred-thousandth here."""
    random = SecureRandom.seeded(Seeds(0))
    moved = follow_quantile(_adaptive(), ClipCounts(*counts), expected_units=100, random=random)
    assert moved.l2_clip_norm == pytest.approx(2.0 * math.exp(-0.2 * (share - 0.5)), rel=1e-4)
    assert moved.model_copy(update={"l2_clip_norm": 2.0}) == _adaptive()


def test_the_bound_settles_at_the_quantile():
    clipping = _adaptive(l2_clip_norm=0.01, quantile=0.7, count_noise_multiplier=5.0)
    random, generator = SecureRandom.seeded(Seeds(1)), np.random.default_rng(1)
    for _ in range(150):
        norms = generator.exponential(size=100)
        counts = ClipCounts(100, int((norms > clipping.l2_clip_norm).sum()))
        clipping = follow_quantile(clipping, counts, expected_units=100, random=random)
    assert clipping.l2_clip_norm == pytest.approx(-math.log(0.3), rel=0.25)


def test_one_unit_moves_the_count_by_one_whatever_it_holds():
    """The sensitivity that 2 sigma_b is set against; without the number of units it would be two."""

    def encoded(*counts):
        return encode_count(_adaptive(), ClipCounts(*counts), SecureRandom.seeded(Seeds(2)))

    for joined in [(11, 4, 1), (11, 5, 1), (11, 4, 2)]:
        assert abs(encoded(*joined) - encoded(10, 4, 1)) == 2**20


def test_the_count_has_its_noise():
    clipping, random = _adaptive(count_noise_multiplier=4.0), SecureRandom.seeded(Seeds(3))
    drawn = [encode_count(clipping, ClipCounts(), random, honest=4) / 2**20 for _ in range(4000)]
    # 2 sigma_b / sqrt(4) = 4; the standard error of the deviation is 4 / sqrt(8000).
    assert np.std(drawn) == pytest.approx(4.0, abs=5 * 4 / math.sqrt(8000))


def test_a_wild_count_moves_the_bound_by_at_most_e():
    assert adapted(_adaptive(), 2**60, 1.0).l2_clip_norm == pytest.approx(2 / math.e)
    assert adapted(_adaptive(), -(2**60), 1.0).l2_clip_norm == pytest.approx(2 * math.e)
    assert adapted(_adaptive(l2_clip_norm=1e-30), 2**60, 1.0).l2_clip_norm == 1e-30


@pytest.mark.parametrize("expected", [0.0, -1.0, math.nan])
def test_the_divisor_is_positive(expected):
    with pytest.raises(ConfigError):
        adapted(_adaptive(), 0, expected)
