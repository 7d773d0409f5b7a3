"""The ledger's promises: durable, once, within the cap, for the right patients."""

import math
import stat

import pytest

from medveil.accounting import ledger_state
from medveil.accounting.events import Composed, PoissonGaussian, Repeated, Stated
from medveil.accounting.ledger import Ledger
from medveil.errors import BudgetError, ConfigError, LedgerError

TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}
STEP = PoissonGaussian(sampling_rate=0.01, noise_multiplier=1.0)


def stated(epsilon):
    """Stated epsilons simply add: sums by hand are the oracle."""
    return Stated(epsilon=epsilon, delta=0)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """Stated epsilons are summed here by hand; accountants have their own tests and round upwards a little."""
    real = ledger_state._epsilon

    def epsilon(counts, delta, relation):
        if not all(isinstance(event, Stated) for event, _ in counts):
            return real(counts, delta, relation)
        if sum(event.delta * count for event, count in counts) > delta:
            return math.inf
        return sum(event.epsilon * count for event, count in counts)

    monkeypatch.setattr(ledger_state, "_epsilon", epsilon)
    return real


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "site" / "ledger.db") as opened:
        yield opened


def cap(ledger, epsilon, group="*", **changed):
    values = {"delta": 1e-5, "relation": "add-remove", "unit": "patient", **changed}
    ledger.set_budget("chest", group, epsilon=epsilon, **values)


def test_a_reservation_is_on_disk_when_it_returns(ledger, tmp_path):
    made = ledger.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    with Ledger(tmp_path / "site" / "ledger.db") as other:
        assert other.spent("chest", delta=1e-5).epsilon == pytest.approx(1)
        other.commit(made)
        other.commit(made)
        assert other.head[0] == 2
    ledger.commit(made)
    assert ledger.head[0] == 2


def test_only_the_owner_can_read_it(ledger):
    ledger.note("first")
    files = list(ledger._store.path.parent.iterdir())
    assert {path.name for path in files} >= {"ledger.db", "ledger.db.head"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_the_same_attempt_is_charged_once_and_says_so(ledger):
    first = ledger.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    again = ledger.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    assert first.fresh
    assert not again.fresh
    assert (first.number, first.attempt) == (again.number, again.attempt)
    assert ledger.spent("chest", delta=1e-5).epsilon == pytest.approx(1)


@pytest.mark.parametrize("change", [{"event": stated(2)}, {"group": "women"}, {"dataset": "brain"}])
def test_the_same_attempt_with_other_details_is_refused(ledger, change):
    ledger.reserve(**{"run": "r", "release": "s", "attempt": 1, "event": stated(1), **TERMS})
    before = ledger.head
    with pytest.raises(LedgerError, match="other details"):
        ledger.reserve(**{"run": "r", "release": "s", "attempt": 1, "event": stated(1), **TERMS, **change})
    assert ledger.head == before


def test_the_next_attempt_is_new_and_charged(ledger):
    assert ledger.next_attempt("r", "s") == 1
    ledger.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    assert ledger.next_attempt("r", "s") == 2
    assert ledger.reserve(run="r", release="s", event=stated(1), **TERMS).attempt == 2
    assert ledger.spent("chest", delta=1e-5).epsilon == pytest.approx(2)


def test_equal_steps_compose_as_one_repetition(ledger, monkeypatch):
    asked = []
    real = ledger_state._epsilon
    monkeypatch.setattr(ledger_state, "_epsilon", lambda *key: asked.append(key) or real(*key))
    for number in range(20):
        ledger.reserve(run="r", release=f"step-{number}", attempt=1, event=STEP, **TERMS)
    ledger.spent("chest", delta=1e-5)
    assert {counts for counts, *_ in asked} == {frozenset({(STEP, 20)})}


def test_runs_compose_and_do_not_add(ledger):
    """2,000 steps of q = .01, sigma = 1 spend 2.585 at delta 1e-5; two runs of 1,000 spend no more."""
    for run in ("a", "b"):
        ledger.reserve(run=run, release="all", attempt=1, event=Repeated(event=STEP, count=1000), **TERMS)
    spent = ledger.spent("chest", delta=1e-5)
    assert spent.epsilon == pytest.approx(2.585, rel=2e-3)
    assert spent.releases == 2000
    assert spent.runs == ("a", "b")


def test_a_refusal_changes_nothing_and_says_what_is_left(ledger):
    cap(ledger, 3)
    ledger.reserve(run="r", release="a", attempt=1, event=stated(2), **TERMS)
    before = ledger.head
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(run="r", release="b", attempt=1, event=stated(1.5), **TERMS)
    assert "3.5" in str(refused.value.got)
    assert "at most 3, of which 2 is taken and 1 is left" in str(refused.value.expected)
    assert refused.value.remedy
    assert ledger.head == before
    assert ledger.next_attempt("r", "b") == 1
    ledger.reserve(run="r", release="b", attempt=1, event=stated(1), **TERMS)


def test_check_writes_nothing(ledger):
    cap(ledger, 3)
    before = ledger.head
    ledger.check("chest", "*", [stated(1), stated(2)])
    ledger.check("chest", "women", Composed(events=(stated(3),)))
    with pytest.raises(BudgetError):
        ledger.check("chest", "*", [stated(1), stated(2.1)])
    assert ledger.head == before


def test_no_epsilon_at_this_delta_is_over_every_cap(ledger, by_hand, monkeypatch):
    monkeypatch.setattr(ledger_state, "_epsilon", by_hand)
    cap(ledger, 100)
    with pytest.raises(BudgetError, match="inf"):
        ledger.reserve(run="r", release="a", attempt=1, event=Stated(epsilon=1, delta=1e-3), **TERMS)


def test_everyone_s_charges_count_for_each_group(ledger):
    for group, epsilon in (("*", 1), ("women", 2), ("men", 4)):
        ledger.reserve(run="r", release=group, attempt=1, group=group, event=stated(epsilon), **TERMS)
    found = {group: ledger.spent("chest", group, 1e-5).epsilon for group in ("*", "women", "men", "children")}
    assert found == pytest.approx({"*": 1, "women": 3, "men": 5, "children": 1})


@pytest.mark.parametrize("charged", ["*", "women"])
def test_a_group_s_cap_stops_its_own_and_everyone_s_charges(ledger, charged):
    cap(ledger, 2, group="women")
    ledger.reserve(run="r", release="a", attempt=1, group="women", event=stated(1.5), **TERMS)
    ledger.reserve(run="r", release="b", attempt=1, group="men", event=stated(100), **TERMS)
    with pytest.raises(BudgetError, match="'women'"):
        ledger.reserve(run="r", release="c", attempt=1, group=charged, event=stated(1), **TERMS)


def test_everyone_s_cap_cannot_be_passed_by_splitting_into_groups(ledger):
    cap(ledger, 2)
    ledger.reserve(run="r", release="a", attempt=1, event=stated(1), **TERMS)
    ledger.reserve(run="r", release="b", attempt=1, group="men", event=stated(1), **TERMS)
    with pytest.raises(BudgetError, match="'men'"):
        ledger.reserve(run="r", release="c", attempt=1, group="men", event=stated(0.5), **TERMS)
    with pytest.raises(BudgetError, match="'men'"):
        ledger.reserve(run="r", release="c", attempt=1, event=stated(0.5), **TERMS)
    ledger.reserve(run="r", release="c", attempt=1, group="women", event=stated(0.5), **TERMS)


def test_caps_change_by_a_new_row(ledger):
    cap(ledger, 1)
    cap(ledger, 1)
    assert ledger.head[0] == 1
    cap(ledger, 3)
    ledger.reserve(run="r", release="a", attempt=1, event=stated(2), **TERMS)
    cap(ledger, 1)
    with pytest.raises(BudgetError):
        ledger.reserve(run="r", release="b", attempt=1, event=stated(0.1), **TERMS)
    assert [row["body"]["epsilon"] for row in ledger.export() if row["kind"] == "budget"] == [1, 3, 1]


@pytest.mark.parametrize("change", [{"unit": "image"}, {"relation": "replace-one"}])
def test_other_terms_are_refused_rather_than_added(ledger, change):
    ledger.reserve(run="r", release="a", attempt=1, event=stated(1), **TERMS)
    with pytest.raises(LedgerError, match="another unit or relation"):
        ledger.reserve(run="r", release="b", attempt=1, event=STEP, **{**TERMS, **change})
    with pytest.raises(LedgerError, match="another unit or relation"):
        cap(ledger, 3, **change)
    ledger.reserve(run="r", release="b", attempt=1, event=STEP, **{**TERMS, **change, "dataset": "brain"})


def test_a_stated_release_under_another_relation_is_refused(ledger):
    with pytest.raises(LedgerError, match="another relation"):
        ledger.reserve(run="r", release="a", event=stated(1), **{**TERMS, "relation": "replace-one"})
    assert ledger.head[0] == 0


# Plans


def plan(ledger, run, count, event=None):
    ledger.open_run(run, planned=Repeated(event=event or stated(1), count=count), **TERMS)


def test_two_plans_do_not_fit_where_there_is_room_for_one(ledger, tmp_path):
    cap(ledger, 5)
    plan(ledger, "a", 3)
    with Ledger(tmp_path / "site" / "ledger.db") as other, pytest.raises(BudgetError):
        plan(other, "b", 3)
    plan(ledger, "b", 2)
    with pytest.raises(BudgetError):
        ledger.reserve(run="c", release="x", attempt=1, event=stated(0.5), **TERMS)


def test_a_plan_is_held_but_not_spent_and_what_is_left_comes_back(ledger):
    cap(ledger, 5)
    plan(ledger, "a", 4)
    for number in range(2):
        ledger.reserve(run="a", release=f"{number}", attempt=1, event=stated(1), **TERMS)
    spent = ledger.spent("chest")
    assert (spent.epsilon, spent.held) == pytest.approx((2, 4))
    ledger.close_run("a")
    ledger.close_run("a")
    spent = ledger.spent("chest")
    assert (spent.epsilon, spent.held) == pytest.approx((2, 2))
    plan(ledger, "b", 3)


def test_a_run_that_outgrows_its_plan_is_checked_again(ledger):
    cap(ledger, 3)
    plan(ledger, "a", 2)
    for attempt in (1, 2, 3):
        ledger.reserve(run="a", release="s", attempt=attempt, event=stated(1), **TERMS)
    assert ledger.spent("chest").held == pytest.approx(3)
    with pytest.raises(BudgetError):
        ledger.reserve(run="a", release="s", attempt=4, event=stated(1), **TERMS)


def test_an_event_outside_the_plan_comes_on_top(ledger):
    cap(ledger, 3)
    plan(ledger, "a", 2)
    with pytest.raises(BudgetError):
        ledger.reserve(run="a", release="s", attempt=1, event=stated(1.1), **TERMS)
    ledger.reserve(run="a", release="s", attempt=1, event=stated(0.9), **TERMS)
    assert ledger.spent("chest").held == pytest.approx(2.9)


def test_a_plan_can_be_opened_again_and_replaced(ledger):
    cap(ledger, 4)
    plan(ledger, "a", 2)
    before = ledger.head
    plan(ledger, "a", 2)
    assert ledger.head == before
    ledger.reserve(run="a", release="s", attempt=1, event=stated(1), **TERMS)
    plan(ledger, "a", 4)
    assert ledger.spent("chest").held == pytest.approx(4)
    with pytest.raises(BudgetError):
        plan(ledger, "a", 5)
    assert ledger.spent("chest").held == pytest.approx(4)


def test_a_cap_lowered_in_the_middle_stops_the_run(ledger):
    cap(ledger, 4)
    plan(ledger, "a", 4)
    ledger.reserve(run="a", release="1", attempt=1, event=stated(1), **TERMS)
    cap(ledger, 3)
    with pytest.raises(BudgetError):
        ledger.reserve(run="a", release="2", attempt=1, event=stated(1), **TERMS)


def test_steps_inside_a_plan_compose_once(ledger, by_hand):
    """Counted, not timed: a busy disk says nothing about the design."""
    cap(ledger, 3)
    plan(ledger, "a", 100, STEP)
    by_hand.cache_clear()
    for number in range(100):
        ledger.commit(ledger.reserve(run="a", release=f"{number}", attempt=1, event=STEP, **TERMS))
    assert by_hand.cache_info().misses == 1
    assert ledger.spent("chest").epsilon == ledger.spent("chest").held


# Input


@pytest.mark.parametrize("name", ["", " x", "x ", "a\nb", "a\x00b", "x" * 129, "\u202e", None, 7])
@pytest.mark.parametrize("field", ["run", "release", "dataset", "group", "unit"])
def test_names_are_short_and_printable(ledger, field, name):
    values = {"run": "r", "release": "s", "attempt": 1, "group": "*", "event": stated(1), **TERMS}
    with pytest.raises(ConfigError, match=field):
        ledger.reserve(**{**values, field: name})
    assert ledger.head[0] == 0


@pytest.mark.parametrize(
    "change", [{"attempt": 0}, {"attempt": 1.5}, {"relation": "neighbours"}, {"event": "gaussian"}, {"event": None}]
)
def test_charges_out_of_range_are_refused(ledger, change):
    with pytest.raises(ConfigError):
        ledger.reserve(**{"run": "r", "release": "s", "attempt": 1, "event": stated(1), **TERMS, **change})
    assert ledger.head[0] == 0


@pytest.mark.parametrize(
    "change", [{"epsilon": -1}, {"epsilon": math.nan}, {"epsilon": math.inf}, {"delta": 0}, {"delta": 1}]
)
def test_caps_out_of_range_are_refused(ledger, change):
    with pytest.raises(ConfigError):
        cap(ledger, **{"epsilon": 1, **change})
    assert ledger.head[0] == 0


def test_notes(ledger):
    ledger.note("checked by the data-protection officer")
    with pytest.raises(ConfigError):
        ledger.note("x" * 1001)
    assert [row["body"]["text"] for row in ledger.export()] == ["checked by the data-protection officer"]


def test_spent_needs_a_data_set_and_a_delta(ledger):
    with pytest.raises(LedgerError, match="no such data set"):
        ledger.spent("chest")
    ledger.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    with pytest.raises(ConfigError, match="no cap"):
        ledger.spent("chest")
    with pytest.raises(ConfigError, match="out of range"):
        ledger.spent("chest", delta=1.0)


def test_a_reservation_of_another_ledger_is_not_committed(ledger, tmp_path):
    with Ledger(tmp_path / "other.db") as other:
        made = other.reserve(run="r", release="s", attempt=1, event=stated(1), **TERMS)
    with pytest.raises(LedgerError, match="no such reservation"):
        ledger.commit(made)
