"""Synthetic DICOM files with hand-computed pixels and geometry."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from medveil.errors import ImageError, MissingDataError
from medveil.imaging.dicom import Window, dicom_patient_key, read_dicom

NAME, PATIENT = "Ferrand^Odile", "ID-77-Q"
STORED = np.array([[0, 1, 2], [10, 20, 4095]], np.uint16)


def dataset(array=STORED, *, syntax=ExplicitVRLittleEndian, photometric="MONOCHROME2", **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3"
    ds.PatientName, ds.PatientID = NAME, PATIENT
    ds.Modality, ds.SeriesInstanceUID = "CT", "1.2.3.4"
    colour = array.ndim > 2 and array.shape[-1] == 3
    spatial = array.shape[:-1] if colour else array.shape
    ds.Rows, ds.Columns = spatial[-2:]
    if len(spatial) == 3:
        ds.NumberOfFrames = spatial[0]
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    bits = array.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    ds.PixelData = array.tobytes()
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def to_bytes(ds):
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(array=STORED, *, window=None, **tags):
    return read_dicom(to_bytes(dataset(array, **tags)), window=window)


def reason_of(content, **options):
    with pytest.raises(ImageError) as caught:
        read_dicom(content, **options)
    message = str(caught.value)
    assert "Ferrand" not in message
    assert PATIENT not in message
    return caught.value.reason


def test_stored_values_are_kept_without_rescale():
    volume = read()
    assert volume.array.dtype == np.uint16
    assert volume.array.tolist() == [STORED.tolist()]
    assert volume.modality == "CT"
    assert volume.spacing_mm is None
    assert volume.affine is None


def test_rescale_gives_float32():
    volume = read(RescaleSlope=2, RescaleIntercept=-1024)
    assert volume.array.dtype == np.float32
    assert volume.array[0].tolist() == [[-1024, -1022, -1020], [-1004, -984, 7166]]


def test_identity_rescale_keeps_integers():
    assert read(RescaleSlope=1, RescaleIntercept=0).array.dtype == np.uint16


@pytest.mark.parametrize(
    ("stored", "bits", "expected"),
    [
        (np.array([[0, 1, 4095]], np.uint16), 12, [[4095, 4094, 0]]),
        (np.array([[0, 255]], np.uint8), 8, [[255, 0]]),
        (np.array([[-32768, 0, 32767]], np.int16), 16, [[32767, -1, -32768]]),
        (np.array([[0, 2**32 - 1]], np.uint32), 32, [[2**32 - 1, 0]]),
    ],
)
def test_monochrome1_is_inverted_in_the_stored_range(stored, bits, expected):
    volume = read(stored, photometric="MONOCHROME1", BitsStored=bits, HighBit=bits - 1)
    assert volume.array.dtype == stored.dtype
    assert volume.array[0].tolist() == expected


def test_monochrome1_with_rescale_is_inverted_in_the_rescaled_range():
    volume = read(
        np.array([[0, 4095]], np.uint16),
        photometric="MONOCHROME1",
        BitsStored=12,
        HighBit=11,
        RescaleSlope=2,
        RescaleIntercept=100,
    )
    assert volume.array[0].tolist() == [[8290, 100]]


def test_window_follows_the_standard():
    # PS3.3 C.11.2.1.2.1 with c = 2048, w = 4096 and output 0..1: 0 for 0, 1 for 4095, linear between.
    values = np.array([[0, 1024, 4095]], np.uint16)
    volume = read(values, window=Window(2048, 4096))
    np.testing.assert_allclose(volume.array[0], [[0, 1024 / 4095, 1]], atol=1e-7)
    assert volume.array.dtype == np.float32
    # C.11.2.1.3.1: 0.5 at the centre.
    sigmoid = read(values, window=Window(1024, 100, "SIGMOID"))
    assert sigmoid.array[0, 0, 1] == pytest.approx(0.5)


def test_width_one_is_a_threshold():
    assert read(np.array([[9, 10]], np.uint16), window=Window(10, 1)).array[0].tolist() == [[0, 1]]


def test_window_from_file_takes_the_first_and_inverts_after():
    tags = {"WindowCenter": [2048, 5], "WindowWidth": [4096, 9]}
    values = np.array([[0, 1024, 4095]], np.uint16)
    plain = read(values, window="file", **tags)
    np.testing.assert_allclose(plain.array[0], [[0, 1024 / 4095, 1]], atol=1e-7)
    turned = read(values, window="file", photometric="MONOCHROME1", **tags)
    np.testing.assert_allclose(turned.array[0], [[1, 1 - 1024 / 4095, 0]], atol=1e-7)
    assert reason_of(to_bytes(dataset(values)), window="file") == "window"


@pytest.mark.parametrize("window", [(0, 0, "LINEAR"), (0, 0.5, "LINEAR"), (np.nan, 9, "LINEAR"), (0, -1, "SIGMOID")])
def test_unusable_windows_are_refused(window):
    with pytest.raises(ImageError, match="window"):
        Window(*window)


def test_padding_takes_the_lowest_measured_value():
    stored = np.array([[-2000, 100, 300]], np.int16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    assert read(stored, PixelPaddingValue=-2000, **tags).array[0].tolist() == [[-924, -924, -724]]
    assert read(stored, **tags).array[0].tolist() == [[-3024, -924, -724]]


def test_padding_range_and_inverted_padding():
    stored = np.array([[4000, 4095, 10, 20]], np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "photometric": "MONOCHROME1"}
    volume = read(stored, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000, **tags)
    assert volume.array[0].tolist() == [[4075, 4075, 4085, 4075]]


def test_an_image_of_padding_alone_stays():
    assert read(np.full((1, 2), 7, np.uint16), PixelPaddingValue=7).array.tolist() == [[[7, 7]]]


def test_overlay_bits_above_the_stored_ones_are_dropped():
    stored = np.array([[0x1005, 0x8FFF]], np.uint16)
    assert read(stored, BitsStored=12, HighBit=11).array[0].tolist() == [[5, 0xFFF]]
    signed = np.array([[0x1FFF, 0x0001]], np.uint16)
    volume = read(signed, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert volume.array[0].tolist() == [[-1, 1]]


def test_high_bit_above_the_lowest_place():
    assert read(np.array([[0x0120]], np.uint16), BitsStored=12, HighBit=15).array[0].tolist() == [[0x12]]


def test_modality_lut():
    lut = Dataset()
    lut.LUTDescriptor = [3, 10, 16]
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [100, 200, 400]
    lut["LUTData"].VR = "US"
    lut.ModalityLUTType = "US"
    stored = np.array([[0, 10, 11, 12, 99]], np.uint16)
    assert read(stored, ModalityLUTSequence=Sequence([lut])).array[0].tolist() == [[100, 100, 200, 400, 400]]


def test_colour_becomes_channels_first():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    volume = read(rgb, photometric="RGB")
    assert volume.array.shape == (3, 2, 4)
    assert np.array_equal(np.moveaxis(volume.array, 0, -1), rgb)


def test_ybr_is_converted():
    # JFIF: pure red is Y = 76, Cb = 85, Cr = 255.
    volume = read(np.array([[[76, 85, 255]]], np.uint8), photometric="YBR_FULL")
    assert np.abs(volume.array[:, 0, 0].astype(int) - [254, 0, 0]).max() <= 1


def test_palette_becomes_rgb_from_the_high_bytes():
    tags = {}
    for at, colour in enumerate(("Red", "Green", "Blue")):
        table = np.array([0x0100, 0x8000 + at * 0x100, 0xFF00], "<u2")
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    volume = read(np.array([[0, 1, 2]], np.uint8), photometric="PALETTE COLOR", **tags)
    assert volume.array.dtype == np.uint8
    assert volume.array[:, 0].T.tolist() == [[1, 1, 1], [0x80, 0x81, 0x82], [255, 255, 255]]


def test_2d_affine_maps_corners_as_the_standard_says():
    # PS3.3 C.7.6.2.1.1: P = position + column_index * column_spacing * X + row_index * row_spacing * Y.
    volume = read(
        PixelSpacing=[2, 3],
        ImagePositionPatient=[10, 20, 30],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
    assert volume.spacing_mm == (2, 3)
    last = volume.affine @ [1, 2, 0, 1]
    # LPS (10, 20 + 2 * 3, 30 - 1 * 2) = (10, 26, 28); RAS turns the signs of x and y.
    np.testing.assert_allclose(last, [-10, -26, 28, 1])
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    assert abs(np.linalg.det(volume.affine)) == pytest.approx(6)


def test_imager_spacing_is_the_fallback():
    assert read(ImagerPixelSpacing=[0.1, 0.2]).spacing_mm == (0.1, 0.2)
    assert read(ImagerPixelSpacing=[0.1, 0.2], PixelSpacing=[1, 1]).spacing_mm == (1, 1)


def enhanced(array, positions, *, slopes=None):
    shared = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.5, 0.25]
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    frames = []
    for at, position in enumerate(positions):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = position
        frame.PlanePositionSequence = Sequence([place])
        if slopes:
            transformation = Dataset()
            transformation.RescaleSlope, transformation.RescaleIntercept = slopes[at], 1
            frame.PixelValueTransformationSequence = Sequence([transformation])
        frames.append(frame)
    return to_bytes(
        dataset(
            array,
            SharedFunctionalGroupsSequence=Sequence([shared]),
            PerFrameFunctionalGroupsSequence=Sequence(frames),
        )
    )


FRAMES = np.arange(12, dtype=np.uint16).reshape(3, 2, 2)


def test_enhanced_frames_are_sorted_along_the_normal():
    volume = read_dicom(enhanced(FRAMES, [[0, 0, 8], [0, 0, 4], [0, 0, 0]], slopes=[1, 2, 3]))
    assert volume.spacing_mm == (4, 0.5, 0.25)
    assert volume.array[0, 0].tolist() == (FRAMES[2] * 3 + 1).tolist()
    assert volume.array[0, 2].tolist() == (FRAMES[0] + 1).tolist()
    np.testing.assert_allclose(volume.affine @ [2, 1, 1, 1], [-0.25, -0.5, 8, 1])


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        ([[0, 0, 0], [0, 0, 4], [0, 0, 4]], "duplicate-position"),
        ([[0, 0, 0], [0, 0, 4], [0, 0, 12]], "gap"),
        ([[0, 0, 0], [0, 3, 4], [0, 0, 8]], "gap"),
    ],
)
def test_frames_that_are_no_regular_stack_are_refused(positions, reason):
    assert reason_of(enhanced(FRAMES, positions)) == reason


def test_frames_without_planes_have_no_geometry():
    volume = read(FRAMES)
    assert volume.array.shape == (1, 3, 2, 2)
    assert volume.spacing_mm is None
    assert volume.affine is None


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "segmentation-object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "unsupported-object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}, "unsupported-object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.30"}, "unsupported-object"),
        ({"BitsStored": 17}, "bad-header"),
        ({"SamplesPerPixel": 2}, "bad-header"),
        ({"PhotometricInterpretation": "CMYK"}, "bad-header"),
        ({"Rows": 0}, "bad-header"),
        ({"Rows": 3}, "truncated"),
        ({"RescaleSlope": 0}, "bad-header"),
        ({"RescaleSlope": 1e38}, "non-finite"),
        ({"PixelSpacing": [0, 1]}, "bad-header"),
        ({"PixelSpacing": [1, 1, 1]}, "bad-header"),
        (
            {
                "PixelSpacing": [1, 1],
                "ImagePositionPatient": [0, 0, 0],
                "ImageOrientationPatient": [1, 0, 0, 1, 0, 0],
            },
            "geometry",
        ),
    ],
)
def test_wrong_headers_are_refused(tags, reason):
    assert reason_of(to_bytes(dataset(**tags))) == reason


def test_no_pixels_and_huge_claims_are_refused():
    ds = dataset()
    del ds.PixelData
    assert reason_of(to_bytes(ds)) == "no-pixels"
    huge = dataset(Rows=65535, Columns=65535)
    assert reason_of(to_bytes(huge)) == "too-large"


def test_a_codestream_that_declares_another_size_is_refused_before_decoding():
    codestream = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 60000, 60000, 1) + bytes(60)
    ds = dataset(np.zeros((2, 2), np.uint8), syntax=JPEGBaseline8Bit)
    ds.PixelData = encapsulate([codestream])
    with pytest.raises(ImageError, match="another size"):
        read_dicom(to_bytes(ds))


def test_an_unknown_transfer_syntax_is_refused():
    ds = dataset(syntax=JPEG2000Lossless)
    ds.PixelData = encapsulate([b"\xff\x4f\xff\x51"])
    content = to_bytes(ds).replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.99")
    assert reason_of(content) == "unsupported-transfer-syntax"


def test_a_deflated_bomb_stops_at_the_limit():
    content = to_bytes(dataset(np.zeros((256, 256), np.uint16), syntax=DeflatedExplicitVRLittleEndian))
    assert read_dicom(content).array.shape == (1, 256, 256)
    assert reason_of(content, max_bytes=20_000) == "too-large"
    squeezed = zlib.compressobj(wbits=-15)
    bomb = content[: content.index(DeflatedExplicitVRLittleEndian.encode()) + 22]
    bomb += squeezed.compress(bytes(50_000_000)) + squeezed.flush()
    assert len(bomb) < 60_000
    assert reason_of(bomb, max_bytes=1_000_000) == "too-large"


def test_not_a_file_not_dicom_and_empty(tmp_path: Path):
    with pytest.raises(MissingDataError) as caught:
        read_dicom(tmp_path / "Ferrand.dcm")
    assert "Ferrand" not in str(caught.value)
    assert reason_of(b"") == "empty"
    assert reason_of(bytes(500)) == "not-dicom"
    assert reason_of(bytes(128) + b"DICM" + b"garbage") in {"bad-header", "no-pixels", "not-dicom"}


def test_the_same_pixels_have_the_same_digest_whatever_the_encoding(tmp_path: Path):
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(dataset(syntax=DeflatedExplicitVRLittleEndian)))
    assert read_dicom(path).digest() == read().digest()
    other = STORED.copy()
    other[0, 0] = 1
    assert read(other).digest() != read().digest()


def test_patient_key():
    assert dicom_patient_key(to_bytes(dataset(PatientID=" ID-77-Q "))) == PATIENT
    with pytest.raises(ImageError) as caught:
        dicom_patient_key(to_bytes(dataset(PatientID="")))
    assert caught.value.reason == "no-patient"


def test_a_wild_modality_is_not_passed_on():
    assert read(Modality="MR_FERRAND").modality == "OT"
