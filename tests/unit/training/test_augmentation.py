"""Augmentation: reproducible, and masks go where their images go."""

import pytest
import torch

from medveil.training.augmentation import Augmentation, augment

ALL = Augmentation(flip=(0, 1), rotate_degrees=30, scale=0.2, shift=0.1)


def _blobs(spatial, count=16):
    """Smooth structures whose mask is the image above one half."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, *(4 for _ in spatial), generator=generator)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=spatial, mode=mode)


@pytest.mark.parametrize("spatial", [(32, 32), (24, 40), (16, 20, 24)])
def test_masks_follow_images(spatial):
    images = _blobs(spatial)
    masks = (images[:, 0] > 0.5).to(torch.uint8)
    moved, moved_masks = augment(images, masks, ALL, torch.Generator().manual_seed(1))
    assert moved_masks.dtype == torch.uint8
    agreement = ((moved[:, 0] > 0.5) == moved_masks.bool()).float().mean()
    assert agreement > 0.95
    still = ((images[:, 0] > 0.5) == moved_masks.bool()).float().mean()
    assert still < 0.9  # something moved


def test_without_settings_nothing_changes():
    images = _blobs((8, 8))
    same, masks = augment(images, None, Augmentation(), torch.Generator())
    assert masks is None
    assert torch.equal(same, images)


def test_same_generator_same_views():
    images = _blobs((16, 16))
    config = Augmentation(rotate_degrees=20, gain=0.2, offset=0.1, noise=0.1)
    first, _ = augment(images, None, config, torch.Generator().manual_seed(5))
    second, _ = augment(images, None, config, torch.Generator().manual_seed(5))
    third, _ = augment(images, None, config, torch.Generator().manual_seed(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_flip_mirrors_the_named_axis_only(axis):
    images = torch.arange(6 * 8, dtype=torch.float32).reshape(1, 1, 6, 8).repeat(20, 1, 1, 1)
    flipped, _ = augment(images, None, Augmentation(flip=(axis,)), torch.Generator().manual_seed(0))
    mirrored = images.flip(axis + 2)
    same = {torch.allclose(view, image, atol=1e-3) for view, image in zip(flipped, images, strict=True)}
    assert same == {True, False}
    for view, image, mirror in zip(flipped, images, mirrored, strict=True):
        assert torch.allclose(view, image, atol=1e-3) or torch.allclose(view, mirror, atol=1e-3)


def test_a_rotation_keeps_lengths_on_an_oblong_image():
    """A disc stays a disc: its area does not change although the axes differ in length."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    disc = (((rows - 19.5) ** 2 + (columns - 39.5) ** 2) < 12**2).float()[None, None].repeat(8, 1, 1, 1)
    turned, _ = augment(disc, None, Augmentation(rotate_degrees=90), torch.Generator().manual_seed(2))
    difference = (turned - disc).abs().flatten(1).sum(1) / disc.flatten(1).sum(1)
    assert difference.max() < 0.1
