"""``medveil audit``, as a user types it."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from medveil.accounting.ledger import Ledger
from medveil.audit import run as run_module
from medveil.audit.claim import claim_of
from medveil.audit.run import Effort
from medveil.cli.audit import _print_whole
from medveil.cli.main import cli
from medveil.dp import noise as noise_module
from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.errors import AttackError, ManifestError, RunError
from medveil.study.folder import read_json, write_json
from medveil.study.manifest import write_manifest
from medveil.study.plan import load_plan
from medveil.study.train import train
from medveil.training.private import PrivateTrainer
from tiny_plans import AUDITED, merged, without

PLAN = without(AUDITED, "[training]")


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN, encoding="utf-8")
    return str(path)


def _audit(*arguments):
    return CliRunner().invoke(cli, ["audit", "components", *arguments])


def test_a_right_step_passes_and_the_table_says_that_it_is_no_proof(plan, monkeypatch):
    monkeypatch.setenv("MEDVEIL_DATA", "/nowhere")
    answer = _audit(plan, "--steps", "60")
    assert answer.exit_code == 0, answer.output
    for word in ("sensitivity", "divisor", "noise-by-tensor", "sampling-rate", "event", "Epsilon"):
        assert word in answer.output
    assert "not a proof of the guarantee" in answer.output
    assert "FAILED" not in answer.output


def test_half_the_noise_exits_with_7(plan, monkeypatch):
    def half(self, total, random):
        noise = np.rint(rounded_gaussian(self.std_grid, self.dimension, random) / 2).astype(np.int64)
        return self.decode(self._rounded(total) + noise)

    monkeypatch.setattr(NoiseMechanism, "release", half)
    answer = _audit(plan, "--steps", "60", "--json")
    assert answer.exit_code == 7
    content = json.loads(answer.output)
    assert not content["passed"]
    noise = next(line for line in content["components"] if line["name"] == "noise")
    assert noise["high"] < 0.8 < noise["claimed"]
    assert content["epsilon"]["not_excluded"] > 1.5 * content["epsilon"]["claimed"]
    table = _audit(plan, "--steps", "60")
    assert table.exit_code == 7
    assert "FAILED: noise" in table.output


@pytest.mark.parametrize("shape", ["28", "1,x,3", "1,0,3", ""])
def test_a_shape_that_is_none(plan, shape):
    assert _audit(plan, "--shape", shape).exit_code == 2


# A run: six rounds of a distributed plan on phantoms, audited with little effort.
RUN = merged(
    PLAN,
    """
[data]
source = { kind = "phantom", size = [16, 16], repeated = 0.0, subjects = 120 }
partition = { kind = "iid", sites = 3 }
splits = { kind = "random" }
[federation]
rounds = 6
[evaluation]
bootstrap = { resamples = 20 }
[privacy]
trusted = "nobody"
[privacy.secure_aggregation]
colluding = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.2, nominal_units = 80 }
""",
)
LITTLE = Effort(canaries=300, run_steps=100, single_steps=15, sampling_steps=60)


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(run_module, "QUICK", LITTLE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "plan.toml"
    path.write_text(RUN, encoding="utf-8")
    out = folder / "run"
    train(load_plan(path), out)
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run whose record may be changed; ``copied(change)`` signs it again."""
    import shutil

    def change(edit):
        out = tmp_path / "copy"
        shutil.copytree(finished, out)
        record = read_json(out / "record.json")
        edit(record)
        write_json(out / "record.json", record)
        write_manifest(out, record["plan_hash"])
        return str(out)

    return change


def _whole(*arguments):
    return CliRunner().invoke(cli, ["audit", *map(str, arguments)])


def _json(answer):
    """The document on standard output; progress went elsewhere."""
    return json.loads(answer.stdout)


def test_a_finished_run_is_consistent_with_what_its_ledgers_were_charged(finished, little, monkeypatch):
    monkeypatch.setenv("MEDVEIL_DATA", "/nowhere")
    answer = _whole("--quick", finished, "--json")
    assert answer.exit_code == 0, answer.output
    content = _json(answer)
    record = read_json(finished / "record.json")
    assert content["kind"] == "run"
    assert content["verdict"] == "consistent"
    assert content["claimed_epsilon"] == record["privacy"]["epsilon"]
    assert content["plan_hash"] == record["plan_hash"]
    assert 0 <= content["lower_bound"] <= content["claimed_epsilon"]
    assert content["confidence"] == 0.99
    assert set(content["components"]) == {"sensitivity", "noise", "sampling"}
    for part in content["components"].values():
        assert part["passed"]
        assert part["measured"] == pytest.approx(part["claimed"], rel=0.2)
    details = content["details"]
    assert details["one_run"]["steps"] == details["steps"] == record["privacy"]["steps"] == 6
    assert details["accounting"]["passed"]
    assert content["seconds"] > 0


def test_a_plan_in_words(plan, little):
    answer = _whole(plan, "--quick", "-q", "--confidence", "0.95")
    assert answer.exit_code == 0, answer.output
    assert re.search(r"Measured: at least \d", answer.output)
    assert "Verdict: consistent" in answer.output
    assert "95 % confidence" in answer.output
    assert "not a proof of the guarantee" in answer.output


def test_a_build_without_noise_exits_with_7(finished, little, monkeypatch, capsys):
    original = noise_module.rounded_gaussian
    monkeypatch.setattr(noise_module, "rounded_gaussian", lambda *given: 0 * original(*given))
    answer = _whole(finished, "--quick", "--json")
    assert answer.exit_code == 7
    content = _json(answer)
    assert content["verdict"] == "violated"
    assert not content["components"]["noise"]["passed"]
    assert any(sentence.startswith("one step: epsilon is at least") for sentence in content["violations"])
    _print_whole(content)
    table = capsys.readouterr().out
    assert "VIOLATED noise" in table
    assert "Verdict: violated" in table


@pytest.mark.parametrize("name", ["noise_multiplier", "sampling_rate", "l2_clip_norm"])
def test_a_record_of_another_mechanism_than_the_plans(copied, little, name):
    run = copied(lambda record: record["privacy"].update({name: 0.9 * record["privacy"][name]}))
    answer = _whole(run, "--quick", "--json")
    assert answer.exit_code == 7
    assert any(name in sentence for sentence in _json(answer)["violations"])


def test_ledgers_that_were_charged_too_little(copied, little):
    def charge_less(record):
        for kept in record["privacy"]["ledgers"].values():
            kept["epsilon_all_runs"] *= 0.5

    answer = _whole(copied(charge_less), "--quick", "--json")
    assert answer.exit_code == 7
    assert any("ledgers were charged" in sentence for sentence in _json(answer)["violations"])


def test_every_noisy_step_of_a_run_is_charged(tmp_path, monkeypatch):
    """An audit looks at the step; that a training takes as many as it pays for is seen by counting."""
    taken = Counter()
    take = PrivateTrainer.encoded_step

    def counted(trainer, step):
        taken[id(trainer)] += 1
        return take(trainer, step)

    monkeypatch.setattr(PrivateTrainer, "encoded_step", counted)
    path = tmp_path / "plan.toml"
    path.write_text(RUN, encoding="utf-8")
    record = train(load_plan(path), tmp_path / "run")
    assert sorted(taken.values()) == [record["privacy"]["steps"]] * 3
    for site in ("site-1", "site-2", "site-3"):
        with Ledger(tmp_path / "run" / "ledgers" / f"{site}.sqlite", create=False) as ledger:
            kinds = Counter(row["kind"] for row in ledger.export())
        assert kinds["reserve"] == kinds["commit"] == record["privacy"]["steps"]


def test_a_record_that_says_less_than_was_spent(copied, little):
    run = copied(lambda record: record["privacy"].update(epsilon=0.5 * record["privacy"]["epsilon"]))
    answer = _whole(run, "--quick", "--json")
    assert answer.exit_code == 7
    assert any(sentence.startswith("accounting") for sentence in _json(answer)["violations"])


def test_a_run_that_was_changed_after_it_was_signed(finished, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    record = read_json(out / "record.json")
    record["privacy"]["epsilon"] = 0.1
    write_json(out / "record.json", record)
    with pytest.raises(ManifestError):
        claim_of(out)


def test_nothing_claimed(copied, tmp_path):
    with pytest.raises(AttackError, match="no privacy claim"):
        claim_of("phantom")
    with pytest.raises(AttackError, match="patients or images"):
        claim_of("pneumonia-28-private-site")
    stamped = copied(lambda record: record["privacy"].update(stamp="NOT PRIVATE", stamp_reasons=["seeded noise"]))
    with pytest.raises(AttackError, match="no privacy claim") as told:
        claim_of(stamped)
    assert "seeded noise" in str(told.value)
    path = tmp_path / "plan.toml"
    path.write_text(merged(PLAN, '[privacy.dp]\nnoise = { multiplier = 1.5, generator = "seeded" }'), encoding="utf-8")
    with pytest.raises(AttackError, match="no privacy claim"):
        claim_of(path)


def test_what_is_no_finished_run(tmp_path, finished):
    with pytest.raises(RunError):
        claim_of(tmp_path)
    with pytest.raises(AttackError, match="is what it is"):
        claim_of(finished, ["seed=2"])
    answer = _whole(finished, "--confidence", "1.5", "--quick")
    assert isinstance(answer.exception, AttackError)


def test_help_and_the_two_kinds_of_audit():
    overview = _whole("--help")
    assert overview.exit_code == 0
    assert "components" in overview.output
    assert "RUN" in overview.output
    assert "--quick" in _whole("anything", "--help").output
    assert _whole("--no-such-option").exit_code == 2
