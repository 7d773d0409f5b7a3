"""Sites that vanish after any message, a coordinator that dies after any message: the run ends all the same."""

import numpy as np
import pytest
from network_plans import DISTRIBUTED, LOCAL, SPARING, SUMS
from network_steps import Guests, lead
from safetensors.numpy import load_file

LATE = 2  # the last of a job's messages are farewells: nobody waits for an answer
FOUR = ["site-1", "site-2", "site-3", "site-4"]


@pytest.fixture(scope="module")
def lengths():
    """Messages of an undisturbed job, by plan."""
    return {}


def _length(lengths, text, hospitals, plan):
    if text not in lengths:
        ending, ward = lead(Guests(hospitals(plan)), "job-0")
        assert ending == "done"
        lengths[text] = ward.count, ward.phases
    return lengths[text]


def _spread(count, number):
    return sorted({1 + round(at * (count - 1) / (number - 1)) for at in range(number)})


@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS, SPARING], ids=["distributed privacy", "secure sums", "clear"])
@pytest.mark.parametrize("how", ["cut", "decline"])
def test_a_site_lost_after_any_message_costs_only_itself(trained, hospitals, lengths, text, how):
    plan, _, _, weights = trained(text)
    count, _ = _length(lengths, text, hospitals, plan)
    seen = set()
    for at in _spread(count, 9):
        place = hospitals(plan)
        ending, ward = lead(Guests(place), "job-1", **{how: {at: ["site-2"]}})
        assert (ending, ward.errors) == ("done", {}), at
        record = place.record()
        final = place.weights()
        assert all(np.isfinite(value).all() for value in load_file(place.run_folder() / "weights.safetensors").values())
        lost = sorted(record["training"]["lost_sites"])
        assert lost in ([], ["site-2"]), at
        if not lost:
            assert final == weights, at
        seen.add(final == weights)
        if text == DISTRIBUTED:
            for name in set(FOUR) - {"site-2"}:
                assert place.steps(name) == 2
            assert at <= 8 or place.steps("site-2") in {0, 1, 2}, at  # before, it has no ledger
        if text == SPARING and "site-2" in record["test"]["per_site"]:
            assert how == "decline" or at > count - 20
    assert seen == {True, False}


def test_every_place_of_a_round_in_the_clear_counts_a_lost_site_alike(trained, hospitals):
    """Whether a site vanishes or says farewell, before it answers in a round: the same weights."""
    plan, _, _, _ = trained(SPARING)
    _, ward = lead(Guests(hospitals(plan)), "job-0")
    (asked, *_) = [at for at, way, name, kind in ward.phases if (way, name, kind) == ("to", "site-2", "Task")]
    answered = next(at for at, way, name, kind in ward.phases if (way, name, kind) == ("from", "site-2", "Result"))
    ends = []
    for options in (
        {"cut": {asked - 1: ["site-2"]}},
        {"cut": {answered - 1: ["site-2"]}},
        {"decline": {asked: ["site-2"]}},
    ):
        place = hospitals(plan)
        ending, _ = lead(Guests(place), "job-1", **options)
        assert ending == "done"
        assert list(place.record()["training"]["lost_sites"]) == ["site-2"]
        ends.append(place.weights())
    assert ends[0] == ends[1] == ends[2] != trained(SPARING)[3]


@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS], ids=["distributed privacy", "secure sums"])
def test_more_losses_than_the_plan_allows_wait_for_another_job(trained, hospitals, lengths, text):
    plan, _, _, weights = trained(text)
    _, phases = _length(lengths, text, hospitals, plan)
    trained_at = max(at for at, _, _, kind in phases if kind in {"Task", "Result"})
    for at in _spread(trained_at, 4):
        place = hospitals(plan)
        guests = Guests(place)
        ending, ward = lead(guests, "job-1", cut={at: ["site-2", "site-4"]})
        assert (ending, ward.errors) == ("again", {}), at
        assert not (place.run_folder() / "record.json").exists()
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), at
        assert place.weights() == weights, at
        if text == DISTRIBUTED:
            assert [place.steps(name) for name in place.names] == [2, 2, 2, 2], at


@pytest.mark.parametrize("text", [DISTRIBUTED, SUMS, SPARING], ids=["distributed privacy", "secure sums", "clear"])
def test_a_coordinator_that_dies_after_any_message_goes_on(trained, hospitals, lengths, text):
    plan, _, _, weights = trained(text)
    count, _ = _length(lengths, text, hospitals, plan)
    for at in _spread(count - len(FOUR) - 1, 7):
        place = hospitals(plan)
        guests = Guests(place)
        ending, ward = lead(guests, "job-1", die=at)
        assert (ending, ward.errors) == ("died", {})
        ending, ward = lead(guests, "job-2", first="job-1")
        assert (ending, ward.errors) == ("done", {}), at
        assert place.weights() == weights, at
        assert place.record()["training"]["lost_sites"] == {}
        if text == DISTRIBUTED:
            assert [place.steps(name) for name in place.names] == [2, 2, 2, 2], at
            assert place.record()["privacy"]["ledgers"].keys() == set(place.names)


def test_a_coordinator_that_dies_again_and_again_goes_on(trained, hospitals):
    plan, _, _, _ = trained(DISTRIBUTED)
    place = hospitals(plan)
    guests = Guests(place)
    jobs = 0
    ending = "died"
    while ending == "died":
        jobs += 1
        ending, ward = lead(guests, f"job-{jobs}", first="job-1", die=60 + 9 * jobs)
        assert ward.errors == {}
    assert ending == "done"
    assert jobs >= 3
    assert [place.steps(name) for name in place.names] == [2, 2, 2, 2]


def test_a_site_that_was_lost_takes_part_again_in_the_next_job(trained, hospitals, lengths):
    """Lost in round 1, committed without; the next job has it, and round 2 counts it."""
    plan, _, _, weights = trained(SPARING)
    _, phases = _length(lengths, SPARING, hospitals, plan)
    (first, _) = [at for at, way, name, kind in phases if (way, name, kind) == ("to", "site-2", "Task")][::2][:2]
    late = max(at for at, way, _, kind in phases if (way, kind) == ("from", "Result"))
    place = hospitals(plan)
    guests = Guests(place)
    ending, ward = lead(guests, "job-1", cut={first - 1: ["site-2"]}, die=late - 12)
    assert ending == "died"
    ending, ward = lead(guests, "job-2", first="job-1")
    assert (ending, ward.errors) == ("done", {})
    record = place.record()
    assert record["training"]["lost_sites"] == {}
    assert {event["what"] for event in record["events"] if event["site"] == "site-2"} >= {"lost", "joined"}
    assert place.weights() != weights
    opens = [line for line in place.log("site-1") if line["event"] == "run-begun"]
    assert [line["facts"]["attempt"] for line in opens] == [1, 2]
    assert all(line["facts"]["sites"] == FOUR for line in opens)


def test_a_round_that_is_released_again_is_charged_and_told_again(trained, hospitals):
    plan, _, alone, _ = trained(LOCAL)
    _, ward = lead(Guests(hospitals(plan)), "job-0")
    results = [at for at, _, _, kind in ward.phases if kind == "Result"]
    place = hospitals(plan)
    guests = Guests(place)
    assert lead(guests, "job-1", die=results[1])[0] == "died"  # site-1 and site-2 have answered, nothing is committed
    ending, ward = lead(guests, "job-2", first="job-1")
    assert (ending, ward.errors) == ("done", {})
    steps = [place.steps(name) for name in place.names]
    assert max(steps) == 3
    assert place.record()["privacy"]["steps"] == 3
    assert place.record()["privacy"]["epsilon"] > alone["privacy"]["epsilon"]
