"""Headers and control messages: every change of a bit is noticed, nothing is read that is not plain."""

import json
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medveil.encrypted.wire.frames import (
    HEADER_BYTES,
    MAX_CONTROL,
    MAX_PAYLOAD,
    Kind,
    decode_control,
    decode_reason,
    encode_control,
    encode_reason,
    read_header,
    write_header,
)
from medveil.errors import MessageError

PAYLOAD = b"shares"


def by_hand(*, magic=b"MVE1", version=1, kind=1, sequence=7, length=6, check=0):
    """A header with a right check of its own, whatever it says."""
    fields = magic + struct.pack(">BBQII", version, kind, sequence, length, check)
    return fields + struct.pack(">I", zlib.crc32(fields))


def test_the_header_is_as_documented():
    assert len(by_hand()) == HEADER_BYTES == 26
    assert write_header(Kind.DATA, 7, PAYLOAD, checked=False) == by_hand()
    assert write_header(Kind.STOP, 2**63, PAYLOAD, checked=True) == by_hand(
        kind=3, sequence=2**63, check=zlib.crc32(PAYLOAD)
    )


def test_a_header_is_read_back():
    header = read_header(by_hand(), 7, checked=False)
    assert (header.kind, header.length, header.check) == (Kind.DATA, 6, None)
    header.verify(b"TLS vouches for it")
    header = read_header(by_hand(check=zlib.crc32(PAYLOAD)), 7, checked=True)
    header.verify(PAYLOAD)
    with pytest.raises(MessageError, match="damaged on its way"):
        header.verify(b"sharez")


@pytest.mark.parametrize("bit", range(8 * HEADER_BYTES))
def test_every_flipped_bit_of_a_header_is_noticed(bit):
    data = bytearray(by_hand())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MessageError):
        read_header(data, 7, checked=False)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"magic": b"MVF1"}, "not a medveil frame"),
        ({"version": 2}, r"Got: 2\. Expected: 1\. Remedy"),
        ({"kind": 0}, "unknown kind"),
        ({"kind": 4}, "unknown kind"),
        ({"sequence": 6}, "out of order"),
        ({"sequence": 8}, "out of order"),
        ({"length": 0}, "not allowed"),
        ({"length": MAX_PAYLOAD + 1}, "not allowed"),
        ({"kind": 2, "length": MAX_CONTROL + 1}, "not allowed"),
        ({"kind": 3, "length": MAX_CONTROL + 1}, "not allowed"),
        ({"check": 1}, "TLS at both ends"),
    ],
)
def test_headers_that_are_whole_but_wrong_are_refused(changes, match):
    with pytest.raises(MessageError, match=match):
        read_header(by_hand(**changes), 7, checked=False)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_headers_are_refused(data):
    with pytest.raises(MessageError):
        read_header(data, 7, checked=True)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(st.dictionaries(st.text(max_size=8), plain, max_size=4))
def test_tables_are_read_back_unless_too_deep(values):
    if depth(values) > 8:
        with pytest.raises(MessageError, match="deeply"):
            encode_control(values)
    else:
        assert decode_control(encode_control(values), values) == values


@given(st.binary(max_size=200))
def test_random_bytes_give_an_error_or_a_table(data):
    try:
        assert isinstance(decode_control(data, ["a"]), dict)
    except MessageError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b'"a"',
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":1}x',
        b'{"a":"\xff"}',
        b'{"b":1}',
        b'{"a":1,"b":1}',
        b"{}",
        b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}",
        b'{"a":"\\"[", "b":' + b"[" * 9 + b"]" * 9 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"' + b"x" * MAX_CONTROL + b'"}',
    ],
)
def test_what_is_not_the_table_that_is_due_is_refused(data):
    with pytest.raises(MessageError):
        decode_control(data, ["a"])


def test_brackets_in_a_string_are_not_depth():
    values = {"a": "[[[[[[[[[[[[{{{{{{{{{{{" + '"\\' * 20}
    assert decode_control(json.dumps(values).encode(), ["a"]) == values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", "x" * MAX_CONTROL])
def test_what_has_no_form_is_not_sent(value):
    with pytest.raises(MessageError):
        encode_control({"a": value})


@given(st.text(max_size=700))
def test_reasons_are_short_and_printable(text):
    reason = decode_reason(encode_reason(text))
    assert len(reason) <= 500
    assert reason.isprintable()
    if text.isprintable():
        assert reason == text[:500]
