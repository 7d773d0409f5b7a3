"""A server that lies: honest sites refuse, and what it can gather opens no more than one sum."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_driver import (
    Driver,
    agreements,
    changed,
    decoded,
    identity,
    modular_sum,
    names,
    parameters,
    sum_of,
    vectors,
    without,
)

from medveil.errors import AuthenticityError, MessageError, ProtocolError, TooFewSitesError
from medveil.rng import SecureRandom
from medveil.secagg import least_threshold
from medveil.secagg.keys import KeyPair
from medveil.secagg.masking import hide, mask_key
from medveil.secagg.messages import (
    Agree,
    Agreed,
    Begin,
    Chunk,
    Reveal,
    Roster,
    Survivors,
    decode,
    encode,
)
from medveil.secagg.records import NO_CONTEXT, Entry, Kind, commitment, view_hash
from medveil.secagg.ring import add_mask
from medveil.secagg.shamir import combine

LOW_ORDER = bytes(32)


def advertised(n=3):
    """A session in which everyone has advertised: driver, roster as the server would send it."""
    driver = Driver(parameters(n))
    outgoing = []
    for name, site in driver.sites.items():
        outgoing += driver.server.receive(name, site.advertise())
    return driver, decoded(outgoing)["site-001"]


def begun(n=3, **options):
    """A session whose first step would begin: driver, Begin for each site."""
    driver = Driver(parameters(n, **options)).set_up()
    return driver, decoded(driver.server.begin())


def uploaded(n=4, missing=("site-004",), **options):
    """All but ``missing`` have uploaded: driver, vectors, the Survivors that the server would send."""
    driver = Driver(parameters(n, **options)).set_up()
    values = vectors(n)
    driver.begin_and_hold({name: values[name] for name in names(n) if name not in missing})
    held = driver.server.advance() if missing else None
    return driver, values, decoded(held)["site-001"] if held else None


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


class TestOneListOnly:
    def test_no_second_list_after_the_shares(self):
        driver, _, _ = uploaded(5, ())
        receipts = tuple(driver.server._collection.included)
        everyone = Survivors(1, receipts)
        assert isinstance(driver.tell("site-001", everyone)[0], Reveal)
        shorter = Survivors(1, without(receipts, 5))
        for message in (everyone, shorter, agreements(driver, shorter, names(5)[:4])):
            with pytest.raises(ProtocolError, match="wrong moment"):
                driver.tell("site-001", message)

    def test_no_second_list_before_the_shares(self):
        driver, _, survivors = uploaded(5, ("site-005",))
        assert isinstance(driver.tell("site-001", survivors)[0], Agree)
        shorter = Survivors(1, without(survivors.receipts, 4))
        for message in (survivors, shorter):
            with pytest.raises(ProtocolError, match="wrong moment"):
                driver.tell("site-001", message)

    def test_no_second_opening_with_the_same_agreements(self):
        driver, _, survivors = uploaded()
        driver.tell("site-001", survivors)
        agreed = agreements(driver, survivors, names(4)[:3])
        assert isinstance(driver.tell("site-001", agreed)[0], Reveal)
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", agreed)

    def test_shares_are_of_one_kind_for_each_site(self):
        driver, _, survivors = uploaded()
        driver.tell("site-001", survivors)
        reveal = driver.tell("site-001", agreements(driver, survivors, names(4)[:3]))[0]
        assert {share.index: share.kind for share in reveal.shares} == {
            1: Kind.SEED,
            2: Kind.SEED,
            3: Kind.SEED,
            4: Kind.MASK_KEY,
        }

    def test_nothing_leaves_when_the_site_does_not_accept(self):
        class RefusalError(Exception):
            pass

        def refuse(step, included):
            raise RefusalError

        driver = Driver(parameters(3), accept=refuse).set_up()
        held = decoded(driver.begin_and_hold(vectors(3)))
        with pytest.raises(RefusalError):
            driver.tell("site-001", held["site-001"])
        with pytest.raises(ProtocolError, match="wrong moment"):
            driver.tell("site-001", held["site-001"])
        assert driver.sites["site-001"]._current is None


class TestTooFew:
    def test_in_roster_view_and_sum(self):
        driver, roster = advertised(5)
        with pytest.raises(TooFewSitesError, match="in the session") as error:
            driver.tell("site-001", Roster(without(roster.advertisements, 4, 5, 3)))
        assert (error.value.got, error.value.expected) == (2, "at least 3")
        with pytest.raises(ProtocolError, match="over"):
            driver.tell("site-001", roster)
        driver, begin = begun(5, min_included=4)
        with pytest.raises(TooFewSitesError, match="in the step"):
            driver.tell("site-001", replace(begin["site-001"], entries=without(begin["site-001"].entries, 4, 5)))
        with pytest.raises(ProtocolError, match="over"):
            driver.sites["site-001"].submit(np.zeros(1, np.uint32))
        driver, _, survivors = uploaded(5, ("site-005",), min_included=4)
        with pytest.raises(TooFewSitesError, match="in the sum"):
            driver.tell("site-001", Survivors(1, without(survivors.receipts, 4)))
        with pytest.raises(ProtocolError, match="over"):
            driver.tell("site-001", survivors)

    def test_different_views_for_different_sites_open_nothing(self):
        n = 6
        driver, begin = begun(n)
        groups = [(1, 2, 3, 4), (3, 4, 5, 6)]
        shown = {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1}
        receipts = {}
        for index, group in shown.items():
            name = names(n)[index - 1]
            entries = tuple(entry for entry in begin[name].entries if entry.index in groups[group])
            driver.tell(name, Begin(1, entries, without(begin[name].sealed, *(set(range(1, 7)) - set(groups[group])))))
            receipts[index] = decode(driver.sites[name].submit(vectors(n)[name])[0]).receipt
        assert len({receipt.view for receipt in receipts.values()}) == 2
        for index in (1, 4):
            name = names(n)[index - 1]
            mixed = Survivors(1, tuple(receipts[i] for i in groups[shown[index]]))
            with pytest.raises(AuthenticityError, match="another sum"):
                driver.tell(name, mixed)
            own_kind = Survivors(1, tuple(receipts[i] for i in receipts if shown[i] == shown[index]))
            with pytest.raises(TooFewSitesError):
                driver.tell(name, own_kind)


def test_a_late_vector_is_refused_and_stays_hidden():
    """The server knows everything that was revealed and the late vector: the self mask still hides it."""
    values = vectors(4)
    # A slow network, not a slow site: its vector exists, and the server has it after it said the site is gone.
    driver = Driver(parameters(4)).set_up()
    driver.begin_and_hold({name: values[name] for name in names(4)[:3]})
    entries = dict(driver.server._collection.entries)
    late = driver.sites["site-004"]
    secrets = late._current.own
    view = late._current.view
    driver.deliver(driver.server.advance())
    driver.upload_late("site-004", values["site-004"])
    assert [type(message).__name__ for message, _ in driver.refused] == ["Upload", "Chunk"]
    assert all(isinstance(error, ProtocolError) for _, error in driver.refused)
    assert driver.server.opened.total.tolist() == sum_of(values, names(4)[:3])

    reveals = [message for _, message in driver.sent(Reveal)]
    of_late = {m.index: s.value for m in reveals for s in m.shares if s.index == 4 and s.kind is Kind.MASK_KEY}
    assert not [s for m in reveals for s in m.shares if s.index == 4 and s.kind is Kind.SEED]
    opened_key = KeyPair(combine(of_late, 3))
    assert opened_key.public == entries[4].key
    masked = np.frombuffer(driver.refused[1][0].data, "<u4").copy()
    bound = (late._session, 1, view, NO_CONTEXT)
    keys = {i: mask_key(opened_key.agree(entries[i].key), *bound, 4, i) for i in entries if i != 4}
    attempt = masked.copy()
    undone = np.zeros_like(attempt)
    hide(undone, 4, secrets.seed, keys)
    add_mask(undone, secrets.seed, -1)
    attempt -= undone
    assert (attempt != values["site-004"]).all()
    # With the seed as well, which nobody revealed, it would be open: the mask is what protects.
    add_mask(attempt, secrets.seed, -1)
    assert (attempt == values["site-004"]).all()


def deceive(driver, deceived, shorter, signers, threshold):
    """What honest sites reveal for a shorter list to which they and the colluding ``signers`` agree."""
    if len(shorter.receipts) < threshold:
        for name in deceived:
            with pytest.raises(TooFewSitesError):
                driver.tell(name, shorter)
        return []
    for name in deceived:
        assert isinstance(driver.tell(name, shorter)[0], Agree)
    signed = agreements(driver, shorter, (*deceived, *signers))
    if len(signed.agreements) < threshold:
        for name in deceived:
            with pytest.raises(TooFewSitesError):
                driver.tell(name, signed)
        return []
    return [message for name in deceived for message in driver.tell(name, signed)]


def gathered(n, colluding, threshold, full, *, weak=False):
    """What a lying server and the last ``colluding`` sites gather about site 1 when it tells ``full`` of the other
    honest sites that everyone survived and the rest that all but site 1 did: shares of its seed, of its mask key."""
    chosen = parameters(n, colluding=colluding, threshold=threshold + weak)
    if weak:
        object.__setattr__(chosen, "threshold", threshold)
        object.__setattr__(chosen, "min_included", threshold)
    driver = Driver(chosen).set_up()
    values = vectors(n, 1)
    driver.begin_and_hold(values)
    own = {name: driver.sites[name]._current for name in names(n)}
    receipts = tuple(driver.server._collection.included)
    everyone, shorter = Survivors(1, receipts), Survivors(1, without(receipts, 1))
    honest = names(n)[1 : n - colluding]
    seed, key = {}, {}
    for name in ("site-001", *honest[:full]):
        for message in driver.tell(name, everyone):
            seed[message.index] = next(share.value for share in message.shares if share.index == 1)
    signers = names(n)[n - colluding :]
    for message in deceive(driver, honest[full:], shorter, signers, threshold):
        key[message.index] = next(share.value for share in message.shares if share.index == 1)
    # Colluding sites hand over both shares that they hold of site 1's secrets: open them as they would.
    for name in names(n)[n - colluding :]:
        site = driver.sites[name]
        for kind, kept in ((Kind.SEED, seed), (Kind.MASK_KEY, key)):
            kept[site.index] = site._open(kind, own[name].entries[1], own[name])
    return seed, key, own["site-001"]


def cases(largest):
    return [(n, t) for n in range(2, largest + 1) for t in range(n - 1)]


@pytest.mark.parametrize(("n", "colluding"), cases(7))
def test_no_split_of_the_sites_gives_both_kinds_of_shares(n, colluding):
    for threshold in range(least_threshold(n, colluding), n + 1):
        for full in range(n - colluding):
            seed, key, _ = gathered(n, colluding, threshold, full)
            assert not (len(seed) >= threshold and len(key) >= threshold)
            assert len(seed) + len(key) <= n + colluding


@pytest.mark.parametrize(("n", "colluding"), [case for case in cases(7) if least_threshold(*case) > 2])
def test_with_a_threshold_one_too_small_some_split_would(n, colluding):
    """The attack that the theorem excludes, carried out: both secrets of site 1 open, and with them its vector."""
    weak = least_threshold(n, colluding) - 1
    both = 0
    for full in range(n - colluding):
        seed, key, target = gathered(n, colluding, weak, full, weak=True)
        if len(seed) >= weak and len(key) >= weak:
            assert combine(seed, weak) == target.own.seed
            assert combine(key, weak) == target.own.masks.to_bytes()
            both += 1
    assert both


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
