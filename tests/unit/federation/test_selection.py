"""Which weights a training ends with: the moving average."""

import numpy as np
import pytest

from medveil.configuration import parse_config
from medveil.errors import ConfigError
from medveil.federation.selection import Selection
from medveil.federation.settings import Federation

EMPTY = np.zeros(0, dtype=np.float32)


def selection(ema):
    return Selection(Federation.model_validate({"rounds": 9, "ema": ema, "algorithm": {"kind": "fedsgd"}}), "auc")


def weights(value):
    return np.full(3, value, dtype=np.float32)


def test_without_it_the_last_weights_stay():
    made = selection(0.0)
    made.consider(1, None, weights(5), EMPTY)
    assert made.chosen(weights(7), EMPTY)[0].tolist() == [7, 7, 7]


def test_the_average_follows_its_recurrence():
    made, expected = selection(0.8), None
    for number, value in enumerate([4.0, -2.0, 10.0, 1.0, 3.0] * 20, start=1):
        made.consider(number, None, weights(value), EMPTY)
        keep = min(0.8, number / (number + 10))
        expected = value if expected is None else keep * expected + (1 - keep) * value
    assert made.chosen(weights(0), EMPTY)[0] == pytest.approx(expected, rel=1e-6)


def test_it_survives_a_restart():
    one = selection(0.9)
    for number in range(1, 6):
        one.consider(number, None, weights(number), EMPTY)
    two = selection(0.9)
    two.restore(one.facts(), one.tensors())
    for made in (one, two):
        made.consider(6, None, weights(-3), EMPTY)
    assert np.array_equal(one.chosen(weights(0), EMPTY)[0], two.chosen(weights(0), EMPTY)[0])


@pytest.mark.parametrize(
    "wrong", [{"ema": 0.9, "select": "best"}, {"ema": 1.0}, {"validate_every": 0, "select": "best"}]
)
def test_settings_that_contradict_each_other(wrong):
    with pytest.raises(ConfigError):
        parse_config(Federation, {"rounds": 3, **wrong}, where="plan")
