"""Slices in any order become one volume, or a typed refusal."""

import random

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medveil.imaging.dicom_series import read_dicom_series

NORMAL = np.cross([0.8, 0.6, 0], [0, 0, -1])


def write_slice(path, value, position, *, series="1.2.3", patient="ID-77-Q", instance=1, **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2"
    ds.PatientID, ds.SeriesInstanceUID, ds.InstanceNumber = patient, series, instance
    ds.Modality = "CT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 2, 3, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = np.full((2, 3), value, np.int16).tobytes()
    ds["PixelData"].VR = "OW"
    ds.PixelSpacing = [0.5, 0.25]
    if position is not None:
        ds.ImagePositionPatient = [round(float(x), 6) for x in position]
        ds.ImageOrientationPatient = [0.8, 0.6, 0, 0, 0, -1]
    for name, content in tags.items():
        setattr(ds, name, content)
    ds.save_as(path, enforce_file_format=True)
    return path


def stack(folder, depths, **tags):
    # Instance numbers run against the positions, so that sorting by them would show.
    return [
        write_slice(folder / f"{at}", at, np.array([5, 6, 7]) + depth * NORMAL, instance=100 - at, **tags)
        for at, depth in enumerate(depths)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_slices_are_sorted_by_position(tmp_path, seed):
    files = stack(tmp_path, [0, 2, 4, 6, 8])
    random.Random(seed).shuffle(files)
    reading = read_dicom_series(files)
    assert reading.rejected == ()
    (series,) = reading.volumes
    assert series.files == 5
    assert series.volume.array[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(series.volume.spacing_mm, (2, 0.5, 0.25))
    # By hand: slice 4, row 1, column 2 lies at position + 8 n + 2 * 0.25 X + 1 * 0.5 Y, in LPS.
    lps = np.array([5, 6, 7]) + 8 * NORMAL + 0.5 * np.array([0.8, 0.6, 0]) + 0.5 * np.array([0, 0, -1])
    np.testing.assert_allclose(series.volume.affine @ [4, 1, 2, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-5)


def test_files_of_two_series_and_two_patients_stay_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = stack(tmp_path / "a", [0, 1]) + stack(tmp_path / "b", [0, 1, 2], series="1.2.4", patient="B")
    reading = read_dicom_series(files)
    assert [(item.files, item.patient_key) for item in reading.volumes] == [(2, "ID-77-Q"), (3, "B")]
    assert "ID-77-Q" not in repr(reading)
    assert "1.2.4" not in repr(reading)


@pytest.mark.parametrize(
    ("depths", "reason"),
    [([0, 2, 6, 8], "gap"), ([0, 2, 2.01, 4], "duplicate-position"), ([0, 2, 4.5, 6], "gap")],
)
def test_irregular_positions_refuse_the_series(tmp_path, depths, reason):
    reading = read_dicom_series(stack(tmp_path, depths))
    assert reading.volumes == ()
    assert [entry[0] for entry in reading.rejected] == [reason] * 4


def test_the_tolerance_is_an_argument(tmp_path):
    files = stack(tmp_path, [0, 2, 4.2, 6])
    assert read_dicom_series(files).volumes == ()
    assert len(read_dicom_series(files, tolerance_mm=0.3).volumes) == 1


def test_other_orientation_size_or_spacing_refuses_the_series(tmp_path):
    for tags in (
        {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        {"PixelSpacing": [1, 1]},
        {"Rows": 1, "PixelData": bytes(6)},
        {"ImagePositionPatient": None},
    ):
        files = stack(tmp_path, [0, 1])
        files.append(write_slice(tmp_path / "odd", 9, np.array([5, 6, 7]) + 2 * NORMAL, **tags))
        assert [reason for reason, _ in read_dicom_series(files).rejected] == ["geometry"] * 3


def test_one_patient_a_series(tmp_path):
    files = stack(tmp_path, [0, 1])
    files.append(write_slice(tmp_path / "odd", 9, np.array([5, 6, 7]) + 2 * NORMAL, patient="B"))
    assert [reason for reason, _ in read_dicom_series(files).rejected] == ["mixed-patients"] * 3


def test_views_without_position_are_single_images(tmp_path):
    files = [write_slice(tmp_path / str(at), at, None) for at in range(3)]
    volumes = read_dicom_series(files).volumes
    assert [item.volume.array.shape for item in volumes] == [(1, 2, 3)] * 3


def test_a_damaged_slice_refuses_its_stack_but_not_other_views(tmp_path):
    (tmp_path / "stack").mkdir()
    files = stack(tmp_path / "stack", [0, 1, 2])
    files[2].write_bytes(files[2].read_bytes()[:-4])
    reading = read_dicom_series(files)
    assert [reason for reason, _ in reading.rejected] == ["truncated"] * 3
    views = [write_slice(tmp_path / str(at), at, None) for at in range(3)]
    views[1].write_bytes(views[1].read_bytes()[:-4])
    reading = read_dicom_series(views)
    assert len(reading.volumes) == 2
    assert [reason for reason, _ in reading.rejected] == ["truncated"]


def test_every_file_is_counted_and_none_is_named(tmp_path):
    files = stack(tmp_path, [0, 1])
    files.append(tmp_path / "Ferrand_missing.dcm")
    (tmp_path / "Ferrand.txt").write_text("Odile Ferrand")
    files.append(tmp_path / "Ferrand.txt")
    files.append(write_slice(tmp_path / "anonymous", 1, None, patient="", series="9"))
    files.append(write_slice(tmp_path / "serial", 1, None, series=""))
    reading = read_dicom_series(files)
    assert sum(item.files for item in reading.volumes) + len(reading.rejected) == len(files)
    assert sorted(reason for reason, _ in reading.rejected) == ["missing", "no-patient", "no-series", "not-dicom"]
    assert "Ferrand" not in str(reading.rejected)


def test_padding_is_filled_over_the_whole_volume(tmp_path):
    files = stack(tmp_path, [0, 1], PixelPaddingValue=0)
    array = read_dicom_series(files).volumes[0].volume.array
    assert array.min() == array.max() == 1
