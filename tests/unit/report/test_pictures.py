import base64
import io

import numpy as np
from PIL import Image

from medveil.report import pictures
from medveil.report.reading import Examples


def decoded(source):
    head, data = source.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def classify(predictions, targets, **options):
    images = np.zeros((len(targets), 32, 40))
    images[:, :, 20:] = 1
    examples = Examples(images, np.asarray(targets), np.asarray(predictions))
    return pictures.classified(examples, ("normal", "ill"), options.get("threshold"))


def test_images_are_enlarged_and_keep_their_shape_and_grey():
    picture = decoded(classify([[0.9, 0.1]], [0]).items[0].panels[0].source)
    assert picture.shape == (224, 280)
    assert picture[:, 0].max() == 0
    assert picture[:, -1].min() == 255


def test_verdicts_name_truth_answer_and_probability():
    right, wrong = classify([[0.9, 0.1], [0.8, 0.2]], [0, 1]).items
    assert (right.tone, right.lines) == ("good", ("✓ Right: normal", "probability 0.90", "Truth: normal"))
    assert (wrong.tone, wrong.lines) == ("bad", ("✗ Wrong: normal", "probability 0.80", "Truth: ill"))


def test_the_threshold_decides_not_the_larger_probability():
    assert classify([[0.8, 0.2]], [1], threshold=0.15).items[0].lines[0] == "✓ Right: ill"


def test_names_that_are_missing_are_numbers():
    examples = Examples(np.zeros((1, 8, 8)), np.array([2]), np.array([[0.1, 0.2, 0.7]]))
    assert pictures.classified(examples, (), None).items[0].lines[2] == "Truth: class 2"


def test_only_so_many_are_shown():
    assert len(classify([[0.9, 0.1]] * 30, [0] * 30).items) == pictures.MAX_CLASSIFIED


def test_overlay_tints_the_mask_and_nothing_else():
    image, mask = np.full((56, 56), 0.5), np.zeros((56, 56), int)
    mask[10:30, 10:30] = 1
    mask[40:50, 40:50] = 2
    picture = pictures.overlay(image, mask)
    assert picture.shape == (224, 224, 3)
    large = np.kron(mask, np.ones((4, 4), int))
    assert (picture[large == 0] == 128).all()
    assert (picture[large > 0] != 128).any(axis=1).all()
    assert tuple(picture[40, 40]) == (230, 159, 0)  # outline of class 1
    assert tuple(picture[160, 160]) == (86, 180, 233)  # outline of class 2
    assert tuple(picture[80, 80]) != (230, 159, 0)  # the inside is only tinted


def test_segmented_pictures_have_three_panels_and_a_legend():
    image, mask = np.zeros((1, 16, 16)), np.zeros((1, 16, 16), int)
    mask[0, 4:8, 4:8] = 1
    gallery = pictures.segmented(Examples(image, mask, mask), ("background", "liver", "spleen"))
    assert [panel.label for panel in gallery.items[0].panels] == ["Image", "Reference", "Model"]
    assert [item.label for item in gallery.legend] == ["liver", "spleen"]
    assert gallery.items[0].lines == ("Overlap in this picture: 1.00",)


def test_an_empty_pair_of_masks_has_no_overlap():
    empty = np.zeros((1, 16, 16), int)
    gallery = pictures.segmented(Examples(np.zeros((1, 16, 16)), empty, empty), ("background", "liver"))
    assert gallery.items[0].lines == ("Nothing to find, nothing found",)
