"""Programs travel as JSON and come back the same; anything else is refused before it is evaluated."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.encrypted.program import (
    Decide,
    Input,
    Linear,
    MaxPool,
    Narrow,
    Program,
    Relu,
    Rescale,
    Reshape,
    SumPool,
)
from medveil.encrypted.serial import MAX_BYTES, from_json, program_hash, public, to_json
from medveil.errors import MessageError

PROGRAM = Program(
    (
        Input("x", (), (1, 8, 8), 16, False, 1.0, -1.0, 1.0),
        Linear("c", ("x",), (4, 8, 8), 32, False, 9.0, "conv2d", (4, 1, 3, 3), (1, 1), (1, 1), (1, 1), (0, 0)),
        Narrow("n", ("c",), (4, 8, 8), 18, True, 9.0, 14),
        MaxPool("p", ("n",), (4, 4, 4), 18, True, 9.0, (3, 3), (2, 2), (1, 1)),
        Relu("r", ("p",), (4, 4, 4), 16, False, 9.0, 2, 2**22),
        SumPool("s", ("r",), (4, 1, 1), 20, False, 9.0, (4, 4)),
        Reshape("f", ("s",), (4,), 20, False, 9.0),
        Linear("l", ("f",), (2,), 36, False, 40.0, "linear", (2, 4)),
    ),
    factor=1.0,
    reveal=16,
    error=0.01,
    task="classification",
    names=("no", "yes"),
)


def test_it_comes_back_the_same():
    assert from_json(to_json(PROGRAM)) == public(PROGRAM)
    assert to_json(from_json(to_json(PROGRAM))) == to_json(PROGRAM)
    assert program_hash(from_json(to_json(PROGRAM))) == program_hash(PROGRAM)


def test_an_error_beyond_all_numbers_is_told_as_a_large_one():
    for error in (1.7e308, float("inf")):
        assert from_json(to_json(replace(PROGRAM, error=error))).error == 2.0**1000


def pooled(side, kernel, padding):
    """A pooling with stride ``kernel`` whose shapes fit."""
    after = (side + 2 * padding - kernel) // kernel + 1
    pool = MaxPool("p", ("n",), (1, after, side), 16, True, 1.0, (kernel, 1), (kernel, 1), (padding, 0))
    return Program(
        (
            Input("x", (), (1, side, side), 16, False, 1.0, -1.0, 1.0),
            Narrow("n", ("x",), (1, side, side), 16, True, 1.0, 0),
            pool,
            Rescale("r", ("p",), pool.shape, 16, False, 1.0, 0),
        ),
        factor=1.0, reveal=16, error=0.0, task="segmentation", names=(),
    )  # fmt: skip


def test_comparisons_and_padding_count_for_what_is_too_large():
    """What is evaluated for a window is not in the result's shape."""
    assert from_json(to_json(pooled(64, 8, 4)))
    assert from_json(to_json(pooled(1024, 1024, 0)))
    for side, kernel, padding in ((2048, 1026, 0), (1, 2**30, 2**29), (2**14 - 1, 1024, 512)):
        with pytest.raises(MessageError):
            from_json(to_json(pooled(side, kernel, padding)))


def changed(path, value):
    content = json.loads(to_json(PROGRAM))
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 1),
        (["version"], 3),
        (["operations"], []),
        (["names"], "no"),
        (["task"], "generation"),
        (["error"], 1e400),
        (["error"], 10**400),
        (["error"], 1e308),
        (["error"], -1.0),
        (["factor"], -(10**400)),
        (["names"], ["no", "y\nes"]),
        (["names"], ["no", "y" * 201]),
        (["names"], ["no"] * 5000),
        (["reveal"], 37),
        (["reveal"], -5),
        (["extra"], 1),
        (["operations", 1, "operation"], "Sigmoid"),
        (["operations", 1, "kind"], "conv7d"),
        (["operations", 1, "stride"], [1]),
        (["operations", 1, "stride"], [0, 0]),
        (["operations", 1, "groups"], 3),
        (["operations", 1, "groups"], True),
        (["operations", 1, "weight_shape"], [4, 2, 3, 3]),
        (["operations", 1, "weight_shape"], [4, 1, -3, 3]),
        (["operations", 1, "shape"], [4, 8, 9]),
        (["operations", 1, "inputs"], ["later"]),
        (["operations", 1, "inputs"], []),
        (["operations", 1, "name"], "x"),
        (["operations", 1, "padding"], ...),
        (["operations", 2, "drop"], 17),
        (["operations", 2, "drop"], -1),
        (["operations", 3, "kernel"], [0, 3]),
        (["operations", 3, "padding"], [3, 3]),
        (["operations", 3, "padding"], [2, 2]),
        (["operations", 1, "padding"], [2**20, 1]),
        (["operations", 1, "groups"], 2**39),
        (["operations", 3, "narrow"], False),
        (["operations", 4, "drop"], 9),
        (["operations", 4, "scale"], 17),
        (["operations", 4, "scale"], 7),
        (["operations", 4, "limit"], "high"),
        (["operations", 4, "limit"], 2**39),
        (["operations", 4, "limit"], -7),
        (["operations", 0, "scale"], 2000),
        (["operations", 0, "low"], 2.0),
        (["operations", 0, "low"], -(10**400)),
        (["operations", 6, "shape"], [4, 1, 1, 1, 1, 1]),
        (["operations", 6, "shape"], [1] * 100_000),
        (["operations", 6, "shape"], [2**39]),
        (["operations", 1, "scale"], -3),
        (["operations", 1, "weight_shape"], [4, 1, 2**19, 2**19]),
        (["operations", 4, "inputs"], ["c"]),
        (["operations", 5, "kernel"], [0, 4]),
        (["operations", 6, "shape"], [5]),
        (["operations", 0, "shape"], [2**20, 2**20, 2**20]),
        (["operations", 0, "shape"], []),
    ],
)
def test_what_does_not_fit_is_refused(path, value):
    with pytest.raises(MessageError):
        from_json(changed(path, value))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_bytes_is_refused_or_still_a_program(data):
    content = bytearray(to_json(PROGRAM))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), len(content) // 2]))
    try:
        found = from_json(bytes(content[:cut]))
    except MessageError:
        return
    assert from_json(to_json(found)) == found


DECIDING = replace(
    PROGRAM,
    operations=(
        *PROGRAM.operations,
        Narrow("m", ("l",), (2,), 20, True, 40.0, 16),
        Reshape("i", ("m",), (1, 2, 1), 20, True, 40.0),
        MaxPool("j", ("i",), (1, 1, 1), 20, True, 40.0, (2, 1), (2, 1), (0, 0)),
        Reshape("k", ("j",), (1,), 20, True, 40.0),
        Decide("d", ("m", "k"), (3, 2), 0, False, 1.0, (-2, -4000, -1000)),
    ),
    reveal=0,
)


def test_a_program_that_reveals_bits_comes_back_the_same():
    assert from_json(to_json(DECIDING)) == public(DECIDING)
    assert DECIDING.decision is DECIDING.operations[-1]
    assert PROGRAM.decision is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["reveal"], 1),
        (["factor"], 0.0),
        (["factor"], -1.0),
        (["factor"], 1e-300),
        (["operations", 12, "thresholds"], []),
        (["operations", 12, "thresholds"], [-2, -4000]),
        (["operations", 12, "thresholds"], [-2, -4000, 0]),
        (["operations", 12, "thresholds"], [-2, -4000, -(2**30)]),
        (["operations", 12, "thresholds"], [-2, -4000, True]),
        (["operations", 12, "inputs"], ["k", "m"]),
        (["operations", 12, "inputs"], ["m", "m"]),
        (["operations", 12, "inputs"], ["l"]),
        (["operations", 12, "narrow"], True),
        (["operations", 12, "scale"], 1),
        (["operations", 12, "shape"], [2, 3]),
    ],
)
def test_bits_that_do_not_fit_are_refused(path, value):
    content = json.loads(to_json(DECIDING))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(MessageError):
        from_json(json.dumps(content).encode())


def test_bits_in_the_middle_are_refused():
    more = Reshape("e", ("d",), (6,), 0, False, 1.0)
    with pytest.raises(MessageError, match="middle"):
        from_json(to_json(replace(DECIDING, operations=(*DECIDING.operations, more))))


def test_it_is_not_read_beyond_its_limit():
    with pytest.raises(MessageError, match="at most"):
        from_json(b" " * (MAX_BYTES + 1))
    with pytest.raises(MessageError):
        from_json(b"[" * 100_000)
