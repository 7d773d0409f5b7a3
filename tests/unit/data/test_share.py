"""One site's share: what is written is what is read."""

import json

import numpy as np
import pytest

from medveil.data.sources.share import ShareSource, write_share
from medveil.data.subject import Dataset, Example, Subject
from medveil.errors import ConfigError, DataError, MissingDataError
from medveil.imaging.preprocess import Preprocess


def _dataset(task, *, spacing, gap, masks):
    rng = np.random.default_rng(1)

    def example(number, volume=0, position=0):
        image = rng.integers(0, 255, (1, 6, 5), dtype=np.uint8)
        target = rng.integers(0, 3, (6, 5), dtype=np.uint8) if masks else number % 2
        return Example(image, target, f"{number:064x}", spacing, volume, position, gap)

    subjects = (
        Subject("p-1", (example(1), example(2, 0, 1)), {"scanner": "a"}, "train"),
        Subject("p-2", (example(3),), {}, "validation"),
        Subject("p-3", (example(4, 0, 2), example(5, 1, 3)), {"scanner": "b"}, "test"),
    )
    names = ("background", "one", "two") if masks else ("no", "yes")
    return Dataset("made-up", "real", task, names, subjects, "somebody", "CC0")


CASES = {
    "classes": ("classification", {"spacing": (0.5, 0.75), "gap": None, "masks": False}),
    "classes without spacing": ("classification", {"spacing": None, "gap": None, "masks": False}),
    "masks with slices": ("segmentation", {"spacing": (0.5, 0.75), "gap": 3.25, "masks": True}),
    "masks without spacing": ("segmentation", {"spacing": None, "gap": None, "masks": True}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def dataset(request):
    task, options = request.param
    return _dataset(task, **options)


def test_what_is_written_is_what_is_read(dataset, tmp_path):
    write_share(tmp_path / "images.npz", dataset, dataset.subjects, Preprocess())
    read = ShareSource(path="images.npz").load(Preprocess(), tmp_path)
    for field in ("name", "kind", "task", "class_names", "citation", "licence"):
        assert getattr(read, field) == getattr(dataset, field)
    for was, is_ in zip(dataset.subjects, read.subjects, strict=True):
        assert (was.subject_id, was.split, dict(was.attributes)) == (is_.subject_id, is_.split, dict(is_.attributes))
        for before, after in zip(was.examples, is_.examples, strict=True):
            np.testing.assert_array_equal(before.image, after.image)
            np.testing.assert_array_equal(before.target, after.target)
            assert type(before.target) is type(after.target)
            for field in ("digest", "spacing_mm", "volume", "position", "slice_gap_mm"):
                assert getattr(before, field) == getattr(after, field)


def test_one_site_of_several_keeps_its_own_subjects(dataset, tmp_path):
    write_share(tmp_path / "images.npz", dataset, dataset.subjects[2:], Preprocess())
    (only,) = ShareSource(path="images.npz").load(Preprocess(), tmp_path).subjects
    assert only.subject_id == "p-3"
    assert [example.digest for example in only.examples] == [f"{number:064x}" for number in (4, 5)]


def test_a_share_is_for_its_own_preprocessing(dataset, tmp_path):
    write_share(tmp_path / "images.npz", dataset, dataset.subjects, Preprocess())
    other = Preprocess(intensity="zscore") if Preprocess().intensity != "zscore" else Preprocess(intensity="unit")
    with pytest.raises(ConfigError, match="preprocessed in another way"):
        ShareSource(path="images.npz").load(other, tmp_path)


def test_a_share_that_is_not_there(tmp_path):
    with pytest.raises(MissingDataError):
        ShareSource(path="images.npz").load(Preprocess(), tmp_path)


@pytest.mark.parametrize(
    "damage", ["cut", "text", "empty", "no array", "about", "layout", "place", "digests", "pickle"]
)
def test_a_damaged_share_is_one_typed_error(dataset, tmp_path, damage):
    path = tmp_path / "images.npz"
    write_share(path, dataset, dataset.subjects, Preprocess())
    data = path.read_bytes()
    with np.load(path) as stored:
        arrays = dict(stored)
    about = json.loads(str(arrays["about"]))
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        path.write_text("no npz")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        if damage == "no array":
            arrays.pop("images")
        elif damage == "about":
            arrays["about"] = np.array("{")
        elif damage == "layout":
            arrays["about"] = np.array(json.dumps({**about, "layout": 99}))
        elif damage == "place":
            arrays["place"] = arrays["place"] + 50
        elif damage == "digests":
            arrays["about"] = np.array(json.dumps({**about, "digests": []}))
        else:
            arrays["images"] = np.array([{"a": 1}], dtype=object)
        np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        ShareSource(path="images.npz").load(Preprocess(), tmp_path)
    assert str(tmp_path) not in str(caught.value)
