"""``medveil study`` as a user types it; the grid itself is replaced."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from medveil.cli.main import cli
from medveil.study import epsilon_grid as module
from medveil.study.grid_result import Grid, rows_of
from medveil.study.grid_runs import GridRun
from medveil.study.grid_spending import Spending


@pytest.fixture
def asked(monkeypatch):
    """What the verb asked the function for."""
    calls = []

    def grid(plans, out, **options):
        calls.append({"plans": plans, "out": out, **options})
        out.mkdir()
        runs = (GridRun("phantom", "central", 3.0, 1, "x", metrics={"auc": 0.9, "balanced_accuracy": 0.8}),)
        return Grid("classification", runs, rows_of(runs, ("auc", "balanced_accuracy")), Spending((), 0, 0))

    monkeypatch.setattr(module, "epsilon_grid", grid)
    return calls


def _invoke(*arguments):
    return CliRunner().invoke(cli, ["study", "epsilon-grid", *map(str, arguments)])


def test_defaults(asked, tmp_path):
    answer = _invoke("phantom", "--out", tmp_path / "grid")
    assert answer.exit_code == 0, answer.output
    (call,) = asked
    assert call["epsilons"] == [0.5, 1.0, 3.0, 8.0, None] == list(module.EPSILONS)
    assert call["seeds"] == [1, 2, 3] == list(module.SEEDS)
    assert (call["jobs"], call["ledgers"]) == (1, None)
    assert "| phantom | central | 3 |" in answer.output
    assert (tmp_path / "grid" / "epsilon-accuracy.png").stat().st_size > 1000
    assert (tmp_path / "grid" / "epsilon-accuracy.svg").exists()


def test_every_option_arrives(asked, tmp_path):
    options = ("--epsilon", "2, none", "--seed-list", "5,9", "--ledger", "led", "--jobs", "2", "--json", "-q")
    settings = ("--set", "federation.rounds=2", "--set", "name=mine")
    answer = _invoke("phantom", "pneumonia-28", "--out", tmp_path / "grid", *options, *settings)
    assert answer.exit_code == 0, answer.output
    (call,) = asked
    assert (call["epsilons"], call["seeds"], call["jobs"]) == ([2.0, None], [5, 9], 2)
    assert call["ledgers"] == Path("led")
    assert [(plan.name, plan.federation.rounds) for plan in call["plans"]] == [("mine", 2)] * 2
    assert json.loads(answer.stdout)["rows"][0]["metrics"]["auc"]["mean"] == 0.9


def test_a_number_of_seeds(asked, tmp_path):
    assert _invoke("phantom", "--out", tmp_path / "grid", "--seeds", "5").exit_code == 0
    assert asked[0]["seeds"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--epsilon", "1,many"),
        ("--epsilon", ""),
        ("--seed-list", "1,x"),
        ("--seeds", "0"),
        ("--seeds", "2", "--seed-list", "1,2"),
        ("--jobs", "0"),
    ],
)
def test_wrong_options_exit_with_2(asked, tmp_path, wrong):
    answer = _invoke("phantom", "--out", tmp_path / "grid", *wrong)
    assert answer.exit_code == 2, answer.output
    assert not asked


def test_a_plan_and_a_folder_are_needed(asked, tmp_path):
    assert _invoke("--out", tmp_path / "grid").exit_code == 2
    assert _invoke("phantom").exit_code == 2
    assert not asked
