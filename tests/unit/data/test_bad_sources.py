"""A table of bad input: every row is a typed error whose message tells no patient."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medveil.data.sources import load, read_data_file
from medveil.data.subject import Dataset
from medveil.errors import (
    ArchiveError,
    ConfigError,
    DataError,
    ImageError,
    LabelError,
    MedveilError,
    MissingDataError,
    PartitionError,
    SplitError,
)

NAME = "Mustermann"
FOLDER = 'kind = "image-folder"\npath = "p"'
CSV = 'kind = "image-csv"\nimages = "p"\ntable = "t.csv"\nclasses = ["well", "sick"]'
MASKS = 'kind = "image-csv"\nimages = "p"\ntable = "t.csv"\nmask = "mask"\nclasses = ["none", "cell"]'
NIFTI = 'kind = "nifti-pairs"\npath = "n"\nclasses = ["none", "organ"]'
NPZ = 'kind = "medmnist-npz"\npath = "s.npz"'


@dataclass
class Bad:
    toml: str
    error: type[MedveilError]
    words: str
    prepare: Callable[[Path, object, list[np.ndarray]], None] = lambda root, write, pictures: None


def table(text: str | bytes, count: int = 4) -> Callable[[Path, object, list[np.ndarray]], None]:
    """Some pictures and this table."""

    def prepare(root, write, pictures) -> None:
        for number in range(count):
            write.png(root / f"p/{NAME}{number}.png", pictures[number])
        (root / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def rows(*cells: str, header: str = "image,label") -> Callable[[Path, object, list[np.ndarray]], None]:
    return table("\n".join([header, *cells]).replace("@", NAME))


def empty_folder(root, write, pictures) -> None:
    (root / "p/a").mkdir(parents=True)


def loose_files(root, write, pictures) -> None:
    for number in range(3):
        write.png(root / f"p/{NAME}{number}.png", pictures[number])


def one_class(root, write, pictures) -> None:
    write.png(root / f"p/x/a/{NAME}.png", pictures[0])


def mixed_colour(root, write, pictures) -> None:
    write.png(root / "p/a/1.png", pictures[0])
    write.png(root / "p/b/2.png", np.stack([pictures[1]] * 3, -1))


def mixed_size(root, write, pictures) -> None:
    write.png(root / "p/a/1.png", pictures[0])
    write.png(root / "p/b/2.png", pictures[1][:-3])


def zip_truncated(root, write, pictures) -> None:
    with zipfile.ZipFile(root / "p", "w") as archive:
        for number in range(4):
            archive.writestr(f"{'ab'[number % 2]}/{NAME}{number}.png", write.png_bytes(pictures[number]))
    (root / "p").write_bytes((root / "p").read_bytes()[:-30])


def zip_of_bombs(root, write, pictures) -> None:
    with zipfile.ZipFile(root / "p", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(f"{name}/{NAME}.png", b"\0" * (32 << 20))


def zip_that_leads_out(root, write, pictures) -> None:
    with zipfile.ZipFile(root / "p", "w") as archive:
        archive.writestr(f"../{NAME}/a/1.png", write.png_bytes(pictures[0]))


def npz_truncated(root, write, pictures) -> None:
    write.medmnist(root / "s.npz")
    (root / "s.npz").write_bytes((root / "s.npz").read_bytes()[:-100])


def npz_label_out_of_range(root, write, pictures) -> None:
    write.medmnist(root / "s.npz", labels=3)


def npz_other_arrays(root, write, pictures) -> None:
    np.savez(root / "s.npz", images=np.zeros((2, 8, 8), np.uint8))


def npz_with_a_bad_shape(root, write, pictures) -> None:
    np.savez(
        root / "s.npz",
        **{f"{s}_{k}": np.zeros(3, np.uint8) for s in ("train", "val", "test") for k in ("images", "labels")},
    )


def nifti_nan(root, write, pictures) -> None:
    write.nifti(root / f"n/images/{NAME}.nii.gz", np.full((8, 8, 8), np.nan, np.float32))
    write.nifti(root / f"n/labels/{NAME}.nii.gz", np.zeros((8, 8, 8), np.uint8))


def nifti_mask_shape(root, write, pictures) -> None:
    write.nifti(root / f"n/images/{NAME}.nii.gz", np.ones((8, 8, 8), np.float32))
    write.nifti(root / f"n/labels/{NAME}.nii.gz", np.zeros((8, 8, 7), np.uint8))


def nifti_mask_range(root, write, pictures) -> None:
    write.nifti(root / f"n/images/{NAME}.nii.gz", np.ones((8, 8, 8), np.float32))
    write.nifti(root / f"n/labels/{NAME}.nii.gz", np.full((8, 8, 8), 9, np.uint8))


def nifti_without_labels(root, write, pictures) -> None:
    write.nifti(root / f"n/images/{NAME}.nii.gz", np.ones((8, 8, 8), np.float32))


def mask_files(root, write, pictures) -> None:
    write.png(root / f"p/{NAME}.png", pictures[0])
    write.png(root / f"p/{NAME}-mask.png", np.full((20, 23), 1, np.uint8))
    (root / "t.csv").write_text(f"image,mask\n{NAME}.png,{NAME}-mask.png")


PATIENTS = f'{CSV}\npatient = "who"\nsplit = "part"'
SITES = f'{CSV}\npatient = "who"\nsite = "where"'
HEADER = "image,label,who,part"
TABLE = {
    "no folder": Bad(FOLDER, MissingDataError, "not there"),
    "empty folder": Bad(FOLDER, MissingDataError, "empty", empty_folder),
    "files outside class folders": Bad(FOLDER, LabelError, "3 of 3", loose_files),
    "one class only": Bad(FOLDER, LabelError, "two classes", one_class),
    "a class that is not listed": Bad(f'{FOLDER}\nclasses = ["a", "c"]', LabelError, "1 of 2", mixed_size),
    "grey and colour": Bad(FOLDER, ImageError, "preprocess.channels", mixed_colour),
    "sizes differ": Bad(FOLDER, ImageError, "preprocess.size", mixed_size),
    "patient pattern misses": Bad(f"{FOLDER}\npatient = '^(P[0-9]+)_'", LabelError, "2 of 2", mixed_size),
    "patient pattern without group": Bad(f"{FOLDER}\npatient = '^P'", ConfigError, "group"),
    "patient pattern that is none": Bad(f"{FOLDER}\npatient = '(('", ConfigError, "regular expression"),
    "resize with wrong axes": Bad(f"{FOLDER}\nresize = [8, 8, 8]", DataError, "2 shape", mixed_size),
    "resize to nothing": Bad(f"{FOLDER}\nresize = [0, 8]", ConfigError, "resize"),
    "truncated zip": Bad(FOLDER, ArchiveError, "zip", zip_truncated),
    "zip bomb": Bad(FOLDER, ArchiveError, "compressed", zip_of_bombs),
    "zip that leads out": Bad(FOLDER, ArchiveError, "leads out", zip_that_leads_out),
    "no table": Bad(CSV, MissingDataError, "table"),
    "a folder for a table": Bad(CSV, MissingDataError, "table", lambda root, *_: (root / "t.csv").mkdir()),
    "empty table": Bad(CSV, DataError, "columns", table(b"")),
    "table without rows": Bad(CSV, DataError, "no rows", table(b"image,label\n")),
    "table without header": Bad(CSV, DataError, "no column image, label", table(f"{NAME}0.png,0\n")),
    "column twice": Bad(CSV, DataError, "twice", table(b"image,label,label\n1,2,3\n")),
    "ragged row": Bad(CSV, DataError, "cells", rows("@0.png,0,extra")),
    "short row": Bad(CSV, DataError, "cells", rows("@0.png")),
    "table not UTF-8": Bad(CSV, DataError, "UTF-8", table("image,label\nM\xfcller.png,0\n".encode("latin-1"))),
    "table with open quote": Bad(CSV, DataError, "CSV", table(f'image,label\n"{NAME}0.png,0\n')),
    "table of zeros": Bad(CSV, DataError, "1 missing", table(b"image,label\n\0\0,0\n")),
    "label out of range": Bad(CSV, LabelError, "1 of 2", rows("@0.png,0", "@1.png,2")),
    "label of no class": Bad(CSV, LabelError, "1 of 2", rows("@0.png,well", "@1.png,@")),
    "image twice": Bad(CSV, LabelError, "1 values", rows("@0.png,0", "@0.png,1")),
    "no image of the table is there": Bad(CSV, DataError, "1 missing", rows("../@.png,0")),
    "patient in two splits": Bad(
        PATIENTS, SplitError, "1 of 1 patients", rows("@0.png,0,@,train", "@1.png,1,@,test", header=HEADER)
    ),
    "patient without a name": Bad(PATIENTS, LabelError, "no patient", rows("@0.png,0,,train", header=HEADER)),
    "split of no name": Bad(PATIENTS, LabelError, "split", rows("@0.png,0,@,@", header=HEADER)),
    "patient at two sites": Bad(
        SITES, PartitionError, "1 of 1", rows("@0.png,0,@,a", "@1.png,1,@,b", header="image,label,who,where")
    ),
    "masks without classes": Bad(MASKS.replace('"none", "cell"', ""), ConfigError, "classes"),
    "mask of another shape": Bad(MASKS, DataError, "1 mask-shape", mask_files),
    "NaN in a volume": Bad(NIFTI, DataError, "1 non-finite", nifti_nan),
    "NIfTI mask of another shape": Bad(NIFTI, DataError, "1 mask-shape", nifti_mask_shape),
    "NIfTI mask out of range": Bad(NIFTI, DataError, "1 label", nifti_mask_range),
    "NIfTI without masks": Bad(NIFTI, DataError, "1 no-mask", nifti_without_labels),
    "no npz": Bad(NPZ, MissingDataError, ""),
    "truncated npz": Bad(NPZ, ArchiveError, "zip", npz_truncated),
    "npz of something else": Bad(NPZ, ArchiveError, "train", npz_other_arrays),
    "npz of a bad shape": Bad(NPZ, ImageError, "shape", npz_with_a_bad_shape),
    "npz label out of range": Bad(f'{NPZ}\nclasses = ["a", "b"]', LabelError, "6 labels", npz_label_out_of_range),
    "no DICOM folder": Bad('kind = "dicom-folder"\npath = "d"', MissingDataError, "DICOM"),
    "unknown kind": Bad('kind = "hospital"', ConfigError, "kind"),
    "no kind": Bad('path = "p"', ConfigError, "kind"),
    "unknown set": Bad('kind = "catalogue"\nname = "faces"', ConfigError, "name"),
    "not TOML": Bad("kind = image", ConfigError, "TOML"),
    "phantom too small": Bad('kind = "phantom"\nsize = [8, 8]', ConfigError, "16"),
    "phantom too large": Bad('kind = "phantom"\nsize = [90000, 90000]', ConfigError, "pixels"),
    "flat task in space": Bad('kind = "phantom"\nsize = [32, 32, 32]', ConfigError, "two axes"),
}


def read(root: Path) -> Dataset:
    config = read_data_file(root / "data.toml")
    return load(config.source, config.preprocess, root=config.root)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_a_typed_error_that_tells_no_patient(name, tmp_path, write, pictures) -> None:
    bad = TABLE[name]
    bad.prepare(tmp_path, write, pictures)
    (tmp_path / "data.toml").write_text(bad.toml, encoding="utf-8")
    with pytest.raises(bad.error) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert bad.words in message
    assert NAME not in message
    assert str(tmp_path) not in message


def test_data_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(MissingDataError):
        read_data_file(tmp_path / "none.toml")


def test_data_file_that_is_not_text(tmp_path) -> None:
    (tmp_path / "data.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_data_file(tmp_path / "data.toml")


def test_the_same_files_without_the_fault_load(tmp_path, write, pictures) -> None:
    """The table above could fail for another reason than the one it names."""
    rows("@0.png,0,@,train", "@1.png,1,@,train", header=HEADER)(tmp_path, write, pictures)
    (tmp_path / "data.toml").write_text(PATIENTS, encoding="utf-8")
    dataset = read(tmp_path)
    assert dataset.num_examples == 2
    assert [(row.reason, row.count) for row in dataset.rejected] == [("unlisted", 2)]
