"""Preprocessing against hand-computed values, Pillow and scikit-image's conventions."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from medveil.errors import ImageError, LabelError
from medveil.imaging.intensity import convert_channels, scale_intensity
from medveil.imaging.preprocess import (
    Preprocess,
    Slices,
    apply,
    apply_mask,
    cut_slices,
    output_spacing,
    restore_mask,
)
from medveil.imaging.resample import resize
from medveil.imaging.volume import Volume


def volume(array, spacing=None):
    return Volume(np.asarray(array), spacing)


def grey(shape, dtype=np.uint8):
    return volume((np.arange(np.prod(shape)) % 251).reshape(1, *shape).astype(dtype))


def test_nothing_asked_changes_nothing():
    image = grey((4, 5))
    result = apply(image, Preprocess())
    assert result.dtype == np.uint8
    assert np.array_equal(result, image.array)


def test_unit_scales_by_dtype_or_by_range():
    deep = volume(np.array([[[0, 65535, 13107]]], np.uint16))
    np.testing.assert_allclose(apply(deep, Preprocess()), [[[0, 1, 0.2]]])
    units = volume(np.array([[[-1000.0, 0, 1000]]], np.float32))
    np.testing.assert_allclose(apply(units, Preprocess()), [[[0, 0.5, 1]]])
    assert apply(units, Preprocess()).dtype == np.float32


def test_window_zscore_and_percentile():
    values = np.array([[[-100.0, 0, 50, 100, 1000]]])
    windowed = apply(volume(values), Preprocess(intensity="window", window=(50, 100)))
    np.testing.assert_allclose(windowed, [[[0, 0, 0.5, 1, 1]]])
    scored = apply(volume(values), Preprocess(intensity="zscore"))
    assert scored.mean() == pytest.approx(0, abs=1e-6)
    assert scored.std() == pytest.approx(1, abs=1e-6)
    ramp = np.linspace(0, 1.7e6, 1001).reshape(1, 7, 143)
    # The 0.5th and 99.5th percentile of an even ramp lie 0.5 % inside its ends.
    expected = np.clip((np.linspace(0, 1, 1001) - 0.005) / 0.99, 0, 1).reshape(1, 7, 143)
    np.testing.assert_allclose(apply(volume(ramp), Preprocess(intensity="percentile")), expected, atol=1e-6)


def test_percentiles_ignore_scale_and_outliers():
    rng = np.random.default_rng(3)
    small = rng.uniform(0, 255, (1, 30, 30))
    large = small * 6666
    config = Preprocess(intensity="percentile")
    np.testing.assert_allclose(apply(volume(small), config), apply(volume(large), config), atol=1e-6)
    spiked = small.copy()
    spiked[0, 0, 0] = 1e9
    assert np.abs(apply(volume(spiked), config) - apply(volume(small), config))[0, 1:].max() < 0.01


@pytest.mark.parametrize("intensity", ["unit", "zscore", "percentile"])
def test_constant_images_become_zero(intensity):
    result = apply(volume(np.full((1, 3, 3), 42.0)), Preprocess(intensity=intensity))
    assert np.array_equal(result, np.zeros((1, 3, 3)))


def test_mostly_background_falls_to_the_range():
    sparse = np.zeros((1, 100, 100))
    sparse[0, 0, 0] = 8
    assert scale_intensity(sparse, "percentile").max() == 1


def test_grey_is_pillows_luma():
    rgb = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.array_equal(apply(volume(np.moveaxis(rgb, -1, 0)), Preprocess(channels="grey"))[0], expected)
    floats = convert_channels(np.moveaxis(rgb, -1, 0).astype(np.float32), "grey")
    assert np.abs(floats[0] - expected).max() < 0.51


def test_rgb_repeats_grey_and_other_counts_are_refused():
    result = apply(grey((2, 3)), Preprocess(channels="rgb"))
    assert result.shape == (3, 2, 3)
    assert np.array_equal(result[0], result[2])
    with pytest.raises(ImageError) as caught:
        apply(volume(np.zeros((2, 3, 3), np.uint8)), Preprocess(channels="grey"))
    assert caught.value.reason == "channels"


def test_stretch_2d_is_pillows_antialiased_bilinear():
    image = np.random.default_rng(2).integers(0, 256, (61, 80), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(apply(volume(image[None]), Preprocess(size=(20, 30)))[0], expected)


def test_stretch_3d_keeps_a_linear_ramp_and_its_alignment():
    ramp = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 8, 8)).astype(np.float32)
    half = resize(ramp[None], (20, 8, 8))[0]
    # Each new pixel covers two old ones: pixel i holds the value at 2 i + 0.5.
    np.testing.assert_allclose(half[3:-3, 4, 4], 2 * np.arange(20)[3:-3] + 0.5, atol=1e-4)


def test_shrinking_3d_does_not_alias():
    stripes = np.zeros((1, 64, 4, 4), np.float32)
    stripes[:, ::4] = 1
    # Sampling every fourth plane would give all ones or all zeros; an honest mean is a quarter.
    assert resize(stripes, (16, 4, 4)).mean() == pytest.approx(0.25, abs=0.02)
    assert resize(stripes, (16, 4, 4)).std() < 0.05


def test_resized_integers_are_rounded():
    assert resize(np.full((1, 4, 4, 4), 200, np.uint8), (2, 3, 5)).tolist() == np.full((1, 2, 3, 5), 200).tolist()


def test_pad_and_crop():
    image = volume(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    padded = apply(image, Preprocess(size=(4, 4), fit="pad"))
    assert padded[0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    assert apply(image, Preprocess(size=(1, 1), fit="crop"))[0].tolist() == [[2]]
    assert apply(image, Preprocess(size=(3, 1), fit="crop"))[0].tolist() == [[2], [5], [0]]
    with pytest.raises(ImageError) as caught:
        apply(image, Preprocess(size=(4, 2), fit="pad"))
    assert caught.value.reason == "size"


def test_padding_is_the_minimum_where_that_is_negative():
    image = volume(np.array([[[0.0, 2.0]]]))
    result = apply(image, Preprocess(size=(1, 4), fit="pad", intensity="zscore"))
    assert result[0].tolist() == [[-1, -1, 1, -1]]


def test_spacing_is_resampled_and_reported():
    image = volume(np.zeros((1, 10, 20), np.uint8), (2.0, 0.5))
    config = Preprocess(spacing_mm=(1.0, 1.0))
    assert apply(image, config).shape == (1, 20, 10)
    assert output_spacing(image, config) == (1, 1)
    odd = volume(np.zeros((1, 10, 21), np.uint8), (2.0, 0.5))
    assert apply(odd, config).shape == (1, 20, 10)
    assert output_spacing(odd, config) == pytest.approx((1, 1.05))
    sized = Preprocess(spacing_mm=(1.0, 1.0), size=(32, 8), fit="crop")
    assert apply(image, sized).shape == (1, 32, 8)
    assert output_spacing(image, sized) == (1, 1)
    assert output_spacing(image, Preprocess(size=(5, 5))) == (4, 2)
    assert output_spacing(grey((4, 4)), Preprocess()) is None


@pytest.mark.parametrize(
    ("image", "config", "reason"),
    [
        (grey((4, 4)), Preprocess(spacing_mm=(1, 1)), "spacing"),
        (grey((4, 4)), Preprocess(size=(4, 4, 4)), "shape"),
        (grey((4, 4, 4)), Preprocess(size=(4, 4)), "shape"),
        (volume(np.zeros((1, 9, 9), np.uint8), (9e5, 9e5)), Preprocess(spacing_mm=(1, 1)), "too-large"),
    ],
)
def test_what_does_not_fit_is_refused(image, config, reason):
    with pytest.raises(ImageError) as caught:
        apply(image, config)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (0, 4)},
        {"size": (4,)},
        {"spacing_mm": (1, -1)},
        {"spacing_mm": (float("nan"), 1)},
        {"intensity": "window"},
        {"window": (0, 1)},
        {"intensity": "window", "window": (0, 0)},
        {"spacing_mm": (1, 1), "size": (4, 4)},
        {"slices": {"axis": 3}},
        {"colour": "grey"},
    ],
)
def test_contradictory_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        Preprocess(**settings)


def test_masks_follow_their_image():
    mask = np.zeros((10, 12), np.uint8)
    mask[2:6, 3:9] = 2
    image = volume((mask * 100)[None])
    for config in (
        Preprocess(size=(20, 24)),
        Preprocess(size=(14, 12), fit="pad"),
        Preprocess(size=(6, 14), fit="crop"),
    ):
        moved = apply_mask(mask, config, image)
        assert set(np.unique(moved)) <= {0, 2}
        seen = apply(image, config)[0]
        assert moved.shape == seen.shape
        assert (np.abs(seen.astype(int) - moved * 100) > 100).sum() == 0
    with pytest.raises(LabelError):
        apply_mask(mask[:-1], Preprocess(), image)


def test_nearest_is_pillows_nearest():
    mask = np.random.default_rng(5).integers(0, 9, (31, 47)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(mask).resize((20, 64), Image.Resampling.NEAREST))
    assert np.array_equal(apply_mask(mask, Preprocess(size=(64, 20)), volume(mask[None])), expected)


def test_restore_brings_a_mask_back():
    mask = np.zeros((9, 12, 7), np.uint8)
    mask[2:7, 3:9, 2:5] = 1
    image = volume(mask[None], (1.0, 1.0, 2.0))
    padded = Preprocess(size=(16, 16, 16), fit="pad")
    assert np.array_equal(restore_mask(apply_mask(mask, padded, image), mask.shape, padded), mask)
    doubled = Preprocess(size=(18, 24, 14))
    assert np.array_equal(restore_mask(apply_mask(mask, doubled, image), mask.shape, doubled), mask)
    finer = Preprocess(spacing_mm=(0.5, 0.5, 0.5), size=(30, 30, 30), fit="crop")
    back = restore_mask(apply_mask(mask, finer, image), mask.shape, finer, image.spacing_mm)
    assert np.array_equal(back, mask)
    cropped = Preprocess(size=(5, 6, 3), fit="crop")
    assert restore_mask(apply_mask(mask, cropped, image), mask.shape, cropped).sum() == mask.sum()
    with pytest.raises(LabelError):
        restore_mask(mask, (9, 9, 9), padded)


def test_slices_leave_the_cut_axis_alone():
    block = grey((5, 8, 6))
    config = Preprocess(size=(4, 3), slices=Slices(axis=1))
    assert apply(block, config).shape == (1, 4, 8, 3)
    mask = np.zeros((5, 8, 6), np.uint8)
    mask[2, 3, 4] = mask[1, 6, 0] = 1
    image = block.array
    everything = cut_slices(image, mask, 1)
    assert [cut.position for cut in everything] == list(range(8))
    assert np.array_equal(everything[3].image, image[:, :, 3])
    assert np.array_equal(everything[3].mask, mask[:, 3])
    assert [cut.position for cut in cut_slices(image, mask, 1, "foreground")] == [3, 6]
    assert [cut.position for cut in cut_slices(image, mask, 2, "foreground")] == [0, 4]
    assert cut_slices(image, None, 0)[0].mask is None
    assert everything[0].image.flags.c_contiguous


def test_slices_that_cannot_be_cut():
    with pytest.raises(ImageError):
        cut_slices(np.zeros((1, 4, 4), np.uint8), None, 0)
    block = np.zeros((1, 4, 4, 4), np.uint8)
    for mask in (None, np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 5), np.uint8)):
        with pytest.raises(LabelError):
            cut_slices(block, mask, 0, "foreground")
