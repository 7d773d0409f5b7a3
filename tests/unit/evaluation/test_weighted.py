"""Weighted metrics against scikit-learn, which computes them one weighting at a time."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from medveil.evaluation import weighted


@pytest.fixture(params=["continuous", "tied"])
def drawn(request):
    generator = np.random.default_rng(11)
    labels = generator.integers(0, 2, 200)
    scores = 1 / (1 + np.exp(-(generator.normal(size=200) + labels)))
    if request.param == "tied":
        scores = np.round(scores, 1)
    weights = generator.integers(0, 4, (7, 200)).astype(float)
    return scores, labels, weights


def test_auc_agrees_with_scikit_learn_under_weights(drawn):
    scores, labels, weights = drawn
    expected = [oracle.roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted.auc(scores, labels == 1, weights), expected, atol=1e-12)


def test_average_precision_agrees_with_scikit_learn_under_weights(drawn):
    scores, labels, weights = drawn
    expected = [oracle.average_precision_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted.average_precision(scores, labels == 1, weights), expected, atol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_decisions_agree_with_scikit_learn_under_weights(num_classes):
    generator = np.random.default_rng(3)
    labels, predicted = generator.integers(0, num_classes, (2, 150))
    weights = generator.integers(0, 3, (5, 150)).astype(float)
    matrix = weighted.confusion(labels, predicted, num_classes, weights)
    for row, cells in zip(weights, matrix, strict=True):
        np.testing.assert_array_equal(cells, oracle.confusion_matrix(labels, predicted, sample_weight=row))
    recalls = [oracle.recall_score(labels, predicted, sample_weight=row, average=None) for row in weights]
    np.testing.assert_allclose(weighted.recalls(matrix), recalls, atol=1e-12)
    mcc = [oracle.matthews_corrcoef(labels, predicted, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted.matthews(matrix), mcc, atol=1e-12)
    rest = [
        [oracle.recall_score(labels != k, predicted != k, sample_weight=row) for k in range(num_classes)]
        for row in weights
    ]
    np.testing.assert_allclose(weighted.specificities(matrix), rest, atol=1e-12)


def test_calibration_error_by_hand():
    confidence = np.array([0.05, 0.15, 0.95, 1.0])
    correct = np.array([0.0, 1.0, 1.0, 0.0])
    # Bins of ten: gaps 0.05, 0.85 and |0.95 + 1.0 - 1|, weighted by how many images each bin holds.
    expected = (0.05 + 0.85 + 0.95) / 4
    assert weighted.calibration_error(confidence, correct, 10, np.ones((1, 4)))[0] == pytest.approx(expected)


def test_a_resample_that_lacks_a_class_defines_nothing():
    scores, positive = np.array([0.1, 0.9]), np.array([False, True])
    weights = np.array([[0.0, 2.0], [2.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(weighted.auc(scores, positive, weights), [np.nan, np.nan, 1])
    np.testing.assert_array_equal(weighted.average_precision(scores, positive, weights), [np.nan, np.nan, 1])
    matrix = weighted.confusion(positive.astype(int), positive.astype(int), 2, weights)
    np.testing.assert_array_equal(weighted.matthews(matrix), [np.nan, np.nan, 1])


def test_calling_everything_the_same_is_no_information():
    matrix = np.array([[[3.0, 0.0], [4.0, 0.0]]])
    assert weighted.matthews(matrix)[0] == 0
