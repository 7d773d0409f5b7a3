"""A server that lies about keys, messages and lists: honest sites refuse."""

from dataclasses import replace

import pytest
from secagg_driver import (
    Driver,
    advertised,
    agreements,
    begun,
    changed,
    decoded,
    identity,
    modular_sum,
    names,
    parameters,
    uploaded,
    vectors,
    without,
)

from medveil.errors import AuthenticityError, MessageError, ProtocolError, TooFewSitesError
from medveil.rng import SecureRandom
from medveil.secagg.keys import KeyPair
from medveil.secagg.messages import (
    Agreed,
    Begin,
    Chunk,
    Reveal,
    Roster,
    Survivors,
    decode,
    encode,
)
from medveil.secagg.records import Entry, commitment, view_hash

LOW_ORDER = bytes(32)


class TestSwappedKeys:
    def test_in_the_roster(self):
        driver, roster = advertised()
        own = KeyPair.generate(SecureRandom()).public
        for signature in (roster.advertisements[1].signature, identity("server").sign(b"anything")):
            forged = Roster(changed(roster.advertisements, 2, key=own, signature=signature))
            with pytest.raises(AuthenticityError, match="advertised key is not valid") as error:
                driver.tell("site-001", forged)
            assert error.value.got
            assert error.value.expected
            assert error.value.remedy
        with pytest.raises(AuthenticityError, match="own key"):
            driver.tell("site-002", Roster(changed(roster.advertisements, 2, key=own)))
        assert driver.tell("site-001", roster)

    def test_in_the_view(self):
        driver, begin = begun()
        own = KeyPair.generate(SecureRandom()).public
        for fields in ({"key": own}, {"commitment": commitment(bytes(32))}, {"signature": bytes(64)}):
            forged = replace(begin["site-001"], entries=changed(begin["site-001"].entries, 2, **fields))
            with pytest.raises(AuthenticityError, match="mask key is not valid"):
                driver.tell("site-001", forged)
            with pytest.raises(AuthenticityError, match="own entry"):
                driver.tell("site-002", replace(begin["site-002"], entries=forged.entries))
        assert driver.tell("site-001", begin["site-001"]) == []
        assert driver.sites["site-001"].step == 1

    def test_a_key_of_small_order_that_a_colluding_site_signed(self):
        driver, begin = begun()
        entry = Entry(2, LOW_ORDER, bytes(32))
        signature = identity("site-002").sign(entry.text(driver.sites["site-001"]._session, 1))
        forged = changed(begin["site-001"].entries, 2, key=LOW_ORDER, commitment=bytes(32), signature=signature)
        with pytest.raises(AuthenticityError, match="known to all"):
            driver.tell("site-001", replace(begin["site-001"], entries=forged))

    def test_a_made_up_site(self):
        driver, begin = begun()
        entry = replace(begin["site-001"].entries[2], index=9)
        with pytest.raises(AuthenticityError, match="does not belong"):
            driver.tell("site-001", replace(begin["site-001"], entries=(*begin["site-001"].entries, entry)))
        driver, roster = advertised()
        made_up = replace(roster.advertisements[2], index=9)
        with pytest.raises(AuthenticityError, match="does not belong"):
            driver.tell("site-001", Roster((*roster.advertisements, made_up)))


class TestReplays:
    def test_begin_of_an_earlier_step(self):
        driver, first = begun()
        for name in names(3):
            driver.tell(name, first[name])
        for name, vector in vectors(3).items():
            driver.upload(name, vector)
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", first["site-001"])
        with pytest.raises(AuthenticityError):
            driver.tell("site-001", replace(first["site-001"], step=2))
        second = decoded(driver.server.begin())["site-001"]
        own = next(entry for entry in second.entries if entry.index == 1)
        mixed = (own, *without(first["site-001"].entries, 1))
        with pytest.raises(AuthenticityError, match="mask key is not valid"):
            driver.tell("site-001", replace(second, entries=mixed))

    def test_begin_of_another_session(self):
        driver, begin = begun()
        _, other = begun()
        own = next(entry for entry in begin["site-001"].entries if entry.index == 1)
        mixed = (own, *without(other["site-001"].entries, 1))
        with pytest.raises(AuthenticityError, match="mask key is not valid"):
            driver.tell("site-001", replace(begin["site-001"], entries=mixed))
        with pytest.raises(AuthenticityError, match="own entry"):
            driver.tell("site-001", other["site-001"])

    def test_a_second_begin_of_the_same_step(self):
        driver, begin = begun()
        driver.tell("site-001", begin["site-001"])
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", begin["site-001"])

    def test_a_second_roster(self):
        driver, roster = advertised()
        driver.tell("site-001", roster)
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", roster)

    def test_survivors_and_agreements_of_an_earlier_step(self):
        driver, values, survivors = uploaded()
        signatures = []
        for name in names(4)[:3]:
            signatures += driver.tell(name, survivors)
        agreed = Agreed(1, tuple(message.agreement for message in signatures))
        for name in names(4)[:3]:
            driver.tell(name, agreed)
            with pytest.raises(ProtocolError, match="wrong moment"):
                driver.tell(name, survivors)
        # Step 2, begun by hand with the three preparations that rode with the uploads.
        preparations = {message.entry.index: message for _, message in driver.sent_prepares(2)}
        entries = tuple(preparations[index].entry for index in sorted(preparations))
        for name in names(4)[:3]:
            driver.tell(name, Begin(2, entries, ()))
        fresh = [decode(driver.sites[name].submit(values[name])[0]).receipt for name in names(4)[:3]]
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", survivors)
        with pytest.raises(AuthenticityError, match="own receipt"):
            driver.tell("site-001", replace(survivors, step=2))
        with pytest.raises(AuthenticityError, match="another sum"):
            driver.tell("site-001", Survivors(2, (fresh[0], *survivors.receipts[1:])))
        assert isinstance(driver.tell("site-001", Survivors(2, tuple(fresh)))[0], Reveal)

    def test_agreements_of_an_earlier_step_or_session(self):
        driver, _, survivors = uploaded()
        other, _, others = uploaded()
        driver.tell("site-001", survivors)
        stale = agreements(other, others, names(4)[:3])
        with pytest.raises(AuthenticityError, match="agreement is not valid"):
            driver.tell("site-001", stale)
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", replace(agreements(driver, survivors, names(4)[:3]), step=2))
        assert isinstance(driver.tell("site-001", agreements(driver, survivors, names(4)[:3]))[0], Reveal)


class TestForgedLists:
    def test_a_receipt_that_was_changed(self):
        driver, _, survivors = uploaded()
        for fields in ({"digest": bytes(32)}, {"signature": bytes(64)}):
            with pytest.raises(AuthenticityError, match="receipt is not valid"):
                driver.tell("site-001", Survivors(1, changed(survivors.receipts, 2, **fields)))
            with pytest.raises(AuthenticityError, match="own receipt"):
                driver.tell("site-002", Survivors(1, changed(survivors.receipts, 2, **fields)))

    def test_a_receipt_for_a_site_that_sent_none(self):
        driver, _, survivors = uploaded()
        made_up = replace(survivors.receipts[2], index=4)
        with pytest.raises(AuthenticityError, match="receipt is not valid"):
            driver.tell("site-001", Survivors(1, (*survivors.receipts, made_up)))

    @pytest.mark.parametrize("fields", [{"bits": 64}, {"length": 5}, {"view": bytes(32)}, {"step": 2}])
    def test_a_receipt_of_another_sum_that_a_colluding_site_signed(self, fields):
        driver, _, survivors = uploaded()
        other = replace(survivors.receipts[1], **fields)
        other = replace(other, signature=identity("site-002").sign(other.text(driver.sites["site-001"]._session)))
        with pytest.raises(AuthenticityError, match="another sum"):
            driver.tell("site-001", Survivors(1, changed(survivors.receipts, 2, **vars_of(other))))

    def test_a_list_without_the_receiver(self):
        driver, _, survivors = uploaded(5, ("site-005",))
        with pytest.raises(AuthenticityError, match="own receipt"):
            driver.tell("site-001", Survivors(1, without(survivors.receipts, 1)))

    def test_agreements_to_another_list(self):
        driver, _, survivors = uploaded(5, ("site-005",))
        shorter = Survivors(1, without(survivors.receipts, 4))
        driver.tell("site-001", survivors)
        with pytest.raises(AuthenticityError, match="agreement is not valid"):
            driver.tell("site-001", agreements(driver, shorter, names(5)[:3]))

    def test_agreements_by_those_who_are_not_in_the_list_do_not_count(self):
        driver, _, survivors = uploaded(5, ("site-004", "site-005"))
        driver.tell("site-001", survivors)
        with pytest.raises(AuthenticityError, match="does not belong"):
            driver.tell("site-001", agreements(driver, survivors, ["site-001", "site-002", "site-004"]))

    def test_one_agreement_does_not_count_twice(self):
        driver, _, survivors = uploaded()
        driver.tell("site-001", survivors)
        one = agreements(driver, survivors, ["site-002"]).agreements
        with pytest.raises(MessageError, match="twice"):
            driver.tell("site-001", Agreed(1, one * 3))
        with pytest.raises(TooFewSitesError, match="agree"):
            driver.tell("site-001", Agreed(1, one))
        with pytest.raises(ProtocolError, match="over"):
            driver.tell("site-001", agreements(driver, survivors, names(4)[:3]))


def vars_of(record):
    return {name: getattr(record, name) for name in type(record).__slots__}


def test_secrets_stand_in_no_representation_and_no_error():
    driver, _, survivors = uploaded()
    site = driver.sites["site-001"]
    current, ready = site._current, site._prepared
    secrets = [
        current.own.seed,
        current.own.masks.to_bytes(),
        current.own.own_share,
        ready.seed,
        ready.masks.to_bytes(),
        site._run.to_bytes(),
        site._identity.to_bytes(),
        *site._shared.values(),
    ]
    texts = [repr(thing) for thing in (site, driver.server, current, ready, current.own, ready.masks, site._identity)]
    texts += [repr(driver.sent(kind)) for kind in (Chunk, Reveal)]
    texts += [repr(driver.sent_prepares(2))]
    for data in (b"", encode(survivors)[:-1], encode(Survivors(1, ())), encode(survivors)):
        try:
            texts += [repr(decode(answer)) for answer in site.receive(data)]
        except (MessageError, ProtocolError, TooFewSitesError) as error:
            texts += [str(error), repr(error)]
    for secret in secrets:
        for text in texts:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
    assert len(texts) > 10


def test_secrets_of_a_step_are_forgotten_when_it_ends():
    driver = Driver(parameters(3)).set_up()
    driver.step(vectors(3))
    for site in driver.sites.values():
        assert site._current is None
    assert driver.server._collection is None
    driver.deliver(driver.server.begin())
    driver.deliver(driver.server.abort("over"))
    for site in driver.sites.values():
        assert (site._current, site._prepared, site._run, site._shared) == (None, None, None, {})


def test_the_sum_is_right_after_all_those_refusals():
    driver, begin = begun()
    for name in names(3):
        with pytest.raises(ProtocolError):
            driver.tell(name, replace(begin[name], step=7))
        with pytest.raises(MessageError):
            driver.sites[name].receive(b"MVSA\x02\x04")
        driver.tell(name, begin[name])
    values = vectors(3)
    for name in names(3):
        driver.upload(name, values[name])
    assert driver.server.opened.total.tolist() == modular_sum(values.values())


def test_the_view_is_what_its_hash_says():
    """Any field of any entry changes the hash."""
    driver, begin = begun()
    entries, session = begin["site-001"].entries, driver.sites["site-001"]._session
    hashes = {
        view_hash(session, 1, entries),
        view_hash(session, 2, entries),
        view_hash(bytes(32), 1, entries),
        view_hash(session, 1, entries[:2]),
        view_hash(session, 1, changed(entries, 2, key=bytes(32))),
        view_hash(session, 1, changed(entries, 2, commitment=bytes(32))),
        view_hash(session, 1, changed(entries, 3, index=4)),
    }
    assert len(hashes) == 7
