"""Every file of the public DICOM collection: the right pixels, or the stated refusal."""

import csv
import io
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import get_frame

from medveil.errors import ImageError
from medveil.imaging.dicom import read_dicom
from medveil.imaging.dicom_series import read_dicom_series

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("MEDVEIL_DATA" not in os.environ, reason="MEDVEIL_DATA does not name the real data sets"),
    # The oracle is pydicom itself, whose warnings about these files are not ours.
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
]

ROOT = Path(os.environ.get("MEDVEIL_DATA", ".")) / "dicom"

SMALL_SERIES = [f"ct_series_small/IMG{number:04}.dcm" for number in range(1, 18)]
MR_TWINS = [
    f"basic/MR_small{end}.dcm" for end in ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
]
SMALL_CT = [
    *(f"dicomdir_study/77654033/CT2/{name}" for name in (17106, 17136, 17166, 17196)),
    *(f"dicomdir_study/98892001/CT2N/{name}" for name in (6293, 6924)),
    *(f"dicomdir_study/98892001/CT5N/{name}" for name in (2062, 2392, 2693, 3023, 3353)),
]
CR = [f"dicomdir_study/77654033/{name}" for name in ("CR1/6154", "CR2/6247", "CR3/6278")]
CHARSETS = [f"charset_names/{name}.dcm" for name in ("chrArab", "chrFrenMulti", "chrH31", "chrRuss")]
LIVER = [f"liver_ct_with_seg/ct_0{number}.dcm" for number in (1, 2, 3)]

IMAGES = {
    "basic/CT_small.dcm": ((1, 128, 128), "float32"),
    "basic/JPGExtended.dcm": ((1, 1024, 256), "uint16"),
    **dict.fromkeys(MR_TWINS, ((1, 64, 64), "int16")),
    "basic/SC_rgb_jpeg_dcmtk.dcm": ((3, 100, 100), "uint8"),
    "basic/examples_palette.dcm": ((3, 350, 800), "uint8"),
    "basic/image_dfl.dcm": ((1, 512, 512), "uint8"),
    "burned_in_text/OBXXXX1A_2frame.dcm": ((3, 2, 600, 800), "uint8"),
    "burned_in_text/OBXXXX1A_rle.dcm": ((3, 600, 800), "uint8"),
    "burned_in_text/US1_UNCR.dcm": ((3, 480, 640), "uint8"),
    **dict.fromkeys(CHARSETS, ((1, 32, 32), "uint8")),
    **dict.fromkeys(SMALL_SERIES, ((1, 128, 88), "int16")),
    **dict.fromkeys(SMALL_CT, ((1, 16, 16), "float32")),
    **dict.fromkeys(CR, ((1, 16, 16), "float32")),
    **dict.fromkeys(LIVER, ((1, 512, 512), "float32")),
    "multiframe_overlay_cr/RG3_J2KI.dcm": ((1, 1760, 1760), "uint16"),
    "multiframe_overlay_cr/SC_rgb_2frame.dcm": ((3, 2, 100, 100), "uint8"),
    "multiframe_overlay_cr/eCT_Supplemental.dcm": ((1, 2, 512, 512), "float32"),
    "multiframe_overlay_cr/emri_small.dcm": ((1, 10, 64, 64), "uint16"),
    "multiframe_overlay_cr/emri_small_jpeg_2k_lossless.dcm": ((1, 10, 64, 64), "uint16"),
}

REFUSED = {
    "charset_names/chrJapMulti.dcm": "no-pixels",
    "charset_names/chrSQEncoding.dcm": "no-pixels",
    "dicomdir_study/DICOMDIR": "unsupported-object",
    "liver_ct_with_seg/liver_seg.dcm": "segmentation-object",
    "liver_ct_with_seg/partial_overlaps_seg.dcm": "segmentation-object",
    "malformed/ExplVR_LitEndNoMeta.dcm": "not-dicom",
    "malformed/JPEG-lossy.dcm": "decode",
    "malformed/MR_truncated.dcm": "truncated",
    "malformed/UN_sequence.dcm": "no-pixels",
    "malformed/badVR.dcm": "unsupported-object",
    "malformed/meta_missing_tsyntax.dcm": "bad-header",
    "malformed/no_meta.dcm": "not-dicom",
    "malformed/rtplan_truncated.dcm": "unsupported-object",
    "nonimage/liver_1frame.dcm": "segmentation-object",
    "nonimage/reportsi.dcm": "unsupported-object",
    "nonimage/rtdose.dcm": "unsupported-object",
    "nonimage/rtplan.dcm": "unsupported-object",
    "nonimage/rtstruct.dcm": "not-dicom",
    "nonimage/test-SR.dcm": "unsupported-object",
    "nonimage/waveform_ecg.dcm": "unsupported-object",
    "private_nested/nested_priv_SQ.dcm": "bad-header",
    "private_nested/priv_SQ.dcm": "no-pixels",
}


def manifest():
    with (ROOT / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def raw(name, dtype, *shape):
    """Uncompressed pixels straight from the file's bytes."""
    dataset = pydicom.dcmread(ROOT / name)
    return np.frombuffer(dataset.PixelData, dtype, int(np.prod(shape))).reshape(shape)


def test_the_table_covers_the_manifest():
    assert {row["file"] for row in manifest()} == set(IMAGES) | set(REFUSED)
    assert not set(IMAGES) & set(REFUSED)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_images_load(name):
    shape, dtype = IMAGES[name]
    volume = read_dicom(ROOT / name)
    assert volume.array.shape == shape
    assert volume.array.dtype.name == dtype
    assert volume.array.dtype.isnative
    assert volume.array.max() > volume.array.min()
    assert volume.digest() == read_dicom((ROOT / name).read_bytes()).digest()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused_without_naming_a_patient(name):
    with pytest.raises(ImageError) as caught:
        read_dicom(ROOT / name)
    assert caught.value.reason == REFUSED[name]
    message = str(caught.value).lower()
    for row in manifest():
        family = row["patient_name"].split("^")[0].lower()
        assert len(family) < 3 or family not in message
    assert Path(name).stem.lower() not in message


@pytest.mark.parametrize("name", MR_TWINS)
def test_lossless_twins_equal_the_uncompressed_image(name):
    assert np.array_equal(read_dicom(ROOT / name).array[0], raw("basic/MR_small.dcm", "<i2", 64, 64))


@pytest.mark.parametrize("end", ["", "_jpeg_2k_lossless"])
def test_enhanced_mr_twins(end):
    expected = raw("multiframe_overlay_cr/emri_small.dcm", "<u2", 10, 64, 64)
    assert np.array_equal(read_dicom(ROOT / f"multiframe_overlay_cr/emri_small{end}.dcm").array[0], expected)


@pytest.mark.parametrize("name", ["basic/CT_small.dcm", *SMALL_CT])
def test_ct_is_in_hounsfield_units(name):
    side = 128 if name.startswith("basic") else 16
    assert np.array_equal(read_dicom(ROOT / name).array[0], raw(name, "<i2", side, side).astype(int) - 1024)


@pytest.mark.parametrize("name", LIVER)
def test_padding_outside_the_circle_takes_the_lowest_measured_value(name):
    stored = raw(name, "<i2", 512, 512).astype(int)
    outside = stored == -2000
    assert outside.any()
    expected = np.where(outside, stored[~outside].min(), stored) - 1024
    assert np.array_equal(read_dicom(ROOT / name).array[0], expected)


@pytest.mark.parametrize("name", CR)
def test_monochrome1_with_rescale(name):
    stored = raw(name, "<u2", 16, 16).astype(float)
    np.testing.assert_allclose(read_dicom(ROOT / name).array[0], (4095 - stored) * 0.684 + 200, rtol=1e-6)


def test_jpeg_2000_monochrome1_against_pillow():
    frame = get_frame(pydicom.dcmread(ROOT / "multiframe_overlay_cr/RG3_J2KI.dcm").PixelData, 0, number_of_frames=1)
    # Pillow spreads the 10 stored bits over 16.
    expected = 1023 - (np.asarray(Image.open(io.BytesIO(frame))).astype(int) >> 6)
    assert np.array_equal(read_dicom(ROOT / "multiframe_overlay_cr/RG3_J2KI.dcm").array[0], expected)


def test_jpeg_colour_against_pillow():
    frame = get_frame(pydicom.dcmread(ROOT / "basic/SC_rgb_jpeg_dcmtk.dcm").PixelData, 0, number_of_frames=1)
    expected = np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")).astype(int)
    array = np.moveaxis(read_dicom(ROOT / "basic/SC_rgb_jpeg_dcmtk.dcm").array, 0, -1)
    assert np.abs(array - expected).max() <= 2


def test_extended_jpeg_against_pydicom():
    expected = pydicom.dcmread(ROOT / "basic/JPGExtended.dcm").pixel_array
    assert np.array_equal(read_dicom(ROOT / "basic/JPGExtended.dcm").array[0], expected)


def lookup(name, indices):
    dataset = pydicom.dcmread(ROOT / name)
    tables = [
        np.frombuffer(dataset[f"{colour}PaletteColorLookupTableData"].value, "<u2") >> 8
        for colour in ("Red", "Green", "Blue")
    ]
    return np.stack([table[indices] for table in tables])


def test_palettes():
    name = "basic/examples_palette.dcm"
    assert np.array_equal(read_dicom(ROOT / name).array, lookup(name, raw(name, "u1", 350, 800)))
    name = "burned_in_text/OBXXXX1A_2frame.dcm"
    assert np.array_equal(read_dicom(ROOT / name).array, lookup(name, raw(name, "u1", 2, 600, 800)))


def unpack_run_lengths(segment):
    """PackBits, as PS3.5 annex G describes it."""
    out, at = bytearray(), 0
    while at < len(segment) - 1:
        count = segment[at]
        if count < 128:
            out += segment[at + 1 : at + 2 + count]
            at += 2 + count
        elif count > 128:
            out += segment[at + 1 : at + 2] * (257 - count)
            at += 2
        else:
            at += 1
    return bytes(out)


def test_run_lengths_with_palette():
    name = "burned_in_text/OBXXXX1A_rle.dcm"
    frame = get_frame(pydicom.dcmread(ROOT / name).PixelData, 0, number_of_frames=1)
    indices = np.frombuffer(unpack_run_lengths(frame[64:]), "u1", 600 * 800).reshape(600, 800)
    assert np.array_equal(read_dicom(ROOT / name).array, lookup(name, indices))


def test_uncompressed_colour():
    name = "burned_in_text/US1_UNCR.dcm"
    assert np.array_equal(np.moveaxis(read_dicom(ROOT / name).array, 0, -1), raw(name, "u1", 480, 640, 3))
    name = "multiframe_overlay_cr/SC_rgb_2frame.dcm"
    assert np.array_equal(np.moveaxis(read_dicom(ROOT / name).array, 0, -1), raw(name, "u1", 2, 100, 100, 3))


@pytest.mark.parametrize("name", CHARSETS)
def test_secondary_captures(name):
    assert np.array_equal(read_dicom(ROOT / name).array[0], raw(name, "u1", 32, 32))


def test_deflated():
    content = (ROOT / "basic/image_dfl.dcm").read_bytes()
    # The file meta information is 12 bytes and its stated length long; the rest is one deflate stream.
    start = 132 + 12 + int.from_bytes(content[140:144], "little")
    inflated = zlib.decompress(content[start:], -15)
    expected = np.frombuffer(inflated[-512 * 512 :], "u1").reshape(512, 512)
    assert np.array_equal(read_dicom(content).array[0], expected)


def test_enhanced_ct_is_sorted_and_placed():
    name = "multiframe_overlay_cr/eCT_Supplemental.dcm"
    volume = read_dicom(ROOT / name)
    stored = raw(name, "<u2", 2, 512, 512).astype(int) - 1024
    # X = (-1, 0, 0) and Y = (0, 1, 0) give the normal (0, 0, -1): the frame at z = -149 comes first.
    assert np.array_equal(volume.array[0], stored[::-1])
    assert volume.spacing_mm == (10, 0.388672, 0.388672)
    corner = [-(99.5 - 511 * 0.388672), -(-301.5 + 511 * 0.388672), -159]
    np.testing.assert_allclose((volume.affine @ [1, 511, 511, 1])[:3], corner)


@pytest.mark.parametrize("seed", range(2))
def test_the_small_series_in_any_order(seed):
    files = [ROOT / name for name in SMALL_SERIES]
    random.Random(seed).shuffle(files)
    reading = read_dicom_series(files)
    assert reading.rejected == ()
    (series,) = reading.volumes
    # z runs from -24.707 to 7.293 with the file number, and the normal of (-1,0,0) x (0,-1,0) is +z.
    expected = np.stack([raw(name, "<i2", 128, 88) for name in SMALL_SERIES])
    assert np.array_equal(series.volume.array[0], expected)
    np.testing.assert_allclose(series.volume.spacing_mm, (2, 2, 2), atol=1e-6)
    np.testing.assert_allclose((series.volume.affine @ [0, 0, 0, 1])[:3], [-82.1807, -122.163, -24.707])
    corner = [-(82.1807 - 87 * 2), -(122.163 - 127 * 2), 7.293]
    np.testing.assert_allclose((series.volume.affine @ [16, 127, 87, 1])[:3], corner, atol=1e-6)


def test_all_files_at_once_are_all_counted():
    files = [ROOT / row["file"] for row in manifest()]
    reading = read_dicom_series(files)
    assert sum(item.files for item in reading.volumes) + len(reading.rejected) == len(files) == 79
    by_size = {item.files: item for item in reading.volumes}
    assert by_size[17].volume.array.shape == (1, 17, 128, 88)
    assert by_size[5].volume.spacing_mm[0] == pytest.approx(2.5)
    assert by_size[3].volume.spacing_mm[0] == pytest.approx(1)
    reasons = [reason for reason, _ in reading.rejected]
    # CT2: three slices 1.25 mm apart and one 200 mm off; CT2N: two scouts at right angles.
    assert reasons.count("gap") == 4
    assert reasons.count("geometry") == 2
    # The truncated twin shares its series with the six whole ones.
    assert reasons.count("truncated") == 7
