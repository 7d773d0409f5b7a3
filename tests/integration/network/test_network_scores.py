"""Scores from sums over sites, against the same predictions in one place."""

import numpy as np
import pytest
from network_plans import CLEAR, DISTRIBUTED, MASKS, SUMS, make_plan
from network_rig import LEAD
from network_steps import Guests, lead

from medveil.connect.policy import load_policy
from medveil.connect.policy_checks import check_plan
from medveil.connect.setup import trial_policy
from medveil.data.sources.share import ShareSource
from medveil.evaluation.classification import evaluate_classification
from medveil.evaluation.curves import FIXED_HALF
from medveil.evaluation.intervals import BootstrapConfig
from medveil.models.architecture import architecture_hash
from medveil.rng import Seeds
from medveil.study.arms import build_model
from medveil.study.prepare import TestSet as Held
from medveil.study.prepare import prepare, prepare_own
from medveil.study.privacy import bind_plan
from medveil.study.scoring import Scorer
from medveil.study.secure_statistics import SCORE_BINS
from medveil.study.tallied import ClassificationTally, ThresholdTally
from medveil.study.tallied_masks import SegmentationTally
from medveil.training.vectors import trainable

LARGE = ("data.source.subjects=200", "data.source.repeated=0.0")


def _networked(trained, hospitals, text, *overrides):
    plan, _, alone, _ = trained(text, *overrides)
    place = hospitals(plan)
    ending, ward = lead(Guests(place), "job-1")
    assert (ending, ward.errors) == ("done", {})
    return alone, place.record()


@pytest.mark.parametrize("text", [CLEAR, SUMS], ids=["clear", "secure sums"])
def test_a_classifier_is_scored_as_in_one_place(trained, hospitals, text):
    alone, record = _networked(
        trained, hospitals, text, *LARGE, "evaluation.threshold=0.5", "evaluation.bootstrap.resamples=60"
    )
    details, expected = record["details"], alone["details"]
    assert details["confusion"] == expected["confusion"]
    assert details["num_subjects"] == expected["num_subjects"]
    assert details["num_examples"] == expected["num_examples"]
    for name in ("sensitivity", "specificity", "balanced_accuracy", "mcc"):
        assert record["test"][name]["value"] == pytest.approx(alone["test"][name]["value"], abs=1e-12)
    ill, well = (sum(row) for row in expected["confusion"][::-1])
    assert record["test"]["auc"]["value"] == pytest.approx(alone["test"]["auc"]["value"], abs=4 / min(ill, well))
    assert record["test"]["auc"]["low"] is not None
    if text == SUMS:
        assert record["test"]["per_site"] == {}
    else:
        assert record["test"]["per_site"].keys() == alone["test"]["per_site"].keys()
        for site, metrics in record["test"]["per_site"].items():
            for name in ("sensitivity", "specificity"):
                assert metrics[name]["value"] == pytest.approx(
                    alone["test"]["per_site"][site][name]["value"], abs=1e-12
                )


def test_the_threshold_of_secure_sums_is_that_of_one_process(trained, hospitals):
    alone, record = _networked(trained, hospitals, SUMS)
    assert record["details"]["threshold"] == alone["details"]["threshold"] != 0.5
    assert record["details"]["confusion"] == alone["details"]["confusion"]


def test_several_images_of_a_patient_have_no_interval_and_say_why(trained, hospitals):
    alone, record = _networked(trained, hospitals, CLEAR, "data.source.repeated=0.8", "evaluation.threshold=0.5")
    assert record["details"]["num_subjects"] == alone["details"]["num_subjects"]
    assert record["details"]["num_examples"] == alone["details"]["num_examples"] > record["details"]["num_subjects"]
    assert record["details"]["confusion"] == alone["details"]["confusion"]
    assert record["test"]["auc"]["low"] is None
    assert "several images" in record["test"]["auc"]["reason"]


def test_masks_are_scored_as_in_one_place(trained, hospitals):
    alone, record = _networked(trained, hospitals, MASKS)
    scored = {name: one for name, one in alone["test"].items() if isinstance(one, dict) and "value" in one}
    assert "dice" in scored
    for name, estimate in scored.items():
        assert record["test"][name]["value"] == pytest.approx(estimate["value"], abs=1e-9, nan_ok=True)
    assert alone["details"]["per_class"]
    for name, row in alone["details"]["per_class"].items():
        for metric, estimate in row.items():
            got = record["details"]["per_class"][name][metric]["value"]
            assert (got is None) == (estimate["value"] is None)
            if got is not None:
                assert got == pytest.approx(estimate["value"], abs=1e-9)
    assert record["test"].keys() >= {"dice", "per_site"}
    assert record["test"]["per_site"].keys() == alone["test"]["per_site"].keys()


class Given:
    """A scorer whose predictions the test chooses."""

    def __init__(self, predictions):
        self.predictions = predictions

    def predict(self, _model, data):
        return self.predictions[: len(data)]


@pytest.mark.parametrize("classes", [2, 3])
def test_sums_of_chosen_scores_against_the_pooled_scores(trained, classes):
    plan = trained(CLEAR)[0]
    test = prepare(plan).test
    rng = np.random.default_rng(4)
    scores = rng.dirichlet(np.ones(classes), len(test.data))
    test.data.targets[:] = test.data.targets.new_tensor(rng.integers(0, classes, len(test.data)))
    labels = test.data.targets.numpy()
    tally = ClassificationTally(classes, 3)
    half = len(test.data) // 2
    total = sum(
        tally.vector(Given(scores[rows]), None, None, Held(_part(test.data, rows), (), ()))
        for rows in (np.arange(half), np.arange(half, len(test.data)), np.arange(0))
    )
    result = tally.read(total, 3, plan=plan, threshold=FIXED_HALF)
    pooled = evaluate_classification(
        scores,
        labels,
        np.arange(len(labels)),
        threshold=FIXED_HALF,
        seeds=Seeds(0),
        bootstrap=BootstrapConfig(resamples=0),
    ).to_json()
    assert result["details"]["confusion"] == pooled["details"]["confusion"]
    assert {"auc", "sensitivity"} <= result["metrics"].keys()
    for name, estimate in result["metrics"].items():
        exact = name in {"sensitivity", "specificity", "balanced_accuracy", "mcc"}
        slack = 1e-12 if exact else 3 * len(labels) / SCORE_BINS
        if pooled["metrics"][name]["value"] is not None and name != "calibration_error":
            assert estimate["value"] == pytest.approx(pooled["metrics"][name]["value"], abs=slack), name
    if classes == 3:
        assert all(estimate["low"] is None and estimate["reason"] for estimate in result["metrics"].values())


def _part(data, rows):
    from dataclasses import replace

    return replace(
        data,
        images=data.images[rows],
        targets=data.targets[rows],
        subject=np.arange(len(rows)),
        volume=data.volume[rows],
        position=data.position[rows],
        spacing_mm=tuple(data.spacing_mm[row] for row in rows),
        num_subjects=len(rows),
    )


def test_nothing_to_score_is_said():
    plan_tally = ClassificationTally(2, 2)
    empty = np.zeros(plan_tally.length, np.uint64)
    result = plan_tally.read(empty, 2, plan=None, threshold=FIXED_HALF)
    assert result["metrics"] == {}
    assert result["details"]["num_subjects"] == 0
    assert ThresholdTally(2).read(np.zeros(2 * SCORE_BINS, np.uint64), 2).value == 0.5


def test_no_patient_with_a_class_has_no_figure(trained):
    tally = SegmentationTally(("background", "one"), 2)
    result = tally.read(np.zeros(tally.length, np.uint64), 2, plan=trained(MASKS)[0])
    assert "dice" in result["metrics"]
    assert all(estimate["value"] is None and estimate["reason"] for estimate in result["metrics"].values())
    assert result["details"]["num_subjects"] == 0


@pytest.fixture(scope="module")
def trial(trained, dealt, tmp_path_factory):
    """What a trial's policy finds in a plan."""
    folder = tmp_path_factory.mktemp("trial")
    shares = {}

    def findings(text, *overrides, sites=4):
        plan = trained(text)[0]
        if text not in shares:
            shares[text] = dealt(plan)["site-1"]
            (folder / f"{len(text)}.toml").write_text(trial_policy(plan, shares[text]))
        policy = load_policy(folder / f"{len(text)}.toml")
        asked = make_plan(folder, text, *overrides)
        own = prepare_own(asked, ShareSource(path=shares[text].path, names_patients=True), folder, "site-1")
        model = build_model(asked, own.input_shape, own.num_classes)
        assert isinstance(Scorer(asked, own.dataset.class_names, "cpu"), Scorer)
        found = check_plan(
            policy,
            asked,
            bound=bind_plan(asked),
            submitter=LEAD,
            sites=[f"site-{number}" for number in range(1, sites + 1)],
            architecture_hash=architecture_hash(model, own.input_shape),
            dataset=own.dataset.name,
            parameters=sum(parameter.numel() for parameter in trainable(model)),
            deidentified=True,
        )
        return {finding.rule for finding in found}

    return findings


def test_a_trials_policy_allows_its_own_plan(trial):
    for text in (DISTRIBUTED, SUMS, CLEAR):
        assert trial(text) == set()


@pytest.mark.parametrize(
    ("text", "overrides", "rule"),
    [
        (DISTRIBUTED, ("privacy.dp.noise.multiplier=1.0",), "privacy.epsilon"),
        (DISTRIBUTED, ("federation.rounds=4",), "max_rounds"),
        (DISTRIBUTED, ("model.channels=[2, 5]",), "models.architectures"),
        (DISTRIBUTED, ("privacy.delta=2e-3",), "privacy.delta"),
        (SUMS, ("federation.rounds=3",), "max_rounds"),
    ],
)
def test_a_trials_policy_refuses_a_weakened_plan(trial, text, overrides, rule):
    assert rule in trial(text, *overrides)


def test_a_trials_policy_refuses_fewer_sites_and_sums_in_the_clear(trial, trained, dealt, tmp_path):
    assert trial(DISTRIBUTED, sites=3)
    plan = trained(SUMS)[0]
    policy = tmp_path / "policy.toml"
    policy.write_text(trial_policy(plan, dealt(plan)["site-1"]))
    bare = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"secure_aggregation": None})})
    own = prepare_own(bare, dealt(plan)["site-1"], tmp_path, "site-1")
    model = build_model(bare, own.input_shape, own.num_classes)
    found = check_plan(
        load_policy(policy),
        bare,
        bound=None,
        submitter=LEAD,
        sites=["site-1", "site-2", "site-3", "site-4"],
        architecture_hash=architecture_hash(model, own.input_shape),
        dataset=own.dataset.name,
        parameters=1,
        deidentified=True,
    )
    assert {finding.rule for finding in found} == {"privacy.secure_aggregation"}
