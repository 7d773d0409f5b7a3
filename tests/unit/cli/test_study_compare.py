"""``medveil study compare`` as a user types it; the comparison itself is replaced."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from medveil.cli.main import cli
from medveil.study import compare as module
from medveil.study.compare_result import ArmRow, Comparison
from medveil.study.grid_result import spread
from medveil.study.grid_spending import Spending


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def comparison(plan, out, **options):
        calls.append({"plan": plan, "out": out, **options})
        out.mkdir()
        row = ArmRow(
            arm="central-dp",
            title="Central DP",
            trusted="a curator",
            epsilon=3.0,
            epsilon_server=3.0,
            epsilon_insider=3.0,
            delta=1e-5,
            stamp=None,
            metrics={"auc": spread([0.9]), "balanced_accuracy": spread([0.8])},
            dropouts=None,
            rounds=2,
            bytes_sent_per_site=None,
            seconds=1.0,
            seeds=(1,),
            failed={},
        )
        return Comparison(plan.name, plan.digest(), "classification", (row,), (), Spending((), 0, 0), True)

    monkeypatch.setattr(module, "compare", comparison)
    return calls


def _invoke(*arguments):
    return CliRunner().invoke(cli, ["study", "compare", *map(str, arguments)])


def test_defaults(asked, tmp_path):
    answer = _invoke("pneumonia-28-private", "--out", tmp_path / "trust")
    assert answer.exit_code == 0, answer.output
    (call,) = asked
    assert (call["arms"], call["epsilons"], call["at"], call["local_steps"]) == (None, None, {}, None)
    assert call["seeds"] == [1, 2, 3] == list(module.SEEDS)
    assert (call["references"], call["jobs"], call["ledgers"]) == (True, 1, None)
    assert "| Central DP | 0.900 | 3 | 3 | 3 | a curator |" in answer.output
    assert (tmp_path / "trust" / "trust-models.png").stat().st_size > 1000


def test_every_option_arrives(asked, tmp_path):
    options = ("--arms", "central-dp, local-dp", "--epsilon", "1,8", "--seed-list", "5,9", "--local-steps", "4")
    more = ("--no-references", "--ledger", "led", "--jobs", "2", "--json", "-q", "--set", "federation.rounds=8")
    at = ("--at", "1:training.optimiser.lr=0.25", "--at", "none:training.optimiser.lr=0.5")
    answer = _invoke("pneumonia-28-private", "--out", tmp_path / "trust", *options, *more, *at)
    assert answer.exit_code == 0, answer.output
    (call,) = asked
    assert (call["arms"], call["epsilons"], call["seeds"]) == (["central-dp", "local-dp"], [1.0, 8.0], [5, 9])
    assert (call["local_steps"], call["references"], call["jobs"], call["ledgers"]) == (4, False, 2, Path("led"))
    assert call["plan"].federation.rounds == 8
    rates = {at: (plan.training.optimiser.lr, plan.federation.rounds) for at, plan in call["at"].items()}
    assert rates == {1.0: (0.25, 8), None: (0.5, 8)}
    table = json.loads(answer.stdout)
    assert table["plan_hash"] == call["plan"].digest()
    assert table["rows"][0]["metrics"]["auc"]["mean"] == 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        ("--epsilon", "1,none"),
        ("--epsilon", "1,many"),
        ("--seed-list", "x"),
        ("--seeds", "2", "--seed-list", "1"),
        ("--at", "lr=3"),
        ("--local-steps", "0"),
    ],
)
def test_wrong_options_exit_with_2(asked, tmp_path, wrong):
    answer = _invoke("pneumonia-28-private", "--out", tmp_path / "trust", *wrong)
    assert answer.exit_code == 2, answer.output
    assert not asked
