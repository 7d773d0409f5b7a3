"""Bad plans, folders and data files: each ends in its typed error, with its exit code, before anything is lost."""

import re

import numpy as np
import pytest
from PIL import Image

from medveil.cli.main import main
from medveil.errors import (
    ConfigError,
    DataError,
    FederationError,
    LabelError,
    MissingDataError,
    ModelError,
    PartitionError,
    PipelineError,
    RunError,
    WeightsError,
)
from medveil.study.evaluate import evaluate
from medveil.study.plan import load_plan
from medveil.study.train import train

QUICK = ("federation.rounds=1", "references.central=false", "references.local_only=false")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("federation.runds=3", "unknown key federation.runds"),
        ("federation.rounds=0", "federation.rounds is not valid"),
        ("federation.rounds=many", "federation.rounds is not valid"),
        ("federation.algorithm={kind='fedavg'}", "exactly one of local_epochs and local_steps"),
        ("federation.algorithm={kind='fedavg', local_epochs=1, local_steps=1}", "exactly one"),
        ("federation.algorithm={kind='magic'}", "federation.algorithm is not valid"),
        ("federation.early_stopping={metric='dice', patience=2}", "validated by"),
        ("training.batch_size=-1", "training.batch_size"),
        ("training.optimiser.lr=nan", "training.optimiser"),
        ("training.loss={kind='dice_ce'}", "needs masks"),
        ("training.optimiser={kind='sgd', lr=0.1, nesterov=true}", "nesterov needs momentum"),
        ("training.optimiser={kind='adam', lr=0.1, betas=[2.0, 0.9]}", "training.optimiser.betas.0"),
        ("training.augmentation={flip=[7]}", "training.augmentation.flip.0"),
        ("evaluation.threshold=7.5", "evaluation.threshold"),
        ("root=/tmp", "unknown key root"),
        ("data.preprocess={slices={axis=0, keep='foreground'}}", "test slices by their true masks"),
        ("training.class_weights=[1.0, -1.0]", "one positive weight per class"),
        ("model={kind='resnet99'}", "model is not valid"),
        ("model={kind='cnn', layers=3}", "unknown key model"),
        ("data.source={kind='tape'}", "data.source is not valid"),
        ("data.splits={kind='random', test=0.9, validation=0.2}", "data.splits"),
        ("data.partition={kind='iid', sites=0}", "data.partition"),
        ("task=detection", "task is not valid"),
        ("seed", "not of the form key=value"),
        ("name.inner=3", "not a table"),
    ],
)
def test_bad_plan_fields(small_plan, override, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        small_plan(override)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [("name = ", "not valid TOML"), ("name = 'x'", "is missing"), ("\xff", "not valid|is missing")],
)
def test_bad_plan_files(write_plan, text, said):
    with pytest.raises(ConfigError, match=said):
        load_plan(write_plan(text))


def test_a_missing_plan_names_those_that_exist():
    with pytest.raises(ConfigError, match="pneumonia-28"):
        load_plan("no-such-plan")


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (("task=segmentation", "model={kind='unet'}"), ConfigError, "task"),
        (("data.partition={kind='natural', column='ward'}",), PartitionError, "ward|column"),
        (("data.partition={kind='iid', sites=150}",), PartitionError, "site"),
        (("training.class_weights=[1.0, 1.0, 1.0]",), ConfigError, "one weight per class"),
        (("evaluation.subgroups=['ward']",), ConfigError, "column that the data do not have"),
        (("evaluation.external=[{name='x', source={kind='catalogue', name='retina'}}]",), MissingDataError, "."),
        (("federation.min_sites=9",), ConfigError, "more sites than there are"),
        (("training.optimiser={kind='sgd', lr=1e30}",), FederationError, "no longer finite"),
        (("data.source.subjects=2",), DataError, "split|site|subject"),
        (("initial_weights=nothing.safetensors",), WeightsError, "."),
        (("model={kind='unet'}",), ModelError, "."),
        (("privacy.stages=[{kind='rot13'}]",), PipelineError, "does not have"),
        (("data.source={kind='catalogue', name='retina'}",), MissingDataError, "MEDVEIL_DATA"),
    ],
)
def test_plans_that_do_not_fit_their_data(small_plan, tmp_path, monkeypatch, overrides, error, said):
    monkeypatch.delenv("MEDVEIL_DATA", raising=False)
    with pytest.raises(error, match=said):
        train(small_plan(*QUICK, *overrides), tmp_path / "run")


@pytest.fixture
def finished(small_plan, tmp_path):
    """A finished run with 16x16 grey images and classes clear, opacity."""
    out = tmp_path / "run"
    train(small_plan(*QUICK), out)
    return out


def _write_pictures(folder, *, size=16, colour=False, classes=("clear", "opacity"), count=6):
    """Pictures and a table with made-up patients and hospitals."""
    rng = np.random.default_rng(0)
    lines = ["image,label,patient,hospital"]
    folder.mkdir()
    for number in range(count):
        shape = (size, size, 3) if colour else (size, size)
        name = f"picture{number}.png"
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
        lines.append(f"{name},{classes[number % 2]},p{number // 2},{'north' if number < 4 else 'site-1'}")
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    data = folder / "data.toml"
    data.write_text(
        f'kind = "image-csv"\nimages = "."\ntable = "table.csv"\npatient = "patient"\nclasses = {list(classes)}\n',
        encoding="utf-8",
    )
    return data


def test_new_data_are_scored(finished, tmp_path):
    content = evaluate(finished, _write_pictures(tmp_path / "new"))
    assert content["data"]["subjects"] == 3
    assert content["data"]["seen"] == 0
    assert content["test"]["auc"]["value"] is not None


def test_images_of_another_shape_are_refused_and_resize_is_the_remedy(finished, tmp_path):
    data = _write_pictures(tmp_path / "new", size=20)
    with pytest.raises(ConfigError, match=r"another shape.*resize = \[16, 16\]"):
        evaluate(finished, data)
    data.write_text(data.read_text() + "resize = [16, 16]\n")
    assert evaluate(finished, data)["data"]["examples"] == 6


def test_colour_is_refused_by_a_grey_model(finished, tmp_path):
    with pytest.raises(ConfigError, match="another shape"):
        evaluate(finished, _write_pictures(tmp_path / "new", colour=True))


def test_other_classes_are_refused(finished, tmp_path):
    with pytest.raises(LabelError, match="other classes"):
        evaluate(finished, _write_pictures(tmp_path / "new", classes=("cat", "dog")))


def test_other_sites_are_refused_unless_asked_for(finished, tmp_path):
    data = _write_pictures(tmp_path / "new")
    data.write_text(data.read_text() + 'site = "hospital"\n')
    with pytest.raises(PartitionError, match="1 of 2 sites are unknown"):
        evaluate(finished, data)
    assert set(evaluate(finished, data, new_sites=True)["test"]["per_site"]) == {"north", "site-1"}


def test_another_task_is_refused(finished, tmp_path):
    data = tmp_path / "masks.toml"
    data.write_text('kind = "phantom"\ntask = "segmentation"\nsubjects = 4\nsize = [16, 16]\n')
    with pytest.raises(ConfigError, match="another task"):
        evaluate(finished, data)


def test_other_preprocessing_is_refused(finished, tmp_path):
    data = _write_pictures(tmp_path / "new")
    data.write_text(data.read_text() + '[preprocess]\nintensity = "zscore"\n')
    with pytest.raises(ConfigError, match="another preprocessing"):
        evaluate(finished, data)


def test_images_that_were_trained_on_are_counted(finished, tmp_path):
    data = tmp_path / "again.toml"
    data.write_text(
        'kind = "phantom"\ntask = "classification"\nsubjects = 160\nsize = [16, 16]\nscanners = 3\nseed = 2\n'
        "difficulty = 0.1\n"
    )
    content = evaluate(finished, data)
    assert content["data"]["examples"] > content["data"]["seen"] > content["data"]["examples"] / 2


def test_a_changed_run_is_not_scored(finished, tmp_path):
    weights = finished / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunError, match="differ from its signed manifest"):
        evaluate(finished, _write_pictures(tmp_path / "new"))


def test_an_unfinished_run_is_not_scored(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no record\.json"):
        evaluate(tmp_path / "empty", _write_pictures(tmp_path / "new"))


def test_messages_hold_no_patient(finished, tmp_path, capsys):
    data = _write_pictures(tmp_path / "new")
    table = data.parent / "table.csv"
    table.write_text(table.read_text().replace("p0", "Mueller^Anna").replace(",clear,", ",Mueller,"))
    with pytest.raises(SystemExit):
        main(["evaluate", str(finished), "--data", str(data)])
    said = capsys.readouterr()
    assert "Mueller" not in said.err + said.out
    assert "Error" in said.err


def test_a_folder_with_other_things_is_refused(small_plan, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "Mueller_Anna.txt").write_text("x")
    with pytest.raises(RunError, match="not empty") as caught:
        train(small_plan(*QUICK), tmp_path / "letters")
    assert "Mueller" not in str(caught.value)


def test_a_finished_run_that_was_changed_is_not_shown_as_finished(finished, small_plan):
    record = finished / "record.json"
    record.write_text(record.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(RunError, match=r"record\.json"):
        train(small_plan(*QUICK), finished)


def _two_hospitals(folder, rng_seed, names):
    """A plan over a table whose images depend on the seed and whose sites have the names given."""
    rng = np.random.default_rng(rng_seed)
    folder.mkdir()
    lines = ["image,label,hospital"]
    for number in range(48):
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / f"p{number}.png")
        lines.append(f'p{number}.png,{number % 2},"{names[number // 2 % 2]}"')
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    plan = folder / "plan.toml"
    plan.write_text(
        """
name = "own"
task = "classification"
[data]
source = { kind = "image-csv", images = ".", table = "table.csv", classes = ["0", "1"], site = "hospital" }
partition = { kind = "natural" }
splits = { kind = "random", test = 0.25, validation = 0.25, stratify = "site" }
[model]
kind = "cnn"
[federation]
rounds = 1
[evaluation]
bootstrap = { resamples = 0 }
""",
        encoding="utf-8",
    )
    return plan


def test_changed_data_do_not_resume_a_run(tmp_path):
    first = _two_hospitals(tmp_path / "one", 1, ("north", "south"))
    second = _two_hospitals(tmp_path / "two", 2, ("north", "south"))
    train(load_plan(first), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(RunError, match="other data"):
        train(load_plan(second), tmp_path / "run")


def test_sites_may_be_called_what_hospitals_are_called(tmp_path):
    plan = _two_hospitals(tmp_path / "one", 1, ("St Mary/North", "St Mary--North"))
    record = train(load_plan(plan), tmp_path / "run")
    assert len(list((tmp_path / "run" / "references").glob("local_only*"))) == 2
    assert set(record["references"]["local_only"]["per_site"]) == {"St Mary/North", "St Mary--North"}


def test_a_site_name_that_nothing_can_carry_is_refused(tmp_path):
    plan = _two_hospitals(tmp_path / "one", 1, ("north", "x" * 101))
    with pytest.raises(PartitionError, match="name that cannot be used"):
        train(load_plan(plan), tmp_path / "run")
