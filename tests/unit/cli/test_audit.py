"""``medveil audit``, as a user types it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medveil.cli.main import cli
from medveil.dp.noise import NoiseMechanism, rounded_gaussian

PLAN = """
name = "audited"
task = "classification"
[data]
source = { kind = "phantom", size = [16, 16], repeated = 0.0 }
[model]
kind = "cnn"
channels = [4, 4]
strides = [2, 1]
[federation]
rounds = 10
weighting = "equal"
validate_every = 0
algorithm = { kind = "fedsgd" }
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-5
trusted = "curator"
held_out = "public"
[privacy.dp]
kind = "central"
sampling = { rate = 0.2, nominal_units = 400 }
clipping = { kind = "flat", l2_clip_norm = 1.0 }
noise = { multiplier = 1.5 }
"""


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
