"""Plans with a privacy claim, run as a user would."""

import json
import tomllib

import numpy as np
import pytest
import torch
from privacy_plans import CENTRAL, LOCAL, SEEDED, SITE, masks
from safetensors.numpy import load_file

from medveil.accounting import epsilon
from medveil.accounting.ledger import Ledger
from medveil.federation.messages import Join, Result, decode
from medveil.rng import SecureRandom, Seeds
from medveil.study import arms
from medveil.study.dry_run import dry_run
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.privacy import bind_plan
from medveil.study.train import train
from medveil.training.arrays import InputScale
from medveil.training.loop import Trainer, diverged
from medveil.training.private import Privately, PrivateTrainer
from tiny_plans import merged

MODES = pytest.mark.parametrize("text", [CENTRAL, LOCAL, SITE], ids=["central", "local", "site"])


@pytest.fixture
def run(write_plan, tmp_path):
    def start(text, *overrides, out="run", **options):
        return train(load_plan(write_plan(text), overrides), tmp_path / out, **options)

    return start


@MODES
def test_record_and_dry_run_say_the_same(run, write_plan, text):
    planned = dry_run(load_plan(write_plan(text)))["privacy"]
    record = run(text)["privacy"]
    volatile = {"ledgers"}
    assert {key: value for key, value in record.items() if key not in volatile} == {
        key: value for key, value in planned.items() if key not in volatile
    }
    assert record["stamp"] is None
    wanted = {
        "unit",
        "relation",
        "delta",
        "epsilon_server",
        "epsilon_insider",
        "noise_multiplier",
        "sampling_rate",
        "steps",
        "accountant",
        "out_of_scope",
    }
    assert wanted <= record.keys()


@pytest.mark.parametrize(("text", "steps"), [(CENTRAL, 4), (LOCAL, 6)], ids=["central", "local"])
def test_epsilon_is_that_of_the_noise_rate_and_steps(run, text, steps):
    said = run(text)["privacy"]
    assert said["steps"] == steps
    again = epsilon(
        sampling_rate=0.3, noise_multiplier=said["noise_multiplier"], steps=steps, delta=1e-3, relation="add-remove"
    )
    assert said["epsilon_server"] == pytest.approx(again, rel=1e-3)
    assert 3.9 < said["epsilon_server"] <= 4.0


def test_a_trusted_server_is_not_covered(run):
    said = run(SITE)["privacy"]
    assert said["epsilon_server"] is None
    assert said["epsilon_insider"] > 0
    assert said["unit"] == "site"


def test_every_round_is_charged_to_every_party(run, tmp_path):
    record = run(LOCAL, ledgers=tmp_path / "ledgers")
    assert set(record["privacy"]["ledgers"]) == {"site-1", "site-2", "site-3"}
    for name in record["privacy"]["ledgers"]:
        with Ledger(tmp_path / "ledgers" / f"{name}.sqlite") as ledger:
            spent = ledger.spent("phantom-classification", delta=1e-3)
        assert spent.releases == 6
        assert spent.epsilon == pytest.approx(record["privacy"]["epsilon"], rel=1e-3)


def test_two_runs_compose_in_one_ledger(run, tmp_path):
    first = run(CENTRAL, out="one", ledgers=tmp_path / "ledgers")
    second = run(CENTRAL, out="two", ledgers=tmp_path / "ledgers")
    alone = first["privacy"]["epsilon"]
    both = second["privacy"]["ledgers"]["pool"]["epsilon_all_runs"]
    assert second["privacy"]["epsilon"] == pytest.approx(alone)
    assert alone < both < 2 * alone  # composed, and more tightly than by adding


def test_a_round_that_a_crash_repeats_is_charged_again(run, monkeypatch):
    commit, rounds = arms.Journal.commit, []

    def crash(journal, row, *rest):
        rounds.append(row["round"])
        if rounds == [1, 2, 3]:
            raise KeyboardInterrupt
        return commit(journal, row, *rest)

    monkeypatch.setattr(arms.Journal, "commit", crash)
    with pytest.raises(KeyboardInterrupt):
        run(CENTRAL)
    said = run(CENTRAL)["privacy"]
    assert rounds == [1, 2, 3, 3, 4]
    assert (said["steps"], said["steps_planned"]) == (5, 4)
    again = epsilon(sampling_rate=0.3, noise_multiplier=said["noise_multiplier"], steps=5, delta=1e-3)
    assert said["epsilon"] == pytest.approx(again, rel=1e-3)
    assert said["epsilon"] > said["epsilon_target"]


def test_nothing_but_the_noisy_update_leaves_a_site(run, sent):
    run(LOCAL)
    messages = [decode(data)[0] for data in sent]
    assert [message.num_examples for message in messages if isinstance(message, Join)] == [None] * 3
    results = [message for message in messages if isinstance(message, Result)]
    assert results
    assert all(message.train_loss is None and message.weight == 1.0 for message in results)


def test_noise_is_fresh_in_every_run(run, tmp_path):
    run(CENTRAL, out="one")
    run(CENTRAL, out="two")
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert any(not np.array_equal(one[key], two[key]) for key in one)


def test_seeded_noise_repeats_and_is_stamped(run, tmp_path):
    records = [run(SEEDED, out=name) for name in ("one", "two")]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert {record["privacy"]["stamp"] for record in records} == {"NOT PRIVATE"}
    assert not any("Differential privacy" in line for line in records[0]["protection"]["active"])


def test_views_and_dropout_are_drawn_from_secret_seeds(small_trainer):
    """With public seeds a view would go by position, and one patient could move the views of all after them."""
    one, two = (small_trainer(SecureRandom()) for _ in range(2))
    picked = torch.arange(3)
    views = [made._views.several(picked, 2, made._draws("augment", 0))[0] for made in (one, two)]
    assert not torch.equal(*views)
    assert one._draws("dropout", 0) != one._draws("dropout", 0)
    same = [small_trainer(SecureRandom.seeded(Seeds(1))) for _ in range(2)]
    assert torch.equal(*(made._views.several(picked, 2, made._draws("augment", 0))[0] for made in same))


@pytest.fixture(params=[0, 2])
def small_trainer(request, write_plan):
    plan = load_plan(write_plan(CENTRAL), [f"training.view_pool={request.param}"])
    prepared = prepare(plan)
    model = arms.build_model(plan, prepared.input_shape, 2)
    step = bind_plan(plan).step(sum(parameter.numel() for parameter in model.parameters()), "pool", 1)

    def make(random):
        return PrivateTrainer(
            model,
            prepared.pool().train,
            plan.training,
            private=Privately(step, "patient", random),
            performance=plan.performance,
            scale=InputScale(),
            num_classes=2,
            seeds=Seeds(plan.seed),
            device=torch.device("cpu"),
        )

    return make


def test_stopping_early_claims_the_whole_plan(run, tmp_path):
    stop = 'federation.early_stopping={ metric = "auc", patience = 1, min_delta = 0.9 }'
    record = run(CENTRAL, stop, "federation.rounds=12", "federation.validate_every=1", ledgers=tmp_path / "ledgers")
    said = record["privacy"]
    assert said["steps"] < 12 == said["steps_planned"]
    planned = epsilon(sampling_rate=0.3, noise_multiplier=said["noise_multiplier"], steps=12, delta=1e-3)
    assert said["epsilon"] == pytest.approx(planned, rel=1e-3)
    assert said["ledgers"]["pool"]["epsilon_all_runs"] == pytest.approx(planned, rel=1e-2)


def test_a_site_that_diverges_is_not_told_apart(run, monkeypatch):
    step = Trainer._backward

    def broken(trainer, number):
        if trainer._seeds.path[-1] == "1":
            raise diverged("loss")
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_backward", broken)
    assert run(SITE)["training"]["lost_sites"] == {}


def test_an_overridden_hazard_is_stamped(run):
    record = run(CENTRAL, "references.central=true", 'privacy.overrides=["unprotected-references"]')
    assert record["privacy"]["stamp"] == "NOT PRIVATE"
    assert record["references"]["central"] is not None


def test_a_hopeless_epsilon_is_stamped(write_plan):
    text = merged(CENTRAL, "[privacy.dp]\nnoise = { multiplier = 0.05 }")
    assert dry_run(load_plan(write_plan(text)))["privacy"]["stamp"] == "NOT PRIVATE"


def test_earlier_releases_are_composed(write_plan):
    plan = CENTRAL + '\n[[privacy.earlier]]\nwhat = "tuning"\nevent = { kind = "gaussian", noise_multiplier = 4.0 }\n'
    said = dry_run(load_plan(write_plan(plan)))["privacy"]
    alone = dry_run(load_plan(write_plan(CENTRAL, "alone.toml")))["privacy"]
    assert 3.9 < said["epsilon"] <= 4.0
    assert said["noise_multiplier"] > alone["noise_multiplier"]
    assert [part["what"] for part in said["composition"]] == ["training", "tuning"]


def test_private_segmentation_in_two_and_three_dimensions(run):
    text = masks(CENTRAL, "[data.source]\nsubjects = 60")
    assert 0 <= run(text, "privacy.delta=5e-3")["test"]["dice"]["value"] <= 1
    deep = merged(text, "[data.source]\nsize = [16, 16, 16]\n[training.augmentation]\nshift = 0.0")
    assert 0 <= run(deep, "privacy.delta=5e-3", out="deep")["test"]["dice"]["value"] <= 1


@pytest.mark.parametrize(
    "clipping",
    [
        '{ kind = "auto-s", l2_clip_norm = 1.0 }',
        '{ kind = "per-layer", l2_clip_norm = 1.0 }',
        '{ kind = "adaptive", l2_clip_norm = 1.0, count_noise_multiplier = 5.0 }',
    ],
)
def test_every_way_of_clipping_trains(run, clipping):
    text = merged(CENTRAL, f"[privacy.dp]\nclipping = {clipping}")
    assert run(text)["privacy"]["clipping"] == tomllib.loads(f"c = {clipping}")["c"]["kind"]


def test_metrics_hold_no_training_loss(run, tmp_path):
    run(CENTRAL)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["train_loss"] is None for row in rows)
