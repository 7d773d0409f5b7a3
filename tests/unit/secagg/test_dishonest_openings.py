"""A server that lies when a sum is opened: what it can gather opens no more than one sum."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_driver import (
    Driver,
    advertised,
    agreements,
    begun,
    decoded,
    names,
    parameters,
    sum_of,
    uploaded,
    vectors,
    without,
)

from medveil.errors import AuthenticityError, ProtocolError, TooFewSitesError
from medveil.secagg import least_threshold
from medveil.secagg.keys import KeyPair
from medveil.secagg.masking import hide, mask_key
from medveil.secagg.messages import (
    Agree,
    Begin,
    Reveal,
    Roster,
    Survivors,
    decode,
)
from medveil.secagg.records import NO_CONTEXT, Kind
from medveil.secagg.ring import add_mask
from medveil.secagg.shamir import combine


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
