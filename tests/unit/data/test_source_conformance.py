"""Every kind of source passes the suite."""

import shutil
import tomllib

import numpy as np
import pytest
from source_conformance import SECRET, FileSourceConformance, SourceConformance

from medveil.configuration import parse_config
from medveil.data.sources import DataConfig, read_data_file
from medveil.errors import DataError
from medveil.imaging.preprocess import Preprocess


class TestPhantomClassification(SourceConformance):
    toml = 'kind = "phantom"\nsubjects = 12\nrepeated = 0.0'
    images = 12
    kind = "phantom"

    def lay_out(self, root, write, pictures) -> None:
        pass


class TestPhantomVolumes(SourceConformance):
    toml = 'kind = "phantom"\ntask = "segmentation"\nsubjects = 3\nsize = [16, 20, 24]\nrepeated = 0.0'
    images = 3
    kind = "phantom"

    def lay_out(self, root, write, pictures) -> None:
        pass


class TestMedmnist(FileSourceConformance):
    toml = 'kind = "medmnist-npz"\npath = "set.npz"\nclasses = ["clear", "opacity"]'
    images = 18

    def lay_out(self, root, write, pictures) -> None:
        write.medmnist(root / "set.npz")


class TestImageFolder(FileSourceConformance):
    toml = 'kind = "image-folder"\npath = "pictures"\npatient = "^([A-Za-z0-9-]+)_"'
    images = 8
    broken = 2

    def lay_out(self, root, write, pictures) -> None:
        for number, picture in enumerate(pictures[:8]):
            write.png(root / f"pictures/{'sick' if number % 2 else 'well'}/{SECRET}{number // 2}_{number}.png", picture)
        (root / f"pictures/sick/{SECRET}_broken.png").write_bytes(b"\x89PNG nothing")
        (root / f"pictures/sick/{SECRET}.txt").write_text("a note")
        (root / "pictures/.DS_Store").write_bytes(b"left behind")


class TestImageFolderInZip(FileSourceConformance):
    toml = 'kind = "image-folder"\npath = "pictures.zip"'
    images = 6
    broken = 1

    def lay_out(self, root, write, pictures) -> None:
        for number, picture in enumerate(pictures[:6]):
            write.png(root / f"tmp/set/{'ab'[number % 2]}/{SECRET}{number}.png", picture)
        (root / "tmp/set/a/broken.png").write_bytes(b"")
        shutil.make_archive(str(root / "pictures"), "zip", root / "tmp")
        shutil.rmtree(root / "tmp")

    def test_only_broken_files_are_an_error(self, root) -> None:
        (root / "pictures.zip").write_bytes((root / "pictures.zip").read_bytes()[:-40])
        with pytest.raises(DataError):
            self.read(root)


class TestImageCsv(FileSourceConformance):
    toml = """
kind = "image-csv"
images = "pictures"
table = "labels.csv"
classes = ["well", "sick"]
patient = "patient"
site = "hospital"
split = "part"
attributes = ["sex"]
"""
    images = 6
    broken = 3

    def lay_out(self, root, write, pictures) -> None:
        rows = ["image,label,patient,hospital,part,sex"]
        for number, picture in enumerate(pictures[:6]):
            write.png(root / f"pictures/{number}.png", picture)
            part = "train" if number < 4 else "test"
            rows.append(f"{number}.png,{number % 2},{SECRET}-{number // 2},h{number // 4},{part},f")
        rows.append(f"gone.png,sick,{SECRET}-gone,h0,test,m")
        rows.append(f"bad.png,well,{SECRET}-bad,h0,test,m")
        (root / "pictures/bad.png").write_bytes(b"GIF89a")
        write.png(root / "pictures/extra.png", pictures[10])
        (root / "labels.csv").write_text("\n".join(rows), encoding="utf-8-sig")

    def test_columns_reach_the_subjects(self, root) -> None:
        subjects = self.read(root).subjects
        assert [len(subject.examples) for subject in subjects] == [2, 2, 2]
        assert [subject.split for subject in subjects] == ["train", "train", "test"]
        assert [dict(subject.attributes) for subject in subjects] == [
            {"sex": "f", "site": "h0"},
            {"sex": "f", "site": "h0"},
            {"sex": "f", "site": "h1"},
        ]


class TestImageCsvMasks(FileSourceConformance):
    toml = """
kind = "image-csv"
images = "pictures"
table = "labels.csv"
mask = "mask"
mask_values = "binary"
classes = ["background", "cell"]
"""
    images = 4
    broken = 2

    def lay_out(self, root, write, pictures) -> None:
        rows = ["image,mask"]
        for number, picture in enumerate(pictures[:4]):
            write.png(root / f"pictures/i{number}.png", picture)
            write.png(root / f"pictures/m{number}.png", (picture > 128).astype(np.uint8) * 255)
            rows.append(f"i{number}.png,m{number}.png")
        write.png(root / "pictures/i9.png", pictures[9])
        write.png(root / "pictures/m9.png", np.zeros((5, 5), np.uint8))
        rows += ["i9.png,m9.png", "i1000.png,m9.png"]
        (root / "labels.csv").write_text("\n".join(rows), encoding="utf-8")

    def test_masks_are_those_of_the_files(self, root, pictures) -> None:
        found = [subject.examples[0] for subject in self.read(root).subjects]
        for example, picture in zip(found, pictures, strict=False):
            assert np.array_equal(example.image[0], picture)
            assert np.array_equal(example.target, picture > 128)


class TestNiftiPairs(FileSourceConformance):
    toml = """
kind = "nifti-pairs"
path = "set"
classes = ["background", "organ"]
table = "cases.csv"
patient = "patient"
site = "scanner"
"""
    images = 4
    broken = 6

    def lay_out(self, root, write, pictures) -> None:
        rng = np.random.default_rng(1)
        rows = ["image,patient,scanner"]
        for number in range(7):
            name = f"{SECRET}{number}.nii.gz"
            volume = rng.normal(size=(8, 9, 10)).astype(np.float32)
            mask = (volume > 0).astype(np.uint8)
            if number == 4:
                volume[0, 0, 0] = np.nan
            if number == 5:
                mask[0, 0, 0] = 7
            write.nifti(root / "set/images" / name, volume)
            moved = np.diag([1.0, 1, 1, 1]) if number != 6 else np.diag([2.0, 2, 2, 1])
            write.nifti(root / "set/labels" / name, mask, moved)
            rows.append(f"{name},{SECRET}-{number // 2 if number < 4 else number},s{number // 2}")
        write.nifti(root / "set/images/alone.nii.gz", rng.normal(size=(8, 9, 10)))
        write.nifti(root / "set/labels/lonely.nii.gz", np.zeros((8, 9, 10), np.uint8))
        rows.append("nowhere.nii.gz,p,s0")
        (root / "cases.csv").write_text("\n".join(rows), encoding="utf-8")

    def test_reasons(self, root) -> None:
        reasons = {row.reason: row.count for row in self.read(root).rejected}
        assert reasons == {
            "non-finite": 1,
            "label": 1,
            "geometry": 1,
            "no-mask": 1,
            "no-image": 1,
            "missing": 1,
        }

    def test_slices_share_the_volume(self, root) -> None:
        dataset = self.read(root, Preprocess.model_validate({"slices": {"axis": 2}}))
        assert dataset.num_examples == 40
        subject = dataset.subjects[0]
        assert [example.volume for example in subject.examples] == [0] * 10 + [1] * 10
        assert [example.position for example in subject.examples] == [*range(10), *range(10)]
        assert len({example.digest for example in subject.examples}) == 2


class TestDicomFolder(FileSourceConformance):
    toml = 'kind = "dicom-folder"\npath = "export"'
    images = 4
    broken = 2

    def lay_out(self, root, write, pictures) -> None:
        for number in range(4):
            place = root / f"export/{'sick' if number % 2 else 'well'}/{number}.dcm"
            write.dicom(place, pictures[number], f"{SECRET}-{number // 2}")
        (root / "export/sick/broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 9)
        write.dicom(root / "export/well/nobody.dcm", pictures[9], "")

    def test_patients_own_their_images(self, root) -> None:
        assert [len(subject.examples) for subject in self.read(root).subjects] == [2, 2]

    def test_a_series_becomes_a_volume(self, root, write, pictures) -> None:
        shutil.rmtree(root / "export")
        rows = ["image,label,part"]
        for series in range(3):
            for z in (2.0, 0.0, 1.0):
                path = root / f"export/s{series}/{z}.dcm"
                write.dicom(path, pictures[3 * series + int(z)], f"p{series}", f"1.2.3.{series}", z)
            rows.append(f"s{series},{series % 2},{'train' if series else 'test'}")
        (root / "labels.csv").write_text("\n".join(rows))
        (root / "data.toml").write_text(
            'kind = "dicom-folder"\npath = "export"\ntable = "labels.csv"\nclasses = ["a", "b"]\nsplit = "part"'
        )
        dataset = self.read(root)
        assert [subject.split for subject in dataset.subjects] == ["test", "train", "train"]
        assert [subject.label() for subject in dataset.subjects] == [0, 1, 0]
        assert dataset.example_shape[0] == 1
        assert sorted(dataset.example_shape[1:]) == [3, 20, 24]

    def test_single_files_where_series_are_not_wanted(self, root) -> None:
        (root / "data.toml").write_text(f"{self.toml}\nseries = false")
        assert self.read(root).num_examples == 4


class TestCatalogueMedmnist(FileSourceConformance):
    toml = 'kind = "catalogue"\nname = "pneumonia-28"'
    images = 18

    def lay_out(self, root, write, pictures) -> None:
        (root / "pneumoniamnist_28").mkdir()
        write.medmnist(root / "pneumoniamnist_28/pneumoniamnist.npz")


class TestCatalogueRetina(FileSourceConformance):
    toml = 'kind = "catalogue"\nname = "retina"'
    images = 4
    broken = 1

    def lay_out(self, root, write, pictures) -> None:
        folder = root / "retina_chase_db1"
        for number, eye in enumerate(("01L", "01R", "02L", "02R")):
            write.png(folder / f"Image_{eye}.jpg", pictures[number])
            for annotator, suffix in enumerate(("1stHO", "2ndHO")):
                write.png(folder / f"Image_{eye}_{suffix}.png", pictures[number] > 100 + annotator)
        write.png(folder / "Image_other.jpg", pictures[9])

    def test_the_annotator_can_be_chosen(self, root, pictures) -> None:
        (root / "data.toml").write_text(f"{self.toml}\nannotator = 2")
        subjects = self.read(root).subjects
        assert len(subjects) == 2
        assert np.array_equal(subjects[0].examples[1].target, pictures[1] > 101)


class TestCatalogueNuclei(FileSourceConformance):
    """The published layout: one mask a nucleus."""

    toml = 'kind = "catalogue"\nname = "nuclei"\n[preprocess]\nchannels = "grey"\nsize = [64, 64]'
    images = 3
    broken = 2

    def lay_out(self, root, write, pictures) -> None:
        folder = root / "nuclei_dsb2018"
        rng = np.random.default_rng(0)
        for name, shape in (("a", (256, 256)), ("b", (256, 320, 3)), ("c", (360, 360)), ("d", (99, 99))):
            write.png(folder / name / "images" / f"{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
            for nucleus in range(2):
                mask = np.zeros(shape[:2], np.uint8)
                mask[10 * nucleus : 10 * nucleus + 5, :7] = 255
                write.png(folder / name / "masks" / f"{nucleus}.png", mask)
        write.png(folder / "e/images/e.png", np.zeros((256, 256), np.uint8))

    def test_nuclei_are_united(self, root) -> None:
        dataset = self.read(root, Preprocess.model_validate({"channels": "grey", "size": [256, 256], "fit": "crop"}))
        by_site = {subject.attributes["site"]: subject.examples[0] for subject in dataset.subjects}
        assert set(by_site) == {"256x256_grey", "320x256_colour", "360x360_grey"}
        assert by_site["256x256_grey"].target.sum() == 2 * 5 * 7


def test_toml_keys_are_those_of_the_documented_example() -> None:
    example = read_data_file.__doc__.split("for example::")[1].split("Returns:")[0]
    config = parse_config(DataConfig, {"source": tomllib.loads(example)}, where="example")
    assert config.source.kind == "image-csv"
