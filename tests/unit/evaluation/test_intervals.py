import numpy as np
import pytest
from scipy import stats

from medveil.errors import DataError
from medveil.evaluation.intervals import (
    BootstrapConfig,
    Estimate,
    bootstrap,
    cluster_weights,
    percentile_interval,
    with_intervals,
)
from medveil.rng import Seeds


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def estimate_mean(values, subjects, **config):
    points = {"mean": Estimate(float(values.mean()))}
    return with_intervals(points, mean_of(values), subjects, config=BootstrapConfig(**config), seeds=Seeds(1))["mean"]


def test_patients_are_drawn_whole():
    subjects = np.array([5, 5, 5, 9, 2, 2])
    weights = np.concatenate(list(cluster_weights(subjects, resamples=50, seeds=Seeds(0))))
    assert weights.shape == (50, 6)
    for name in (5, 2):
        assert (np.ptp(weights[:, subjects == name], axis=1) == 0).all()
    draws = weights[:, [0, 3, 4]].sum(axis=1)
    assert (draws == 3).all()
    assert len({tuple(row) for row in weights}) > 5


def test_chunks_do_not_change_the_draws(monkeypatch):
    subjects = np.arange(20)
    whole = np.concatenate(list(cluster_weights(subjects, resamples=30, seeds=Seeds(4))))
    monkeypatch.setattr("medveil.evaluation.intervals._CHUNK_ELEMENTS", 60)
    parts = list(cluster_weights(subjects, resamples=30, seeds=Seeds(4)))
    assert len(parts) == 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_same_seed_same_interval_and_another_seed_another():
    values, subjects = np.random.default_rng(0).normal(size=40), np.arange(40)
    runs = [
        with_intervals(
            {"mean": Estimate(float(values.mean()))},
            mean_of(values),
            subjects,
            config=BootstrapConfig(resamples=200),
            seeds=Seeds(seed),
        )["mean"]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_interval_of_a_mean_is_close_to_the_normal_one():
    values = np.random.default_rng(5).normal(size=400)
    estimate = estimate_mean(values, np.arange(400), resamples=4000)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert estimate.low == pytest.approx(low, abs=0.012)
    assert estimate.high == pytest.approx(high, abs=0.012)


def test_repeating_every_image_does_not_narrow_the_interval():
    values = np.random.default_rng(6).normal(size=60)
    once = estimate_mean(values, np.arange(60))
    often = estimate_mean(np.repeat(values, 20), np.repeat(np.arange(60), 20))
    pretended = estimate_mean(np.repeat(values, 20), np.arange(1200))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert pretended.high - pretended.low < (once.high - once.low) / 3


def test_a_higher_level_gives_a_wider_interval():
    values = np.random.default_rng(7).normal(size=50)
    narrow, wide = (estimate_mean(values, np.arange(50), level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_interval_from_one_patient():
    estimate = estimate_mean(np.array([1.0, 2.0]), np.array([3, 3]))
    assert estimate == Estimate(1.5, None, None, "no interval: fewer than two patients")


def test_no_interval_when_none_is_asked_for():
    estimate = estimate_mean(np.array([1.0, 2.0]), np.array([3, 4]), resamples=0)
    assert estimate.value == 1.5
    assert estimate.low is None
    assert "asked" in estimate.reason


def test_no_interval_when_many_resamples_define_nothing():
    def rare(weights):
        return {"rare": np.where(weights[:, 0] > 0, weights[:, 0], np.nan)}

    points = {"rare": Estimate(1.0)}
    estimate = with_intervals(points, rare, np.arange(9), config=BootstrapConfig(), seeds=Seeds(0))["rare"]
    assert estimate.low is None
    assert "defined in only" in estimate.reason


def test_an_undefined_point_stays_undefined():
    point = Estimate(None, reason="no image of class 1")
    points = {"mean": point}
    values = np.arange(5.0)
    result = with_intervals(points, mean_of(values), np.arange(5), config=BootstrapConfig(), seeds=Seeds(0))
    assert result["mean"] == point


def test_undefined_resamples_are_left_out():
    samples = np.append(np.arange(101.0), np.nan)
    assert percentile_interval(samples, 0.5) == (25, 75)


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="nothing to resample"):
        bootstrap(mean_of(np.empty(0)), np.empty(0, int), resamples=3, seeds=Seeds(0))
