"""Epsilon over all runs: counted as the policy counts it, and never by loosening what the hospital had."""

from types import SimpleNamespace

import pytest

from medveil.accounting.accountants import epsilon_of
from medveil.accounting.events import Repeated
from medveil.accounting.ledger import Ledger
from medveil.accounting.ledger_rows import EVERYONE
from medveil.connect.audit_log import AuditLog
from medveil.connect.home import Home
from medveil.connect.permission import Permission
from medveil.errors import BudgetError
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan

PLAN = ("federation.rounds=20",)
POLICY = """
[privacy]
modes = ["distributed"]
units = ["patient"]
epsilon = 20.0
epsilon_total = {total}
delta = {delta}
relation = "{relation}"
min_sites = 2
colluding = 0
min_included = 2
"""


@pytest.fixture
def site(tmp_path):
    """``site(policy keys)``: asks for room in the ledger of one site, as a run of that name."""
    home = Home(tmp_path)
    home.folder.mkdir()
    bound = bind_plan(load_plan("pneumonia-28-private", PLAN))
    log = AuditLog(home.audit_path)

    def ledger():
        home.ledgers.mkdir(exist_ok=True)
        return Ledger(home.ledgers / "a.sqlite")

    def ask(run, *, spend=True, total=20.0, delta=1e-5, relation="add-remove"):
        home.policy_path.write_text(POLICY.format(total=total, delta=delta, relation=relation))
        permission = Permission(home, log, load_plan("pneumonia-28-private", PLAN), None)
        permission.cap(bound, "a", "chest", run)
        if spend:
            with ledger() as book:
                book.open_run(run, dataset="chest", unit="patient", relation=bound.relation, planned=bound.event())
                book.reserve(
                    run=run,
                    release="all",
                    dataset="chest",
                    unit="patient",
                    relation=bound.relation,
                    event=Repeated(event=bound.step_event(), count=bound.steps),
                )

    def cap():
        with ledger() as book:
            return book.state().datasets["chest"].caps.get(EVERYONE)

    return SimpleNamespace(ask=ask, ledger=ledger, cap=cap, bound=bound)


def of_runs(bound, count, relation):
    event = Repeated(event=bound.step_event(), count=count * bound.steps)
    return epsilon_of(event, delta=1e-5, relation=relation).epsilon


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
def test_as_many_runs_as_fit_under_the_policys_own_relation(site, relation):
    assert site.bound.relation == "add-remove"
    fitting = next(count for count in range(1, 50) if of_runs(site.bound, count + 1, relation) > 20.0)
    for number in range(fitting):
        site.ask(f"run-{number}", relation=relation)
        site.ask(f"run-{number}", relation=relation, spend=False)  # another attempt at the same run costs nothing more
    with pytest.raises(BudgetError, match="epsilon"):
        site.ask("one-more", relation=relation, spend=False)
    assert fitting == {"add-remove": 5, "replace-one": 2}[relation]


def test_the_ledger_gets_the_policys_cap(site):
    site.ask("run-1", total=12.0)
    assert (site.cap().epsilon, site.cap().delta, site.cap().relation) == (12.0, 1e-5, "add-remove")
    site.ask("run-1", total=9.0, spend=False)
    assert site.cap().epsilon == 9.0


@pytest.mark.parametrize(("epsilon", "delta"), [(9.0, 1e-3), (9.0, 1e-5), (9.0, 1e-6), (30.0, 1e-6)])
def test_a_cap_of_the_hospitals_own_is_not_loosened(site, epsilon, delta):
    with site.ledger() as book:
        book.set_budget("chest", epsilon=epsilon, delta=delta, relation="add-remove", unit="patient")
    site.ask("run-1", total=12.0, spend=False)
    assert (site.cap().epsilon, site.cap().delta) == (epsilon, delta)


def test_both_hold_where_neither_cap_is_stricter(site):
    with site.ledger() as book:
        book.set_budget("chest", epsilon=30.0, delta=1e-6, relation="add-remove", unit="patient")
    site.ask("run-1", total=9.0)
    with pytest.raises(BudgetError):
        site.ask("run-2", total=9.0, spend=False)
