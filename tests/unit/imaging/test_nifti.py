"""NIfTI files written by nibabel, and bytes that are none."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from medveil.errors import ImageError, LabelError, MissingDataError
from medveil.imaging.nifti import mask_labels, read_nifti, read_nifti_mask, write_nifti_mask

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, 20], [0, 0, 3.0, 30], [0, 0, 0, 1]])
ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def stored(array=ARRAY, affine=AFFINE, kind=nibabel.Nifti1Image):
    return kind(array, affine).to_bytes()


def reason_of(content, **options):
    with pytest.raises(ImageError) as caught:
        read_nifti(content, **options)
    return caught.value.reason


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_pixels_affine_and_spacing(kind, pack):
    volume = read_nifti(pack(stored(kind=kind)))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[0], ARRAY)
    assert volume.spacing_mm == (1.5, 2, 3)
    np.testing.assert_allclose(volume.affine @ [1, 2, 3, 1], [10 - 4, 20 + 1.5, 30 + 9, 1])


def test_scaling_gives_float32():
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    image.header.set_slope_inter(0.5, -1)
    content = bytearray(image.to_bytes())
    # to_bytes clears the scaling of arrays in memory: write scl_slope and scl_inter (bytes 112 to 119) here.
    content[112:120] = struct.pack("<ff", 0.5, -1)
    volume = read_nifti(bytes(content))
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array[0], ARRAY * 0.5 - 1)


def test_big_endian_and_unsigned_become_native():
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    image = nibabel.Nifti1Image(ARRAY.astype(">f4"), AFFINE, header=header)
    volume = read_nifti(image.to_bytes())
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array[0], ARRAY)


def test_axes_beyond_the_third():
    assert read_nifti(stored(ARRAY[..., None])).array.shape == (1, 2, 3, 4)
    channels = np.stack([ARRAY, ARRAY + 100], axis=-1)
    assert np.array_equal(read_nifti(stored(channels)).array[1], ARRAY + 100)
    assert reason_of(stored(np.zeros((2, 3, 4, 9), np.uint8))) == "shape"
    assert reason_of(stored(np.zeros((2, 3, 4, 2, 2), np.uint8))) == "shape"


def test_units_are_converted_to_mm():
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    image.header.set_xyzt_units("micron")
    volume = read_nifti(image.to_bytes())
    np.testing.assert_allclose(volume.spacing_mm, (0.0015, 0.002, 0.003))
    np.testing.assert_allclose(volume.affine[:3, 3], [0.01, 0.02, 0.03])


def test_an_unset_affine_is_unknown():
    image = nibabel.Nifti1Image(ARRAY, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    assert read_nifti(image.to_bytes()).affine is None


def test_damaged_files_are_refused(tmp_path):
    content = stored()
    assert reason_of(b"") == "empty"
    assert reason_of(content[:-1]) == "truncated"
    assert reason_of(gzip.compress(content)[:-9]) == "truncated"
    assert reason_of(b"\x1f\x8b" + bytes(99)) == "decode"
    assert reason_of(bytes(400)) == "not-nifti"
    assert reason_of(content.replace(b"n+1\0", b"ni1\0")) == "not-nifti"
    assert reason_of(stored(np.full((2, 2, 2), np.nan, np.float32))) == "non-finite"
    assert reason_of(stored(np.zeros((2, 2, 2), np.complex64))) == "dtype"
    with pytest.raises(MissingDataError) as caught:
        read_nifti(tmp_path / "Ferrand.nii")
    assert "Ferrand" not in str(caught.value)


def test_claims_beyond_the_file_are_refused_before_memory_is_taken():
    content = bytearray(stored())
    content[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
    assert reason_of(bytes(content)) == "too-large"
    content[40:48] = struct.pack("<4h", 3, 500, 500, 500)
    assert reason_of(bytes(content)) == "truncated"


def test_a_gzip_bomb_stops_at_the_limit():
    bomb = gzip.compress(bytes(30_000_000))
    assert len(bomb) < 40_000
    assert reason_of(bomb, max_bytes=1_000_000) == "too-large"
    assert reason_of(bomb) == "not-nifti"


def test_float_labels_are_accepted_where_whole():
    mask = read_nifti_mask(stored((ARRAY % 3).astype(np.float32)), num_classes=3)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, ARRAY % 3)


@pytest.mark.parametrize(
    ("array", "num_classes"),
    [
        (ARRAY + 0.5, None),
        (ARRAY - 1, None),
        (ARRAY, 23),
        (ARRAY + 300, None),
        (np.full((1, 1, 1), 1e30), None),
    ],
)
def test_wrong_labels_are_refused(array, num_classes):
    with pytest.raises(LabelError):
        read_nifti_mask(stored(array.astype(np.float64)), num_classes)


def test_a_mask_has_one_channel():
    with pytest.raises(LabelError):
        mask_labels(read_nifti(stored(np.zeros((2, 3, 4, 2), np.uint8))))


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
@pytest.mark.parametrize("affine", [AFFINE, np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])])
def test_written_masks_are_read_by_nibabel(tmp_path, name, affine):
    mask = (ARRAY % 4).astype(np.uint8)
    write_nifti_mask(mask, affine, tmp_path / name)
    image = nibabel.load(tmp_path / name)
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), mask)
    np.testing.assert_allclose(image.affine, affine)
    first = (tmp_path / name).read_bytes()
    write_nifti_mask(mask, affine, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first


def test_a_mask_without_affine_stays_without(tmp_path):
    write_nifti_mask(np.ones((2, 2, 2), np.uint8), None, tmp_path / "mask.nii")
    assert read_nifti(tmp_path / "mask.nii").affine is None
    with pytest.raises(LabelError):
        write_nifti_mask(np.ones((2, 2), np.uint8), None, tmp_path / "mask.nii")
