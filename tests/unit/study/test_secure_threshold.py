"""The decision threshold and the cohort from secure sums: as from all images together, and no site's in the clear."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from torch import nn

from medveil.errors import GuaranteeError, TooFewSitesError
from medveil.evaluation.curves import choose_threshold
from medveil.federation.secure.tallies import score_counts
from medveil.study import secure_statistics
from medveil.study.plan import load_plan
from medveil.study.prepare import Party, prepare
from medveil.study.privacy import bind_plan
from medveil.study.scoring import Scorer
from medveil.study.secure_statistics import SCORE_BINS, binned_threshold, cohort_statistics, decision_threshold
from medveil.training.arrays import ArrayData

PLAN = """
name = "thresholds"
task = "classification"
[data.source]
kind = "phantom"
subjects = 60
[data.splits]
kind = "random"
[data.partition]
kind = "iid"
sites = 4
[model]
kind = "cnn"
[federation]
rounds = 1
[privacy.secure_aggregation]
"""
CLASSES = ("clear", "opacity")


@pytest.fixture
def plan(tmp_path):
    def build(*overrides, text=PLAN):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return load_plan(path, overrides)

    return build


class Stored(nn.Module):
    """The logit of class 1 is the first pixel: a test chooses the scores."""

    def forward(self, images):
        level = 10 * (images[:, 0, 0, 0] * 0.25 + 0.5) - 5
        return torch.stack([torch.zeros_like(level), level], 1)


def _data(levels, labels):
    numbers = np.arange(len(levels))
    images = torch.tensor(np.asarray(levels), dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)
    labels = torch.tensor(np.asarray(labels), dtype=torch.int64)
    return ArrayData(images, labels, numbers, 0 * numbers, 0 * numbers, (None,) * len(levels), len(levels))


def _site(name, levels, labels):
    return Party(name, _data([0.5], [0]), _data(levels, labels) if len(levels) else None)


def _sites(seed=0, sizes=(30, 50, 5, 40)):
    """Every image's probability of class 1 lies in a bin of its own; the classes overlap."""
    rng = np.random.default_rng(seed)
    bins = rng.choice(np.arange(100, 4000), sum(sizes), replace=False)
    chances = (bins + rng.uniform(0.1, 0.9, bins.size)) / 4096
    labels = (rng.random(bins.size) < chances).astype(np.int64)
    levels = (np.log(chances / (1 - chances)) + 5) / 10
    ends = np.cumsum(sizes)[:-1]
    return [
        _site(f"site-{number}", *own)
        for number, own in enumerate(zip(np.split(levels, ends), np.split(labels, ends), strict=True))
    ]


def _scorer(plan, classes=CLASSES):
    return Scorer(plan, classes, torch.device("cpu"))


def _pooled(scorer, sites):
    validations = [site.validation for site in sites if site.validation is not None]
    scores = np.concatenate([scorer.predict(Stored(), one)[:, 1] for one in validations])
    return scores, np.concatenate([one.targets.numpy() for one in validations])


def _j(scores, labels, cut):
    """Youden's J exactly."""
    called = scores >= cut
    positive, negative = labels == 1, labels == 0
    return Fraction(int((called & positive).sum()), int(positive.sum())) - Fraction(
        int((called & negative).sum()), int(negative.sum())
    )


def _exact_choice(scores, labels):
    """By trying every score: the largest J, among equals the highest score."""
    return max((_j(scores, labels, cut), cut) for cut in scores.tolist())


PAIRS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(PAIRS, st.sampled_from([2, 8, 64, 4096]))
@settings(max_examples=200, deadline=None)
def test_j_is_the_largest_less_what_one_bin_can_hide(pairs, bins):
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    counts = score_counts(scores, labels, bins)
    chosen = binned_threshold(counts)
    below = (counts / counts.sum(axis=1, keepdims=True)).min(axis=0).max()
    largest, _ = _exact_choice(scores, labels)
    assert 0 <= largest - _j(scores, labels, chosen.value) <= below + 1e-12
    assert (chosen.value * bins).is_integer()


@given(PAIRS, st.sampled_from([8, 64, 4096]))
@settings(max_examples=200, deadline=None)
def test_without_mixed_bins_it_is_the_pooled_threshold_to_one_bin(pairs, bins):
    """Exact ties included; those of choose_threshold are broken by rounding, so it may pick another of equals."""
    bin_of = {}
    # The first label of a bin counts; what is left has no bin with both classes.
    kept = [(s, y) for s, y in pairs if bin_of.setdefault(min(int(s * bins), bins - 1), y) == y]
    scores, labels = (np.array(column) for column in zip(*kept, strict=True))
    if len(set(labels.tolist())) < 2:
        return
    chosen = binned_threshold(score_counts(scores, labels, bins)).value
    largest, highest = _exact_choice(scores, labels)
    assert 0 <= highest - chosen <= 1 / bins
    np.testing.assert_array_equal(scores >= chosen, scores >= highest)
    assert _j(scores, labels, choose_threshold(scores, labels).value) == largest == _j(scores, labels, chosen)


@pytest.mark.parametrize("seed", range(5))
def test_the_secure_threshold_is_the_pooled_one_to_one_bin(plan, seed):
    sites, scorer = _sites(seed), _scorer(plan())
    scores, labels = _pooled(scorer, sites)
    counts = score_counts(scores, labels, SCORE_BINS)
    assert counts.sum(axis=0).max() == 1
    secure, pooled = decision_threshold(scorer, Stored(), sites, ()), choose_threshold(scores, labels)
    assert 0 <= pooled.value - secure.value < 1 / SCORE_BINS
    assert secure.value != pooled.value
    np.testing.assert_array_equal(
        confusion_matrix(labels, scores >= secure.value), confusion_matrix(labels, scores >= pooled.value)
    )
    assert "4096 bins" in secure.source
    assert "in secret" in secure.source


def test_a_sum_with_mixed_bins_says_what_it_may_have_lost():
    chosen = binned_threshold(np.array([[6, 2, 0, 0], [0, 1, 2, 2]]))
    assert chosen.value == 0.5
    assert "at most 0.2 below" in chosen.source
    assert "no threshold has more" in binned_threshold(np.array([[3, 0], [0, 3]])).source


def test_equal_values_of_j_take_the_highest_edge():
    """With counts of 3 and 7, fractions round differently: integers do not."""
    counts = np.zeros((2, 16), dtype=np.int64)
    counts[0, [1, 5]], counts[1, [3, 9]] = [4, 3], [4, 3]
    gains = {3: 1 - 3 / 7, 9: 3 / 7}
    assert binned_threshold(counts).value == max(gains, key=gains.get) / 16
    counts[1, [3, 9]] = [3, 4]
    assert binned_threshold(counts).value == 9 / 16


def test_a_site_without_validation_images_answers_all_the_same(plan):
    sites = _sites()
    sites[1] = Party(sites[1].name, sites[1].train, None)
    scorer = _scorer(plan())
    pooled = choose_threshold(*_pooled(scorer, sites))
    assert 0 <= pooled.value - decision_threshold(scorer, Stored(), sites, ()).value < 1 / SCORE_BINS


def test_a_lost_site_is_not_in_the_sum(plan):
    sites, scorer = _sites(), _scorer(plan())
    sites[0] = _site("site-0", [0.9] * 60, [0] * 60)
    without = choose_threshold(*_pooled(scorer, sites[1:]))
    assert abs(choose_threshold(*_pooled(scorer, sites)).value - without.value) > 1 / SCORE_BINS
    assert 0 <= without.value - decision_threshold(scorer, Stored(), sites, ["site-0"]).value < 1 / SCORE_BINS
    with pytest.raises(TooFewSitesError):
        decision_threshold(scorer, Stored(), sites, ["site-0", "site-1"])


@pytest.mark.parametrize(
    ("overrides", "classes", "sites", "value"),
    [
        (["evaluation.threshold=0.9"], CLASSES, _sites(), 0.9),
        ([], ("a", "b", "c"), _sites(), 0.5),
        ([], CLASSES, [Party(site.name, site.train, None) for site in _sites()], 0.5),
    ],
    ids=["stated", "three classes", "no validation"],
)
def test_nothing_is_summed_where_nothing_is_chosen(plan, monkeypatch, overrides, classes, sites, value):
    monkeypatch.delattr(secure_statistics, "secure_sums")
    assert decision_threshold(_scorer(plan(*overrides), classes), Stored(), sites, ()).value == value


def test_one_class_over_all_sites_leaves_one_half(plan):
    sites = [_site(f"site-{number}", [0.3, 0.6], [1, 1]) for number in range(3)]
    assert decision_threshold(_scorer(plan()), Stored(), sites, ()).value == 0.5


def test_without_secure_aggregation_predictions_are_pooled(plan):
    sites, scorer = _sites(), _scorer(plan(text=PLAN.replace("[privacy.secure_aggregation]", "")))
    assert decision_threshold(scorer, Stored(), sites, ()) == choose_threshold(*_pooled(scorer, sites))


def test_predictions_are_not_pooled_with_it(plan, monkeypatch):
    monkeypatch.setattr(secure_statistics, "concatenate", lambda *_: pytest.fail("the sites' images were put together"))
    decision_threshold(_scorer(plan()), Stored(), _sites(), ())


# The cohort


def test_the_cohort_is_that_of_all_training_images(plan):
    asked = plan("privacy.secure_aggregation.statistics=true")
    prepared = prepare(asked)
    cohort = cohort_statistics(asked, prepared)
    pool = prepared.pool().train
    images = pool.images.numpy().astype(np.float64)
    images = images / 255.0 if pool.images.dtype == torch.uint8 else images
    intensity = cohort["intensity"]
    labels = np.bincount(pool.targets.numpy(), minlength=2).tolist()
    assert (cohort["sites"], cohort["images"]) == (4, len(pool))
    assert cohort["images_by_class"] == dict(zip(prepared.dataset.class_names, labels, strict=True))
    np.testing.assert_allclose(intensity["mean"], images.mean((0, 2, 3)), rtol=0, atol=intensity["mean_error"] + 1e-14)
    np.testing.assert_allclose(
        intensity["variance"], images.var((0, 2, 3)), rtol=0, atol=intensity["variance_error"] + 1e-14
    )
    assert max(intensity["mean_error"], intensity["variance_error"]) < 1e-9
    assert intensity["histogram"] == np.histogram(images, 32, (0, 1))[0].tolist()
    assert (intensity["outside"], intensity["range"]) == (0, [0.0, 1.0])


def test_masks_count_images_that_hold_the_class(plan):
    overrides = ["task=segmentation", "data.source.task=segmentation", "privacy.secure_aggregation.statistics=true"]
    asked = plan(*overrides, "model.kind=unet")
    prepared = prepare(asked)
    cohort = cohort_statistics(asked, prepared)
    pool = prepared.pool().train
    holding = [sum(bool((mask == k).any()) for mask in pool.targets) for k in range(prepared.num_classes)]
    assert list(cohort["images_by_class"].values()) == holding
    assert cohort["images"] == len(pool)


def test_z_scores_have_a_wider_range(plan):
    asked = plan("privacy.secure_aggregation.statistics=true", "data.preprocess.intensity=zscore")
    intensity = cohort_statistics(asked, prepare(asked))["intensity"]
    assert intensity["range"] == [-8.0, 8.0]
    assert intensity["mean"][0] == pytest.approx(0, abs=1e-5)
    assert intensity["variance"][0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("text", [PLAN, PLAN.replace("[privacy.secure_aggregation]", "")])
def test_no_cohort_unless_the_plan_asks(plan, text):
    assert cohort_statistics(plan(text=text), None) is None


def test_a_claim_over_the_patients_refuses_exact_statistics():
    private = load_plan("pneumonia-28-private")
    assert bind_plan(private) is not None
    with pytest.raises(GuaranteeError, match=r"statistics = true.*privacy\.earlier"):
        bind_plan(load_plan("pneumonia-28-private", ["privacy.secure_aggregation.statistics=true"]))
