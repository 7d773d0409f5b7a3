"""Frames give back what was put in, and whatever else comes is refused with one kind of error."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.errors import MessageError
from medveil.secagg.messages import (
    Abort,
    Advertise,
    Agree,
    Agreed,
    Begin,
    Chunk,
    Prepare,
    Reveal,
    Roster,
    Survivors,
    Upload,
    decode,
    encode,
)
from medveil.secagg.records import Advertisement, Agreement, Entry, Kind, Receipt, Sealed, Share


def raw(size):
    return st.binary(min_size=size, max_size=size)


def ascending(records, most=4):
    unique = st.lists(records, max_size=most, unique_by=lambda record: record.index)
    return unique.map(lambda found: tuple(sorted(found, key=lambda record: record.index)))


INDEX = st.integers(1, 2**16 - 1)
STEP = st.integers(1, 2**32 - 1)
LENGTH = st.integers(0, 2**64 - 1)
ADVERTISEMENT = st.builds(Advertisement, INDEX, raw(32), raw(64))
ENTRY = st.builds(Entry, INDEX, raw(32), raw(32), raw(64))
SEALED = st.builds(Sealed, INDEX, raw(88))
RECEIPT = st.builds(Receipt, INDEX, STEP, raw(32), raw(32), st.integers(0, 255), LENGTH, raw(32), raw(64))
AGREEMENT = st.builds(Agreement, INDEX, raw(64))
SHARE = st.builds(Share, INDEX, st.sampled_from(Kind), raw(36))
MESSAGES = st.one_of(
    st.builds(Advertise, ADVERTISEMENT),
    st.builds(Roster, ascending(ADVERTISEMENT)),
    st.builds(Prepare, STEP, ENTRY, ascending(SEALED), raw(64)),
    st.builds(Begin, STEP, ascending(ENTRY), ascending(SEALED)),
    st.builds(Upload, RECEIPT),
    st.builds(Chunk, INDEX, STEP, LENGTH, st.binary(max_size=100)),
    st.builds(Survivors, STEP, ascending(RECEIPT)),
    st.builds(Agree, STEP, AGREEMENT),
    st.builds(Agreed, STEP, ascending(AGREEMENT)),
    st.builds(Reveal, STEP, INDEX, ascending(SHARE), raw(64)),
    st.builds(Abort, st.text(max_size=100)),
)


@given(MESSAGES)
def test_round_trip(message):
    data = encode(message)
    assert decode(data) == message
    assert encode(decode(data)) == data


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_message_error(data):
    for candidate in (data, b"MVSA\x02" + data):
        try:
            message = decode(candidate)
        except MessageError:
            continue
        assert encode(message) == candidate


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_changed_frames_are_a_message_or_a_message_error(message, data):
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(frame))
    except MessageError:
        return
    assert encode(found) == frame


@given(MESSAGES, st.data())
def test_cut_and_prolonged_frames(message, data):
    frame = encode(message)
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    if not isinstance(message, Chunk | Abort) or len(cut) < 6:
        with pytest.raises(MessageError):
            decode(cut)
        if not isinstance(message, Chunk | Abort):
            with pytest.raises(MessageError, match="after its end"):
                decode(frame + b"\0")


def one_of_each_list():
    head = b"MVSA\x02"
    step = struct.pack("<I", 1)
    return [
        head + b"\x02",
        head + b"\x03" + step + bytes([1]) + bytes(129),
        head + b"\x04" + step,
        head + b"\x07" + step,
        head + b"\x09" + step,
        head + b"\x0a" + step + struct.pack("<H", 1),
    ]


@pytest.mark.parametrize("beginning", one_of_each_list())
def test_a_count_without_its_records_takes_no_memory(beginning):
    frame = beginning + struct.pack("<H", 65535) + bytes(50)
    tracemalloc.start()
    with pytest.raises(MessageError, match="within a list"):
        decode(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


def test_a_long_chunk_is_not_copied():
    frame = encode(Chunk(1, 1, 0, bytes(1 << 20)))
    tracemalloc.start()
    chunk = decode(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    assert len(chunk.data) == 1 << 20


def test_lists_name_each_site_once_in_order():
    one, two = (Agreement(index, bytes(64)) for index in (1, 2))
    assert decode(encode(Agreed(1, (one, two)))).agreements == (one, two)
    for wrong in ((two, one), (one, one), (one, two, two)):
        with pytest.raises(MessageError, match="order or names a site twice"):
            decode(encode(Agreed(1, wrong)))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "too soon"),
        (b"MVSB\x01\x01" + bytes(98), "no message"),
        (b"MVSA\x01\x01" + bytes(98), "no message"),
        (b"MVSA\x02\x00", "no message"),
        (b"MVSA\x02\x0c", "no message"),
        (b"MVSA\x02\x01" + bytes(98), "names no site"),
        (b"MVSA\x02\x08" + bytes(70), "names no step"),
        (b"MVSA\x02\x0b\xff", "not text"),
        (b"MVSA\x02\x0b" + b"x" * 1001, "too long"),
        (encode(Reveal(1, 1, (), bytes(64)))[:12] + b"\x01\x00\x01\x00\x03" + bytes(100), "no such kind"),
    ],
)
def test_what_is_wrong_is_said(frame, words):
    with pytest.raises(MessageError, match=words) as error:
        decode(frame)
    assert error.value.expected


def test_a_long_reason_is_cut_between_letters():
    data = encode(Abort("ü" * 999))
    assert decode(data).reason == "ü" * 500


def test_layouts_field_by_field():
    """By hand with struct, not with the code that writes them."""
    receipt = Receipt(258, 3, b"v" * 32, b"c" * 32, 64, 2**33 + 1, b"d" * 32, b"s" * 64)
    expected = b"MVSA\x02\x05" + struct.pack(
        "<HI32s32sBQ32s64s", 258, 3, b"v" * 32, b"c" * 32, 64, 2**33 + 1, b"d" * 32, b"s" * 64
    )
    assert encode(Upload(receipt)) == expected
    entry, sealed = Entry(1, b"k" * 32, b"c" * 32, b"s" * 64), (Sealed(2, b"p" * 88), Sealed(3, b"q" * 88))
    assert encode(Prepare(7, entry, sealed, b"t" * 64)) == b"MVSA\x02\x03" + struct.pack(
        "<IH32s32s64sHH88sH88s64s",
        *(7, 1, b"k" * 32, b"c" * 32, b"s" * 64, 2, 2, b"p" * 88, 3, b"q" * 88, b"t" * 64),
    )
    assert encode(Begin(7, (entry,), sealed[:1])) == b"MVSA\x02\x04" + struct.pack(
        "<IHH32s32s64sHH88s", 7, 1, 1, b"k" * 32, b"c" * 32, b"s" * 64, 1, 2, b"p" * 88
    )
    assert encode(Reveal(7, 2, (Share(1, Kind.MASK_KEY, b"x" * 36),), b"t" * 64)) == b"MVSA\x02\x0a" + struct.pack(
        "<IHHHB36s64s", 7, 2, 1, 1, 2, b"x" * 36, b"t" * 64
    )
    assert encode(Chunk(2, 7, 2**40, b"data")) == b"MVSA\x02\x06" + struct.pack("<HIQ4s", 2, 7, 2**40, b"data")
    assert encode(Agree(7, Agreement(2, b"t" * 64))) == b"MVSA\x02\x08" + struct.pack("<IH64s", 7, 2, b"t" * 64)
