"""Whoever vanishes, whenever: at or above the threshold the sum of the included opens, below it nothing does."""

from collections import Counter
from itertools import chain, combinations, cycle, product

import numpy as np
import pytest
from secagg_driver import Driver, names, parameters, sum_of, vectors

from medveil.errors import ProtocolError, TooFewSitesError
from medveil.rng import Seeds
from medveil.secagg import least_threshold
from medveil.secagg.messages import Agree, Chunk, Prepare, Reveal, Upload

PHASES = ["advertise", "prepare", "upload", "agree", "reveal", "agree, then reveal"]


pytestmark = pytest.mark.usefixtures("each_signature_once")


def lost_sets(n, at):
    """All subsets for small n, one of each size for larger."""
    if n <= 5:
        return chain.from_iterable(combinations(names(n), k) for k in range(n + 1))
    generator = Seeds(5).child(at, n).numpy()
    return [tuple(generator.permutation(names(n))[:k].tolist()) for k in range(n + 1)]


def expected(n, at, lost, first):
    """Names in the sum, or None where nothing may open: from the protocol's rules, not from its code."""
    threshold = n // 2 + 1
    if at in {"advertise", "prepare", "upload"}:
        included = set(names(n)) - set(lost)
        return included if len(included) >= threshold else None
    included = set(names(n)) - {first}
    # With nobody dropped there is no Agree at which one could vanish.
    silent = set() if at == "agree" and first is None else set(lost)
    return included if len(included) >= threshold and len(included - silent) >= threshold else None


def run(driver, n, how):
    driver.set_up()
    driver.give_up_on_the_silent(how)
    driver.step(vectors(n))
    driver.give_up_on_the_silent(how)


@pytest.mark.parametrize("at", PHASES)
@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_drop_out_matrix(n, at):
    outcomes = Counter()
    ways = ("deadline", "reported")
    sets = lost_sets(n, at)
    for lost, how in product(sets, ways) if n <= 5 else zip(sets, cycle(ways), strict=False):
        vanish = dict.fromkeys(lost, at.split()[-1])
        first = None
        if at.startswith("agree"):
            first = next((name for name in reversed(names(n)) if name not in lost), None)
            vanish |= {first: "upload"} if first else {}
        right = expected(n, at, lost, first)
        driver = Driver(parameters(n), vanish=vanish)
        if right is None:
            with pytest.raises(TooFewSitesError):
                run(driver, n, how)
            assert driver.server.opened is None
            assert driver.server.phase == "aborted"
            assert len(driver.sent(Reveal)) < n // 2 + 1
            with pytest.raises(ProtocolError, match="over"):
                driver.server.receive("site-001", b"anything")
        else:
            run(driver, n, how)
            assert set(driver.server.opened.included) == right
            assert driver.server.opened.total.tolist() == sum_of(vectors(n), right)
        outcomes[right is None] += 1
    assert outcomes[True] > 0 < outcomes[False]


@pytest.mark.parametrize("n", [5, 10])
def test_one_vanishes_before_its_upload_and_another_after(n):
    dropped, silent = "site-002", "site-004"
    driver = Driver(parameters(n), vanish={dropped: "upload", silent: "agree"}).set_up()
    values = vectors(n)
    driver.step(values)
    driver.give_up_on_the_silent("reported")
    assert driver.server.opened.dropped == (dropped,)
    assert driver.server.opened.total.tolist() == sum_of(values, set(names(n)) - {dropped})
    assert silent not in {name for name, _ in driver.sent(Reveal)}


def test_a_site_that_vanishes_between_two_chunks_is_not_in_the_sum():
    driver = Driver(parameters(3, chunk_bytes=8)).set_up()
    values = vectors(3, 10)
    driver.deliver(driver.server.begin())
    for data in driver.sites["site-002"].submit(values["site-002"])[:3]:
        driver.send("site-002", data)
    assert len(driver.sent(Chunk)) == 2
    driver.upload("site-001", values["site-001"])
    driver.upload("site-003", values["site-003"])
    driver.lose("site-002")
    assert driver.server.opened.included == ("site-001", "site-003")
    assert driver.server.opened.total.tolist() == sum_of(values, ["site-001", "site-003"])


def test_a_late_site_joins_the_next_step():
    driver = Driver(parameters(3)).set_up()
    values = vectors(3)
    driver.deliver(driver.server.begin())
    for name in ("site-001", "site-003"):
        driver.upload(name, values[name])
    driver.deliver(driver.server.advance())
    assert driver.server.opened.included == ("site-001", "site-003")
    driver.upload_late("site-002", values["site-002"])
    assert [type(message) for message, _ in driver.refused] == [Upload, Chunk]
    more = vectors(3, 9, 64, seed=1)
    opened = driver.step(more)
    assert (opened.step, opened.included) == (2, names(3))
    assert opened.total.tolist() == sum_of(more, names(3), 64)


def test_a_site_that_stays_away_is_out_of_the_next_step_too():
    driver = Driver(parameters(3)).set_up()
    for seed in range(2):
        values = vectors(3, seed=seed)
        if seed == 0:
            driver.deliver(driver.server.begin())
            driver.lose("site-002")
            for name in ("site-001", "site-003"):
                driver.upload(name, values[name])
            assert driver.server.opened.dropped == ("site-002",)
        else:
            opened = driver.step(values)
            assert opened.included == ("site-001", "site-003")
            assert opened.dropped == ()
            assert opened.total.tolist() == sum_of(values, opened.included)


def test_a_site_that_is_a_step_behind_cannot_prepare_the_past():
    driver = Driver(parameters(3)).set_up()
    values = vectors(3)
    driver.deliver(driver.server.begin())
    driver.lose("site-002")
    for name in ("site-001", "site-003"):
        driver.upload(name, values[name])
    driver.step({name: values[name] for name in ("site-001", "site-003")})
    driver.gone.clear()
    driver.upload_late("site-002", values["site-002"])
    assert [type(message) for message, _ in driver.refused] == [Upload, Chunk, Prepare]


def test_a_site_late_with_its_shares_stays_in_the_session():
    driver = Driver(parameters(3), vanish={"site-003": "reveal"}).set_up()
    values = vectors(3)
    driver.step(values)
    driver.deliver(driver.server.advance())
    assert driver.server.opened.total.tolist() == sum_of(values, names(3))
    driver.vanish.clear()
    driver.gone.clear()
    assert driver.step(values).included == names(3)


def test_a_lost_site_comes_back_by_repeating_its_preparation():
    driver = Driver(parameters(3)).set_up()
    driver.step(vectors(3))
    _, last = [(name, data) for name, data in driver.log if name == "site-002"][-2]
    driver.server.lose("site-002")
    driver.server.receive("site-002", last)
    values = vectors(3, seed=2)
    assert driver.step(values).included == names(3)


def test_fewer_than_the_smallest_sum_is_refused_even_above_the_threshold():
    driver = Driver(parameters(5, min_included=5), vanish={"site-005": "upload"}).set_up()
    driver.step(vectors(5))
    with pytest.raises(TooFewSitesError, match="in the sum") as error:
        driver.server.advance()
    assert (error.value.got, error.value.expected) == (4, "at least 5 of 5")
    assert not driver.sent(Agree)
    assert not driver.sent(Reveal)


def test_too_few_for_another_step():
    driver = Driver(parameters(3)).set_up()
    driver.step(vectors(3))
    driver.lose("site-001", "site-002")
    with pytest.raises(TooFewSitesError, match="ready"):
        driver.server.begin()
    assert [one.site for one in driver.server.abort("too few")] == ["site-003"]


def test_the_threshold_that_collusion_asks_for_is_kept():
    for colluding in (0, 2, 4):
        need = least_threshold(7, colluding)
        for lost in range(7):
            driver = Driver(parameters(7, colluding=colluding), vanish=dict.fromkeys(names(7)[:lost], "upload"))
            if 7 - lost >= need:
                driver.set_up().step(vectors(7))
                driver.give_up_on_the_silent("deadline")
                assert driver.server.opened.total.tolist() == sum_of(vectors(7), names(7)[lost:])
            else:
                with pytest.raises(TooFewSitesError):
                    run(driver, 7, "deadline")


def test_vectors_of_those_who_vanish_do_not_touch_the_sum():
    """Dropped vectors of another value give the same total: it depends on the included alone."""
    totals = []
    for value in (0, 12345):
        driver = Driver(parameters(4), vanish={"site-003": "upload"}).set_up()
        values = vectors(4) | {"site-003": np.full(4, value, np.uint32)}
        driver.step(values)
        driver.give_up_on_the_silent("deadline")
        totals.append(driver.server.opened.total.tolist())
    assert totals[0] == totals[1]
