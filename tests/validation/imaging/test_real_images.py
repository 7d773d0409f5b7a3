"""Real NIfTI, PNG, JPEG and npz files, against the index that came with them and other libraries."""

import csv
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medveil.imaging.medmnist import read_medmnist
from medveil.imaging.nifti import read_nifti, read_nifti_mask, same_geometry
from medveil.imaging.preprocess import Preprocess, apply, apply_mask, restore_mask
from medveil.imaging.raster import read_raster, read_raster_mask

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets"),
]

ROOT = Path(os.environ.get("MEDVEIL_DATA", "."))
MR = ROOT / "hippocampus_mr_nifti"


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_hippocampus_pair():
    for row in rows(MR / "index.csv"):
        volume = read_nifti(MR / "images" / row["file"])
        mask = read_nifti_mask(MR / "labels" / row["file"], num_classes=3)
        assert volume.spatial_shape == (int(row["nx"]), int(row["ny"]), int(row["nz"])) == mask.shape
        assert volume.array.dtype.name == row["image_dtype"]
        assert float(volume.array.max()) == float(row["max"])
        assert (mask == 1).sum() == int(row["vox_anterior"])
        assert (mask == 2).sum() == int(row["vox_posterior"])
        assert volume.spacing_mm == (1, 1, 1)


def test_image_and_mask_share_their_grid():
    names = [row["file"] for row in rows(MR / "index.csv")][:10]
    for name in names:
        image, mask = read_nifti(MR / "images" / name), read_nifti(MR / "labels" / name)
        assert same_geometry(image, mask)
        np.testing.assert_array_equal(image.affine, nibabel.load(MR / "images" / name).affine)


def test_percentile_brings_all_regimes_to_one_range():
    config = Preprocess(size=(48, 64, 48), fit="crop", intensity="percentile")
    means = {"uint8": [], "normal": [], "large": []}
    for row in rows(MR / "index.csv"):
        volume = read_nifti(MR / "images" / row["file"])
        image = apply(volume, config)
        assert image.shape == (1, 48, 64, 48)
        assert image.min() >= 0
        assert image.max() <= 1
        regime = next(name for name in means if row["intensity_regime"].startswith(name))
        means[regime].append(float(image[image > 0].mean()))
    averages = [np.mean(values) for values in means.values() if values]
    assert len(averages) >= 2
    assert max(averages) / min(averages) < 1.5


def test_a_real_mask_comes_back_from_a_padded_grid():
    row = rows(MR / "index.csv")[0]
    volume = read_nifti(MR / "images" / row["file"])
    mask = read_nifti_mask(MR / "labels" / row["file"])
    config = Preprocess(size=(64, 64, 64), fit="pad")
    assert np.array_equal(restore_mask(apply_mask(mask, config, volume), mask.shape, config), mask)


def test_nuclei_have_the_foreground_that_the_index_states():
    for row in rows(ROOT / "nuclei_dsb2018" / "index.csv")[::8]:
        path = ROOT / "nuclei_dsb2018" / row["path"]
        mask = read_raster_mask(path.with_name(f"{path.stem}_label.png"), 2, meaning="binary")
        assert mask.mean() == pytest.approx(float(row["fg_fraction"]), abs=6e-4)
        assert read_raster(path).spatial_shape == mask.shape
        assert read_raster(path).channels == (3 if "colour" in row["domain"] else 1)


def test_retina_and_its_annotations():
    folder = ROOT / "retina_chase_db1"
    assert read_raster(folder / "Image_01L.jpg").array.shape == (3, 960, 999)
    mask = read_raster_mask(folder / "Image_01L_1stHO.png", 2)
    assert mask.shape == (960, 999)
    assert 0.02 < mask.mean() < 0.2


def test_pneumonia_counts_are_the_published_ones():
    data = read_medmnist(ROOT / "pneumoniamnist_28" / "pneumoniamnist.npz")
    counts = [np.bincount(split.labels).tolist() for split in (data.train, data.validation, data.test)]
    assert counts == [[1214, 3494], [135, 389], [234, 390]]
    assert data.train.volume(0).array.shape == (1, 28, 28)
