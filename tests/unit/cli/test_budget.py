"""``medveil budget``, as hospital IT types it."""

import json
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from medveil.accounting.events import Gaussian, Repeated, Stated
from medveil.accounting.ledger import Ledger
from medveil.cli.main import cli, main

TERMS = {"dataset": "chest", "unit": "patient", "relation": "add-remove"}
SET = ("--dataset", "chest", "--epsilon", "3", "--delta", "1e-5", "--relation", "add-remove", "--unit", "patient")


def run(*arguments):
    return CliRunner().invoke(cli, ["budget", *map(str, arguments)])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.db"
    assert run("set", "--ledger", path, *SET).exit_code == 0
    return path


@pytest.fixture
def used(path):
    with Ledger(path) as ledger:
        event = Gaussian(noise_multiplier=4.0)
        ledger.open_run("study", planned=Repeated(event=event, count=2), **TERMS)
        ledger.commit(ledger.reserve(run="study", release="step-1", attempt=1, event=event, **TERMS))
        ledger.reserve(run="men-only", release="mean", attempt=1, group="men", event=event, **TERMS)
    return path


def test_set_says_what_it_set(tmp_path):
    answer = run("set", "--ledger", tmp_path / "new.db", *SET, "--group", "women")
    assert answer.output == "chest, group women: at most epsilon 3 at delta 1e-05, add-remove, per patient\n"


def test_show_in_words(used):
    answer = run("show", "--ledger", used)
    assert answer.exit_code == 0, answer.output
    assert "chest, group *, per patient, add-remove" in answer.output
    assert "cap        epsilon 3 at delta 1e-05 for group *" in answer.output
    assert "open runs  study" in answer.output


def test_show_as_json(used):
    lines = json.loads(run("show", "--ledger", used, "--json").output)
    assert [(line["group"], line["cap"]["group"]) for line in lines] == [("*", "*"), ("men", "*")]
    everyone, men = lines
    # Balle & Wang 2018, Theorem 8, at delta 1e-5: sigma 4 gives 1.0128..., two of them are sigma 4 / sqrt 2.
    assert everyone["epsilon"] == pytest.approx(gaussian_epsilon(4.0), rel=1e-3)
    assert everyone["held"] == pytest.approx(gaussian_epsilon(4 / 2**0.5), rel=1e-3)
    assert men["epsilon"] == pytest.approx(gaussian_epsilon(4 / 2**0.5), rel=1e-3)
    assert men["held"] == pytest.approx(gaussian_epsilon(4 / 3**0.5), rel=1e-3)
    assert men["remaining"] == pytest.approx(3 - men["held"])
    assert everyone["open_reservations"] == []
    assert men["open_reservations"] == [{"run": "men-only", "release": "mean", "attempt": 1}]
    assert (men["runs"], men["open_runs"]) == (["men-only", "study"], ["study"])


def gaussian_epsilon(sigma, delta=1e-5):
    """The exact epsilon of the Gaussian mechanism, from its closed form."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def gap(epsilon):
        a, b = 0.5 / sigma, epsilon * sigma
        return norm.cdf(a - b) - norm.sf(a + b) * 2.718281828459045**epsilon - delta

    return brentq(gap, 0, 50)


def test_show_without_a_cap(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.reserve(run="r", release="s", event=Gaussian(noise_multiplier=4.0), **TERMS)
    (line,) = json.loads(run("show", "--ledger", path, "--json").output)
    assert line["cap"] is line["epsilon"] is line["remaining"] is None
    assert "give --delta" in run("show", "--ledger", path).output
    (line,) = json.loads(run("show", "--ledger", path, "--json", "--delta", "1e-5").output)
    assert line["epsilon"] == pytest.approx(gaussian_epsilon(4.0), rel=1e-3)


def test_show_where_no_epsilon_holds(path):
    with Ledger(path) as ledger:
        ledger.set_budget("other", epsilon=3, delta=1e-3, relation="add-remove", unit="patient")
        ledger.reserve(run="r", release="s", event=Stated(epsilon=1, delta=1e-4), **{**TERMS, "dataset": "other"})
    other = json.loads(run("show", "--ledger", path, "--json", "--delta", "1e-6").output)[1]
    assert other["dataset"] == "other"
    assert other["epsilon"] is None
    assert other["remaining"] == pytest.approx(2, rel=0.01)


def test_an_empty_ledger(tmp_path):
    Ledger(tmp_path / "ledger.db").close()
    assert run("show", "--ledger", tmp_path / "ledger.db").output == "The ledger is empty.\n"
    assert "Head: none yet" in run("export", "--ledger", tmp_path / "ledger.db", "--out", tmp_path / "rows").output


def test_verify_and_export_agree_on_the_head(used, tmp_path):
    rows = [json.loads(line) for line in run("export", "--ledger", used).output.splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["body"]["epsilon"] == 3
    head = rows[-1]["hash"]
    assert head in run("verify", "--ledger", used, "--head", head).output
    out = tmp_path / "rows.jsonl"
    assert head in run("export", "--ledger", used, "--out", out).output
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


def test_verify_names_the_row_and_exits_with_7(used):
    with closing(sqlite3.connect(used)) as connection, connection:
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_stay'").fetchone()[0]
        connection.execute("DROP TRIGGER entries_stay")
        connection.execute("UPDATE entries SET body = replace(body, '3.0', '9.0') WHERE seq = 1")
        connection.execute(sql)
    answer = run("verify", "--ledger", used)
    assert answer.exit_code == 7
    assert "row 1: content" in answer.output
    answer = run("verify", "--ledger", used, "--json")
    assert answer.exit_code == 7
    assert json.loads(answer.output)["problem"]["row"] == 1


def test_another_head_exits_with_7(used):
    assert run("verify", "--ledger", used, "--head", "0" * 64).exit_code == 7


def test_a_lost_head_file_is_renewed(used):
    head = json.loads(run("verify", "--ledger", used, "--json").output)["head"]
    used.with_name("ledger.db.head").unlink()
    assert run("verify", "--ledger", used).exit_code == 7
    assert run("verify", "--ledger", used, "--head", head, "--renew-head").exit_code == 0
    assert run("verify", "--ledger", used).exit_code == 0


def test_close_gives_back_what_was_planned(used):
    before = json.loads(run("show", "--ledger", used, "--json").output)[0]
    assert run("close", "study", "--ledger", used).exit_code == 0
    after = json.loads(run("show", "--ledger", used, "--json").output)[0]
    assert after["epsilon"] == before["epsilon"] == after["held"] < before["held"]
    assert after["open_runs"] == []


def test_a_missing_ledger_exits_with_7(tmp_path, capsys):
    for verb in ("show", "verify", "export"):
        with pytest.raises(SystemExit) as left:
            main(["budget", verb, "--ledger", str(tmp_path / "none.db")])
        assert left.value.code == 7
    assert "Remedy" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_input_exits_with_2(tmp_path):
    for changed in (("--epsilon", "-1"), ("--delta", "1"), ("--unit", "")):
        with pytest.raises(SystemExit) as left:
            main(["budget", "set", "--ledger", str(tmp_path / "l.db"), *SET, *changed])
        assert left.value.code == 2
