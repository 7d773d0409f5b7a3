"""From predictions to figures: which threshold, which rows, which volumes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import nn

from medveil.data.subject import Subject
from medveil.errors import ConfigError
from medveil.study.plan import load_plan
from medveil.study.prepare import TestSet as Examined
from medveil.study.scoring import Scorer, check_subgroups, mask_volumes, point_metrics
from medveil.training.arrays import ArrayData

PLAN = """
name = "scores"
task = "classification"
[data.source]
kind = "phantom"
[model]
kind = "cnn"
[federation]
rounds = 1
[evaluation]
bootstrap = { resamples = 0 }
subgroups = ["scanner"]
"""
CLASSES = ("clear", "opacity")


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return lambda *overrides: load_plan(path, overrides)


class Ramp(nn.Module):
    """Logit of the last class: the mean of the scaled image."""

    def __init__(self, classes=2):
        super().__init__()
        self._classes = classes

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([*[torch.zeros_like(mean)] * (self._classes - 1), mean], 1)


def _data(levels, targets):
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    numbers = np.arange(len(levels))
    return ArrayData(
        images, torch.tensor(targets), numbers, numbers * 0, numbers * 0, (None,) * len(levels), len(levels)
    )


def _scorer(plan, classes=CLASSES):
    return Scorer(plan, classes, torch.device("cpu"))


def test_the_threshold_parts_the_validation_images(plan):
    """Levels 10, 60, 90 are clear and 100, 200 are not: the best cut is the probability of level 100."""
    chosen = _scorer(plan()).threshold(Ramp(), _data([10, 60, 90, 100, 200], [0, 0, 0, 1, 1]))
    assert chosen.value == pytest.approx(1 / (1 + np.exp(-((100 / 255 - 0.5) / 0.25))), rel=1e-5)


@pytest.mark.parametrize("validation", [None, _data([10, 20], [1, 1])], ids=["none", "one class"])
def test_without_two_classes_the_threshold_is_one_half(plan, validation):
    assert _scorer(plan()).threshold(Ramp(), validation).value == 0.5


def test_three_classes_have_no_threshold_to_choose(plan):
    validation = _data([10, 100, 200], [0, 1, 2])
    assert _scorer(plan(), ("a", "b", "c")).threshold(Ramp(3), validation).value == 0.5


def test_a_stated_threshold_is_not_chosen_again(plan):
    validation = _data([10, 100], [0, 1])
    assert _scorer(plan("evaluation.threshold=0.9")).threshold(Ramp(), validation).value == 0.9


@pytest.fixture
def scored():
    """Forty images of twenty subjects, two each, at three sites; and made-up probabilities."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(20), 2)
    subjects = tuple(Subject(f"s{number}", (), {"scanner": "new" if number % 2 else "old"}) for number in range(20))
    labels = rng.integers(0, 2, 40)
    data = ArrayData(
        torch.zeros(40, 1, 4, 4, dtype=torch.uint8),
        torch.from_numpy(labels),
        owner,
        np.tile([0, 1], 20),
        owner * 0,
        (None,) * 40,
        20,
    )
    chance = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99)
    sites = tuple("abc"[number % 3] for number in range(20))
    return Examined(data, subjects, sites), np.stack([1 - chance, chance], 1), labels


def test_groups_are_scored_on_their_own_images(plan, scored):
    test, predictions, labels = scored
    scorer = _scorer(plan("evaluation.threshold=0.6"))
    threshold = scorer.threshold(Ramp(), None)
    site = np.repeat([test.site_of_subject[number] for number in range(20)], 2)
    scanner = np.repeat(["old", "new"] * 10, 2)
    by_site = scorer.by_site(predictions, test, threshold)
    by_subgroup = scorer.by_subgroup(predictions, test, threshold)
    assert set(by_site) == set("abc")
    assert set(by_subgroup) == {"scanner"}
    for groups, of_image in ((by_site, site), (by_subgroup["scanner"], scanner)):
        for name, metrics in groups.items():
            inside = of_image == name
            assert metrics["auc"]["value"] == pytest.approx(roc_auc_score(labels[inside], predictions[inside, 1]))
            (tn, fp), (fn, tp) = confusion_matrix(labels[inside], predictions[inside, 1] >= 0.6)
            assert metrics["sensitivity"]["value"] == pytest.approx(tp / (tp + fn))
            assert metrics["specificity"]["value"] == pytest.approx(tn / (tn + fp))


def test_unknown_sites_are_left_out(plan, scored):
    test, predictions, _ = scored
    scorer = _scorer(plan())
    threshold = scorer.threshold(Ramp(), None)
    unknown = Examined(test.data, test.subjects, ("",) * 20)
    assert scorer.by_site(predictions, unknown, threshold) == {}


def test_figures_that_the_data_do_not_define_are_left_out(plan, scored):
    test, predictions, labels = scored
    scorer = _scorer(plan())
    result = scorer.score(predictions, test, scorer.threshold(Ramp(), None))
    assert point_metrics(result)["auc"] == pytest.approx(roc_auc_score(labels, predictions[:, 1]))
    one = ArrayData(
        test.data.images,
        torch.ones(40, dtype=torch.int64),
        test.data.subject,
        test.data.volume,
        test.data.position,
        test.data.spacing_mm,
        20,
    )
    single = Examined(one, test.subjects, test.site_of_subject)
    assert "auc" not in point_metrics(scorer.score(predictions, single, scorer.threshold(Ramp(), None)))


def test_a_subgroup_column_that_is_missing_is_said_beforehand(plan, scored):
    test, _, _ = scored
    check_subgroups(plan(), test)
    with pytest.raises(ConfigError, match="ward"):
        check_subgroups(plan("evaluation.subgroups=['ward']"), test)


def test_slices_are_stacked_by_subject_volume_and_position():
    """Slices come shuffled; every pixel says where it belongs."""
    places = [(subject, volume, position) for subject in (0, 1) for volume in (0, 1) for position in (0, 1, 2)]
    order = np.random.default_rng(1).permutation(len(places))
    shuffled = [places[index] for index in order]
    stamp = np.array([100 * subject + 10 * volume + position for subject, volume, position in shuffled], np.uint8)
    truth = np.broadcast_to(stamp[:, None, None], (12, 2, 3)).copy()
    data = ArrayData(
        torch.zeros(12, 1, 2, 3),
        torch.from_numpy(truth),
        *(np.array([place[column] for place in shuffled]) for column in range(3)),
        ((5.0, 1.0, 2.0),) * 12,
        2,
    )
    volumes = mask_volumes(truth + np.uint8(50), data, np.flatnonzero(data.subject == 1))
    assert [volume.subject for volume in volumes] == [1, 1]
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.reference[:, 0, 0], 100 + 10 * number + np.arange(3))
        np.testing.assert_array_equal(volume.predicted, volume.reference + 50)
        assert volume.spacing_mm == (5.0, 1.0, 2.0)
