"""Plans whose sites share the noise of a step: promises, refusals, how much noise."""

import numpy as np
import pytest
from privacy_plans import DISTRIBUTED, SITES, WITHOUT_SUMS, PowerCutError, failing, masks, power_cut

import tiny_plans
from medveil.accounting import epsilon
from medveil.errors import ConfigError, GuaranteeError
from medveil.federation.messages import Result, decode
from medveil.study import arms, federated
from medveil.study.dry_run import dry_run
from medveil.study.privacy import bind_plan
from tiny_plans import ONE_WORKER, merged, without

CENTRAL = merged(WITHOUT_SUMS, '[privacy]\ntrusted = "curator"\n[privacy.dp]\nkind = "central"')
LOCAL = merged(DISTRIBUTED, tiny_plans.LOCAL, '[federation]\nalgorithm = { kind = "fedavg", local_steps = 2 }')


def test_it_trains_and_says_what_holds_against_whom(run, plan, releases):
    planned = dry_run(plan())["privacy"]
    record = run()
    said, sums = record["privacy"], record["secure_aggregation"]
    # Five sites, one against the others, one absent: three honest shares make up the whole noise. Without a traitor
    # among them there are four.
    options = {"sampling_rate": 0.3, "steps": 3, "delta": 1e-3, "relation": "add-remove"}
    assert said["epsilon_insider"] == pytest.approx(epsilon(noise_multiplier=2.0, **options), rel=1e-3)
    server = epsilon(noise_multiplier=2.0 * (4 / 3) ** 0.5, **options)
    assert said["epsilon_server"] == pytest.approx(server, rel=1e-3)
    assert said["epsilon_server"] < said["epsilon_insider"] == said["epsilon"]
    assert (said["mode"], said["trusted"], said["stamp"], said["steps"]) == ("distributed", "nobody", None, 3)
    assert {key: planned[key] for key in ("epsilon", "epsilon_server")} == {
        key: said[key] for key in ("epsilon", "epsilon_server")
    }
    assert sums["groups"] == [SITES]
    assert (sums["thresholds"], sums["min_included"], sums["colluding"]) == ([4], [4], 1)
    assert (sums["sums_opened"], sums["dropped"], sums["clipped"]) == (3, {}, None)
    assert releases() == dict.fromkeys(SITES, 3)


def test_nothing_but_sealed_answers_leaves_a_site(run, sent):
    run("federation.rounds=1")
    told = [decode(data) for data in sent]
    assert any(isinstance(message, Result) for message, _ in told)
    for message, tensors in told:
        said = message.model_dump(exclude={"site", "plan_hash", "round"})
        assert said in ({"num_examples": None}, {}, {"form": "sealed", "weight": 1.0, "train_loss": None})
        assert all(tensor.dtype == np.uint8 for tensor in tensors.values())


SECURE_CENTRAL = CENTRAL + "[privacy.secure_aggregation]\n"
STAGES = "privacy.stages=[{kind='norm_bound', l2_norm=0.5}]"
ADAPTIVE = "privacy.dp.clipping={kind='adaptive', l2_clip_norm=1.0, count_noise_multiplier=5.0}"
FEDAVG = 'federation.algorithm={ kind = "fedavg", local_steps = 1 }'
BAD = {
    "no secure aggregation": (WITHOUT_SUMS, (), GuaranteeError, "without a secure sum"),
    "stages": (DISTRIBUTED, (STAGES,), GuaranteeError, "stage"),
    "limited gradients": (DISTRIBUTED, ("training.max_grad_norm=1.0",), ConfigError, "max_grad_norm"),
    "adaptive clipping": (DISTRIBUTED, (ADAPTIVE,), ConfigError, "adaptive"),
    "local steps": (DISTRIBUTED, (FEDAVG,), ConfigError, "step by step"),
    "trusted curator": (DISTRIBUTED, ("privacy.trusted=curator",), GuaranteeError, "trusted"),
    "central with a secure sum": (SECURE_CENTRAL, (), GuaranteeError, "trusts"),
    "sizes": (DISTRIBUTED, ("federation.weighting=size",), GuaranteeError, "sizes"),
    "two sites of which one may vanish": (
        DISTRIBUTED,
        ("data.partition={kind='iid', sites=2}", "privacy.secure_aggregation.colluding=0"),
        GuaranteeError,
        "threshold",
    ),
    "too many traitors": (DISTRIBUTED, ("privacy.secure_aggregation.colluding=4",), GuaranteeError, "threshold"),
    "small groups": (DISTRIBUTED, ("privacy.secure_aggregation.groups=2",), GuaranteeError, "hides none"),
    "narrow modulus": (
        DISTRIBUTED,
        (
            "privacy.secure_aggregation.modulus_bits=32",
            "privacy.dp.sampling.nominal_units=100000000",
            "privacy.delta=1e-9",
        ),
        ConfigError,
        "modulus",
    ),
}


@pytest.mark.parametrize(("text", "overrides", "error", "word"), BAD.values(), ids=BAD.keys())
def test_what_would_not_protect_is_refused(plan, text, overrides, error, word):
    with pytest.raises(error, match=word):
        dry_run(plan(*overrides, text=text))


def test_a_large_group_with_a_threshold_of_the_small_one_is_refused_before_data_are_read(plan):
    groups = "privacy.secure_aggregation={colluding=0, groups=2, threshold=3}"
    with pytest.raises(GuaranteeError, match="threshold"):
        bind_plan(plan("data.partition={kind='iid', sites=11}", groups))


def test_local_privacy_behind_a_secure_sum(run, plan, releases, submitted):
    """Every site's noise is enough for its own patients; the sum hides which site moved what."""
    record = run("federation.rounds=2", text=LOCAL)
    said = record["privacy"]
    assert (
        said["epsilon"]
        == said["epsilon_server"]
        == dry_run(plan("federation.rounds=2", text=LOCAL))["privacy"]["epsilon"]
    )
    assert record["secure_aggregation"]["sums_opened"] == 2
    assert record["secure_aggregation"]["clipped"] is None
    assert releases() == dict.fromkeys(SITES, 4)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES, 2)


def test_local_privacy_is_charged_once_across_a_crash(run, releases, submitted, monkeypatch):
    with monkeypatch.context() as patched:
        power_cut(patched, arms, "save_snapshot", call=1, before=True)
        with pytest.raises(PowerCutError):
            run("federation.rounds=2", text=LOCAL)
    run("federation.rounds=2", text=LOCAL)
    assert releases() == dict.fromkeys(SITES, 4)
    assert {site: len(set(vectors)) for site, vectors in submitted.items()} == dict.fromkeys(SITES, 2)


@pytest.mark.parametrize("size", ["[16, 16]", "[16, 16, 16]"], ids=["2D", "3D"])
def test_segmentation(run, size):
    text = masks(without(DISTRIBUTED, "[evaluation]"), ONE_WORKER, f"[data.source]\nsize = {size}\nsubjects = 15")
    record = run("federation.rounds=1", "privacy.delta=5e-3", text=text)
    assert record["secure_aggregation"]["sums_opened"] == 1
    assert 0 <= record["test"]["dice"]["value"] <= 1


# --- how much noise --------------------------------------------------------------------------------------------------

NOBODY_DRAWN = (
    "privacy.dp.sampling.rate=1e-9",
    "model.channels=[32, 96, 128]",
    "model.strides=[2, 2, 2]",
    "federation.rounds=1",
    "training.optimiser.lr=1e-12",
    "data.source.subjects=60",
)


@pytest.fixture
def released(run, monkeypatch):
    """``released(...)`` gives the mean gradient that the server steps with; nobody is drawn, so all of it is noise."""

    def mean_of(*overrides, text=DISTRIBUTED, out="run"):
        seen = []
        original = federated.ServerOptimiser.apply

        def apply(step, weights, mean, progress):
            seen.append(mean)
            return original(step, weights, mean, progress)

        with monkeypatch.context() as patched:
            patched.setattr(federated.ServerOptimiser, "apply", apply)
            run(*NOBODY_DRAWN, *overrides, text=text, out=out)
        [mean] = seen
        assert mean.size > 100_000
        return mean

    return mean_of


@pytest.mark.statistical
def test_distributed_noise_is_as_large_as_central_and_as_much_larger_as_it_must(released, monkeypatch):
    """Within 1 %, which is at least four standard errors; one share more or less is 10 % off."""
    central = released(text=CENTRAL, out="central").std()
    shared = released("privacy.secure_aggregation={colluding=0, dropouts=0}", out="all")
    robust = released(out="robust")
    with failing(monkeypatch, "site-3"):
        without = released(out="without")
    assert central == pytest.approx(2.0 * 0.5 / (1e-9 * 60), rel=0.01)  # sigma * clip norm / divisor
    assert shared.std() == pytest.approx(central, rel=0.01)
    assert robust.std() == pytest.approx(central * (5 / 3) ** 0.5, rel=0.01)
    assert without.std() == pytest.approx(central * (4 / 3) ** 0.5, rel=0.01)
    for mean in (shared, robust, without):
        assert abs(mean.mean()) < 6 * mean.std() / mean.size**0.5
