"""Phantoms: repeatable, varied, and possible but not trivial to learn."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import f_oneway
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medveil.data.sources import load
from medveil.data.sources.phantom import PhantomSource
from medveil.imaging.preprocess import Preprocess


def draw(**settings):
    return load(PhantomSource(**settings), Preprocess(), root=Path())


def test_a_seed_is_a_data_set() -> None:
    def digests(**settings) -> list[str]:
        return [e.digest for s in draw(**settings).subjects for e in s.examples]

    assert digests(subjects=8, seed=1) == digests(subjects=8, seed=1)
    assert not set(digests(subjects=8, seed=1)) & set(digests(subjects=8, seed=2))
    # A larger set holds the smaller one.
    assert set(digests(subjects=8, seed=1)) < set(digests(subjects=16, seed=1))


def test_patients_scanners_and_classes() -> None:
    dataset = draw(subjects=400, scanners=3, repeated=0.25, prevalence=0.3)
    assert len(dataset.subjects) == 400
    several = sum(len(subject.examples) > 1 for subject in dataset.subjects)
    # Four standard deviations of the binomial.
    assert abs(several - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)
    assert abs(sum(subject.label() for subject in dataset.subjects) - 120) < 4 * np.sqrt(400 * 0.3 * 0.7)
    assert {subject.attributes["site"] for subject in dataset.subjects} == {"site-1", "site-2", "site-3"}
    for subject in dataset.subjects:
        assert subject.attributes["scanner"].replace("scanner", "site") == subject.attributes["site"]
        assert len({example.target for example in subject.examples}) == 1
        assert len({example.digest for example in subject.examples}) == len(subject.examples)


def test_scanners_differ_more_than_chance() -> None:
    dataset = draw(subjects=300, scanners=3, repeated=0)
    means = np.array([subject.examples[0].image.mean() for subject in dataset.subjects])
    sites = np.array([subject.attributes["site"] for subject in dataset.subjects])
    shuffled = np.random.default_rng(0).permutation(sites)

    def p_value(groups: np.ndarray) -> float:
        return float(f_oneway(*(means[groups == site] for site in np.unique(groups))).pvalue)

    assert p_value(sites) < 1e-9
    assert p_value(shuffled) > 1e-3


@pytest.mark.parametrize("size", [(32, 40), (24, 32, 28)])
def test_organs_have_two_parts_that_can_be_seen(size) -> None:
    dataset = draw(task="segmentation", subjects=12, size=size, difficulty=0.2)
    assert dataset.example_shape == (1, *size)
    for subject in dataset.subjects:
        for example in subject.examples:
            image, mask = example.image[0].astype(float), example.target
            assert set(np.unique(mask)) == {0, 1, 2}
            assert 0.01 < (mask > 0).mean() < 0.6
            assert image[mask == 1].mean() > image[mask == 2].mean() > image[mask == 0].mean()
            assert example.spacing_mm == (1.0,) * len(size)


def linear_auc(difficulty: float) -> float:
    """Of a linear classifier on raw pixels: an outside yardstick for how easy the set is."""
    dataset = draw(subjects=500, difficulty=difficulty, repeated=0)
    images = np.array([s.examples[0].image.ravel() for s in dataset.subjects]) / 255
    labels = np.array([s.label() for s in dataset.subjects])
    model = LogisticRegression(C=0.05, max_iter=500).fit(images[:300], labels[:300])
    return float(roc_auc_score(labels[300:], model.decision_function(images[300:])))


def test_difficulty_is_between_plain_and_hidden() -> None:
    easy, middle, hard = (linear_auc(difficulty) for difficulty in (0.0, 0.5, 1.0))
    assert easy > 0.95
    assert 0.75 < middle < 0.96
    assert hard < middle - 0.1
