"""Bytes of Hypothesis at a site in a run that has begun: errors of medveil, and no others."""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_asks import RUN, opening, weights
from network_plans import SUMS
from network_steps import Guests

from medveil.errors import MedveilError
from medveil.federation.messages import Answer, Ask, Join, Open, Sealed, Task, encode


@pytest.fixture(scope="module")
def listening(trained, dealt, tmp_path_factory):
    """A site in a run that has begun, for every message that Hypothesis makes."""
    from network_rig import Hospitals

    plan = trained(SUMS)[0]
    place = Hospitals(tmp_path_factory.mktemp("fuzz"), plan, dealt(plan))
    own, run = Guests(place).run("site-1")
    run.receive(opening(place))
    with closing(run):
        yield place, own, run


MESSAGES = [
    Task(round=1, validate_model=False, train=True, sites=["site-1"]),
    Sealed(),
    Ask(purpose="evaluation"),
    Ask(purpose="threshold"),
    Answer(purpose="cohort"),
    Join(site="site-1", plan_hash="0" * 64, num_examples=3),
    Open(run=RUN, attempt=5, rounds_done=0, sites=["site-1"], lost=[]),
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    message=st.sampled_from(MESSAGES),
    frame=st.binary(max_size=80),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=4),
)
def test_no_bytes_raise_anything_but_an_error_of_medveil(listening, message, frame, flips):
    _, own, run = listening
    tensors = {"frame000000": np.frombuffer(frame or b"0", dtype=np.uint8), **weights(own)}
    data = bytearray(encode(message, tensors))
    for at, by in flips:
        data[at % len(data)] ^= by
    try:
        answers = run.receive(bytes(data))
    except MedveilError:
        return
    assert isinstance(answers, list)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(listening, data):
    with pytest.raises(MedveilError):
        listening[2].receive(data)
