"""Messages: round trips, and a typed error for every way in which bytes can be wrong."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from medveil.errors import MessageError
from medveil.federation.messages import (
    Decline,
    Farewell,
    Join,
    Notice,
    Result,
    Scores,
    Stop,
    Task,
    decode,
    encode,
)

EXAMPLES = [
    (Join(site="a", plan_hash="h", num_examples=3), {}),
    (
        Task(round=1, validate_model=True, train=False, sites=["a", "b"]),
        {"weights": np.arange(4, dtype=np.float32), "buffers": np.zeros(0, np.float32)},
    ),
    (Result(round=2, form="weights", weight=3.0, train_loss=0.5), {"values": np.ones(2, np.float32)}),
    (Result(round=2, form="sum", weight=3.0, train_loss=0.5), {"values": np.array([2**32 - 1], np.uint32)}),
    (Scores(round=0, num_examples=2, auc=None, loss=0.1), {}),
    (Stop(reason="done"), {}),
]


def _frame(kind=1, version=1, header=b"{}", body=b"", magic=b"MVF1", lengths=None):
    sizes = lengths or (len(header), len(body))
    return struct.pack(">4sBBIQ", magic, kind, version, *sizes) + header + body


@pytest.mark.parametrize(("message", "tensors"), EXAMPLES)
def test_round_trip(message, tensors):
    back, arrays = decode(encode(message, tensors))
    assert back == message
    assert arrays.keys() == tensors.keys()
    for name, array in tensors.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_bytes_on_the_wire_are_those_documented():
    data = encode(Stop(reason="x"))
    assert data == b"MVF1" + bytes([5, 1]) + (14).to_bytes(4, "big") + (0).to_bytes(8, "big") + b'{"reason":"x"}'


@pytest.mark.parametrize("kind", [Stop, Notice, Decline, Farewell])
def test_words_of_another_party_are_shown_as_they_are_in_a_terminal(kind):
    words = "all\x1b[2J well\r\nOK\u202e é"
    name = "text" if kind is Notice else "reason"
    extra = {"final": True} if kind is Decline else {}
    told, _ = decode(encode(kind(**{name: words}, **extra)))
    assert getattr(told, name) == "all?[2J well??OK? é"
    raw = json.dumps({name: words, **extra}).encode()  # a party that does not encode with medveil
    assert getattr(decode(_frame(kind.kind, header=raw))[0], name) == "all?[2J well??OK? é"


GOOD_JOIN = json.dumps({"site": "a", "plan_hash": "h", "num_examples": 1}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too short"),
        (_frame(magic=b"XXXX"), "not a medveil message"),
        (_frame(version=2), "another protocol version"),
        (_frame(kind=99), "unknown kind"),
        (_frame(lengths=(1 << 30, 0)), "larger than allowed"),
        (_frame(lengths=(2, 1 << 60)), "larger than allowed"),
        (_frame(header=GOOD_JOIN)[:-1], "length differs"),
        (_frame(header=GOOD_JOIN) + b"x", "length differs"),
        (_frame(header=b"\xff\xfe"), "header is not valid"),
        (_frame(header=b'{"site":"a"}'), "header is not valid"),
        (_frame(header=GOOD_JOIN[:-1] + b',"more":1}'), "header is not valid"),
        (_frame(header=GOOD_JOIN.replace(b"1}", b'"1"}')), "header is not valid"),
        (_frame(header=GOOD_JOIN.replace(b"1}", b"0}")), "header is not valid"),
        (_frame(kind=3, header=b'{"round":1,"form":"mean","weight":NaN,"train_loss":0.1}'), "header is not valid"),
        (_frame(kind=4, header=b'{"round":1,"num_examples":1,"auc":1.5}'), "header is not valid"),
        (_frame(kind=4, header=b'{"round":1,"num_examples":1,"patient":0.5}'), "header is not valid"),
        (_frame(kind=4, header=b'{"round":1,"num_examples":' + b"9" * 400 + b"}"), "header is not valid"),
        (_frame(header=GOOD_JOIN, body=b"\x80\x04pickle"), "tensors cannot be read"),
        (_frame(header=GOOD_JOIN, body=save({"x": np.zeros((2, 2), np.float32)})), "not allowed"),
        (_frame(header=GOOD_JOIN, body=save({"x": np.zeros(2, np.int8)})), "not allowed"),
        (_frame(header=GOOD_JOIN, body=save({"values": np.array([np.nan], np.float32)})), "NaN or infinite"),
    ],
)
def test_bad_bytes_are_refused(data, said):
    with pytest.raises(MessageError, match=said):
        decode(data)


def test_numbers_that_are_not_finite_never_leave_their_maker():
    with pytest.raises(MessageError, match="NaN or infinite"):
        encode(EXAMPLES[2][0], {"values": np.array([np.inf], np.float32)})


def test_a_body_above_the_receivers_limit_is_refused():
    data = encode(EXAMPLES[1][0], EXAMPLES[1][1])
    with pytest.raises(MessageError, match="larger than allowed"):
        decode(data, max_body=16)


@given(st.binary(max_size=300))
def test_random_bytes_end_in_a_typed_error(data):
    with pytest.raises(MessageError):
        decode(data)


@settings(max_examples=300)
@given(which=st.integers(0, len(EXAMPLES) - 1), place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_one_changed_byte_is_a_message_or_a_typed_error(which, place, value):
    data = bytearray(encode(*EXAMPLES[which]))
    data[place % len(data)] = value
    with contextlib.suppress(MessageError):
        decode(bytes(data))
