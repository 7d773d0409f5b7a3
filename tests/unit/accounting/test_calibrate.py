"""Calibration reproduces its target from below, and says when it cannot."""

import pytest

from medveil.accounting import (
    Composed,
    Gaussian,
    RepeatAndSelect,
    Repeated,
    Stated,
    calibrate_event,
    calibrate_noise,
    calibrate_steps,
    epsilon,
    epsilon_of,
)
from medveil.errors import ConfigError, GuaranteeError


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("target", [0.01, 1.0, 8.0, 300.0])
def test_noise_reproduces_its_target_from_below(target, relation):
    setting = {"sampling_rate": 0.02, "steps": 500, "delta": 1e-5, "relation": relation}
    noise = calibrate_noise(epsilon=target, **setting)
    assert 0.999 * target <= epsilon(noise_multiplier=noise, **setting) <= target


def test_noise_of_the_gaussian_is_the_analytic_one():
    """Balle & Wang 2018, Algorithm 1: sigma 3.730632 for epsilon 1, delta 1e-5, sensitivity 1."""
    noise = calibrate_noise(epsilon=1.0, delta=1e-5, sampling_rate=1.0, steps=1)
    assert 3.730631 <= noise <= 3.730632 * 1.0015


def test_steps_are_the_most_that_fit():
    setting = {"sampling_rate": 0.02, "noise_multiplier": 1.1, "delta": 1e-5}
    steps = calibrate_steps(epsilon=2.0, **setting)
    assert epsilon(steps=steps, **setting) <= 2.0 < epsilon(steps=steps + 1, **setting)


def test_a_single_step_that_costs_too_much_is_refused():
    with pytest.raises(GuaranteeError, match="single step"):
        calibrate_steps(epsilon=0.1, delta=1e-5, sampling_rate=1.0, noise_multiplier=1.0)


def test_earlier_releases_leave_less_for_training():
    earlier = Stated(epsilon=1.0, delta=1e-6)

    def with_earlier(noise):
        return Composed(events=(earlier, Repeated(event=Gaussian(noise_multiplier=noise), count=10)))

    noise = calibrate_event(with_earlier, epsilon=2.0, delta=1e-5)
    assert 0.999 * 2 <= epsilon_of(with_earlier(noise), delta=1e-5).epsilon <= 2.0
    with pytest.raises(GuaranteeError, match="No noise"):
        calibrate_event(with_earlier, epsilon=0.9, delta=1e-5)


def test_tuning_can_be_calibrated():
    def tuned(noise):
        return RepeatAndSelect(event=Gaussian(noise_multiplier=noise), mean_trials=5.0)

    noise = calibrate_event(tuned, epsilon=3.0, delta=1e-5)
    assert 0.999 * 3 <= epsilon_of(tuned(noise), delta=1e-5).epsilon <= 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"epsilon": 1e9},
        {"delta": 0.0},
        {"delta": 1.0},
        {"sampling_rate": 0.0},
        {"steps": 0},
        {"relation": "bounded"},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        calibrate_noise(**({"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 10} | wrong))
    assert caught.value.remedy


def test_steps_refuse_what_is_out_of_range():
    for wrong in ({"epsilon": 0.0}, {"delta": 2.0}, {"noise_multiplier": 0.0}, {"relation": "bounded"}):
        right = {"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "noise_multiplier": 1.0}
        with pytest.raises(ConfigError):
            calibrate_steps(**(right | wrong))
