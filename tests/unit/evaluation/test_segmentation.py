import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from medveil.errors import ConfigError, DataError, LabelError
from medveil.evaluation.intervals import BootstrapConfig
from medveil.evaluation.segmentation import VolumeMasks, evaluate_segmentation
from medveil.evaluation.slices import group_volumes, stack_slices
from medveil.rng import Seeds

FAST = BootstrapConfig(resamples=30)


def evaluate(volumes, names=("background", "organ"), **options):
    return evaluate_segmentation(volumes, names, seeds=Seeds(0), bootstrap=FAST, **options)


def box(shape, *corners):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(low, high) for low, high in corners)] = 1
    return mask


def surface_distances(one, other, spacing):
    """Every edge voxel's distance to the other mask's edge: brute force over pairs."""
    edges = [
        np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.asarray(spacing)
        for mask in (one.astype(bool), other.astype(bool))
    ]
    pairs = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
    return pairs.min(axis=1), pairs.min(axis=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7)])
def test_distances_agree_with_brute_force(spacing):
    reference = box((9, 20, 20), (2, 7), (4, 15), (5, 14))
    predicted = box((9, 20, 20), (2, 6), (6, 15), (5, 16))
    result = evaluate([VolumeMasks(predicted, reference, 0, spacing)], surface_tolerance=1.5)
    there, back = surface_distances(predicted, reference, spacing)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    near = ((there <= 1.5).sum() + (back <= 1.5).sum()) / (there.size + back.size)
    assert result.metrics["hd95_mm"].value == pytest.approx(hd95, rel=1e-5)
    assert result.metrics["surface_dice"].value == pytest.approx(near, rel=1e-5)
    overlap = 2 * (reference & predicted).sum() / (reference.sum() + predicted.sum())
    assert result.metrics["dice"].value == pytest.approx(overlap)


def test_a_shift_is_as_far_as_it_was_moved():
    reference = box((30, 30), (5, 15), (5, 15))
    result = evaluate([VolumeMasks(np.roll(reference, 4, axis=1), reference, 0, (1.0, 2.5))])
    assert result.metrics["hd95_mm"].value == pytest.approx(10)


def test_without_spacing_distances_are_pixels_and_say_so():
    reference = box((30, 30), (5, 15), (5, 15))
    volumes = [
        VolumeMasks(np.roll(reference, 4, axis=1), reference, 0, (1.0, 2.5)),
        VolumeMasks(np.roll(reference, 4, axis=1), reference, 1),
    ]
    result = evaluate(volumes)
    assert result.distance_unit == "pixels"
    assert result.metrics["hd95_pixels"].value == pytest.approx(4)
    assert "hd95_mm" not in result.metrics


def test_sites_that_score_at_once_get_the_figures_of_one_and_no_warning():
    """Every warning is an error in tests; MONAI gives some, and what is ignored is the process's."""
    reference = box((12, 12), (3, 9), (3, 9))
    volumes = [VolumeMasks(np.roll(reference, shift, 0), reference, "a") for shift in range(4)]
    alone = [evaluate([volume]).to_json() for volume in volumes]
    every, switch = list(range(4)) * 60, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda one: evaluate([volumes[one]]).to_json(), every))
    finally:
        sys.setswitchinterval(switch)
    assert together == [alone[one] for one in every]


def test_perfect_masks():
    reference = box((16, 16), (4, 9), (3, 12))
    metrics = evaluate([VolumeMasks(reference, reference, 0, (1, 1))]).metrics
    assert [metrics[name].value for name in ("dice", "surface_dice", "hd95_mm")] == [1, 1, 0]


@pytest.mark.parametrize("missing", ["predicted", "reference"])
def test_a_mask_on_one_side_only_counts_as_the_worst(missing):
    masks = {"predicted": box((30, 40), (2, 5), (2, 5)), "reference": box((30, 40), (2, 5), (2, 5))}
    masks[missing] = np.zeros((30, 40), np.uint8)
    result = evaluate([VolumeMasks(**masks, subject=0, spacing_mm=(2.0, 2.0))])
    assert result.metrics["dice"].value == 0
    assert result.metrics["surface_dice"].value == 0
    assert result.metrics["hd95_mm"].value == pytest.approx(100)  # the diagonal of 60 mm by 80 mm
    assert result.one_sided == 1


def test_a_class_absent_from_both_masks_is_left_out():
    organ, empty = box((16, 16), (4, 9), (3, 12)), np.zeros((16, 16), np.uint8)
    volumes = [VolumeMasks(organ, organ, 0), VolumeMasks(empty, empty, 1)]
    result = evaluate(volumes, names=("background", "organ", "tumour"))
    assert result.metrics["dice"].value == 1
    assert "1 of 2 classes" in result.metrics["dice"].reason
    assert result.per_class["tumour"]["dice"].value is None
    assert "in no mask" in result.per_class["tumour"]["dice"].reason
    assert result.one_sided == 0


def test_nothing_to_find_and_nothing_found_is_undefined():
    empty = np.zeros((8, 8), np.uint8)
    result = evaluate([VolumeMasks(empty, empty, 0), VolumeMasks(empty, empty, 1)])
    assert result.metrics["dice"].value is None
    assert result.metrics["dice"].low is None


def test_patients_count_once_however_many_volumes_they_have():
    organ, empty = box((16, 16), (4, 9), (3, 12)), np.zeros((16, 16), np.uint8)
    volumes = [VolumeMasks(organ, organ, 7)] * 3 + [VolumeMasks(empty, organ, 8)]
    result = evaluate(volumes)
    assert result.metrics["dice"].value == pytest.approx(0.5)
    assert (result.num_subjects, result.num_examples) == (2, 4)


def test_headline_is_the_mean_over_classes():
    reference = box((16, 16), (2, 6), (2, 6)) + 2 * box((16, 16), (9, 13), (9, 13))
    predicted = np.where(reference == 2, 0, reference)
    predicted[9:13, 9:11] = 2
    result = evaluate([VolumeMasks(predicted, reference, 0)], names=("background", "a", "b"))
    assert result.per_class["a"]["dice"].value == 1
    assert result.per_class["b"]["dice"].value == pytest.approx(2 / 3)
    assert result.metrics["dice"].value == pytest.approx(5 / 6)


def test_interval_comes_from_patients():
    organ, empty = box((16, 16), (4, 9), (3, 12)), np.zeros((16, 16), np.uint8)
    volumes = [VolumeMasks(organ if k % 2 else empty, organ, k) for k in range(20)]
    dice = evaluate(volumes).metrics["dice"]
    assert 0.1 < dice.low < 0.5 < dice.high < 0.9


def test_to_json_survives_json():
    organ = box((16, 16), (4, 9), (3, 12))
    result = evaluate([VolumeMasks(organ, organ, 0), VolumeMasks(organ, organ, 1)])
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["metrics"]["dice"] == {"value": 1, "low": 1, "high": 1, "reason": None}
    assert set(document["details"]["per_class"]) == {"organ"}
    assert document["details"]["distance_unit"] == "pixels"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.zeros((3, 3), int), np.zeros((3, 4), int), 0), DataError),
        ((np.zeros(3, int), np.zeros(3, int), 0), DataError),
        ((np.zeros((3, 3), int), np.zeros((3, 3), int), 0, (1.0, 1.0, 1.0)), DataError),
        ((np.zeros((3, 3), int), np.zeros((3, 3), int), 0, (1.0, 0.0)), DataError),
        ((np.zeros((3, 3)), np.zeros((3, 3), int), 0), LabelError),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments, error):
    with pytest.raises(error):
        VolumeMasks(*arguments)


def test_wrong_questions_are_refused():
    organ = box((16, 16), (4, 9), (3, 12))
    with pytest.raises(DataError):
        evaluate([])
    with pytest.raises(ConfigError):
        evaluate([VolumeMasks(organ, organ, 0)], names=("background",))
    with pytest.raises(ConfigError):
        evaluate([VolumeMasks(organ, organ, 0)], surface_tolerance=math.nan)
    with pytest.raises(LabelError):
        evaluate([VolumeMasks(organ * 2, organ, 0)])


def test_slices_are_stacked_by_position():
    pieces = [np.full((2, 3), k) for k in (4, 2, 3)]
    assert stack_slices(pieces, [40, 20, 30])[:, 0, 0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("positions", [[1, 2, 4], [1, 1, 2], [1, 2]])
def test_slices_with_gaps_or_repeats_are_refused(positions):
    with pytest.raises(DataError, match="cannot be stacked"):
        stack_slices([np.zeros((2, 2), int)] * 3, positions)


def test_slices_of_different_shapes_are_refused():
    with pytest.raises(DataError):
        stack_slices([np.zeros((2, 2), int), np.zeros((2, 3), int)], [0, 1])


def test_volumes_are_grouped_by_patient_and_volume():
    slices = [np.full((2, 2), k) for k in range(5)]
    volumes = group_volumes(
        slices,
        slices,
        subjects=[1, 0, 1, 1, 0],
        volumes=[0, 0, 1, 0, 0],
        positions=[1, 0, 0, 0, 1],
        spacing_mm=[(2.0, 1.0, 1.0)] * 5,
    )
    assert [volume.subject for volume in volumes] == [0, 1, 1]
    assert [volume.predicted[:, 0, 0].tolist() for volume in volumes] == [[1, 4], [3, 0], [2]]
    assert volumes[0].spacing_mm == (2.0, 1.0, 1.0)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="do not fit together"):
        group_volumes([], [], subjects=[1], volumes=[], positions=[], spacing_mm=[])
