"""A comparison of trust models, as a user would make it: its table against the records, used again, with failures."""

import csv
import json

import pytest
from click.testing import CliRunner

from medveil.cli.main import cli
from medveil.errors import ResumeError
from medveil.study import grid_runs
from medveil.study.compare import compare
from medveil.study.plan import load_plan
from tiny_plans import DISTRIBUTED, merged

PLAN = merged(
    DISTRIBUTED,
    """
name = "small"
seed = 0
[data]
partition = { kind = "iid", sites = 4 }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[data.source]
subjects = 80
scanners = 2
[federation]
rounds = 4
[evaluation]
bootstrap = { resamples = 0 }
[privacy.dp]
noise = { epsilon = 3.0 }
""",
)
ARMS = ["central-dp", "distributed-dp-t0", "distributed-dp-t1", "local-dp", "secure-sum", "federated"]


@pytest.fixture
def plan_of(write_plan):
    def make(*overrides):
        return load_plan(write_plan(PLAN), overrides)

    return make


def _record(out, arm, epsilon, seed):
    return json.loads((out / arm / f"eps-{epsilon}" / f"seed-{seed}" / "record.json").read_text())


def test_the_table_says_what_the_records_say(write_plan, tmp_path):
    out = tmp_path / "trust"
    command = ["study", "compare", str(write_plan(PLAN)), "--out", str(out), "--seed-list", "1,2", "--json"]
    answer = CliRunner().invoke(cli, command)
    assert answer.exit_code == 0, answer.output
    table = json.loads(answer.stdout)
    assert table == json.loads((out / "table.json").read_text())
    assert table["plan_hash"] == load_plan(write_plan(PLAN)).digest()
    rows = {row["arm"]: row for row in table["rows"]}
    assert list(rows) == [*ARMS, "pooled", "site-alone"]
    for arm in ARMS:
        private = "dp" in arm
        records = [_record(out, arm, "3" if private else "none", seed) for seed in (1, 2)]
        row = rows[arm]
        values = [record["test"]["auc"]["value"] for record in records]
        found = row["metrics"]["auc"]
        assert (found["low"], found["high"]) == (min(values), max(values))
        assert found["mean"] == pytest.approx(sum(values) / 2)
        assert row["rounds"] == (1 if arm == "local-dp" else 4)
        assert row["seconds"] > 0
        if not private:
            assert row["epsilon"] is row["epsilon_server"] is row["epsilon_insider"] is None
        elif arm == "distributed-dp-t1":
            assert row["epsilon_server"] < row["epsilon_insider"] == max(one["privacy"]["epsilon"] for one in records)
        elif arm == "distributed-dp-t0":
            assert row["epsilon_server"] == pytest.approx(3.0, rel=0.01)
            assert row["epsilon_insider"] > 3.1
        else:
            assert row["epsilon_server"] == row["epsilon_insider"] == pytest.approx(3.0, rel=0.01)
    alone = [_record(out, "federated", "none", seed)["references"] for seed in (1, 2)]
    assert rows["pooled"]["metrics"]["auc"]["high"] == max(one["central"]["auc"] for one in alone)
    assert rows["site-alone"]["metrics"]["auc"]["low"] == min(one["local_only"]["auc"] for one in alone)
    assert [rows[arm]["dropouts"] for arm in ARMS] == [None, 1, 1, 0, 1, 0]
    assert rows["distributed-dp-t1"]["bytes_sent_per_site"] > rows["local-dp"]["bytes_sent_per_site"] > 1000
    assert rows["central-dp"]["bytes_sent_per_site"] is None
    (together,) = table["spending"]["together"]
    assert together["runs"] == 8
    assert table["spending"]["unprotected"] == 4
    assert len(list(csv.DictReader((out / "table.csv").read_text().splitlines()))) == 8
    assert (out / "trust-models.png").stat().st_size > 1000
    assert (out / "trust-models.svg").exists()


def test_the_same_data_and_sites_in_every_arm(plan_of, tmp_path):
    out = tmp_path / "trust"
    compare(plan_of(), out, arms=["distributed-dp-t1", "local-dp", "federated"], seeds=[5])
    folders = sorted(path.parent for path in out.glob("*/*/*/record.json"))
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    assert len(records) == 3
    assert len({json.dumps(record["data"]["sites"]) for record in records if len(record["data"]["sites"][0]) > 1}) == 1
    for record in records[1:]:
        assert [site["site"] for site in record["data"]["sites"]] == [
            site["site"] for site in records[0]["data"]["sites"]
        ]
        assert record["data"]["subjects"] == records[0]["data"]["subjects"]
    inputs = [json.loads((folder / "state" / "inputs.json").read_text()) for folder in folders]
    for part in ("data", "first weights", "network"):
        assert len({one[part] for one in inputs}) == 1


def test_a_secure_sum_without_noise_ends_where_plain_federation_does(plan_of, tmp_path):
    """Fixed point rounds each coordinate; nothing else may differ, or the arm would measure something else."""
    rows = compare(plan_of(), tmp_path / "trust", arms=["secure-sum", "federated"], seeds=[1], references=False).rows
    summed, plain = (row.metrics["auc"].mean for row in rows)
    assert summed == pytest.approx(plain, abs=1e-3)
    assert len(rows) == 2
    record = _record(tmp_path / "trust", "secure-sum", "none", 1)
    assert record["secure_aggregation"]["clipped"] == 0


def test_finished_runs_are_used_again_and_another_plan_is_refused(plan_of, tmp_path, monkeypatch):
    out = tmp_path / "trust"
    first = compare(plan_of(), out, arms=["distributed-dp-t1"], seeds=[1])
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/weights.safetensors")}
    assert stamps
    again = compare(plan_of(), out, arms=["distributed-dp-t1", "secure-sum"], seeds=[1])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.rows[0] == first.rows[0]
    monkeypatch.setattr(grid_runs, "train", lambda *_, **__: pytest.fail("refused before anything is trained"))
    with pytest.raises(ResumeError):
        compare(plan_of("federation.rounds=5"), out, arms=["local-dp", "distributed-dp-t1"], seeds=[1])


def test_an_arm_whose_threshold_cannot_protect_fails_with_its_reason(plan_of, tmp_path):
    """Four sites, two of which may vanish: with one on the server's side no threshold protects."""
    plan = plan_of("privacy.secure_aggregation={colluding=0, dropouts=1}")
    out = tmp_path / "trust"
    rows = compare(plan, out, arms=["distributed-dp-t2", "distributed-dp-t0"], seeds=[1]).rows
    assert rows[0].metrics["auc"] is None
    assert "threshold" in rows[0].failed[1]
    assert rows[1].failed == {}
    assert rows[0].failed[1] in (out / "table.md").read_text()
