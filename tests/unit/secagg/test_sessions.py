"""Sums are exact in either ring, step after step, and a session keeps to its order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_driver import Driver, identity, modular_sum, names, parameters, vectors

from medveil.errors import ConfigError, MessageError, ProtocolError
from medveil.secagg import Opened, ServerSession, SiteSession
from medveil.secagg.messages import Chunk, Prepare, Reveal, Upload, decode


@pytest.mark.usefixtures("each_signature_once")
@pytest.mark.parametrize("n", [2, 3, 5, 10, 20, 50])
def test_sums_are_exact_in_both_rings_for_several_steps_of_different_lengths(n):
    driver = Driver(parameters(n)).set_up()
    for step, (length, bits) in enumerate([(1, 32), (257, 64), (33, 32), (2, 64)], start=1):
        values = vectors(n, length, bits, seed=step)
        opened = driver.step(values)
        assert isinstance(opened, Opened)
        assert opened.total.tolist() == modular_sum(values.values(), bits)
        assert (opened.step, opened.bits, opened.included, opened.dropped) == (step, bits, names(n), ())
        assert driver.server.phase == "ready"


@pytest.mark.parametrize("bits", [32, 64])
def test_extreme_values_wrap_around(bits):
    kind = np.uint32 if bits == 32 else np.uint64
    values = {name: np.full(5, 2**bits - 1, kind) for name in names(3)}
    opened = Driver(parameters(3)).set_up().step(values)
    assert opened.total.tolist() == [2**bits - 3] * 5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.sampled_from([8, 16, 24, 64, 1 << 20]), st.sampled_from([32, 64]))
def test_any_length_in_any_chunks(length, chunk_bytes, bits):
    driver = Driver(parameters(2, chunk_bytes=chunk_bytes)).set_up()
    values = vectors(2, length, bits, seed=length)
    assert driver.step(values).total.tolist() == modular_sum(values.values(), bits)
    sizes = [len(message.data) for name, message in driver.sent(Chunk) if name == "site-001"]
    assert sum(sizes) == length * bits // 8
    assert max(sizes) <= chunk_bytes


def test_a_vector_of_more_than_one_mask_block_and_strided_input():
    driver = Driver(parameters(3, chunk_bytes=1 << 17)).set_up()
    values = {name: vector[::2] for name, vector in vectors(3, 200_001, 32).items()}
    before = {name: vector.copy() for name, vector in values.items()}
    opened = driver.step(values)
    total = sum(vector.astype(object) for vector in values.values()) % 2**32
    assert (opened.total == total.astype(np.uint32)).all()
    assert all((values[name] == before[name]).all() for name in values)


def test_with_nobody_missing_a_step_takes_two_round_trips():
    driver = Driver(parameters(4)).set_up()
    driver.log.clear()
    driver.step(vectors(4))
    kinds = [type(decode(data)) for name, data in driver.log if name == "site-002"]
    assert kinds == [Upload, Chunk, Prepare, Reveal]


def test_what_the_server_sees_of_a_vector_changes_with_every_step():
    driver = Driver(parameters(3)).set_up()
    values = {name: np.zeros(64, np.uint32) for name in names(3)}
    driver.step(values)
    driver.step(values)
    seen = [bytes(message.data) for _, message in driver.sent(Chunk)]
    assert len(set(seen)) == 6
    for data in seen:
        assert np.count_nonzero(np.frombuffer(data, "<u4")) > 60


def test_the_accept_callback_sees_every_step_once():
    seen = []
    driver = Driver(parameters(2), accept=lambda step, included: seen.append((step, included))).set_up()
    driver.step(vectors(2))
    driver.step(vectors(2))
    assert seen == [(1, names(2))] * 2 + [(2, names(2))] * 2


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(3, np.int32),
        np.zeros(3, np.float64),
        np.zeros((2, 2), np.uint32),
        np.zeros(0, np.uint32),
        np.zeros(3, np.uint16),
    ],
)
def test_only_vectors_of_words_are_taken_and_a_wrong_one_spoils_nothing(vector):
    driver = Driver(parameters(2)).set_up()
    driver.deliver(driver.server.begin())
    with pytest.raises(ConfigError, match="cannot be summed") as error:
        driver.sites["site-001"].submit(vector)
    assert error.value.got
    assert error.value.expected
    assert error.value.remedy
    values = vectors(2)
    for name in names(2):
        driver.upload(name, values[name])
    assert driver.server.opened.total.tolist() == modular_sum(values.values())


def test_a_session_keeps_to_its_order():
    driver = Driver(parameters(2))
    site = driver.sites["site-001"]
    with pytest.raises(ProtocolError):
        site.submit(np.zeros(1, np.uint32))
    with pytest.raises(ProtocolError):
        driver.server.begin()
    driver.set_up()
    with pytest.raises(ProtocolError):
        site.advertise()
    with pytest.raises(ProtocolError):
        driver.server.advance()
    driver.deliver(driver.server.begin())
    assert site.step == 1
    with pytest.raises(ProtocolError):
        driver.server.begin()
    driver.upload("site-001", np.ones(1, np.uint32))
    assert site.step is None
    with pytest.raises(ProtocolError):
        site.submit(np.ones(1, np.uint32))
    driver.upload("site-002", np.ones(1, np.uint32))
    assert driver.server.opened.total.tolist() == [2]


def test_a_site_must_be_in_the_parameters_with_its_key():
    with pytest.raises(ConfigError, match="do not name this site"):
        SiteSession(parameters(2), "site-003", identity("site-003"))
    with pytest.raises(ConfigError, match="do not name this site"):
        SiteSession(parameters(2), "site-001", identity("site-002"))


def test_an_abort_ends_the_session_everywhere():
    driver = Driver(parameters(2)).set_up()
    driver.deliver(driver.server.begin())
    driver.deliver(driver.server.abort("maintenance"))
    for site in driver.sites.values():
        assert site.aborted == "maintenance"
        assert site.step is None
        with pytest.raises(ProtocolError, match="over"):
            site.submit(np.zeros(1, np.uint32))
        with pytest.raises(ProtocolError, match="over"):
            site.advertise()
    for call in (driver.server.begin, driver.server.advance, lambda: driver.server.lose("site-001")):
        with pytest.raises(ProtocolError, match="over"):
            call()
    assert driver.server.phase == "aborted"


def test_what_the_other_side_would_send_is_refused():
    driver = Driver(parameters(2))
    advertised = driver.sites["site-001"].advertise()
    with pytest.raises(MessageError, match="Only sites"):
        driver.sites["site-002"].receive(advertised)
    driver.deliver(driver.send("site-001", advertised))
    roster = driver.send("site-002", driver.sites["site-002"].advertise())
    with pytest.raises(MessageError, match="Only the server"):
        driver.server.receive("site-001", roster[0].data)


def test_parties_with_other_parameters_do_not_meet():
    other = parameters(2, context=b"another plan")
    site = SiteSession(other, "site-001", identity("site-001"))
    with pytest.raises(ProtocolError, match="signature"):
        ServerSession(parameters(2)).receive("site-001", site.advertise())
