import json

import numpy as np
import pytest
from sklearn import metrics as oracle

from medveil.errors import ConfigError, DataError, LabelError
from medveil.evaluation.classification import METRICS, evaluate_classification
from medveil.evaluation.curves import Threshold, choose_threshold
from medveil.evaluation.groups import per_group
from medveil.evaluation.intervals import BootstrapConfig
from medveil.rng import Seeds

FAST = BootstrapConfig(resamples=40)


def evaluate(probabilities, labels, subjects=None, **options):
    subjects = np.arange(len(labels)) if subjects is None else subjects
    options.setdefault("bootstrap", FAST)
    return evaluate_classification(probabilities, labels, subjects, seeds=Seeds(0), **options)


def two(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


@pytest.fixture
def binary():
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 300)
    return two(1 / (1 + np.exp(-(generator.normal(size=300) + 2 * labels - 1)))), labels


def test_binary_points_agree_with_scikit_learn(binary):
    p, y = binary
    result = evaluate(p, y, threshold=Threshold(0.3, "by hand"))
    called = p[:, 1] >= 0.3
    expected = {
        "auc": oracle.roc_auc_score(y, p[:, 1]),
        "average_precision": oracle.average_precision_score(y, p[:, 1]),
        "mcc": oracle.matthews_corrcoef(y, called),
        "sensitivity": oracle.recall_score(y, called),
        "specificity": oracle.recall_score(y, called, pos_label=0),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, called),
    }
    for name, value in expected.items():
        assert result.metrics[name].value == pytest.approx(value, abs=1e-12), name
    assert result.confusion == tuple(map(tuple, oracle.confusion_matrix(y, called).tolist()))
    assert (result.threshold, result.threshold_source) == (0.3, "by hand")


def test_multi_class_points_agree_with_scikit_learn():
    generator = np.random.default_rng(8)
    y = generator.integers(0, 4, 200)
    p = generator.dirichlet(np.ones(4), 200) + np.eye(4)[y] / 2
    p /= p.sum(axis=1, keepdims=True)
    result = evaluate(p, y)
    called = p.argmax(axis=1)
    expected = {
        "auc": oracle.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "average_precision": oracle.average_precision_score(np.eye(4)[y], p, average="macro"),
        "mcc": oracle.matthews_corrcoef(y, called),
        "sensitivity": oracle.recall_score(y, called, average="macro"),
        "specificity": np.mean([oracle.recall_score(y != k, called != k) for k in range(4)]),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, called),
    }
    for name, value in expected.items():
        assert result.metrics[name].value == pytest.approx(value, abs=1e-12), name
    assert result.threshold is None
    assert result.roc is None


def test_every_metric_lies_inside_its_interval(binary):
    result = evaluate(*binary, bootstrap=BootstrapConfig(resamples=300))
    for name in set(METRICS) - {"calibration_error"}:
        estimate = result.metrics[name]
        assert estimate.low < estimate.value < estimate.high, name


def test_the_intervals_belong_to_the_points(binary):
    """Resampling one patient who is the whole data set can only give the point value back."""
    p, y = binary
    twice = evaluate(np.tile(p, (2, 1)), np.tile(y, 2), np.repeat([0, 1], y.size))
    for name in METRICS:
        estimate = twice.metrics[name]
        assert (estimate.low, estimate.high) == pytest.approx((estimate.value, estimate.value)), name


def test_missing_positives_leave_metrics_undefined_with_a_reason():
    result = evaluate(two([0.2, 0.7, 0.4]), [0, 0, 0])
    for name in ("auc", "average_precision", "mcc", "sensitivity", "balanced_accuracy"):
        assert result.metrics[name].value is None
        assert result.metrics[name].reason == "no image of class 1"
    assert result.metrics["specificity"].value == pytest.approx(2 / 3)
    assert result.roc is None
    assert result.confusion == ((2, 1), (0, 0))


def test_a_missing_class_of_several_leaves_means_undefined():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    result = evaluate(p, np.arange(20) % 2)
    assert result.metrics["auc"].value is None
    assert "class 2" in result.metrics["sensitivity"].reason
    assert result.metrics["mcc"].value is not None


def test_one_image_is_evaluated_without_a_crash():
    result = evaluate(two([0.7]), [1])
    assert result.metrics["sensitivity"].value == 1
    assert result.metrics["auc"].value is None
    assert result.num_examples == result.num_subjects == 1


def test_calibration_curve_counts_every_image(binary):
    p, y = binary
    curve = evaluate(p, y).calibration
    assert sum(curve.count) == y.size
    happened, stated = oracle_calibration(y, p[:, 1])
    np.testing.assert_allclose(curve.accuracy, happened)
    np.testing.assert_allclose(curve.confidence, stated)


def oracle_calibration(y, p):
    from sklearn.calibration import calibration_curve

    return calibration_curve(y, p, n_bins=10)


def test_roc_points_enclose_the_auc(binary):
    result = evaluate(*binary)
    assert np.trapezoid(result.roc.tpr, result.roc.fpr) == pytest.approx(result.metrics["auc"].value)


def test_threshold_maximises_youden_by_brute_force(binary):
    p, y = binary
    chosen = choose_threshold(p[:, 1], y)

    def youden(cut):
        called = p[:, 1] >= cut
        return called[y == 1].mean() - called[y == 0].mean()

    assert youden(chosen.value) == pytest.approx(max(youden(cut) for cut in p[:, 1]))
    assert "validation" in chosen.source


def test_threshold_of_one_class_is_stated_not_invented():
    chosen = choose_threshold([0.2, 0.9], [1, 1])
    assert chosen.value == 0.5
    assert "one class only" in chosen.source


def test_threshold_is_finite_for_a_useless_model():
    assert choose_threshold([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]).value <= 0.9


@pytest.mark.parametrize(
    ("probabilities", "labels", "error"),
    [
        (np.ones((3, 1)), [0, 0, 0], DataError),
        (np.empty((0, 2)), [], DataError),
        (two([0.1, 0.2]), [0], DataError),
        (two([0.1, np.nan]), [0, 1], DataError),
        (two([0.1, 1.4]), [0, 1], DataError),
        (two([0.1, 0.4]) * 2, [0, 1], DataError),
        (two([0.1, 0.4]), [0, 2], LabelError),
        (two([0.1, 0.4]), [0, -1], LabelError),
        (two([0.1, 0.4]), [0.0, 1.0], LabelError),
    ],
)
def test_wrong_input_is_refused(probabilities, labels, error):
    with pytest.raises(error):
        evaluate(probabilities, labels)


def test_no_bins_are_refused():
    with pytest.raises(ConfigError):
        evaluate(two([0.1, 0.9]), [0, 1], bins=0)


def test_threshold_from_scores_that_do_not_fit_is_refused():
    with pytest.raises(DataError):
        choose_threshold([0.1], [0, 1])


def test_to_json_survives_json(binary):
    result = evaluate(*binary)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["metrics"]["auc"]["value"] == result.metrics["auc"].value
    assert document["details"]["bootstrap"] == {"resamples": 40, "level": 0.95}
    assert set(document["details"]["roc"]) == {"fpr", "tpr"}


def test_per_group_evaluates_each_site_alone(binary):
    p, y = binary
    sites = np.where(np.arange(y.size) % 3 == 0, "b", "a").tolist()
    results = per_group(sites, lambda rows: evaluate(p[rows], y[rows]))
    assert list(results) == ["a", "b"]
    assert results["b"].num_examples == 100
    assert results["b"].metrics["auc"].value == pytest.approx(oracle.roc_auc_score(y[::3], p[::3, 1]))
