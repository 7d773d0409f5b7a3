"""Algebra of grids, masks and stacks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.imaging.geometry import Plane, stack_planes
from medveil.imaging.preprocess import Preprocess, apply, apply_mask, restore_mask
from medveil.imaging.resample import fit_centre, resize, resize_nearest, undo_fit
from medveil.imaging.volume import Volume

lengths = st.integers(1, 12)
shapes = st.one_of(st.tuples(lengths, lengths), st.tuples(lengths, lengths, lengths))


@st.composite
def masks_and_targets(draw):
    shape = draw(shapes)
    target = tuple(draw(lengths) for _ in shape)
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 4, shape, np.uint8), target


@given(masks_and_targets())
def test_nearest_invents_no_label(case):
    mask, target = case
    assert resize_nearest(mask, target).shape == target
    assert set(np.unique(resize_nearest(mask, target))) <= set(np.unique(mask))


@given(masks_and_targets(), st.integers(2, 4))
def test_growing_by_a_whole_factor_and_back_is_the_identity(case, factor):
    mask, _ = case
    grown = resize_nearest(mask, tuple(length * factor for length in mask.shape))
    assert np.array_equal(grown, np.kron(mask, np.ones((factor,) * mask.ndim, np.uint8)))
    assert np.array_equal(resize_nearest(grown, mask.shape), mask)


@given(masks_and_targets())
def test_undoing_a_fit_keeps_what_was_not_cut(case):
    mask, target = case
    back = undo_fit(fit_centre(mask, target), mask.shape)
    kept = undo_fit(fit_centre(np.ones_like(mask), target), mask.shape) == 1
    assert np.array_equal(back[kept], mask[kept])
    assert not back[~kept].any()
    assert kept.sum() == np.prod([min(a, b) for a, b in zip(mask.shape, target, strict=True)])


@settings(deadline=None)
@given(masks_and_targets())
def test_linear_resizing_stays_within_the_values(case):
    image, target = case
    result = resize(image[None].astype(np.float32), target)
    assert result.shape == (1, *target)
    assert result.min() >= image.min() - 1e-4
    assert result.max() <= image.max() + 1e-4


@settings(deadline=None)
@given(masks_and_targets(), st.sampled_from(["stretch", "crop"]))
def test_image_and_mask_have_one_shape_and_masks_return(case, fit):
    mask, target = case
    volume = Volume(mask[None])
    config = Preprocess(size=target, fit=fit)
    moved = apply_mask(mask, config, volume)
    assert apply(volume, config).shape == (1, *moved.shape) == (1, *target)
    assert restore_mask(moved, mask.shape, config).shape == mask.shape


@given(st.permutations(range(6)), st.floats(0.5, 9), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_a_stack_does_not_depend_on_the_order_of_its_planes(order, step, tilt, seed):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    x, y = turn[:, 0], turn[:, 1]
    origin = np.array([10.0, -20.0, 30.0])
    positions = [origin + at * (step * np.cross(x, y) + tilt * y) for at in range(6)]
    stack = stack_planes([Plane(positions[at], x, y, (0.7, 0.9)) for at in order])
    assert [order[at] for at in stack.order] == list(range(6))
    lps = positions[4] + 2 * 0.7 * y + 3 * 0.9 * x
    np.testing.assert_allclose((stack.affine @ [4, 2, 3, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
