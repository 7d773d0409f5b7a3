"""Two faults in one round: a site is lost, and the coordinator dies before it commits."""

import pytest
from network_plans import DISTRIBUTED, SUMS
from network_steps import Guests, lead

PLANS = pytest.mark.parametrize("text", [DISTRIBUTED, SUMS], ids=["distributed privacy", "secure sums"])
PURPOSES = ("cohort", "threshold", "evaluation")
REST = ("site-1", "site-3", "site-4")


def _at(ward, way, name, kind, which=0):
    found = [at for at, to, site, what in ward.phases if (to, site, what) == (way, name, kind)]
    return found[which]


def _window(hospitals, plan):
    """The message with which site-2 is asked for a round, after which it vanishes; and that job's weights."""
    _, whole = lead(Guests(hospitals(plan)), "job-0")
    asked = _at(whole, "to", "site-2", "Task")
    place = hospitals(plan)
    ending, alone = lead(Guests(place), "job-0", cut={asked: ["site-2"]})
    assert (ending, alone.errors) == ("done", {})
    return asked, place.weights()


@PLANS
def test_a_site_lost_and_a_dead_coordinator_in_one_round(trained, hospitals, text):
    """All are back: the round is opened over the sites over which it was to be opened before, or over all."""
    plan, _, _, undisturbed = trained(text)
    asked, without = _window(hospitals, plan)
    assert without != undisturbed
    seen = []
    for die in range(asked + 2, asked + 200, 4):
        place = hospitals(plan)
        guests = Guests(place)
        ending, ward = lead(guests, "job-1", cut={asked: ["site-2"]}, die=die)
        assert (ending, ward.errors) == ("died", {}), die
        if list(place.run_folder().glob("state/federated*.safetensors")):
            break  # the round is over
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), die
        seen.append(place.weights())
        assert seen[-1] in (without, undisturbed), die
        lost = place.record()["training"]["lost_sites"]
        assert sorted(lost) == (["site-2"] if seen[-1] == without else []), die
        for name in REST:
            opened = [tuple(line["facts"]["included"]) for line in place.log(name) if line["event"] == "sum-opened"]
            assert set(opened) == {REST if seen[-1] == without else ("site-1", "site-2", "site-3", "site-4")}, die
            if text == DISTRIBUTED:
                assert place.steps(name) == 2, die
    assert undisturbed in seen
    assert without in seen
    assert seen.index(without) == len(seen) - seen[::-1].index(undisturbed)  # from the decision on, for good


@PLANS
def test_a_sum_that_was_to_be_opened_over_all_waits_for_all(trained, hospitals, text):
    """The coordinator dies while shares come in; then a site is away: nobody opens over fewer, the run waits."""
    plan, _, _, undisturbed = trained(text)
    place = hospitals(plan)
    _, whole = lead(Guests(hospitals(plan)), "job-0")
    # After the last masked vector come the sites' shares, a message each; two of them are in.
    second = _at(whole, "to", "site-1", "Task", 1)
    shares = [at for at, to, _, what in whole.phases if (to, what) == ("from", "Sealed") and at < second]
    guests = Guests(place)
    assert lead(guests, "job-1", die=shares[-2])[0] == "died"
    opened = [line for line in place.log("site-1") if line["event"] in {"sum-opened", "scores-opened"}]
    assert len(opened[-1]["facts"]["included"]) == 4
    ending, ward = lead(guests, "job-2", first="job-1", names=REST)
    assert (ending, ward.errors) == ("again", {})
    assert "the same sites" in place.progress()["stands"]
    ending, ward = lead(guests, "job-3", first="job-1")
    assert (ending, ward.errors) == ("done", {})
    assert place.weights() == undisturbed
    if text == DISTRIBUTED:
        assert [place.steps(name) for name in place.names] == [2, 2, 2, 2]


def test_a_round_that_was_summed_is_not_asked_for_again(trained, hospitals):
    """The coordinator dies while the sites score a round: the next job begins with the scores."""
    plan, _, _, undisturbed = trained(SUMS)
    _, whole = lead(Guests(hospitals(plan)), "job-0")
    scores = [at for at, _, _, what in whole.phases if what == "Scores"]
    for die in (scores[0], scores[1], scores[3] + 3):
        place = hospitals(plan)
        guests = Guests(place)
        assert lead(guests, "job-1", die=die)[0] == "died"
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), die
        assert place.weights() == undisturbed, die
        asked = [line["facts"]["round"] for line in place.log("site-3") if line["event"] == "step-asked"]
        assert asked == [1, 2], die
        assert place.record()["training"]["rounds"] == 2


def test_a_site_lost_while_it_scores_and_a_dead_coordinator(trained, hospitals):
    plan, _, _, _ = trained(SUMS)
    _, whole = lead(Guests(hospitals(plan)), "job-0")
    tasks = [at for at, to, site, what in whole.phases if (to, site, what) == ("to", "site-2", "Task")]
    scoring = tasks[1]  # after training comes scoring
    ends = set()
    for die in range(scoring + 4, scoring + 34, 6):
        place = hospitals(plan)
        guests = Guests(place)
        assert lead(guests, "job-1", cut={scoring: ["site-2"]}, die=die)[0] == "died"
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), die
        ends.add(tuple(sorted(place.record()["training"]["lost_sites"])))
    assert ends == {(), ("site-2",)}


@pytest.mark.parametrize("asked", [0, 1, 2], ids=PURPOSES)
def test_a_statistic_without_a_site_and_a_dead_coordinator(trained, hospitals, asked):
    """A statistic that was to be opened without a site is asked for without it again, though it is back."""
    plan, _, _, undisturbed = trained(SUMS)
    _, whole = lead(Guests(hospitals(plan)), "job-0")
    asks = [at for at, to, site, what in whole.phases if (to, site, what) == ("to", "site-2", "Ask")]
    assert len(asks) == 3
    without = set()
    for die in range(asks[asked] + 4, asks[asked] + 44, 5):
        place = hospitals(plan)
        guests = Guests(place)
        ending, _ = lead(guests, "job-1", cut={asks[asked] - 1: ["site-2"]}, die=die)
        if ending == "done":
            break  # nothing was left to die in
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), die
        assert place.weights() == undisturbed, die
        told = [line["facts"] for line in place.log("site-1") if line["event"] == "statistic-opened"]
        sums = {tuple(facts["included"]) for facts in told if facts["reason"] == PURPOSES[asked]}
        assert len(sums) == 1, die
        without |= sums
    assert without == {("site-1", "site-2", "site-3", "site-4"), REST}
