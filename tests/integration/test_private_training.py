"""Plans with a privacy claim, run as a user would."""

import json
import tomllib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from medveil.accounting import epsilon
from medveil.accounting.ledger import Ledger
from medveil.errors import (
    BudgetError,
    ConfigError,
    GuaranteeError,
    LedgerError,
    TooFewSitesError,
    UnsupportedModelError,
)
from medveil.federation.messages import Join, Result, decode
from medveil.rng import SecureRandom, Seeds
from medveil.study import arms, federated
from medveil.study.dry_run import dry_run
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.privacy import bind_plan
from medveil.study.train import train
from medveil.training.arrays import InputScale
from medveil.training.loop import Trainer, diverged
from medveil.training.private import Privately, PrivateTrainer

CENTRAL = """
name = "central"
task = "classification"
seed = 3
[data]
partition = { kind = "iid", sites = 3 }
splits = { kind = "random", test = 0.25, validation = 0.15 }
[data.source]
kind = "phantom"
task = "classification"
subjects = 160
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
[model]
kind = "cnn"
channels = [4, 8]
strides = [2, 2]
[federation]
rounds = 4
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 2
ema = 0.5
[training]
optimiser = { kind = "sgd", lr = 0.5 }
[training.augmentation]
shift = 0.05
[evaluation]
bootstrap = { resamples = 50 }
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "curator"
held_out = "public"
[privacy.dp]
kind = "central"
sampling = { rate = 0.3, nominal_units = 100, max_images = 2 }
clipping = { kind = "flat", l2_clip_norm = 0.5 }
noise = { epsilon = 4.0 }
views = 2
"""
LOCAL = (
    CENTRAL.replace('kind = "central"', 'kind = "local"')
    .replace('trusted = "curator"', 'trusted = "nobody"')
    .replace('kind = "fedsgd"', 'kind = "fedavg", local_steps = 3')
    .replace("rounds = 4", "rounds = 2")
)
SITE = (
    LOCAL[: LOCAL.index("[privacy.dp]")].replace('trusted = "nobody"', 'trusted = "server"')
    + """[privacy.dp]
kind = "site"
clipping = { kind = "flat", l2_clip_norm = 0.5 }
noise = { multiplier = 5.0 }
nominal_sites = 3
"""
).replace('unit = "patient"', 'unit = "site"')
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


def test_over_its_cap_a_site_refuses_and_says_so(run, tmp_path):
    folder = tmp_path / "ledgers"
    folder.mkdir()
    with Ledger(folder / "site-2.sqlite") as ledger:
        ledger.set_budget("phantom-classification", epsilon=1.0, delta=1e-3, relation="add-remove", unit="patient")
        before = ledger.head
    with pytest.raises(TooFewSitesError, match=r"budget|cap"):
        run(LOCAL, ledgers=folder)
    with Ledger(folder / "site-2.sqlite") as ledger:
        assert ledger.head == before
    record = run(LOCAL, "federation.min_sites=2", out="without", ledgers=folder)
    assert set(record["training"]["lost_sites"]) == {"site-2"}


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


def test_nothing_but_the_noisy_update_leaves_a_site(run, monkeypatch):
    seen = []

    class Spy(federated.Site):
        def join(self):
            seen.append(super().join())
            return seen[-1]

        def receive(self, data):
            answers = super().receive(data)
            seen.extend(answers)
            return answers

    monkeypatch.setattr(federated, "Site", Spy)
    run(LOCAL)
    messages = [decode(data)[0] for data in seen]
    assert all(message.num_examples is None for message in messages if isinstance(message, Join))
    results = [message for message in messages if isinstance(message, Result)]
    assert results
    assert all(message.train_loss is None and message.weight == 1.0 for message in results)


def test_noise_is_fresh_in_every_run(run, tmp_path):
    run(CENTRAL, out="one")
    run(CENTRAL, out="two")
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert any(not np.array_equal(one[key], two[key]) for key in one)


def test_seeded_noise_repeats_and_is_stamped(run, tmp_path):
    text = CENTRAL.replace("epsilon = 4.0", 'epsilon = 4.0, generator = "seeded"')
    records = [run(text, out=name) for name in ("one", "two")]
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


def test_a_resumed_run_needs_the_ledger_that_it_began_with(run, monkeypatch, tmp_path):
    commit = arms.Journal.commit

    def crash(journal, row, *rest):
        commit(journal, row, *rest)
        if row["round"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(arms.Journal, "commit", crash)
    with pytest.raises(KeyboardInterrupt):
        run(CENTRAL, ledgers=tmp_path / "one")
    monkeypatch.setattr(arms.Journal, "commit", commit)
    with pytest.raises(LedgerError, match="already released"):
        run(CENTRAL, ledgers=tmp_path / "two")
    assert run(CENTRAL, ledgers=tmp_path / "one")["privacy"]["steps"] == 4


def test_stopping_early_claims_the_whole_plan(run, tmp_path):
    stop = 'federation.early_stopping={ metric = "auc", patience = 1, min_delta = 0.9 }'
    record = run(CENTRAL, stop, "federation.rounds=12", "federation.validate_every=1", ledgers=tmp_path / "ledgers")
    said = record["privacy"]
    assert said["steps"] < 12 == said["steps_planned"]
    planned = epsilon(sampling_rate=0.3, noise_multiplier=said["noise_multiplier"], steps=12, delta=1e-3)
    assert said["epsilon"] == pytest.approx(planned, rel=1e-3)
    assert said["ledgers"]["pool"]["epsilon_all_runs"] == pytest.approx(planned, rel=1e-2)


def test_a_kept_ledger_takes_no_run_that_it_could_not_count(run, tmp_path):
    seeded = CENTRAL.replace("epsilon = 4.0", 'epsilon = 4.0, generator = "seeded"')
    with pytest.raises(GuaranteeError, match="NOT PRIVATE"):
        run(seeded, ledgers=tmp_path / "ledgers")
    plain = CENTRAL[: CENTRAL.index("[privacy]")]
    with pytest.raises(GuaranteeError, match="promises no"):
        run(plain, ledgers=tmp_path / "ledgers")


def test_a_cap_for_another_name_is_noticed(run, tmp_path):
    (tmp_path / "ledgers").mkdir()
    with Ledger(tmp_path / "ledgers" / "pool.sqlite") as ledger:
        ledger.set_budget("phantom", epsilon=1.0, delta=1e-3, relation="add-remove", unit="patient")
    with pytest.raises(LedgerError, match="none for the data set"):
        run(CENTRAL, ledgers=tmp_path / "ledgers")


def test_a_curator_over_its_cap_ends_with_the_budget_error(run, tmp_path):
    (tmp_path / "ledgers").mkdir()
    with Ledger(tmp_path / "ledgers" / "pool.sqlite") as ledger:
        ledger.set_budget("phantom-classification", epsilon=1.0, delta=1e-3, relation="add-remove", unit="patient")
    with pytest.raises(BudgetError):
        run(CENTRAL, ledgers=tmp_path / "ledgers")


def test_scores_of_training_patients_are_refused(run):
    source = tomllib.loads(CENTRAL)["data"]["source"]
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in source.items())
    external = f'\n[[evaluation.external]]\nname = "same"\nsource = {{ {table} }}\n'
    with pytest.raises(GuaranteeError, match="trained on"):
        run(CENTRAL + external)


def test_a_site_claim_is_held_against_the_number_of_sites(run):
    with pytest.raises(ConfigError, match="delta"):
        run(SITE.replace("nominal_sites = 3", "nominal_sites = 2"), "privacy.delta=0.4")


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
    text = CENTRAL.replace("epsilon = 4.0", "multiplier = 0.05")
    assert dry_run(load_plan(write_plan(text)))["privacy"]["stamp"] == "NOT PRIVATE"


def test_earlier_releases_are_composed(write_plan):
    plan = CENTRAL + '\n[[privacy.earlier]]\nwhat = "tuning"\nevent = { kind = "gaussian", noise_multiplier = 4.0 }\n'
    said = dry_run(load_plan(write_plan(plan)))["privacy"]
    alone = dry_run(load_plan(write_plan(CENTRAL, "alone.toml")))["privacy"]
    assert 3.9 < said["epsilon"] <= 4.0
    assert said["noise_multiplier"] > alone["noise_multiplier"]
    assert [part["what"] for part in said["composition"]] == ["training", "tuning"]


def test_private_segmentation_in_two_and_three_dimensions(run):
    text = CENTRAL.replace('task = "classification"', 'task = "segmentation"').replace(
        'kind = "cnn"\nchannels = [4, 8]\nstrides = [2, 2]', 'kind = "unet"\ndepth = 1\nwidth = 2'
    )
    text = text.replace("[training]\n", '[training]\nloss = { kind = "dice_ce" }\n').replace(
        "subjects = 160", "subjects = 60"
    )
    assert 0 <= run(text, "privacy.delta=5e-3")["test"]["dice"]["value"] <= 1
    deep = text.replace("size = [16, 16]", "size = [16, 16, 16]").replace("shift = 0.05", "shift = 0.0")
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
    text = CENTRAL.replace('{ kind = "flat", l2_clip_norm = 0.5 }', clipping)
    assert run(text)["privacy"]["clipping"] == tomllib.loads(f"c = {clipping}")["c"]["kind"]


BAD = [
    (["privacy.dp.noise.epsilon=0"], ConfigError, "epsilon"),
    (["privacy.dp.noise.epsilon=-1"], ConfigError, "epsilon"),
    (["privacy.delta=0.02"], ConfigError, "delta"),
    (["privacy.dp.sampling.rate=1.5"], ConfigError, "rate"),
    (["privacy.trusted=nobody"], GuaranteeError, "trusted"),
    (["federation.weighting=size"], GuaranteeError, "sizes"),
    (["references.central=true"], GuaranteeError, "references"),
    (["training.class_weights=balanced"], GuaranteeError, "class weights"),
    (["privacy.held_out=private"], GuaranteeError, "validation curve"),
    (["privacy.unit=site"], ConfigError, "unit"),
    (["training.amp=bf16"], ConfigError, "float32"),
    (['federation.algorithm={ kind = "fedavg", local_epochs = 1 }'], ConfigError, "step by step"),
    (['model={ kind = "monai", name = "DenseNet121" }', "data.source.size=[32,32]"], UnsupportedModelError, "batch"),
]


@pytest.mark.parametrize(("overrides", "error", "word"), BAD, ids=[case[0][0].split("=")[0] for case in BAD])
def test_bad_input_is_refused_before_data_are_read(write_plan, overrides, error, word):
    with pytest.raises(error, match=word):
        dry_run(load_plan(write_plan(CENTRAL), overrides))


def test_a_claim_states_everything(write_plan):
    for key in ("unit", "relation", "delta", "trusted", "held_out"):
        lines = [line for line in CENTRAL.splitlines() if not line.startswith(f"{key} =")]
        with pytest.raises(ConfigError, match=key):
            load_plan(write_plan("\n".join(lines)))
    with pytest.raises(ConfigError, match="mechanism"):
        load_plan(write_plan(CENTRAL[: CENTRAL.index("[privacy.dp]")]))


def test_delta_is_held_against_the_true_number_of_patients(run):
    with pytest.raises(ConfigError, match="delta"):
        run(CENTRAL, "privacy.delta=0.015", "privacy.dp.sampling.nominal_units=50")


def test_a_patient_claim_needs_patients(write_plan, tmp_path):
    text = CENTRAL.replace('kind = "phantom"', 'kind = "image-csv"\nimages = "images"\ntable = "table.csv"')
    for line in ("subjects = 160", "size = [16, 16]", "scanners = 3", "seed = 2", "difficulty = 0.1"):
        text = text.replace(f"{line}\n", "")
    text = text.replace('task = "classification"\nimages', "images")
    lines = text.splitlines()
    index = lines.index('kind = "image-csv"')
    del lines[index + 3]  # the source's own task
    with pytest.raises(GuaranteeError, match="whose an image is"):
        dry_run(load_plan(write_plan("\n".join(lines))))


def test_metrics_hold_no_training_loss(run, tmp_path):
    run(CENTRAL)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["train_loss"] is None for row in rows)


def test_budget_error_is_a_privacy_error():
    assert BudgetError.exit_code == 7
