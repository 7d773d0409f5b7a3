"""Membership scores and their figures, against scipy, scikit-learn and counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medveil.attacks.membership_report import rate_name
from medveil.attacks.membership_scores import area, hit_rate, likelihood_ratios, memorisation, roc
from medveil.rng import Seeds


def drawn(models, patients, shift, seed=0):
    """Answers with a mean for every patient, and ``shift`` more from models that had the patient."""
    random = np.random.default_rng(seed)
    members = random.random((models, patients)) < 0.5
    return random.normal(0, 3, patients) + random.normal(0, 1, (models, patients)) + shift * members, members


def by_hand(signal, members, target, patient, variant):
    """Carlini et al., Algorithm 1, with the variance shared by all patients; loops and scipy alone."""
    inside, outside, residuals = [], [], {True: [], False: []}
    for other in range(signal.shape[1]):
        groups = {True: [], False: []}
        for model in range(len(signal)):
            if model != target:
                groups[bool(members[model, other])].append(signal[model, other])
        for kind, values in groups.items():
            if values:
                residuals[kind].append((np.sum((values - np.mean(values)) ** 2), len(values) - 1))
        if other == patient:
            inside, outside = groups[True], groups[False]
    std = {kind: np.sqrt(sum(a for a, _ in each) / sum(b for _, b in each)) for kind, each in residuals.items()}
    value = signal[target, patient]
    if variant == "offline":
        return norm.ppf(norm.cdf(value, np.mean(outside), std[False]))
    return norm.logpdf(value, np.mean(inside), std[True]) - norm.logpdf(value, np.mean(outside), std[False])


@pytest.mark.parametrize("variant", ["online", "offline"])
def test_scores_are_likelihood_ratios_of_normal_distributions(variant):
    signal, members = drawn(12, 9, 1.0)
    scores = likelihood_ratios(signal, members, variant)
    for target in range(12):
        for patient in range(9):
            wanted = by_hand(signal, members, target, patient, variant)
            assert scores[target, patient] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 2**31), target=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_targets_own_membership_never_reaches_its_score(seed, target):
    signal, members = drawn(8, 6, 2.0, seed)
    flipped = members.copy()
    flipped[target] = ~flipped[target]
    for variant in ("online", "offline"):
        before, after = (likelihood_ratios(signal, each, variant)[target] for each in (members, flipped))
        np.testing.assert_allclose(before, after, rtol=1e-7, atol=1e-9)


def test_no_shadow_to_compare_with_is_no_evidence():
    signal, members = drawn(6, 4, 1.0)
    members[:, 0], members[:, 1] = True, False
    online = likelihood_ratios(signal, members)
    assert np.all(online[:, :2] == 0)
    assert np.all(online[:, 2:] != 0)
    assert np.all(likelihood_ratios(signal, members, "offline")[:, 0] == 0)


def test_many_shadows_reach_the_best_test_of_two_normals():
    """The likelihood ratio of N(0, 1) and N(d, 1) has AUC Phi(d / sqrt 2) and, at a rate a, 1 - Phi(q(1 - a) - d)."""
    signal, members = drawn(100, 200, 1.5)
    scores = likelihood_ratios(signal, members)
    assert area(scores, members, Seeds(0)).value == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.02)
    wanted = 1 - norm.cdf(norm.ppf(0.99) - 1.5)
    found = hit_rate(scores, members, 0.01, Seeds(0))
    assert found.low < wanted < found.high


def test_a_threshold_for_all_patients_misses_what_likelihood_ratios_find():
    signal, members = drawn(40, 200, 1.5)
    ratio, threshold = (area(each, members, Seeds(0)) for each in (likelihood_ratios(signal, members), signal))
    assert threshold.high < ratio.low


def test_random_membership_cannot_be_told():
    signal, members = drawn(24, 150, 3.0)
    null = np.random.default_rng(5).random(members.shape) < 0.5
    scores = likelihood_ratios(signal, null)
    found, hits = area(scores, null, Seeds(0)), hit_rate(scores, null, 0.01, Seeds(0))
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.1
    assert hits.low < 0.01 < hits.high


def test_area_agrees_with_scikit_learn_ties_included():
    signal, members = drawn(10, 30, 0.7)
    for scores in (signal, np.round(signal)):
        wanted = roc_auc_score(members.ravel(), scores.ravel())
        assert area(scores, members, Seeds(0)).value == pytest.approx(wanted, abs=1e-12)


def test_area_at_its_ends():
    members = np.arange(40).reshape(4, 10) % 2 == 0
    assert area(members.astype(float), members, Seeds(0)).value == 1.0
    assert area(np.zeros((4, 10)), members, Seeds(0)).value == 0.5


def test_intervals_resample_patients_not_pairs():
    """Ten copies of every model are no new evidence: the intervals stay. Resampled pairs would make them narrow."""
    signal, members = drawn(4, 60, 1.0)
    once = area(signal, members, Seeds(3))
    copies = area(np.tile(signal, (10, 1)), np.tile(members, (10, 1)), Seeds(3))
    assert (once.low, once.high) == pytest.approx((copies.low, copies.high), abs=1e-12)
    assert once.high - once.low > 0.05


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_hits_at_a_rate_are_what_counting_gives(rate):
    signal, members = drawn(20, 40, 1.0)
    for scores in (signal, np.round(signal)):
        best = 0.0
        for threshold in np.unique(scores):
            if np.mean(scores[~members] >= threshold) <= rate:
                best = max(best, np.mean(scores[members] >= threshold))
        found = hit_rate(scores, members, rate, Seeds(0))
        assert found.value == pytest.approx(best)
        assert found.low <= found.value <= found.high
        assert roc(scores, members, np.array([rate]))[0] == pytest.approx(best)


def test_no_hit_still_has_an_interval():
    """Clopper-Pearson: of n trials without a hit, at most 1 - (0.025)^(1/n)."""
    members = np.array([[True] * 20 + [False] * 20] * 2)
    found = hit_rate(-members.astype(float), members, 0.01, Seeds(0))
    assert found.value == 0
    assert found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 40))


def test_memorisation_is_a_difference_of_means():
    confidence = np.array([[0.9, 0.5, 0.3], [0.7, 0.5, 0.3], [0.2, 0.5, 0.3]])
    members = np.array([[True, True, True], [True, False, True], [False, False, True]])
    np.testing.assert_allclose(memorisation(confidence, members), [0.6, 0.0, np.nan])


def test_figures_are_named_by_rate():
    assert [rate_name(each) for each in (0.01, 0.001)] == ["tpr_at_1e-2", "tpr_at_1e-3"]
