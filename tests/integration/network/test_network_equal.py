"""The same plan with the same seeds ends alike, in one process and over the network."""

import pytest
from network_plans import CLEAR, DISTRIBUTED, MASKS, SUMS
from network_rig import Wire
from network_steps import Guests, lead

PLANS = {"distributed privacy": DISTRIBUTED, "secure sums": SUMS, "in the clear": CLEAR, "masks": MASKS}
GROUPS = ("data.partition.sites=7", "privacy.secure_aggregation.groups=2", "data.source.subjects=110")


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS.keys())
def test_messages_one_by_one_end_as_one_process(trained, hospitals, text):
    plan, _, alone, weights = trained(text)
    place = hospitals(plan)
    ending, ward = lead(Guests(place), "job-1")
    assert (ending, ward.errors) == ("done", {})
    assert place.weights() == weights
    record = place.record()
    for part in ("best_round", "rounds_run", "stopped_early"):
        assert record["training"][part] == alone["training"][part]
    assert record["model"] == alone["model"]
    assert record["plan_hash"] == alone["plan_hash"]
    if text == DISTRIBUTED:
        assert record["privacy"]["steps"] == alone["privacy"]["steps"] == 2
        assert record["privacy"]["epsilon"] == alone["privacy"]["epsilon"]
        assert record["privacy"]["ledgers"].keys() == alone["privacy"]["ledgers"].keys()
    if text == SUMS:
        assert record["cohort"] == alone["cohort"]


def test_groups_of_sites_end_as_one_process(trained, hospitals):
    plan, _, _, weights = trained(SUMS, *GROUPS)
    place = hospitals(plan)
    ending, ward = lead(Guests(place), "job-1")
    assert (ending, ward.errors) == ("done", {})
    assert place.weights() == weights


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS.keys())
def test_threads_over_a_bad_line_end_as_one_process(trained, hospitals, text):
    plan, _, _, weights = trained(text)
    place = hospitals(plan)
    wire = Wire(loss=0.2, seed=5)
    ending, errors = place.job("job-1", wire=wire, farewell_s=10.0)
    assert (ending, errors) == ("done", {}), place.progress()
    assert place.weights() == weights
    for name in place.names:
        events = [event for event in place.events(name) if event != "budget-set"]
        assert events[:4] == ["plan-received", "plan-approved", "plan-accepted", "run-begun"]
        assert events[-1] == "job-ended"
        assert "plan-against-policy" not in events
