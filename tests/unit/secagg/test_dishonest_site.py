"""Sites that lie, and messages changed on the way: the server notices, and the sum is right or nothing opens."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from secagg_driver import Driver, identity, names, parameters, sum_of, vectors

from medveil.errors import AuthenticityError, MessageError, ProtocolError, TooFewSitesError
from medveil.rng import SecureRandom
from medveil.secagg import SiteSession
from medveil.secagg.messages import Advertise, Agree, Chunk, Prepare, Reveal, Upload, decode, encode
from medveil.secagg.records import Kind, Sealed, Share
from medveil.secagg.shamir import PRIME, split


class Tampering(Driver):
    """Before each message that is carried, changed copies of it are tried; all must be refused."""

    tried = 0

    def send(self, name, data):
        kind = decode(data)
        if not isinstance(kind, Chunk):
            for place in range(4, len(data), 1 if len(data) < 300 else 7):
                forged = bytearray(data)
                forged[place] ^= 1 << place % 8
                self.refuse(name, bytes(forged))
            self.refuse(name, data[:-1])
            self.refuse(name, data + b"\0")
        for other in names(3):
            if other != name:
                self.refuse(other, data)
        return super().send(name, data)

    def refuse(self, name, data):
        phase = self.server.phase
        with pytest.raises((MessageError, ProtocolError)):
            self.server.receive(name, data)
        assert self.server.phase == phase
        self.tried += 1


def test_no_changed_message_is_taken_and_none_does_harm():
    driver = Tampering(parameters(3), vanish={"site-002": "upload"}).set_up()
    values = vectors(3)
    driver.step(values)
    driver.give_up_on_the_silent("deadline")
    assert driver.server.opened.total.tolist() == sum_of(values, ["site-001", "site-003"])
    assert driver.tried > 1000
    for kind in (Advertise, Prepare, Upload, Agree, Reveal):
        assert driver.sent(kind)


@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_changed_chunk_is_noticed_and_its_site_left_out(place):
    driver = Driver(parameters(3, chunk_bytes=16)).set_up()
    values = vectors(3, 10)
    driver.deliver(driver.server.begin())
    header, *chunks, prepare = driver.sites["site-002"].submit(values["site-002"])
    driver.server.receive("site-002", header)
    forged = [decode(data) for data in chunks]
    data = bytearray(forged[place // 16].data)
    data[place % 16] ^= 1
    forged[place // 16] = replace(forged[place // 16], data=bytes(data))
    for chunk in forged[:-1]:
        driver.server.receive("site-002", encode(chunk))
    with pytest.raises(AuthenticityError, match="not the one that its site signed"):
        driver.server.receive("site-002", encode(forged[-1]))
    driver.server.receive("site-002", prepare)
    for name in ("site-001", "site-003"):
        driver.upload(name, values[name])
    driver.deliver(driver.server.advance())
    assert driver.server.opened.included == ("site-001", "site-003")
    assert driver.server.opened.total.tolist() == sum_of(values, ["site-001", "site-003"])


def test_chunks_come_in_order_and_in_the_agreed_size():
    driver = Driver(parameters(2, chunk_bytes=16)).set_up()
    driver.deliver(driver.server.begin())
    values = vectors(2, 10)
    header, *chunks, prepare = driver.sites["site-001"].submit(values["site-001"])
    with pytest.raises(ProtocolError, match="does not continue"):
        driver.server.receive("site-001", chunks[0])
    driver.server.receive("site-001", header)
    with pytest.raises(ProtocolError, match="No vector is expected"):
        driver.server.receive("site-001", header)
    first = decode(chunks[0])
    with pytest.raises(ProtocolError, match="does not continue"):
        driver.server.receive("site-001", chunks[1])
    for data in (b"", first.data[:-1], bytes(first.data) + b"\0", bytes(24)):
        with pytest.raises(MessageError, match="wrong size"):
            driver.server.receive("site-001", encode(replace(first, data=data)))
    for data in (*chunks, prepare):
        driver.server.receive("site-001", data)
    with pytest.raises(ProtocolError, match="does not continue"):
        driver.server.receive("site-001", encode(replace(first, offset=40)))
    driver.upload("site-002", values["site-002"])
    assert driver.server.opened.total.tolist() == sum_of(values, names(2))


@pytest.mark.parametrize("other", [np.zeros(5, np.uint32), np.zeros(4, np.uint64)])
def test_a_vector_of_another_form_is_refused_whoever_comes_first(other):
    driver = Driver(parameters(3)).set_up()
    driver.deliver(driver.server.begin(bits=32, length=4))
    driver.upload_late("site-002", other)
    assert [type(message) for message, _ in driver.refused] == [Upload, Chunk]
    assert driver.refused[0][1].expected == "4 words of 32 bits"
    values = vectors(3)
    for name in ("site-001", "site-003"):
        driver.upload(name, values[name])
    driver.deliver(driver.server.advance())
    assert driver.server.opened.total.tolist() == sum_of(values, ["site-001", "site-003"])


@pytest.mark.parametrize("fields", [{"bits": 31}, {"length": 0}, {"step": 2}, {"view": bytes(32)}])
def test_a_header_that_its_site_signed_but_that_does_not_fit(fields):
    driver = Driver(parameters(2)).set_up()
    driver.deliver(driver.server.begin())
    receipt = decode(driver.sites["site-001"].submit(np.zeros(4, np.uint32))[0]).receipt
    wrong = replace(receipt, **fields)
    wrong = replace(wrong, signature=identity("site-001").sign(wrong.text(driver.sites["site-001"]._session)))
    with pytest.raises(ProtocolError):
        driver.server.receive("site-001", encode(Upload(wrong)))


def test_an_enormous_vector_that_is_only_announced_takes_no_memory():
    driver = Driver(parameters(2)).set_up()
    driver.deliver(driver.server.begin())
    receipt = decode(driver.sites["site-001"].submit(np.zeros(4, np.uint32))[0]).receipt
    huge = replace(receipt, length=2**63)
    huge = replace(huge, signature=identity("site-001").sign(huge.text(driver.sites["site-001"]._session)))
    assert driver.server.receive("site-001", encode(Upload(huge))) == []
    with pytest.raises(MessageError, match="wrong size"):
        driver.server.receive("site-001", encode(Chunk(1, 1, 0, bytes(16))))


def test_a_site_says_each_thing_once():
    driver = Driver(parameters(3))
    first = driver.sites["site-001"].advertise()
    driver.server.receive("site-001", first)
    again = SiteSession(driver.parameters, "site-001", identity("site-001")).advertise()
    with pytest.raises(ProtocolError, match="already"):
        driver.server.receive("site-001", again)
    with pytest.raises(ProtocolError, match="No such site"):
        driver.server.receive("stranger", first)


def re_signed_prepare(driver, name, **fields):
    site = driver.sites[name]
    _, message = next(pair for pair in driver.sent(Prepare) if pair[0] == name)
    message = replace(message, **fields)
    return replace(message, signature=identity(name).sign(message.text(site._session)))


def test_preparations_must_be_whole_and_once():
    driver = Driver(parameters(3), vanish={"site-003": "prepare"}).set_up()
    _, sent = driver.sent(Prepare)[0]
    driver.server.receive("site-001", encode(sent))
    twin = re_signed_prepare(driver, "site-001", sealed=tuple(Sealed(s.index, bytes(88)) for s in sent.sealed))
    with pytest.raises(ProtocolError, match="already"):
        driver.server.receive("site-001", encode(twin))
    driver.server.lose("site-001")
    with pytest.raises(ProtocolError, match="each other site") as error:
        driver.server.receive("site-001", encode(re_signed_prepare(driver, "site-001", sealed=sent.sealed[:1])))
    assert (error.value.got, error.value.expected.split(",")[0]) == ("1 pairs of site 1", "2")


def held_reveals(n, threshold=None):
    """Everyone uploaded and was told so; their Reveal messages, not sent yet."""
    driver = Driver(parameters(n, threshold=threshold)).set_up()
    values = vectors(n)
    held = driver.begin_and_hold(values)
    return driver, values, {one.site: driver.sites[one.site].receive(one.data)[0] for one in held}


def re_signed_reveal(driver, name, data, change):
    message = decode(data)
    message = replace(message, shares=change(message.shares))
    view = driver.server._collection.view
    session = driver.sites[name]._session
    return encode(replace(message, signature=identity(name).sign(message.text(session, view))))


def wrong(shares, bit=0):
    """An error in the second byte: X25519 ignores the three lowest bits of the secret that comes out."""
    return tuple(
        replace(share, value=share.value[:1] + bytes([share.value[1] ^ 1 << bit]) + share.value[2:]) for share in shares
    )


def malformed(shares):
    return tuple(replace(share, value=PRIME.to_bytes(4, "little") + share.value[4:]) for share in shares)


@pytest.mark.parametrize("change", [wrong, malformed])
@pytest.mark.parametrize(("n", "liars"), [(5, 1), (5, 2), (20, 3)])
def test_wrong_shares_are_noticed_and_with_enough_right_ones_the_sum_opens(change, n, liars):
    driver, values, reveals = held_reveals(n)
    for number, (name, data) in enumerate(reveals.items()):
        driver.send(name, re_signed_reveal(driver, name, data, change) if number < liars else data)
    assert driver.server.opened.total.tolist() == sum_of(values, names(n))


@pytest.mark.parametrize("change", [wrong, malformed])
def test_wrong_shares_among_no_more_than_needed_open_nothing(change):
    driver, _, reveals = held_reveals(5)
    for number, (name, data) in enumerate(list(reveals.items())[:3]):
        driver.send(name, re_signed_reveal(driver, name, data, change) if number < 1 else data)
    with pytest.raises(AuthenticityError, match="committed") as error:
        driver.server.advance()
    assert error.value.got
    assert error.value.expected
    assert error.value.remedy
    assert (driver.server.opened, driver.server.phase) == (None, "aborted")


class LyingAboutTheDropped(Driver):
    """The first ``liars`` sites reveal wrong shares of the mask keys of those who vanished, right ones otherwise."""

    liars = 0

    def send(self, name, data):
        if isinstance(decode(data), Reveal) and name in names(self.liars):
            # Each liar errs by another number: equal errors at 1 and 2 cancel where points 1, 2, 3 are combined.
            data = re_signed_reveal(self, name, data, partial(self.lie, bit=names(5).index(name)))
        return super().send(name, data)

    @staticmethod
    def lie(shares, bit):
        return tuple(wrong([share], bit)[0] if share.kind is Kind.MASK_KEY else share for share in shares)


@pytest.mark.parametrize("liars", [1, 2])
def test_wrong_shares_of_a_vanished_sites_key_are_noticed(liars):
    driver = LyingAboutTheDropped(parameters(5), vanish={"site-004": "upload"}).set_up()
    driver.liars = liars
    values = vectors(5)
    driver.step(values)
    if liars == 1:
        driver.give_up_on_the_silent("deadline")
        assert driver.server.opened.total.tolist() == sum_of(values, set(names(5)) - {"site-004"})
    else:
        with pytest.raises(AuthenticityError, match="committed") as error:
            driver.give_up_on_the_silent("deadline")
        assert "site 4" in str(error.value)
        assert (driver.server.opened, driver.server.phase) == (None, "aborted")


def test_shares_that_nobody_asked_for_are_refused():
    driver, values, reveals = held_reveals(4)

    def other_kind(shares):
        return tuple(replace(share, kind=Kind.MASK_KEY) for share in shares)

    def unknown(shares):
        return (*shares, Share(9, Kind.SEED, bytes(36)))

    for change in (other_kind, unknown):
        with pytest.raises(ProtocolError, match="nobody asked"):
            driver.server.receive("site-001", re_signed_reveal(driver, "site-001", reveals["site-001"], change))
    driver.server.receive("site-001", reveals["site-001"])
    with pytest.raises(ProtocolError, match="already"):
        driver.server.receive("site-001", reveals["site-001"])
    for name in names(4)[1:]:
        driver.server.receive(name, reveals[name])
    assert driver.server.opened.total.tolist() == sum_of(values, names(4))


def dealer(driver, name, monkeypatch, of_seed=None, broken=()):
    """Makes a site hand out other shares of its seed, or bytes that do not open."""
    from medveil.secagg import preparation

    honest_split, honest_seal = preparation.split_many, preparation.seal

    def lying_split(secrets, threshold, points, random):
        shares = honest_split(secrets, threshold, points, random)
        return [split(of_seed, threshold, points, random), shares[1]] if of_seed else shares

    def lying_seal(key, plain, bound):
        lying_seal.number += 1
        return bytes(88) if lying_seal.number in broken else honest_seal(key, plain, bound)

    lying_seal.number = 0
    honest_prepare = driver.sites[name]._prepare

    def prepare(step):
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "split_many", lying_split)
            patch.setattr(preparation, "seal", lying_seal)
            return honest_prepare(step)

    driver.sites[name]._prepare = prepare


def test_a_dealer_of_shares_of_another_secret_is_noticed(monkeypatch):
    driver = Driver(parameters(5))
    dealer(driver, "site-002", monkeypatch, of_seed=SecureRandom().bytes(32))
    driver.set_up()
    with pytest.raises(AuthenticityError, match="committed") as error:
        driver.step(vectors(5))
    assert "site 2" in str(error.value)
    assert (driver.server.opened, driver.server.phase) == (None, "aborted")


def test_sealed_pairs_that_do_not_open_are_left_out(monkeypatch):
    driver = Driver(parameters(5))
    dealer(driver, "site-002", monkeypatch, broken={1, 3})
    values = vectors(5)
    assert driver.set_up().step(values).total.tolist() == sum_of(values, names(5))
    assert sorted(len(message.shares) for _, message in driver.sent(Reveal)) == [4, 4, 5, 5, 5]


def test_with_too_few_pairs_that_open_nothing_opens(monkeypatch):
    driver = Driver(parameters(5))
    dealer(driver, "site-002", monkeypatch, broken={1, 2, 3})
    with pytest.raises(TooFewSitesError, match="Too few shares") as error:
        driver.set_up().step(vectors(5))
    assert error.value.got == "2 shares of site 2"
    assert (driver.server.opened, driver.server.phase) == (None, "aborted")


def test_keys_of_small_order_are_refused():
    driver = Driver(parameters(2))
    message = decode(driver.sites["site-001"].advertise()).advertisement
    low = replace(message, key=bytes(32))
    low = replace(low, signature=identity("site-001").sign(low.text(driver.parameters.digest())))
    with pytest.raises(AuthenticityError, match="known to all"):
        driver.server.receive("site-001", encode(Advertise(low)))
