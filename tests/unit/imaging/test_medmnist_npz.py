"""MedMNIST files: whole, wrong and pickled."""

import io
import zipfile

import numpy as np
import pytest

from medveil.errors import ArchiveError, ImageError, LabelError, MissingDataError
from medveil.imaging.medmnist import read_medmnist


def arrays(shape=(4, 5), labels=None, dtype=np.uint8):
    content = {}
    for at, split in enumerate(("train", "val", "test")):
        count = 3 - at
        content[f"{split}_images"] = (np.arange(count * np.prod(shape)) % 251).reshape(count, *shape).astype(dtype)
        content[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] if labels is None else labels(count)
    return content


def save(path, content, **options):
    np.savez(path, **content, **options)
    return path


@pytest.mark.parametrize(
    ("shape", "volume_shape"),
    [((4, 5), (1, 4, 5)), ((4, 5, 3), (3, 4, 5)), ((6, 4, 5), (1, 6, 4, 5))],
)
def test_splits_and_volumes(tmp_path, shape, volume_shape):
    content = arrays(shape)
    data = read_medmnist(save(tmp_path / "a.npz", content))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3, 2, 1]
    assert np.array_equal(data.validation.images, content["val_images"])
    assert data.train.labels.tolist() == [0, 1, 2]
    volume = data.train.volume(1)
    assert volume.array.shape == volume_shape
    expected = content["train_images"][1]
    assert np.array_equal(volume.array, np.moveaxis(expected, -1, 0) if shape[-1] == 3 else expected[None])


def test_compressed_and_flat_labels(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays(labels=np.arange))
    assert read_medmnist(tmp_path / "a.npz").test.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (arrays(dtype=np.float32), ImageError),
        (arrays(shape=(5,)), ImageError),
        (arrays(labels=lambda count: np.zeros((count, 14), int)), LabelError),
        (arrays(labels=lambda count: np.zeros(count + 1, int)), LabelError),
        (arrays(labels=np.zeros), LabelError),
        (arrays(labels=lambda count: np.full(count, -1)), LabelError),
        ({**arrays(), "val_images": np.zeros((2, 9, 9), np.uint8)}, ImageError),
        ({**arrays(), "train_images": np.array([{}], object)}, ArchiveError),
        ({name: array for name, array in arrays().items() if name != "test_labels"}, ArchiveError),
    ],
)
def test_what_is_refused(tmp_path, content, error):
    with pytest.raises(error):
        read_medmnist(save(tmp_path / "a.npz", content))


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    path = save(tmp_path / "a.npz", arrays())
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        lie, {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 1000, 1000)}
    )
    members["train_images.npy"] = lie.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(ArchiveError):
        read_medmnist(path)


def test_missing_and_not_a_zip(tmp_path):
    with pytest.raises(MissingDataError):
        read_medmnist(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"\x93NUMPY")
    with pytest.raises(ArchiveError):
        read_medmnist(tmp_path / "b.npz")
