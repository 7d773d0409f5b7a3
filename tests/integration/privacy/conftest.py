"""Runs of plans with a privacy claim, and what each of them was charged."""

import sys
from pathlib import Path

import pytest

from medveil.accounting.ledger import Ledger
from medveil.secagg.site import SiteSession
from medveil.study import federated
from medveil.study.plan import load_plan
from medveil.study.train import train

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path


@pytest.fixture
def plan(write_plan):
    """``plan("federation.rounds=1", ...)``: the plan whose sites share their noise, or that of another text."""
    from privacy_plans import DISTRIBUTED

    return lambda *overrides, text=DISTRIBUTED: load_plan(write_plan(text), overrides)


@pytest.fixture
def run(plan, tmp_path):
    """Train; every run has one ledger folder, whatever its name."""

    def start(*overrides, out="run", **text):
        return train(plan(*overrides, **text), tmp_path / out, ledgers=tmp_path / f"ledgers of {out}")

    return start


@pytest.fixture
def releases(tmp_path):
    """``releases()`` gives how many steps each site's ledger was charged."""

    def count(out="run"):
        charged = {}
        for path in sorted((tmp_path / f"ledgers of {out}").glob("*.sqlite")):
            with Ledger(path) as ledger:
                charged[path.stem] = ledger.spent("phantom-classification", delta=1e-3).releases
        return charged

    return count


@pytest.fixture
def submitted(monkeypatch):
    """Every vector that any site masked, by site: what may have left."""
    seen, original = {}, SiteSession.submit

    def recording(session, vector, context):
        seen.setdefault(session.name, []).append(vector.tobytes())
        return original(session, vector, context)

    monkeypatch.setattr(SiteSession, "submit", recording)
    return seen


@pytest.fixture
def sent(monkeypatch):
    """Every message that any site sends, as it leaves."""
    messages = []

    class Spy(federated.Site):
        def join(self):
            messages.append(super().join())
            return messages[-1]

        def receive(self, data):
            answers = super().receive(data)
            messages.extend(answers)
            return answers

    monkeypatch.setattr(federated, "Site", Spy)
    return messages
