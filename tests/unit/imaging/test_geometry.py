"""Planes, stacks and grids against hand-computed positions."""

import numpy as np
import pytest

from medveil.errors import ImageError
from medveil.imaging.geometry import Plane, same_geometry, stack_planes
from medveil.imaging.volume import Volume

X, Y = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])


def plane(position, x=X, y=Y, spacing=(1.0, 1.0)):
    return Plane(np.array(position, float), x, y, spacing)


def test_gantry_tilt_stays_in_the_affine():
    stack = stack_planes([plane([0, 0.5 * at, at]) for at in (2, 0, 1)])
    assert stack.order == (1, 2, 0)
    np.testing.assert_allclose(stack.affine @ [2, 0, 0, 1], [0, -1, 2, 1])
    assert stack.spacing_mm[0] == pytest.approx(np.hypot(0.5, 1))


def test_a_plane_needs_orthogonal_unit_vectors():
    for x, y in ((X, X), (2 * X, Y), (X, np.array([0.1, 1, 0])), (X * np.nan, Y)):
        with pytest.raises(ImageError) as caught:
            plane([0, 0, 0], x, y)
        assert caught.value.reason == "geometry"


def volume(affine=None, spacing=None, shape=(4, 5, 6)):
    return Volume(np.zeros((1, *shape), np.uint8), spacing, affine)


def test_same_geometry():
    eye = np.eye(4)
    shifted, turned = eye.copy(), eye.copy()
    shifted[0, 3] = 0.05
    turned[:2, :2] = [[0, 1], [-1, 0]]
    assert same_geometry(volume(eye), volume(shifted))
    assert not same_geometry(volume(eye), volume(shifted), tolerance_mm=0.01)
    assert not same_geometry(volume(eye), volume(turned))
    assert not same_geometry(volume(eye), volume(eye, shape=(4, 5, 7)))
    assert same_geometry(volume(eye), volume())
    assert same_geometry(volume(spacing=(1, 1, 1)), volume(spacing=(1, 1, 1.01)))
    assert not same_geometry(volume(spacing=(1, 1, 1)), volume(spacing=(1, 1, 2)))


def test_small_scaling_errors_add_up_to_the_far_corner():
    scaled = np.diag([1.0, 1.0, 1.05, 1.0])
    assert not same_geometry(volume(np.eye(4)), volume(scaled), tolerance_mm=0.2)
    assert same_geometry(volume(np.eye(4)), volume(scaled), tolerance_mm=0.3)
