"""What must hold for every data set: invariances, brute force, bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medveil.evaluation import weighted
from medveil.evaluation.classification import evaluate_classification
from medveil.evaluation.intervals import BootstrapConfig
from medveil.evaluation.segmentation import VolumeMasks, evaluate_segmentation
from medveil.rng import Seeds

POINTS_ONLY = BootstrapConfig(resamples=0)
MASKS = arrays.arrays(np.uint8, (6, 7), elements=st.integers(0, 2))


@st.composite
def scored(draw):
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=30).filter(lambda y: 0 < sum(y) < len(y)))
    grid = st.integers(0, 20).map(lambda k: k / 20)  # a coarse grid makes ties
    scores = draw(st.lists(grid, min_size=len(labels), max_size=len(labels)))
    return np.asarray(scores), np.asarray(labels)


def values(scores, labels):
    p = np.stack([1 - scores, scores], axis=1)
    result = evaluate_classification(p, labels, np.arange(labels.size), seeds=Seeds(0), bootstrap=POINTS_ONLY)
    return {name: estimate.value for name, estimate in result.metrics.items()}


@given(scored())
def test_auc_is_the_share_of_pairs_in_the_right_order(data):
    scores, labels = data
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    wins = [1.0 if sick > well else 0.5 if sick == well else 0.0 for sick, well in pairs]
    assert values(scores, labels)["auc"] == pytest.approx(np.mean(wins))
    assert weighted.auc(scores, labels == 1, np.ones((1, labels.size)))[0] == pytest.approx(np.mean(wins))


@given(scored(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(data, random):
    scores, labels = data
    order = random.sample(range(labels.size), labels.size)
    assert values(scores[order], labels[order]) == pytest.approx(values(scores, labels))


@given(scored(), st.floats(0.2, 5))
def test_ranking_metrics_ignore_a_monotone_transform(data, power):
    scores, labels = data
    before, after = values(scores, labels), values(scores**power, labels)
    for name in ("auc", "average_precision"):
        assert after[name] == pytest.approx(before[name])


@given(scored())
def test_every_metric_stays_in_its_range(data):
    for name, value in values(*data).items():
        assert (-1 if name == "mcc" else 0) <= value <= 1, name


@given(scored())
def test_swapping_the_classes_mirrors_the_auc(data):
    scores, labels = data
    assert values(1 - scores, labels)["auc"] == pytest.approx(1 - values(scores, labels)["auc"])


@given(arrays.arrays(np.int64, st.integers(4, 20), elements=st.integers(0, 1)).filter(lambda y: 0 < y.mean() < 1))
def test_perfect_and_worst_predictions(labels):
    perfect, worst = values(labels.astype(float), labels), values(1.0 - labels, labels)
    for name in ("auc", "average_precision", "mcc", "sensitivity", "specificity", "balanced_accuracy"):
        assert perfect[name] == 1, name
    assert perfect["calibration_error"] == 0
    assert (worst["auc"], worst["mcc"], worst["calibration_error"]) == (0, -1, 1)


@settings(max_examples=40)
@given(MASKS, MASKS)
def test_dice_agrees_with_counting(predicted, reference):
    names = ("background", "a", "b")
    volumes = [VolumeMasks(predicted, reference, 0)]
    result = evaluate_segmentation(volumes, names, seeds=Seeds(0), bootstrap=POINTS_ONLY)
    for index, name in enumerate(names[1:], start=1):
        cells = list(zip(predicted.ravel() == index, reference.ravel() == index, strict=True))
        total = sum(map(sum, cells))
        expected = None if total == 0 else 2 * sum(a and b for a, b in cells) / total
        found = result.per_class[name]["dice"].value
        assert found is None if expected is None else found == pytest.approx(expected)


@settings(max_examples=30)
@given(MASKS, MASKS)
def test_masks_may_change_sides(predicted, reference):
    def values_of(one, other):
        result = evaluate_segmentation(
            [VolumeMasks(one, other, 0, (1.0, 2.0))], ("background", "a", "b"), seeds=Seeds(0), bootstrap=POINTS_ONLY
        )
        return {name: estimate.value for name, estimate in result.metrics.items()}

    assert values_of(predicted, reference) == pytest.approx(values_of(reference, predicted))
