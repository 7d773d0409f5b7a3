"""Events: what is accepted, what is refused, and how they are stored and merged."""

import json
import subprocess
import sys

import pytest

from medveil.accounting import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    PoissonGaussian,
    RepeatAndSelect,
    Repeated,
    Stated,
    compose,
    parse_event,
)
from medveil.accounting.events import flatten
from medveil.errors import ConfigError

STEP = PoissonGaussian(sampling_rate=0.1, noise_multiplier=1.0)
ALL: list[Event] = [
    STEP,
    Gaussian(noise_multiplier=2.0),
    Laplace(noise_multiplier=0.5),
    Stated(epsilon=1.0, delta=1e-6),
    Stated(epsilon=1.0, delta=0.0, relation="replace-one"),
    Repeated(event=STEP, count=1000),
    Composed(events=(STEP, Repeated(event=Gaussian(noise_multiplier=3.0), count=2))),
    RepeatAndSelect(event=Repeated(event=STEP, count=10), mean_trials=10.0, shape="poisson"),
    RepeatAndSelect(event=STEP, mean_trials=1.5, shape=0.0),
    Composed(events=()),
]


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.kind)
def test_stored_events_come_back_equal(event):
    assert parse_event(json.loads(json.dumps(event.model_dump(mode="json")))) == event


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Gaussian(noise_multiplier=0.0), "noise_multiplier"),
        (lambda: Gaussian(noise_multiplier=float("nan")), "noise_multiplier"),
        (lambda: Gaussian(noise_multiplier=float("inf")), "noise_multiplier"),
        (lambda: PoissonGaussian(sampling_rate=0.0, noise_multiplier=1.0), "sampling_rate"),
        (lambda: PoissonGaussian(sampling_rate=1.01, noise_multiplier=1.0), "sampling_rate"),
        (lambda: Laplace(noise_multiplier=-1.0), "noise_multiplier"),
        (lambda: Stated(epsilon=-0.1, delta=0.0), "epsilon"),
        (lambda: Stated(epsilon=1.0, delta=1.0), "delta"),
        (lambda: Repeated(event=STEP, count=0), "count"),
        (lambda: RepeatAndSelect(event=STEP, mean_trials=0.5, shape="poisson"), "mean_trials"),
        (lambda: RepeatAndSelect(event=STEP, mean_trials=1.0, shape=1.0), "mean"),
        (lambda: RepeatAndSelect(event=STEP, mean_trials=2.0, shape=-1.0), "shape"),
        (lambda: parse_event({"kind": "central_limit", "mu": 1.0}), "kind"),
        (lambda: parse_event({"kind": "gaussian", "noise_multiplier": 1.0, "sigma": 1.0}), "sigma"),
        (lambda: parse_event([1]), "event"),
        (lambda: parse_event({"kind": "repeated", "count": 2, "event": {"kind": "gaussian"}}), "noise_multiplier"),
    ],
)
def test_a_wrong_event_is_refused_with_its_place(make, word):
    with pytest.raises(ConfigError, match=word) as caught:
        make()
    assert caught.value.remedy


def test_equal_events_are_merged_through_every_nesting():
    nested = Repeated(event=Composed(events=(STEP, STEP, Gaussian(noise_multiplier=2.0))), count=5)
    merged = compose([nested, STEP, Composed(events=(Gaussian(noise_multiplier=2.0),))])
    assert merged == Composed(
        events=(Repeated(event=STEP, count=11), Repeated(event=Gaussian(noise_multiplier=2.0), count=6))
    )


def test_thousands_of_single_steps_become_one_event():
    assert compose([STEP] * 5000) == Repeated(event=STEP, count=5000)


def test_one_event_stays_itself_and_none_is_empty():
    assert compose([STEP]) == STEP
    assert compose([]) == Composed(events=())


def test_tuning_is_one_mechanism_and_is_not_opened():
    tuning = RepeatAndSelect(event=Repeated(event=STEP, count=3), mean_trials=2.0)
    assert list(flatten(Repeated(event=tuning, count=2))) == [(tuning, 2)]


def test_the_package_loads_without_the_heavy_libraries():
    code = (
        "import sys, medveil.accounting; "
        "print([name for name in ('torch', 'scipy', 'dp_accounting') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
