"""Whatever the bytes are, a reader ends in a result or in a typed error, within bounded memory."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
)

from medveil.errors import MedveilError
from medveil.imaging.archive import open_archive
from medveil.imaging.dicom import dicom_patient_key, read_dicom
from medveil.imaging.dicom_series import read_dicom_series
from medveil.imaging.medmnist import read_medmnist
from medveil.imaging.nifti import read_nifti, read_nifti_mask
from medveil.imaging.raster import read_raster, read_raster_mask
from medveil.imaging.volume import Volume

NAME, PATIENT = "Zyxwferrand", "QQPATIENTQQ"
LIMIT = 64 << 20
SMOOTH = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def dicom(syntax, pixels):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = MRImageStorage, "1.2.3", "1.2.3.4"
    ds.PatientName, ds.PatientID, ds.Modality = NAME, PATIENT, "MR"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 16, 16, 1
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelSpacing, ds.ImagePositionPatient = [1, 2], [3, 4, 5]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelPaddingValue = 2, -3, 0
    ds.PixelData = encapsulate([pixels]) if syntax.is_encapsulated else pixels
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = syntax.is_encapsulated
    return written(lambda buffer: ds.save_as(buffer, enforce_file_format=True))


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def picture(kind, **options):
    return written(lambda buffer: Image.fromarray(SMOOTH).save(buffer, kind, **options))


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{NAME}.png", SMOOTH.tobytes() * 9)
        file.writestr("b", b"2")


RLE = b"\1\0\0\0\x40\0\0\0" + bytes(56) + b"".join(bytes([241, value]) for value in range(16))
NIFTI = nibabel.Nifti1Image(SMOOTH[..., None], np.diag([1, 2, 3, 1])).to_bytes()
# A header extension of 16 bytes, and the voxels behind it (offset at byte 108, as float32).
EXTENSION = bytes([1, 0, 0, 0, 16, 0, 0, 0, 6, 0, 0, 0]) + bytes(8)
EXTENDED = NIFTI[:108] + struct.pack("<f", 368) + NIFTI[112:348] + EXTENSION + NIFTI[352:]
SPLITS = {
    f"{split}_{part}": np.zeros((2, 4, 4) if part == "images" else (2, 1), np.uint8)
    for split in ("train", "val", "test")
    for part in ("images", "labels")
}


def series(path):
    return read_dicom_series([path, path])


def archive(path):
    with open_archive(path) as opened:
        return [opened.read(name) for name in opened.names()]


FROM_BYTES = {
    "dicom": (
        read_dicom,
        [
            dicom(ExplicitVRLittleEndian, SMOOTH.tobytes()),
            dicom(ImplicitVRLittleEndian, SMOOTH.tobytes()),
            dicom(DeflatedExplicitVRLittleEndian, SMOOTH.tobytes()),
            dicom(RLELossless, RLE),
            dicom(JPEGBaseline8Bit, picture("JPEG")),
            dicom(JPEG2000Lossless, picture("JPEG2000", no_jp2=True)),
        ],
    ),
    "patient-key": (dicom_patient_key, [dicom(ExplicitVRLittleEndian, SMOOTH.tobytes())]),
    "nifti": (read_nifti, [NIFTI, gzip.compress(NIFTI), EXTENDED]),
    "nifti-mask": (read_nifti_mask, [NIFTI]),
    "raster": (read_raster, [picture("PNG"), picture("JPEG"), picture("PNG", transparency=3)]),
    "raster-mask": (read_raster_mask, [picture("PNG")]),
}
FROM_PATHS = {
    "archive": (archive, [written(zipped)]),
    "medmnist": (read_medmnist, [written(lambda buffer: np.savez(buffer, **SPLITS))]),
    "series": (series, [dicom(ExplicitVRLittleEndian, SMOOTH.tobytes())]),
}


def within_bounds(reader, source):
    """Run a reader; anything but a result or a typed error without patient data fails the test."""
    message = ""
    tracemalloc.start()
    try:
        result = reader(source)
        assert not isinstance(result, Volume) or np.isfinite(result.array).all()
    except MedveilError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < LIMIT
    assert NAME not in message
    assert PATIENT not in message


@st.composite
def mutations(draw, seeds):
    content = bytearray(draw(st.sampled_from(seeds)))
    places = st.integers(0, len(content) - 1)
    for at, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        content[at] = value
    if draw(st.booleans()):
        content = content[: draw(places)]
    if draw(st.booleans()):
        content += draw(st.binary(max_size=40))
    return bytes(content)


@pytest.mark.parametrize("name", sorted(FROM_BYTES))
def test_the_seeds_themselves_are_read(name):
    reader, seeds = FROM_BYTES[name]
    for seed in seeds:
        reader(seed)


@pytest.mark.parametrize("name", sorted(FROM_PATHS))
def test_the_seed_files_themselves_are_read(name, tmp_path):
    reader, seeds = FROM_PATHS[name]
    for seed in seeds:
        (tmp_path / "seed").write_bytes(seed)
        reader(tmp_path / "seed")


@pytest.mark.parametrize("name", sorted(FROM_BYTES))
@FAST
@given(data=st.data())
def test_mutated_bytes(name, data):
    reader, seeds = FROM_BYTES[name]
    within_bounds(reader, data.draw(mutations(seeds)))


@pytest.mark.parametrize("name", sorted(FROM_PATHS))
@FAST
@given(data=st.data())
def test_mutated_files(name, data, tmp_path):
    reader, seeds = FROM_PATHS[name]
    (tmp_path / NAME).write_bytes(data.draw(mutations(seeds)))
    within_bounds(reader, tmp_path / NAME)


@pytest.mark.parametrize("name", sorted(FROM_BYTES))
@FAST
@given(tail=st.binary(max_size=400))
def test_random_bytes_behind_each_magic_number(name, tail):
    reader, _ = FROM_BYTES[name]
    for magic in (b"", bytes(128) + b"DICM", b"\x1f\x8b\x08", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        within_bounds(reader, magic + tail)


REAL = ["basic/MR_small_jp2klossless.dcm", "basic/JPGExtended.dcm", "basic/MR_small_jpeg_ls_lossless.dcm"]


@pytest.mark.real_data
@pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets")
@pytest.mark.parametrize("name", REAL)
@FAST
@given(data=st.data())
def test_mutated_real_dicom(name, data):
    seed = (Path(os.environ["MEDVEIL_DATA"]) / "dicom" / name).read_bytes()
    within_bounds(read_dicom, data.draw(mutations([seed])))
