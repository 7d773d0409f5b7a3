"""Each conversion against its closed form."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from medveil.accounting import Gaussian, Laplace, RepeatAndSelect, Repeated, Stated, dp_sgd
from medveil.accounting.meaning import (
    advantage_from_epsilon,
    meaning,
    membership_advantage,
    reconstruction_bound,
    trade_off,
    true_positive_rate,
)
from medveil.errors import ConfigError

RATES = [0.0, 1e-6, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0]


def gaussian_trade_off(mu, rates):
    """Dong, Roth & Su 2022, equation (6): f(a) = Phi(Phi^-1(1 - a) - mu)."""
    return norm.cdf(norm.isf(rates) - mu)


@pytest.mark.parametrize("sigma", [0.25, 1.0, 3.0, 50.0])
@pytest.mark.parametrize(("relation", "width"), [("add-remove", 1), ("replace-one", 2)])
def test_the_trade_off_of_the_gaussian_from_below(sigma, relation, width):
    exact = gaussian_trade_off(width / sigma, np.array(RATES[1:]))
    found = trade_off(Gaussian(noise_multiplier=sigma), RATES[1:], relation=relation)
    assert np.all(found <= exact + 1e-12)
    assert np.all(found >= exact - 1e-3)


def test_the_trade_off_of_full_batches_composes():
    exact = gaussian_trade_off(math.sqrt(16) / 10.0, np.array(RATES))
    found = trade_off(Repeated(event=Gaussian(noise_multiplier=10.0), count=16), RATES)
    np.testing.assert_allclose(found, exact, atol=2e-4)


def test_the_trade_off_of_laplace():
    """Dong, Roth & Su 2022, Appendix: F(F^-1(1 - a) - 1/b) for Laplace noise of scale 1 shifted by 1/b."""
    shift = 1 / 0.8
    for rate in (0.01, 0.2, 0.4, 0.7):
        quantile = -math.log(2 * rate) if rate < 0.5 else math.log(2 * (1 - rate))
        point = quantile - shift
        exact = 0.5 * math.exp(point) if point < 0 else 1 - 0.5 * math.exp(-point)
        found = float(trade_off(Laplace(noise_multiplier=0.8), [rate])[0])
        assert exact - 2e-3 <= found <= exact + 1e-12


def test_the_trade_off_of_a_stated_release():
    """Wasserman & Zhou 2010: f(a) = max(0, 1 - delta - e^eps a, e^-eps (1 - delta - a))."""
    eps, delta = 1.0, 0.01
    for rate in RATES:
        exact = max(0.0, 1 - delta - math.exp(eps) * rate, math.exp(-eps) * (1 - delta - rate))
        found = float(trade_off(Stated(epsilon=eps, delta=delta), [rate])[0])
        assert exact - 5e-3 <= found <= exact + 1e-12


def test_the_trade_off_of_nothing_is_chance():
    np.testing.assert_allclose(trade_off(Stated(epsilon=0.0, delta=0.0), RATES), 1 - np.array(RATES), atol=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 20.0])
def test_the_advantage_of_the_gaussian_is_its_total_variation(sigma):
    exact = 2 * norm.cdf(0.5 / sigma) - 1
    assert exact * (1 - 1e-12) <= membership_advantage(Gaussian(noise_multiplier=sigma)) <= exact * 1.001


def test_the_advantage_from_epsilon_alone_is_looser():
    for eps, delta in ((0.0, 0.0), (0.0, 0.3), (1.0, 1e-5), (3.0, 0.01), (1000.0, 0.0)):
        exact = (math.expm1(min(eps, 500)) + 2 * delta) / (math.exp(min(eps, 500)) + 1)
        assert advantage_from_epsilon(epsilon=eps, delta=delta) == pytest.approx(exact, abs=1e-12)
    table = meaning(dp_sgd(sampling_rate=0.02, noise_multiplier=1.15, steps=1000), delta=1e-5)
    assert table["membership_advantage"] < table["membership_advantage_from_epsilon"]


def test_rates_at_low_false_positives_of_the_gaussian():
    for rate in (0.001, 0.01):
        exact = norm.sf(norm.isf(rate) - 1 / 2.0)
        found = true_positive_rate(Gaussian(noise_multiplier=2.0), rate)
        assert exact - 1e-12 <= found <= exact + 2e-4


def test_reconstruction_of_the_gaussian():
    """Hayes et al. 2023: the blow-up function of N(0, s^2) and N(1, s^2) at kappa, 1 - Phi(Phi^-1(1 - kappa) - 1/s)."""
    for prior in (1e-6, 1e-3, 0.1):
        exact = norm.sf(norm.isf(prior) - 1 / 1.5)
        found = reconstruction_bound(Gaussian(noise_multiplier=1.5), prior)
        assert exact * (1 - 1e-9) <= found <= exact * 1.02
        assert found >= prior


def test_tuning_has_a_meaning_too():
    single = Gaussian(noise_multiplier=5.0)
    tuned = RepeatAndSelect(event=single, mean_trials=3.0)
    assert np.all(trade_off(tuned, RATES) <= trade_off(single, RATES) + 1e-12)
    assert membership_advantage(tuned) >= membership_advantage(single)


def test_the_table_is_json_and_consistent():
    table = meaning(dp_sgd(sampling_rate=0.05, noise_multiplier=1.5, steps=200), delta=1e-5)
    assert json.loads(json.dumps(table)) == table
    for row in table["trade_off"]:
        assert row["true_positive_rate"] - row["false_positive_rate"] <= table["membership_advantage"] + 1e-9
        assert row["true_positive_rate"] <= math.exp(table["epsilon"]) * row["false_positive_rate"] + 1e-5 + 1e-9


def test_rates_out_of_range_are_refused():
    with pytest.raises(ConfigError):
        trade_off(Gaussian(noise_multiplier=1.0), [1.1])
    with pytest.raises(ConfigError):
        reconstruction_bound(Gaussian(noise_multiplier=1.0), math.nan)
    with pytest.raises(ConfigError):
        advantage_from_epsilon(epsilon=-1.0, delta=0.0)
    with pytest.raises(ConfigError):
        membership_advantage(Gaussian(noise_multiplier=1.0), relation="bounded")
