"""Plans whose sites share the noise of a step: crashes at every moment, sites that vanish, a server that lies."""

import numpy as np
import pytest
from privacy_plans import SITES, THREE, PowerCutError, failing, power_cut

from medveil.accounting.ledger import Ledger
from medveil.errors import AuthenticityError, BudgetError, TooFewSitesError
from medveil.federation.local import LocalWork
from medveil.federation.messages import Task, encode
from medveil.federation.secure import decided, outbox
from medveil.federation.secure.outbox import Outbox
from medveil.federation.site import LocalResult, Site
from medveil.federation.stages import Pipeline
from medveil.secagg.site import SiteSession
from medveil.study import arms
from medveil.study.dry_run import dry_run
from medveil.study.privacy import bind_plan
from medveil.study.spending import Account

# Three sites in turn: the fourth call is the first site's in round 2, the fifth the second's, the sixth the last's.
MOMENTS = [
    (Ledger, "reserve", (4, 6)),
    (LocalWork, "train", (5,)),
    (outbox, "save_snapshot", (4, 6)),
    (SiteSession, "submit", (5,)),
    (Ledger, "commit", (4, 6)),
    (Outbox, "accept", (4, 5, 6)),
    (arms, "save_snapshot", (2,)),
]
CUTS = [
    pytest.param(owner, name, call, before, id=f"{'before' if before else 'after'} {name} {call}")
    for owner, name, calls in MOMENTS
    for call in calls
    for before in (True, False)
]


@pytest.mark.parametrize(("owner", "name", "call", "before"), CUTS)
def test_whenever_it_dies_every_round_is_charged_once_and_released_once(
    run, releases, submitted, monkeypatch, owner, name, call, before
):
    with monkeypatch.context() as patched:
        calls = power_cut(patched, owner, name, call=call, before=before)
        with pytest.raises(PowerCutError):
            run(*THREE)
        assert len(calls) >= call
    between = releases()
    for site, vectors in submitted.items():  # nothing left that was not charged before
        assert between[site] >= len(set(vectors)) >= 1
    record = run(*THREE)
    assert record["training"]["rounds_run"] == 3
    assert record["privacy"]["steps"] == 3
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES[:3], 3)


def test_it_may_die_again_and_again(run, releases, submitted, monkeypatch):
    for owner, name in ((Outbox, "accept"), (Ledger, "commit"), (outbox, "save_snapshot"), (arms, "save_snapshot")):
        with monkeypatch.context() as patched:
            power_cut(patched, owner, name, call=2 if owner is not arms else 1, before=owner is arms)
            with pytest.raises(PowerCutError):
                run(*THREE)
    assert run(*THREE)["privacy"]["steps"] == 3
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES[:3], 3)


def test_without_a_memory_the_same_crash_costs_a_second_release_and_the_plan_is_used_up(
    run, releases, submitted, monkeypatch
):
    """The test above can fail: a site that forgets what it gave gives, and is charged, anew; and never too often."""
    monkeypatch.setattr(Outbox, "has", lambda *_: False)
    monkeypatch.setattr(Outbox, "contribution", lambda _box, _number, _start, compute: compute())
    monkeypatch.setattr(Outbox, "accept", lambda *_: None)
    with monkeypatch.context() as patched:
        power_cut(patched, arms, "save_snapshot", call=2, before=True)
        with pytest.raises(PowerCutError):
            run(*THREE)
    with pytest.raises(TooFewSitesError, match="more releases than the plan has"):
        run(*THREE)
    assert releases() == dict.fromkeys(SITES[:3], 3)
    assert len(set(submitted["site-1"])) == 3


def test_a_plan_that_counts_on_all_shares_of_the_noise_opens_nothing_without_one(run, submitted, monkeypatch):
    """The threshold alone (three of five) would let the sum be opened, with three fifths of the noise."""
    everyone = (
        "privacy.secure_aggregation.colluding=0",
        "privacy.secure_aggregation.dropouts=0",
        "federation.rounds=2",
    )
    with failing(monkeypatch, "site-5", from_round=2), pytest.raises(TooFewSitesError):
        run(*everyone)
    assert submitted
    assert run(*everyone)["secure_aggregation"]["min_included"] == [5]


def test_a_round_that_was_opened_is_not_opened_over_other_sites(run, releases, monkeypatch):
    """The difference of the two sums would be one site's step with that site's share of the noise alone."""
    with monkeypatch.context() as patched:
        power_cut(patched, arms, "save_snapshot", call=2, before=True)
        with pytest.raises(PowerCutError):
            run()
    with failing(monkeypatch, "site-2"), pytest.raises(TooFewSitesError, match="before an interruption"):
        run()
    assert releases() == dict.fromkeys(SITES, 2)
    assert run()["privacy"]["steps"] == 3  # with all of them it goes on
    assert releases() == dict.fromkeys(SITES, 3)


def test_a_round_that_was_to_be_opened_waits_for_the_same_sites(run, releases, monkeypatch):
    """The coordinator wrote down over whom; whether a site has opened its part by then, it cannot know."""
    with monkeypatch.context() as patched:
        power_cut(patched, Outbox, "accept", call=6, before=True)
        with pytest.raises(PowerCutError):
            run()
    with failing(monkeypatch, "site-2", from_round=2), pytest.raises(TooFewSitesError, match="before an interruption"):
        run()
    assert set(run()["training"]["lost_sites"]) == set()
    assert releases() == dict.fromkeys(SITES, 3)


def test_a_round_that_was_not_opened_goes_on_with_fewer(run, releases, monkeypatch):
    with monkeypatch.context() as patched:
        power_cut(patched, decided, "replace_file", call=2, before=True)
        with pytest.raises(PowerCutError):
            run()
    with failing(monkeypatch, "site-2", from_round=2):
        record = run()
    assert set(record["training"]["lost_sites"]) == {"site-2"}
    assert releases() == dict.fromkeys(SITES, 3) | {"site-2": 2}


@pytest.mark.parametrize("from_round", [1, 2])
def test_a_site_that_vanishes_changes_no_promise(run, plan, releases, monkeypatch, from_round):
    with failing(monkeypatch, "site-4", from_round=from_round):
        record = run()
    said = record["privacy"]
    planned = dry_run(plan())["privacy"]
    assert (said["epsilon"], said["epsilon_server"]) == (planned["epsilon"], planned["epsilon_server"])
    assert record["training"]["rounds_run"] == 3
    assert set(record["training"]["lost_sites"]) == {"site-4"}
    assert record["secure_aggregation"]["dropped"] == {"site-4": 1}
    assert releases() == dict.fromkeys(SITES, 3) | {"site-4": from_round - 1}


def test_one_more_ends_the_run(run, monkeypatch):
    with failing(monkeypatch, "site-4", "site-1", from_round=2), pytest.raises(TooFewSitesError):
        run()


# --- a server that lies ----------------------------------------------------------------------------------------------


class FakeWork:
    """Draws another vector each time."""

    num_examples, num_validation = None, 0

    def __init__(self):
        self.calls = 0

    def train(self, round_number, weights, buffers):
        del round_number, weights
        self.calls += 1
        return LocalResult("grid", np.full(3, self.calls, np.int64), buffers, None)

    def validate(self, weights, buffers):
        raise NotImplementedError


class Unmasked:
    """The memory of a site without the protocol around it."""

    def __init__(self, folder):
        self._box, self.sent = Outbox(folder), []

    def receive(self, frames):
        del frames

    def check_begun(self):
        pass

    def known(self, number, start):
        return self._box.has(number, start)

    def contribute(self, number, start, compute):
        vector = self._box.contribution(number, start, lambda: compute().content.astype(np.uint64))
        self.sent.append(vector.tobytes())
        return []


@pytest.mark.parametrize("forgotten", ["commit before the crash", "commit lost with the power", "nothing"])
@pytest.mark.parametrize("others", [False, True], ids=["at once", "after another round"])
def test_the_same_round_from_other_weights_is_refused(plan, tmp_path, monkeypatch, forgotten, others):
    """A server that asks twice, across a crash, gets one vector for one charge."""
    bound = bind_plan(plan())
    sent, work = [], FakeWork()

    def asked(*tasks, cut=None):
        account = Account(tmp_path / "one.sqlite", run="r", dataset="d", bound=bound, per_round=1)
        account.open()
        sealing = Unmasked(tmp_path / "box")
        site = Site(
            "a",
            plan_hash="p",
            work=work,
            weighting="equal",
            pipeline=Pipeline(),
            spending=account,
            sealing=sealing,
        )
        with monkeypatch.context() as patched:
            if cut == "commit lost with the power":
                patched.setattr(Ledger, "commit", lambda *_: None)
            if cut == "commit before the crash":
                power_cut(patched, Ledger, "commit", call=1, before=True)
            for number, fill in tasks:
                task = Task(round=number, validate_model=False, train=True, sites=["a"])
                model = {"weights": np.full(2, fill, np.float32), "buffers": np.zeros(0, np.float32)}
                if cut == "commit before the crash":
                    with pytest.raises(PowerCutError):
                        site.receive(encode(task, model))
                    continue
                site.receive(encode(task, model))
        if cut != "commit before the crash":
            sent.extend(sealing.sent)
        account._ledger.close()

    asked((1, 0.0), cut=forgotten)
    asked((1, 0.0), *([(2, 0.0)] if others else []))  # sent again, the same
    with pytest.raises(AuthenticityError, match="past" if others else "other weights"):
        asked((1, 7.0))
    with Ledger(tmp_path / "one.sqlite") as ledger:
        charged = ledger.spent("d", delta=1e-3).releases
    assert len(set(sent)) == (2 if others else 1)
    assert charged == len(set(sent))


def test_a_strict_account_pays_for_the_plan_and_no_more(plan, tmp_path):
    """Whatever the server calls its rounds, and though the ledger has no cap."""
    bound = bind_plan(plan())
    options = {"run": "r", "dataset": "d", "bound": bound, "per_round": 1}
    account = Account(tmp_path / "one.sqlite", **options, strict=True)
    account.open()
    with pytest.raises(PowerCutError), account.release(1, nothing_left=True):
        raise PowerCutError
    for number in (1, 2, 2):  # the first pays for what was begun and never left
        with account.release(number, nothing_left=number == 1):
            pass
    with pytest.raises(BudgetError, match="more releases than the plan has"), account.release(3, nothing_left=True):
        raise AssertionError("this must not be reached")
    account.close()
    with Ledger(tmp_path / "one.sqlite") as ledger:
        assert ledger.spent("d", delta=1e-3).releases == bound.steps == 3
