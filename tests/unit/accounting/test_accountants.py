"""The accountants against closed forms: Gaussian, Laplace, stated releases, tuning, insiders."""

import math

import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import comb
from scipy.stats import norm

from medveil.accounting import (
    Composed,
    Gaussian,
    Laplace,
    PoissonGaussian,
    RepeatAndSelect,
    Repeated,
    Stated,
    delta_of,
    dp_sgd,
    epsilon,
    epsilon_of,
    insider_epsilon,
)
from medveil.errors import ConfigError, GuaranteeError


def gaussian_delta(sigma, eps):
    """Balle & Wang 2018, Theorem 8, at sensitivity 1."""
    return norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps + norm.logcdf(-0.5 / sigma - eps * sigma))


def gaussian_epsilon(sigma, delta):
    if gaussian_delta(sigma, 0.0) <= delta:
        return 0.0
    return brentq(lambda eps: gaussian_delta(sigma, eps) - delta, 0.0, 50 / sigma + 1 / sigma**2, xtol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9, 1e-14])
def test_the_gaussian_is_its_closed_form_from_above(sigma, delta):
    exact = gaussian_epsilon(sigma, delta)
    assert exact <= epsilon_of(Gaussian(noise_multiplier=sigma), delta=delta).epsilon <= exact * 1.001 + 1e-9
    doubled = gaussian_epsilon(sigma / 2, delta)
    found = epsilon_of(Gaussian(noise_multiplier=sigma), delta=delta, relation="replace-one").epsilon
    assert doubled <= found <= doubled * 1.001 + 1e-9


@pytest.mark.parametrize(("sigma", "exact"), [(0.028, 789.1281677), (0.0275, 815.2985764), (0.01, 5425.509846)])
def test_a_huge_epsilon_is_finite(sigma, exact):
    """Balle & Wang's closed form in 50 digits: dp-accounting's own inversion overflows between 709 and 745."""
    assert epsilon_of(Gaussian(noise_multiplier=sigma), delta=1e-5).epsilon == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 10, 5000])
def test_full_batches_are_gaussian_and_compose_exactly(steps):
    exact = gaussian_epsilon(20.0 / math.sqrt(steps), 1e-5)
    found = epsilon(sampling_rate=1.0, noise_multiplier=20.0, steps=steps, delta=1e-5)
    assert exact <= found <= exact * 1.001 + 1e-9


def test_unequal_gaussians_add_their_precisions():
    event = Composed(events=(Gaussian(noise_multiplier=2.0), Repeated(event=Gaussian(noise_multiplier=5.0), count=3)))
    exact = gaussian_epsilon((1 / 4 + 3 / 25) ** -0.5, 1e-6)
    assert exact <= epsilon_of(event, delta=1e-6).epsilon <= exact * 1.001


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.5])
def test_delta_of_the_gaussian_is_its_closed_form(eps):
    exact = gaussian_delta(1.0, eps)
    assert exact * (1 - 1e-12) <= delta_of(Gaussian(noise_multiplier=1.0), epsilon=eps) <= exact * 1.001


def test_laplace_is_its_closed_form():
    """delta(eps) = 1 - exp((eps - 1/b) / 2) below 1/b, and nothing above."""
    event = Laplace(noise_multiplier=0.5)
    exact = 1 - math.exp((1.0 - 2.0) / 2)
    assert exact * (1 - 1e-12) <= delta_of(event, epsilon=1.0) <= exact * 1.001
    assert epsilon_of(event, delta=1e-10).epsilon == pytest.approx(2.0, rel=1e-3)
    assert epsilon_of(event, delta=1e-10, relation="replace-one").epsilon == pytest.approx(4.0, rel=1e-3)


def test_one_stated_release_costs_what_it_states():
    event = Stated(epsilon=1.3, delta=1e-6)
    assert epsilon_of(event, delta=1e-6).epsilon == pytest.approx(1.3, rel=1e-8)
    with pytest.raises(GuaranteeError, match="No finite epsilon"):
        epsilon_of(event, delta=0.9e-6)


def optimal_composition_delta(eps0, delta0, count, eps):
    """Kairouz et al. 2015, equation (5), by brute force over how often randomised response told the truth."""
    p = math.exp(eps0) / (1 + math.exp(eps0))
    hockey = sum(
        comb(count, k) * p**k * (1 - p) ** (count - k) * max(0.0, 1 - math.exp(eps - (2 * k - count) * eps0))
        for k in range(count + 1)
    )
    return 1 - (1 - delta0) ** count * (1 - hockey)


def test_stated_releases_compose_as_the_optimal_composition_theorem():
    eps0, delta0, count = 0.2, 1e-7, 30
    exact = brentq(lambda eps: optimal_composition_delta(eps0, delta0, count, eps) - 1e-5, 0.0, 6.0)
    found = epsilon_of(Repeated(event=Stated(epsilon=eps0, delta=delta0), count=count), delta=1e-5).epsilon
    assert exact <= found <= exact * 1.01
    assert found < 0.8 * eps0 * count


def test_a_stated_guarantee_crosses_relations_only_by_group_privacy():
    event = Stated(epsilon=1.0, delta=1e-7)
    found = epsilon_of(event, delta=1.01 * (1 + math.e) * 1e-7, relation="replace-one").epsilon
    assert found == pytest.approx(2.0, rel=2e-3)
    with pytest.raises(GuaranteeError, match="says nothing"):
        epsilon_of(event.model_copy(update={"relation": "replace-one"}), delta=1e-5)


def test_a_stated_release_beside_training_costs_no_more_than_its_epsilon():
    training = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)
    alone = epsilon_of(training, delta=1e-5).epsilon
    both = epsilon_of(Composed(events=(training, Stated(epsilon=0.5, delta=0.0))), delta=1e-5).epsilon
    assert alone + 0.1 < both <= alone + 0.5 + 1e-3


def rdp_to_epsilon(curve, delta):
    """Canonne et al. 2020, Proposition 12, minimised over a continuous order."""

    def at(log_excess):
        order = 1 + math.exp(log_excess)
        return curve(order) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    return minimize_scalar(at, bounds=(-3, 7), method="bounded", options={"xatol": 1e-10}).fun


@pytest.mark.parametrize("shape", [0.0, 1.0, 2.5])
def test_tuning_is_theorem_2_of_papernot_and_steinke(shape):
    """epsilon'(l) = r(l) + (1 + eta) min_k [(1 - 1/k) r(k) + log(1/gamma) / k] + log(mean) / (l - 1)."""
    sigma, mean, delta = 4.0, 10.0, 1e-6

    def mean_of(gamma):
        if shape == 0:
            return (1 - 1 / gamma) / math.log(gamma)
        return shape * (1 - gamma) / (gamma * (1 - gamma**shape))

    gamma = brentq(lambda each: mean_of(each) - mean, 1e-9, 1 - 1e-9, xtol=1e-14)

    def single(order):
        return order / (2 * sigma**2)

    inner = minimize_scalar(
        lambda t: (1 - math.exp(-t)) * single(math.exp(t)) - math.log(gamma) * math.exp(-t),
        bounds=(0.0, 8.0),
        method="bounded",
    ).fun
    exact = rdp_to_epsilon(lambda order: single(order) + (1 + shape) * inner + math.log(mean) / (order - 1), delta)
    event = RepeatAndSelect(event=Gaussian(noise_multiplier=sigma), mean_trials=mean, shape=shape)
    spent = epsilon_of(event, delta=delta)
    assert exact * (1 - 1e-6) <= spent.epsilon <= exact * 1.005
    assert spent.accountant.startswith("RDP")


def test_tuning_with_poisson_trials_is_theorem_6_of_papernot_and_steinke():
    """epsilon'(l) = r(l) + mean delta_hat + log(mean) / (l - 1), delta_hat at epsilon_hat = log(1 + 1 / (l - 1))."""
    sigma, mean, delta = 4.0, 10.0, 1e-6

    def single(order):
        return order / (2 * sigma**2)

    def delta_hat(eps):
        """Canonne et al. 2020, Proposition 12, and delta <= sqrt(1 - exp(-KL))."""

        def log_delta_at(log_excess):
            order = 1 + math.exp(log_excess)
            return (order - 1) * (single(order) - eps + math.log1p(-1 / order)) - math.log(order)

        log_delta = minimize_scalar(log_delta_at, bounds=(-3, 8), method="bounded").fun
        return min(1.0, math.exp(log_delta), math.sqrt(-math.expm1(-single(1.0))))

    exact = rdp_to_epsilon(
        lambda order: single(order) + mean * delta_hat(math.log1p(1 / (order - 1))) + math.log(mean) / (order - 1),
        delta,
    )
    event = RepeatAndSelect(event=Gaussian(noise_multiplier=sigma), mean_trials=mean, shape="poisson")
    assert exact * (1 - 1e-4) <= epsilon_of(event, delta=delta).epsilon <= exact * 1.02


def test_tuning_costs_more_than_a_run_and_stated_releases_are_added_to_it():
    run = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)
    tuned = RepeatAndSelect(event=run, mean_trials=10.0)
    single, several = epsilon_of(run, delta=1e-5), epsilon_of(tuned, delta=1e-5)
    assert several.epsilon > single.epsilon_rdp > single.epsilon
    both = epsilon_of(Composed(events=(tuned, Stated(epsilon=0.7, delta=5e-6))), delta=1e-5)
    assert both.epsilon == pytest.approx(epsilon_of(tuned, delta=5e-6).epsilon + 0.7, rel=1e-9)
    assert delta_of(tuned, epsilon=several.epsilon) <= 1e-5 * (1 + 1e-9)


def test_what_no_accountant_knows_is_refused():
    step = PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.0)
    with pytest.raises(GuaranteeError, match="replace-one"):
        epsilon_of(RepeatAndSelect(event=step, mean_trials=2.0), delta=1e-5, relation="replace-one")
    with pytest.raises(GuaranteeError, match="mechanism is not known"):
        epsilon_of(RepeatAndSelect(event=Stated(epsilon=1.0, delta=0.0), mean_trials=2.0), delta=1e-5)


def test_renyi_is_the_looser_cross_check_and_takes_over_below_floating_point():
    event = dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=2000)
    spent = epsilon_of(event, delta=1e-5)
    assert spent.epsilon < spent.epsilon_rdp < 1.2 * spent.epsilon
    assert spent.accountant.startswith("PLD")
    tiny = epsilon_of(event, delta=1e-12)
    assert tiny.accountant.startswith("RDP")
    assert tiny.epsilon == tiny.epsilon_rdp
    assert epsilon_of(event, delta=1e-5, relation="replace-one").epsilon_rdp is None


def test_floating_point_of_many_convolutions_is_charged():
    """Fifty thousand nearly full batches: without the charge the Fourier transform under-reports the Gaussian."""
    rate, sigma, steps = 1 - 1e-9, 300.0, 50_000
    for delta in (1e-8, 1e-12):
        exact = gaussian_epsilon(sigma / math.sqrt(steps), delta)
        found = epsilon(sampling_rate=rate, noise_multiplier=sigma, steps=steps, delta=delta)
        assert exact <= found <= 1.2 * exact


def test_nothing_done_costs_nothing():
    assert epsilon_of(Composed(events=()), delta=1e-9).epsilon == 0.0


def test_insiders_see_the_noise_that_honest_sites_leave():
    common = {"sampling_rate": 0.02, "steps": 100, "delta": 1e-5}
    for colluding, left in ((0, math.sqrt(5 / 4)), (1, 1.0), (3, math.sqrt(2 / 4))):
        found = insider_epsilon(noise_multiplier=1.2, sites=5, colluding=colluding, tolerated=1, **common)
        assert found == pytest.approx(epsilon(noise_multiplier=1.2 * left, **common), rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"steps": 0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"relation": "zero-out"},
        {"colluding": 5},
        {"colluding": -1},
        {"tolerated": 5},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    right = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10, "delta": 1e-5}
    with pytest.raises(ConfigError) as caught:
        insider_epsilon(**({"sites": 5, "colluding": 0, "tolerated": 1} | right | wrong))
    assert caught.value.remedy


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_delta_of_refuses_a_wrong_epsilon(eps):
    with pytest.raises(ConfigError, match="epsilon"):
        delta_of(Gaussian(noise_multiplier=1.0), epsilon=eps)
