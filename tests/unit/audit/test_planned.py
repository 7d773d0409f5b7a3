"""From a plan to the step that is audited, without data."""

import pytest

import tiny_plans
from medveil.audit.planned import audit_plan, planned_step
from medveil.errors import ConfigError, GuaranteeError
from medveil.rng import Seeds
from medveil.study.plan import load_plan
from tiny_plans import AUDITED, merged

PLAN = merged(AUDITED, 'seed = 1\n[data]\npartition = { kind = "iid", sites = 4 }')
LOCAL = merged(PLAN, tiny_plans.LOCAL, '[federation]\nalgorithm = { kind = "fedavg", local_steps = 2 }')


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
    stated = merged(
        LOCAL, "[privacy.dp]\nsampling = { rate = 0.2, nominal_units = { a = 100, b = 200, c = 300, d = 400 } }"
    )
    assert planned_step(plan_of(stated))[0].step.divisor == 0.2 * 100


def test_the_claim_stands_beside_what_the_measurements_leave_open(plan_of):
    found = audit_plan(plan_of(PLAN), steps=60, seeds=Seeds(1))
    assert found.passed
    assert found.epsilon.claimed < found.epsilon.not_excluded < 2 * found.epsilon.claimed


def test_no_claim_and_no_steps(plan_of):
    with pytest.raises(GuaranteeError, match="no private step"):
        planned_step(load_plan("phantom"))


def test_what_only_the_data_know_must_be_stated(plan_of):
    text = merged(PLAN, '[data]\nsource = { kind = "image-folder", path = "images", patient = "(.*)_" }')
    plan = plan_of(text)
    with pytest.raises(ConfigError, match="input shape"):
        planned_step(plan)
    audited, _ = planned_step(plan, input_shape=(1, 12, 12), num_classes=3)
    assert (audited.input_shape, audited.num_classes) == ((1, 12, 12), 3)


def test_what_the_plan_knows_may_not_be_contradicted(plan_of):
    with pytest.raises(ConfigError, match="number of classes"):
        planned_step(plan_of(PLAN), num_classes=7)
