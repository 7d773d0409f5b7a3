"""One sum, one context: vectors that were computed from different things are never opened together."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from secagg_driver import Driver, agreements, identity, names, parameters, sum_of, vectors, without

from medveil.errors import AuthenticityError, ConfigError, ProtocolError, TooFewSitesError
from medveil.secagg import least_threshold
from medveil.secagg import site as site_module
from medveil.secagg.masking import mask_key
from medveil.secagg.messages import Agree, Reveal, Survivors, Upload, decode, encode
from medveil.secagg.records import NO_CONTEXT, Kind, Receipt

ONE, OTHER = (hashlib.sha256(text).digest() for text in (b"weights", b"other weights"))


def split(n, *others):
    """Contexts of n sites: the sites with these indices were sent other weights."""
    return {name: OTHER if index in others else ONE for index, name in enumerate(names(n), start=1)}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("stated", [None, ONE])
@pytest.mark.parametrize("gone", [(), ("site-002",)])
def test_the_sum_of_one_context_opens(bits, stated, gone):
    """Where a site has vanished, the server must take away masks whose keys depend on the context."""
    driver = Driver(parameters(4), vanish=dict.fromkeys(gone, "upload")).set_up()
    for step in (1, 2):
        values = vectors(4, bits=bits, seed=step)
        driver.deliver(driver.server.begin(context=stated))
        for name in names(4):
            if name not in driver.gone:
                driver.upload(name, values[name], ONE)
        driver.give_up_on_the_silent("deadline")
        left = [name for name in names(4) if name not in gone]
        assert driver.server.opened.step == step
        assert driver.server.opened.total.tolist() == sum_of(values, left, bits)


def test_each_step_has_its_own_context():
    driver = Driver(parameters(3)).set_up()
    for step, context in enumerate((ONE, OTHER, NO_CONTEXT, ONE), start=1):
        values = vectors(3, seed=step)
        driver.deliver(driver.server.begin())
        for name, vector in values.items():
            driver.upload(name, vector, context)
        assert driver.server.opened.step == step
        assert driver.server.opened.total.tolist() == sum_of(values, names(3))
    assert {message.receipt.context for _, message in driver.sent(Upload)} == {ONE, OTHER, NO_CONTEXT}


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_context_of_another_length_is_refused(length):
    driver = Driver(parameters(2)).set_up()
    with pytest.raises(ConfigError, match="is a hash") as error:
        driver.server.begin(context=bytes(length))
    assert (error.value.got, error.value.expected) == (f"{length} bytes", "32 bytes")
    driver.deliver(driver.server.begin())
    with pytest.raises(ConfigError, match="is a hash"):
        driver.sites["site-001"].submit(np.zeros(4, np.uint32), bytes(length))
    values = vectors(2)  # nothing has happened: the vector can still be given
    for name, vector in values.items():
        driver.upload(name, vector, ONE)
    assert driver.server.opened.total.tolist() == sum_of(values, names(2))


@pytest.mark.parametrize("stated", [None, ONE])
def test_the_server_refuses_a_vector_of_another_context(stated):
    """Stated or not: the first site is honest here. The sum of the others opens."""
    driver = Driver(parameters(4)).set_up()
    values = vectors(4)
    driver.deliver(driver.server.begin(context=stated))
    for name, context in split(4, 3).items():
        driver.upload_late(name, values[name], context)
    assert [type(message).__name__ for message, _ in driver.refused] == ["Upload", "Chunk"]
    error = driver.refused[0][1]
    assert type(error) is ProtocolError
    assert error.got == f"site 3, context {OTHER.hex()[:12]}"
    assert error.expected == f"context {ONE.hex()[:12]}"
    assert error.remedy
    driver.deliver(driver.server.advance())
    left = [name for name in names(4) if name != "site-003"]
    assert driver.server.opened.included == tuple(left)
    assert driver.server.opened.total.tolist() == sum_of(values, left)


def test_what_the_server_stated_counts_whoever_comes_first():
    driver = Driver(parameters(3)).set_up()
    values = vectors(3)
    driver.deliver(driver.server.begin(context=ONE))
    for name, context in split(3, 1).items():
        driver.upload_late(name, values[name], context)
    driver.deliver(driver.server.advance())
    assert driver.server.opened.total.tolist() == sum_of(values, ["site-002", "site-003"])


@pytest.mark.parametrize("others", [(1,), (3,), (4,), (1, 2)])
def test_a_server_that_gives_sites_different_contexts_opens_nothing(others):
    driver = Driver(parameters(4, colluding=1)).set_up()
    held = driver.begin_and_hold(vectors(4), split(4, *others))
    assert {one.site for one in held} == set(names(4))
    for one in held:
        site = driver.sites[one.site]
        with pytest.raises(AuthenticityError, match="from the same") as error:
            site.receive(one.data)
        assert error.value.got
        assert error.value.expected
        assert error.value.remedy
        assert not site._current.survivors  # the list was not taken: there is nothing to agree to
    with pytest.raises(TooFewSitesError):
        driver.server.advance()
    assert (driver.server.opened, driver.server.phase) == (None, "aborted")


def test_a_receipt_cannot_be_given_another_context():
    """The server makes the list look consistent: the signature does not fit, or the own receipt has changed."""
    driver = Driver(parameters(4)).set_up()
    driver.begin_and_hold(vectors(4), split(4, 2))
    receipts = driver.server._collection.included
    for context in (ONE, OTHER):
        alike = Survivors(1, tuple(replace(receipt, context=context) for receipt in receipts))
        for name, own in split(4, 2).items():
            words = "own receipt" if own != context else "receipt is not valid"
            with pytest.raises(AuthenticityError, match=words):
                driver.tell(name, alike)


def carried_out(monkeypatch, *, receipts_bound, masks_bound):
    """The attack: weights from which all sites but one contribute nothing. Gives that site's vector and the sum."""
    if not receipts_bound:
        silent = lambda index, step, view, _context, *rest: Receipt(index, step, view, NO_CONTEXT, *rest)  # noqa: E731
        monkeypatch.setattr(site_module, "Receipt", silent)
    if not masks_bound:
        loose = lambda shared, session, step, view, _context, *ends: (  # noqa: E731
            mask_key(shared, session, step, view, NO_CONTEXT, *ends)
        )
        monkeypatch.setattr(site_module, "mask_key", loose)
    driver = Driver(parameters(4)).set_up()
    target = vectors(4, 8)["site-002"]
    values = {name: target if name == "site-002" else np.zeros_like(target) for name in names(4)}
    driver.deliver(driver.begin_and_hold(values, split(4, 2)))
    return target, driver.server.opened.total


def test_without_contexts_one_vector_lies_open(monkeypatch):
    """What the context is for: with neither defence the sum is that site's vector."""
    target, total = carried_out(monkeypatch, receipts_bound=False, masks_bound=False)
    assert total.tolist() == target.tolist()


def test_masks_of_different_contexts_do_not_cancel(monkeypatch):
    """Even where no site compares receipts."""
    target, total = carried_out(monkeypatch, receipts_bound=False, masks_bound=True)
    assert (total != target).all()


@pytest.mark.parametrize("masks_bound", [False, True])
def test_receipts_of_different_contexts_stop_the_attack(monkeypatch, masks_bound):
    with pytest.raises(AuthenticityError, match="from the same"):
        carried_out(monkeypatch, receipts_bound=True, masks_bound=masks_bound)


def signed_again(driver, receipt, context):
    """A colluding site signs whatever context the server wants."""
    other = replace(receipt, context=context)
    key = identity(driver.parameters.name(receipt.index))
    return replace(other, signature=key.sign(other.text(driver.sites["site-001"]._session)))


CASES = [(n, t, size) for n in range(2, 8) for t in range(n - 1) for size in range(1, n - t)]


@pytest.mark.usefixtures("each_signature_once")
@pytest.mark.parametrize(("n", "colluding", "size"), CASES)
def test_at_most_one_of_two_contexts_opens_and_only_over_two_honest_sites(n, colluding, size):
    """The first ``size`` honest sites have one context, the rest another; the colluding ones sign both.

    What opens is then a legitimate sum: of at least two honest sites with one context, over a list that they saw.
    """
    threshold = least_threshold(n, colluding)
    driver = Driver(parameters(n, colluding=colluding)).set_up()
    honest, helpers = names(n)[: n - colluding], names(n)[n - colluding :]
    contexts = split(n, *range(1, size + 1))
    driver.begin_and_hold(vectors(n, 1), contexts)
    receipts = driver.server._collection.included
    for name in honest:
        with pytest.raises(AuthenticityError, match="from the same"):
            driver.tell(name, Survivors(1, receipts))
    opened = []
    for context in (OTHER, ONE):
        group = [name for name in honest if contexts[name] == context]
        alike = tuple(
            receipt if driver.parameters.name(receipt.index) in group else signed_again(driver, receipt, context)
            for receipt in without(receipts, *(driver.parameters.indices[name] for name in {*honest} - {*group}))
        )
        holders = set()
        for name in group:
            if len(alike) < threshold:
                with pytest.raises(TooFewSitesError):
                    driver.tell(name, Survivors(1, alike))
                continue
            assert isinstance(driver.tell(name, Survivors(1, alike))[0], Agree)
            [reveal] = driver.tell(name, agreements(driver, Survivors(1, alike), (*group, *helpers)))
            assert isinstance(reveal, Reveal)
            if any(share.kind is Kind.SEED for share in reveal.shares):
                holders.add(reveal.index)
        if len(holders) + colluding >= threshold:
            opened.append(group)
    assert len(opened) == (max(size, n - colluding - size) + colluding >= threshold)
    assert all(len(group) >= 2 for group in opened)


def test_the_header_carries_the_context():
    """The header carries the context as it was given."""
    driver = Driver(parameters(2)).set_up()
    driver.deliver(driver.server.begin())
    header = driver.sites["site-001"].submit(np.zeros(4, np.uint32), ONE)[0]
    receipt = decode(header).receipt
    assert receipt.context == ONE
    assert header == encode(Upload(receipt))
    assert header[6 + 2 + 4 + 32 :][:32] == ONE
