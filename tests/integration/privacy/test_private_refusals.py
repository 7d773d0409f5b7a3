"""Plans with a privacy claim that are refused, and runs that a ledger refuses."""

import json
import tomllib

import pytest
from privacy_plans import CENTRAL, LOCAL, PLAIN, SEEDED, SITE

from medveil.accounting.ledger import Ledger
from medveil.errors import (
    BudgetError,
    ConfigError,
    GuaranteeError,
    LedgerError,
    TooFewSitesError,
    UnsupportedModelError,
)
from medveil.study import arms
from medveil.study.dry_run import dry_run
from medveil.study.plan import load_plan
from medveil.study.train import train
from tiny_plans import merged, without


@pytest.fixture
def run(write_plan, tmp_path):
    def start(text, *overrides, out="run", **options):
        return train(load_plan(write_plan(text), overrides), tmp_path / out, **options)

    return start


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


def test_a_kept_ledger_takes_no_run_that_it_could_not_count(run, tmp_path):
    with pytest.raises(GuaranteeError, match="NOT PRIVATE"):
        run(SEEDED, ledgers=tmp_path / "ledgers")
    with pytest.raises(GuaranteeError, match="promises no"):
        run(PLAIN, ledgers=tmp_path / "ledgers")


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
        run(SITE, "privacy.dp.nominal_sites=2", "privacy.delta=0.4")


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
        load_plan(write_plan(without(CENTRAL, "[privacy.dp]")))


def test_delta_is_held_against_the_true_number_of_patients(run):
    with pytest.raises(ConfigError, match="delta"):
        run(CENTRAL, "privacy.delta=0.015", "privacy.dp.sampling.nominal_units=50")


def test_a_patient_claim_needs_patients(write_plan, tmp_path):
    source = '[data.source]\nkind = "image-csv"\nimages = "images"\ntable = "table.csv"'
    text = merged(without(CENTRAL, "[data.source]"), source)
    with pytest.raises(GuaranteeError, match="whose an image is"):
        dry_run(load_plan(write_plan(text)))


def test_budget_error_is_a_privacy_error():
    assert BudgetError.exit_code == 7
