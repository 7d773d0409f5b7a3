"""The real sets against what their publishers and index files say; reads the folder that MEDVEIL_DATA names."""

import csv
import os
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from medveil.data.sources import load
from medveil.data.sources.catalogue_source import CatalogueSource
from medveil.data.sources.dicom_folder import DicomFolderSource
from medveil.data.sources.files import open_tree
from medveil.data.sources.public_sets import SET_READERS, archive_or_folder, parse_guangzhou, parse_nih
from medveil.data.splits import Splits, find_duplicates, split
from medveil.data.subject import Dataset
from medveil.errors import ImageError
from medveil.imaging.preprocess import Preprocess
from medveil.rng import Seeds

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("MEDVEIL_DATA"), reason="MEDVEIL_DATA names no folder of real data sets"),
]


def folder(name: str) -> Path:
    return Path(os.environ["MEDVEIL_DATA"]) / name


def index(name: str) -> list[dict[str, str]]:
    with (folder(name) / "index.csv").open(newline="") as source:
        return list(csv.DictReader(source))


@cache
def read(name: str, **settings) -> Dataset:
    return load(CatalogueSource(name=name), Preprocess(**settings), root=Path())


def test_pneumonia_counts_are_the_official_ones() -> None:
    # MedMNIST's info.py: 4708, 524, 624; labels counted by the publisher's paper.
    dataset = read("pneumonia-28")
    counts = Counter((subject.split, subject.label()) for subject in dataset.subjects)
    assert counts == {
        ("train", 0): 1214,
        ("train", 1): 3494,
        ("validation", 0): 135,
        ("validation", 1): 389,
        ("test", 0): 234,
        ("test", 1): 390,
    }
    assert dataset.example_shape == (1, 28, 28)
    assert dataset.rejected == ()


def test_pneumonia_copies_between_train_and_validation() -> None:
    with np.load(folder("pneumoniamnist_28") / "pneumoniamnist.npz") as arrays:
        images = {split: [image.tobytes() for image in arrays[f"{split}_images"]] for split in ("train", "val", "test")}
    shared = set(images["train"]) & set(images["val"])
    assert len(shared) == 8
    copies = sum(image in shared for image in images["train"])
    parts = split(read("pneumonia-28"), Splits(), Seeds(0))
    assert parts.duplicates.train_in_validation == copies
    assert parts.duplicates.train_in_test == parts.duplicates.validation_in_test == 0
    assert parts.duplicates.within_train == len(images["train"]) - len(set(images["train"]))
    assert len(parts.train) == 4708 - copies
    assert find_duplicates(parts).across == 0


def test_guangzhou_paths_tell_what_the_index_says() -> None:
    rows = index("cxr_guangzhou_224")
    assert len(rows) == 5840
    for row in rows:
        told = parse_guangzhou(row["path"])
        assert (told.split, str(told.label), told.subtype, told.patient_key) == (
            row["split"],
            row["label"],
            row["subtype"],
            row["patient_key"],
        )


@pytest.mark.slow
def test_guangzhou_images() -> None:
    dataset = read("chest-xray-224")
    rows = index("cxr_guangzhou_224")
    assert dataset.num_examples == len(rows)
    assert len(dataset.subjects) == len({row["patient_key"] for row in rows})
    assert dataset.example_shape == (1, 224, 224)
    assert dataset.subjects[0].examples[0].image.dtype == np.uint8
    assert dataset.rejected == ()
    # The index's MD5 were taken with another decoder: the same groups of identical pictures must come out.
    copies = Counter(row["pixel_md5"] for row in rows)
    ours = Counter(example.digest for subject in dataset.subjects for example in subject.examples)
    assert sorted(ours.values()) == sorted(copies.values())
    assert sum(count for count in ours.values() if count > 1) == 62
    parts = split(dataset, Splits(), Seeds(0))
    assert sum(len(subject.examples) for subject in parts.test) == 624
    assert parts.duplicates.across == 0


def test_nih_paths_tell_what_the_index_says() -> None:
    for row in index("cxr_nih_224"):
        told = parse_nih(row["path"])
        assert (str(told.label), told.patient_key) == (row["label"], row["patient_id"])


def test_nih_images() -> None:
    dataset = read("chest-xray-nih")
    rows = index("cxr_nih_224")
    assert dataset.num_examples == len(rows) == 583
    assert len(dataset.subjects) == len({row["patient_id"] for row in rows})
    assert dataset.example_shape == (1, 224, 224)
    assert {subject.attributes["site"] for subject in dataset.subjects} == {"nih"}


def test_hippocampus_voxels_and_regimes_are_those_of_the_index() -> None:
    with open_tree(archive_or_folder(folder("hippocampus_mr_nifti"))) as tree:
        records, refused = SET_READERS["hippocampus"].records(tree, 1)
        found = {record.patient: record.read()[0] for record in records}
    assert refused == []
    for row in index("hippocampus_mr_nifti"):
        reading = found[row["file"]]
        assert reading.attributes["intensity_regime"] == row["intensity_regime"]
        assert reading.volume.spatial_shape == tuple(int(row[axis]) for axis in ("nx", "ny", "nz"))
        assert [int((reading.target == value).sum()) for value in (1, 2)] == [
            int(row["vox_anterior"]),
            int(row["vox_posterior"]),
        ]


def test_hippocampus_padding_loses_no_voxel() -> None:
    dataset = read("hippocampus", size=(48, 64, 48), fit="pad", intensity="zscore")
    assert dataset.num_examples == 200
    assert dataset.example_shape == (1, 48, 64, 48)
    ours = sum(int((example.target > 0).sum()) for subject in dataset.subjects for example in subject.examples)
    rows = index("hippocampus_mr_nifti")
    assert ours == sum(int(row["vox_anterior"]) + int(row["vox_posterior"]) for row in rows)
    with pytest.raises(ImageError, match=r"preprocess\.size"):
        read("hippocampus")


def test_hippocampus_slices() -> None:
    settings = {"size": (48, 64), "fit": "pad", "slices": {"axis": 2, "keep": "foreground"}}
    dataset = load(CatalogueSource(name="hippocampus"), Preprocess.model_validate(settings), root=Path())
    assert dataset.example_shape == (1, 48, 64)
    assert len(dataset.subjects) == 200
    for subject in dataset.subjects:
        assert all(example.target.any() for example in subject.examples)
        positions = [example.position for example in subject.examples]
        assert positions == sorted(set(positions))
    # Without a size of its own the cut axis keeps its length, so all slices of a volume are there.
    every = {"size": (48, 64), "fit": "pad", "slices": {"axis": 2, "keep": "all"}}
    whole = load(CatalogueSource(name="hippocampus"), Preprocess.model_validate(every), root=Path())
    assert whole.num_examples == sum(int(row["nz"]) for row in index("hippocampus_mr_nifti"))


def test_nuclei_masks_and_domains_are_those_of_the_index() -> None:
    with open_tree(archive_or_folder(folder("nuclei_dsb2018"))) as tree:
        records, refused = SET_READERS["nuclei"].records(tree, 1)
        found = {record.patient: record.read()[0] for record in records}
    assert refused == []
    rows = index("nuclei_dsb2018")
    assert len(found) == len(rows) == 160
    for row in rows:
        reading = found[row["path"].removesuffix(".png")]
        assert reading.attributes["site"] == row["domain"]
        assert reading.target.mean() == pytest.approx(float(row["fg_fraction"]), abs=6e-5)


def test_nuclei_need_one_size_and_one_number_of_channels() -> None:
    with pytest.raises(ImageError, match=r"preprocess\.channels"):
        read("nuclei")
    with pytest.raises(ImageError, match=r"preprocess\.size"):
        read("nuclei", channels="grey")
    assert read("nuclei", channels="grey", size=(128, 128)).example_shape == (1, 128, 128)


def test_retina_children_own_both_eyes() -> None:
    dataset = read("retina", size=(96, 96))
    assert [len(subject.examples) for subject in dataset.subjects] == [2] * 14
    second = load(CatalogueSource(name="retina", annotator=2), Preprocess(size=(96, 96)), root=Path())
    shares = [
        np.mean([example.target.mean() for subject in each.subjects for example in subject.examples])
        for each in (dataset, second)
    ]
    # The second annotator drew fewer vessels (Fraz et al. 2012).
    assert 0.04 < shares[1] < shares[0] < 0.12


def test_dicom_series_of_two_scanners(tmp_path) -> None:
    (tmp_path / "labels.csv").write_text("image,label,scanner\nct_series_small,0,a\nliver_ct_with_seg,1,b\n")
    source = DicomFolderSource(
        path=folder("dicom"), table=Path("labels.csv"), classes=("chest", "liver"), site="scanner"
    )
    dataset = load(source, Preprocess(size=(16, 16, 16)), root=tmp_path)
    assert dataset.num_examples == 2
    assert [subject.attributes["site"] for subject in dataset.subjects] == ["a", "b"]
    counts = {row.reason: row.count for row in dataset.rejected}
    listed = sum(
        path.is_file()
        for name in ("ct_series_small", "liver_ct_with_seg")
        for path in folder(f"dicom/{name}").rglob("*")
    )
    everything = sum(path.is_file() for path in folder("dicom").rglob("*"))
    # Two segmentation objects and a licence text lie in the second folder.
    assert counts == {"unlisted": everything - listed, "segmentation-object": 2, "not-dicom": 1}


def test_no_header_value_of_real_dicom_files_is_told() -> None:
    source = DicomFolderSource(path=folder("dicom"), series=False)
    with (folder("dicom") / "manifest.csv").open(newline="") as manifest:
        patients = {row["patient_name"] for row in csv.DictReader(manifest)} - {""}
    dataset = load(source, Preprocess(size=(8, 8), channels="grey"), root=Path())
    told = repr(dataset.rejected) + repr([subject.subject_id for subject in dataset.subjects])
    files = sum(path.is_file() for path in folder("dicom").rglob("*"))
    assert dataset.num_examples + sum(row.count for row in dataset.rejected) == files
    assert not [name for name in patients if name in told]
