"""One suite that every kind of source must pass."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from medveil.configuration import parse_config
from medveil.data.sources import DataConfig, load, read_data_file
from medveil.data.subject import Dataset
from medveil.errors import ConfigError, DataError, MissingDataError
from medveil.imaging.preprocess import Preprocess

SECRET = "Mustermann-4711"


class SourceConformance:
    """Inherit, and say how to lay out files and what they hold.

    Attributes:
        toml: the data file, at most ten lines.
        images: readable images that ``lay_out`` writes.
        broken: files that cannot be used.
        kind: of the data set.
    """

    toml: str
    images: int
    broken: int = 0
    kind = "real"

    def lay_out(self, root: Path, write, pictures) -> None:
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path, write, pictures, monkeypatch) -> Path:
        self.lay_out(tmp_path, write, pictures)
        (tmp_path / "data.toml").write_text(self.toml, encoding="utf-8")
        monkeypatch.setenv("MEDVEIL_DATA", str(tmp_path))
        monkeypatch.setenv("MEDVEIL_CACHE", str(tmp_path / "no-cache"))
        return tmp_path

    def read(self, root: Path, preprocess: Preprocess | None = None) -> Dataset:
        config = read_data_file(root / "data.toml")
        return load(config.source, preprocess or config.preprocess, root=config.root)

    def test_the_data_file_is_short(self) -> None:
        assert len(self.toml.strip().splitlines()) <= 10

    def test_every_file_is_an_example_or_counted(self, root) -> None:
        dataset = self.read(root)
        assert dataset.num_examples == self.images
        assert sum(row.count for row in dataset.rejected) == self.broken
        assert dataset.kind == self.kind

    def test_loading_twice_gives_the_same(self, root) -> None:
        first, second = self.read(root), self.read(root)
        assert [s.subject_id for s in first.subjects] == [s.subject_id for s in second.subjects]
        for one, two in zip(first.subjects, second.subjects, strict=True):
            assert one.attributes == two.attributes
            assert one.split == two.split
            for a, b in zip(one.examples, two.examples, strict=True):
                assert a.digest == b.digest
                assert np.array_equal(a.image, b.image)
                assert np.array_equal(a.target, b.target)

    def test_examples_have_one_shape_and_dtype(self, root) -> None:
        dataset = self.read(root)
        examples = [example for subject in dataset.subjects for example in subject.examples]
        assert len({example.image.shape for example in examples}) == 1
        assert {example.image.dtype for example in examples} in ({np.dtype("u1")}, {np.dtype("f4")})
        for example in examples:
            if dataset.task == "classification":
                assert 0 <= example.target < len(dataset.class_names)
            else:
                assert example.target.shape == example.image.shape[1:]
                assert example.target.dtype == np.uint8
                assert example.target.max() < len(dataset.class_names)

    def test_ids_are_pseudonyms(self, root) -> None:
        for subject in self.read(root).subjects:
            assert len(subject.subject_id) == 16
            int(subject.subject_id, 16)

    def test_nothing_printed_tells_a_patient(self, root) -> None:
        dataset = self.read(root)
        told = repr(dataset.rejected) + repr([s.subject_id for s in dataset.subjects])
        assert SECRET not in told

    def test_resize_in_the_source(self, root) -> None:
        dataset = self.read(root)
        axes = len(dataset.example_shape) - 1
        size = (17, 18, 19)[:axes]
        config = read_data_file(root / "data.toml")
        source = config.source.model_copy(update={"resize": size})
        resized = load(source, config.preprocess.model_copy(update={"size": None}), root=root)
        assert resized.example_shape[1:] == size
        assert {e.digest for s in resized.subjects for e in s.examples} == {
            e.digest for s in dataset.subjects for e in s.examples
        }

    def test_the_subject_rule_is_one_sentence(self, root) -> None:
        rule = read_data_file(root / "data.toml").source.subject_rule
        assert "subject" in rule
        assert "\n" not in rule

    def test_config_survives_json(self, root) -> None:
        config = read_data_file(root / "data.toml")
        again = parse_config(DataConfig, config.model_dump(mode="json"), where="test")
        assert again == config

    def test_unknown_keys_are_refused(self, root) -> None:
        (root / "data.toml").write_text(f'colour = "red"\n{self.toml}', encoding="utf-8")
        with pytest.raises(ConfigError, match="unknown key"):
            read_data_file(root / "data.toml")


class FileSourceConformance(SourceConformance):
    """What holds besides for sources that read files."""

    def test_missing_files_are_missing_data(self, root) -> None:
        for path in root.iterdir():
            if path.name != "data.toml":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(MissingDataError) as caught:
            self.read(root)
        assert SECRET not in str(caught.value)

    def test_only_broken_files_are_an_error(self, root) -> None:
        for path in root.rglob("*"):
            if path.suffix in {".png", ".gz", ".dcm", ".npz", ".jpg"}:
                path.write_bytes(b"not an image at all")
        with pytest.raises(DataError) as caught:
            self.read(root)
        assert SECRET not in str(caught.value)
