"""From a plan to the step that is audited, without data."""

import pytest

from medveil.audit.planned import audit_plan, planned_step
from medveil.errors import ConfigError, GuaranteeError
from medveil.rng import Seeds
from medveil.study.plan import load_plan

PLAN = """
name = "audited"
task = "classification"
seed = 1
[data]
source = { kind = "phantom", size = [16, 16], repeated = 0.0 }
partition = { kind = "iid", sites = 4 }
[model]
kind = "cnn"
channels = [4, 4]
strides = [2, 1]
[federation]
rounds = 10
weighting = "equal"
validate_every = 0
algorithm = { kind = "fedsgd" }
[training]
optimiser = { kind = "sgd", lr = 0.5 }
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
LOCAL = (
    PLAN.replace('"curator"', '"nobody"')
    .replace('"central"', '"local"')
    .replace('{ kind = "fedsgd" }', '{ kind = "fedavg", local_steps = 2 }')
)


@pytest.fixture
def plan_of(tmp_path):
    def write(text):
        path = tmp_path / "plan.toml"
        path.write_text(text, encoding="utf-8")
        return load_plan(path)

    return write


def test_the_plans_own_step(plan_of):
    audited, promise = planned_step(plan_of(PLAN))
    assert audited.step.divisor == 0.2 * 400
    assert audited.step.noise.noise_multiplier == 1.5
    assert audited.step.noise.dimension == sum(size for _, size in audited.tensors)
    assert audited.input_shape == (1, 16, 16)
    assert promise.steps == 10


def test_a_site_of_a_local_plan(plan_of):
    audited, promise = planned_step(plan_of(LOCAL))
    assert audited.step.divisor == 0.2 * 400 / 4
    assert promise.steps == 20


def test_a_site_with_a_stated_size(plan_of):
    stated = LOCAL.replace("nominal_units = 400", "nominal_units = { a = 100, b = 200, c = 300, d = 400 }")
    assert planned_step(plan_of(stated))[0].step.divisor == 0.2 * 100


def test_the_claim_stands_beside_what_the_measurements_leave_open(plan_of):
    found = audit_plan(plan_of(PLAN), steps=60, seeds=Seeds(1))
    assert found.passed
    assert found.epsilon.claimed < found.epsilon.not_excluded < 2 * found.epsilon.claimed


def test_no_claim_and_no_steps(plan_of):
    with pytest.raises(GuaranteeError, match="no private step"):
        planned_step(load_plan("phantom"))


def test_what_only_the_data_know_must_be_stated(plan_of):
    text = PLAN.replace(
        'source = { kind = "phantom", size = [16, 16], repeated = 0.0 }',
        'source = { kind = "image-folder", path = "images", patient = "(.*)_" }',
    )
    plan = plan_of(text)
    with pytest.raises(ConfigError, match="input shape"):
        planned_step(plan)
    audited, _ = planned_step(plan, input_shape=(1, 12, 12), num_classes=3)
    assert (audited.input_shape, audited.num_classes) == ((1, 12, 12), 3)


def test_what_the_plan_knows_may_not_be_contradicted(plan_of):
    with pytest.raises(ConfigError, match="number of classes"):
        planned_step(plan_of(PLAN), num_classes=7)
