"""The figures of a run, taken again from its weights file with scikit-learn."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import nn

from medveil.data.sources import load
from medveil.study.arms import build_model
from medveil.study.evaluate import evaluate
from medveil.study.prepare import prepare
from medveil.study.train import train

QUICK = ("data.source.subjects=80", "federation.rounds=1", "evaluation.bootstrap.resamples=0")
ONLY_FEDERATED = ("references.central=false", "references.local_only=false")


def _beginning(plan):
    """The data, and a model to load weights into."""
    torch.set_num_threads(1)
    prepared = prepare(plan)
    return prepared, build_model(plan, prepared.input_shape, prepared.num_classes)


class _Pooled:
    """Images and targets of several parties, one after the other."""

    def __init__(self, parts):
        self.images = torch.cat([part.images for part in parts])
        self.targets = torch.cat([part.targets for part in parts])


@torch.no_grad()
def _chances(model, path, data):
    """Probability of class 1."""
    model.load_state_dict(load_file(path))
    return model.eval()((data.images.float() / 255 - 0.5) / 0.25).double().softmax(1)[:, 1].numpy()


def _youden(chances, labels):
    """The cut with the largest sensitivity + specificity, the highest among equals; by trying all."""
    cuts = sorted(set(chances.tolist()), reverse=True)
    return max(cuts, key=lambda cut: (np.mean(chances[labels == 1] >= cut) + np.mean(chances[labels == 0] < cut), cut))


HARD = (
    "data.source.difficulty=0.75",
    "data.source.subjects=200",
    "data.splits={kind='random', test=0.3, validation=0.25}",
    "federation.rounds=2",
    "evaluation.bootstrap.resamples=0",
)


def test_the_threshold_comes_from_validation_data_alone(small_plan, tmp_path):
    plan = small_plan(*HARD, "data.partition.sites=2")
    record = train(plan, tmp_path / "run")
    prepared, model = _beginning(plan)
    test, references = prepared.test.data, record["references"]
    pooled = _Pooled([site.validation for site in prepared.sites])
    parties = {"weights": (pooled, {name: part["value"] for name, part in record["test"].items() if "value" in part})}
    parties["references/central"] = (pooled, references["central"])
    for site in prepared.sites:
        figures = references["local_only"]["per_site"][site.name]
        parties[f"references/local_only-{site.name}"] = (site.validation, figures)
    told_apart = 0
    for file, (validation, figures) in parties.items():
        path = tmp_path / "run" / f"{file}.safetensors"
        cut = _youden(_chances(model, path, validation), validation.targets.numpy())
        chances, labels = _chances(model, path, test), test.targets.numpy()
        called = chances >= cut - 1e-9
        (tn, fp), (fn, tp) = confusion_matrix(labels, called)
        assert figures["sensitivity"] == pytest.approx(tp / (tp + fn)), file
        assert figures["specificity"] == pytest.approx(tn / (tn + fp)), file
        assert figures["auc"] == pytest.approx(roc_auc_score(labels, chances)), file
        told_apart += bool(np.any(called != (chances >= _youden(chances, labels))))
        if file == "weights":
            assert record["details"]["threshold"] == pytest.approx(cut, abs=1e-6)
    assert told_apart == len(parties)  # a threshold chosen on the test set would give other figures


def test_a_threshold_stated_in_the_plan_is_kept(small_plan, tmp_path):
    record = train(small_plan(*HARD, *ONLY_FEDERATED, "evaluation.threshold=0.37"), tmp_path / "run")
    assert record["details"]["threshold"] == 0.37


def test_figures_by_site_and_subgroup_are_of_their_own_subjects(small_plan, tmp_path):
    plan = small_plan(*HARD, *ONLY_FEDERATED, "data.partition={kind='natural', column='site'}")
    record = train(plan, tmp_path / "run")
    prepared, model = _beginning(plan)
    test = prepared.test
    chances = _chances(model, tmp_path / "run" / "weights.safetensors", test.data)
    labels = test.data.targets.numpy()
    for column, figures in (
        ("site", record["test"]["per_site"]),
        ("scanner", record["test"]["per_subgroup"]["scanner"]),
    ):
        of_image = np.array([test.subjects[number].attributes[column] for number in test.data.subject])
        assert sorted(figures) == sorted(set(of_image))
        for name, part in figures.items():
            inside = of_image == name
            assert part["auc"]["value"] == pytest.approx(roc_auc_score(labels[inside], chances[inside])), name


def test_the_fall_is_own_minus_external(small_plan, tmp_path):
    source = "{kind='phantom', task='classification', subjects=60, size=[16,16], seed=9, difficulty=1.0}"
    plan = small_plan(
        *ONLY_FEDERATED,
        "evaluation.bootstrap.resamples=0",
        "evaluation.external=[{name='elsewhere', source=" + source + "}]",
    )
    record = train(plan, tmp_path / "run")
    prepared, model = _beginning(plan)
    [external] = record["external"]
    path, own = tmp_path / "run" / "weights.safetensors", prepared.test.data
    other = load(plan.evaluation.external[0].source, plan.data.preprocess, root=tmp_path)
    examples = [example for subject in other.subjects for example in subject.examples]
    there = _Pooled([_Examples(examples)])
    at_home = roc_auc_score(own.targets.numpy(), _chances(model, path, own))
    abroad = roc_auc_score(there.targets.numpy(), _chances(model, path, there))
    assert at_home > abroad + 0.05  # the other data are harder: a fall is positive
    assert external["fall"]["auc"] == pytest.approx(at_home - abroad)
    assert external["test"]["auc"]["value"] == pytest.approx(abroad)
    assert external["num_subjects"] == 60
    for name, fall in external["fall"].items():
        assert fall == pytest.approx(record["test"][name]["value"] - external["test"][name]["value"]), name


class _Examples:
    def __init__(self, examples):
        self.images = torch.from_numpy(np.stack([example.image for example in examples]))
        self.targets = torch.tensor([example.target for example in examples])


DATA_FILE = """
kind = "phantom"
task = "classification"
subjects = 80
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
"""


def test_a_run_remembers_all_that_it_trained_and_validated_on(small_plan, tmp_path):
    plan = small_plan(*QUICK, *ONLY_FEDERATED)
    record = train(plan, tmp_path / "run")
    tested = {subject.subject_id for subject in prepare(plan).test.subjects}
    everything = load(plan.data.source, plan.data.preprocess, root=tmp_path).subjects
    others = [subject for subject in everything if subject.subject_id not in tested]
    wanted = {example.digest for subject in others for example in subject.examples}
    assert record["data"]["examples"]["validation"] > 3
    assert len(wanted) == record["data"]["examples"]["train"] + record["data"]["examples"]["validation"]
    assert set((tmp_path / "run" / "state" / "seen.txt").read_text().split()) == wanted
    file = tmp_path / "all.toml"
    file.write_text(DATA_FILE)
    scored = evaluate(tmp_path / "run", file)
    assert scored["data"]["seen"] == len(wanted)
    assert scored["data"]["examples"] == len(wanted) + record["data"]["examples"]["test"]


def test_dropout_layers_are_off_when_a_model_is_scored(small_plan, tmp_path):
    """Scoring twice gives the same figures, those of the network in evaluation mode."""
    arguments = "in_shape=[1,16,16], classes=2, channels=[8], strides=[2], dropout=0.5"
    plan = small_plan(*QUICK, *ONLY_FEDERATED, "model={kind='monai', name='Classifier', arguments={" + arguments + "}}")
    record = train(plan, tmp_path / "run")
    prepared, model = _beginning(plan)
    assert any(isinstance(layer, nn.Dropout) for layer in model.modules())
    chances = _chances(model, tmp_path / "run" / "weights.safetensors", prepared.test.data)
    assert record["test"]["auc"]["value"] == pytest.approx(roc_auc_score(prepared.test.data.targets, chances))
