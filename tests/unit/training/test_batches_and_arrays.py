"""Batches are a pure function of (seeds, step); arrays refuse labels that do not fit."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medveil.data.subject import Example, Subject
from medveil.errors import LabelError
from medveil.rng import Seeds
from medveil.training.arrays import InputScale, to_arrays
from medveil.training.batches import batch_indices, steps_per_epoch


@given(examples=st.integers(1, 60), size=st.integers(1, 20), epoch=st.integers(0, 3), seed=st.integers(0, 5))
def test_an_epoch_holds_every_example_once(examples, size, epoch, seed):
    steps = steps_per_epoch(examples, size)
    drawn = [
        int(index)
        for step in range(epoch * steps, (epoch + 1) * steps)
        for index in batch_indices(Seeds(seed), step, num_examples=examples, batch_size=size)
    ]
    assert Counter(drawn) == Counter(range(examples))


def test_epochs_are_shuffled_anew():
    first = batch_indices(Seeds(0), 0, num_examples=50, batch_size=50)
    second = batch_indices(Seeds(0), 1, num_examples=50, batch_size=50)
    assert not np.array_equal(first, second)


def _subject(targets, image=None):
    image = np.zeros((1, 2, 2), np.uint8) if image is None else image
    return Subject("s", tuple(Example(image, target, "d") for target in targets))


def test_subjects_are_numbered_in_order():
    data = to_arrays([_subject([0, 1]), _subject([1])], task="classification", num_classes=2)
    assert data.subject.tolist() == [0, 0, 1]
    assert data.targets.tolist() == [0, 1, 1]
    assert data.num_subjects == 2


@pytest.mark.parametrize("targets", [[2], [-1]])
def test_labels_outside_the_classes_are_refused(targets):
    with pytest.raises(LabelError, match="outside the classes"):
        to_arrays([_subject(targets)], task="classification", num_classes=2)


def test_a_mask_is_not_a_class_and_a_class_is_not_a_mask():
    mask = np.zeros((2, 2), np.uint8)
    with pytest.raises(LabelError, match="mask where its class"):
        to_arrays([_subject([mask])], task="classification", num_classes=2)
    with pytest.raises(LabelError, match="no mask"):
        to_arrays([_subject([0])], task="segmentation", num_classes=2)


def test_spacing_of_slices_starts_with_the_gap():
    example = Example(np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2), np.uint8), "d", (1.0, 2.0), slice_gap_mm=3.0)
    data = to_arrays([Subject("s", (example,))], task="segmentation", num_classes=2)
    assert data.spacing_mm == ((3.0, 1.0, 2.0),)


def test_bytes_and_floats_scale_alike():
    scale = InputScale(0.5, 0.25)
    as_bytes = scale(torch.tensor([0, 51, 255], dtype=torch.uint8))
    as_floats = scale(torch.tensor([0.0, 0.2, 1.0]))
    torch.testing.assert_close(as_bytes, as_floats)
    torch.testing.assert_close(as_floats, torch.tensor([-2.0, -1.2, 2.0]))
