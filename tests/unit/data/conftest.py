"""Writers of small files, through libraries that are not under test."""

import io
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path
pytest.register_assert_rewrite("source_conformance")


class Writers:
    """Files with known content."""

    def png(self, path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path

    def png_bytes(self, array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()

    def nifti(self, path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
        return path

    def dicom(
        self, path: Path, array: np.ndarray, patient: str, series: str | None = None, z: float | None = None
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.PatientID, ds.PatientName = "OT", patient, "Mustermann^Erika"
        ds.SeriesInstanceUID = series or generate_uid()
        ds.Rows, ds.Columns = array.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        if z is not None:
            ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
            ds.PixelSpacing = [1, 1]
        ds.PixelData = array.tobytes() + b"\0" * (array.size % 2)
        ds.save_as(path, enforce_file_format=True)
        return path

    def medmnist(self, path: Path, seed: int = 0, labels: int = 2, *, count: int = 6) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (count, 20, 20), dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count) % labels).astype(np.uint8)[:, None]
        np.savez(path, **arrays)
        return arrays


@pytest.fixture
def write() -> Writers:
    return Writers()


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Sixteen different grey pictures of 20 x 24."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (20, 24), dtype=np.uint8) for _ in range(16)]
