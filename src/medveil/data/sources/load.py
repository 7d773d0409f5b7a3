"""One way in for every kind of source: :func:`load`, and a user's own data file: :func:`read_data_file`."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from medveil.configuration import Config, parse_config
from medveil.data.sources.catalogue_source import CatalogueSource
from medveil.data.sources.contract import Source
from medveil.data.sources.dicom_folder import DicomFolderSource
from medveil.data.sources.image_csv import ImageCsvSource
from medveil.data.sources.image_folder import ImageFolderSource
from medveil.data.sources.medmnist_npz import MedmnistSource
from medveil.data.sources.nifti_pairs import NiftiPairsSource
from medveil.data.sources.phantom import PhantomSource
from medveil.data.sources.share import ShareSource
from medveil.data.subject import Dataset
from medveil.errors import ConfigError, MissingDataError
from medveil.imaging.preprocess import Preprocess

_MAX_FILE_BYTES = 1 << 20

AnySource = Annotated[
    CatalogueSource
    | MedmnistSource
    | ImageFolderSource
    | ImageCsvSource
    | NiftiPairsSource
    | DicomFolderSource
    | PhantomSource
    | ShareSource,
    Field(discriminator="kind"),
]
"""Any source, told apart by ``kind``."""


class DataConfig(Config):
    """A data file: what images there are, and where.

    Attributes:
        source: where the images come from.
        preprocess: what is done to each; its own table in the file.
        root: folder that relative paths start from: the data file's own.
    """

    source: AnySource
    preprocess: Preprocess = Preprocess()
    root: Path = Path()


def load(source: Source, preprocess: Preprocess, *, root: Path) -> Dataset:
    """Read a source.

    Args:
        source: any kind.
        preprocess: what is done to every image.
        root: folder that relative paths start from.

    Returns:
        Subjects whose examples all have one shape and dtype; files that could not be used are counted in
        ``rejected``.

    Raises:
        DataError: nothing could be used, or the files contradict each other.
        ConfigError: the settings do not fit the files.
    """
    return source.load(preprocess, root)


def read_data_file(path: Path) -> DataConfig:
    """Read a data file: the keys of one source, and perhaps a ``[preprocess]`` table.

    Args:
        path: a TOML file, for example::

            kind = "image-csv"
            images = "pictures.zip"
            table = "labels.csv"
            classes = ["clear", "opacity"]
            patient = "patient"
            site = "hospital"

    Returns:
        The source, with the file's folder as root.

    Raises:
        MissingDataError: no such file.
        ConfigError: not TOML, an unknown key, or a value out of range.
    """
    values = _parse(path)
    table = {"source": {key: value for key, value in values.items() if key != "preprocess"}, "root": path.parent}
    if "preprocess" in values:
        table["preprocess"] = values["preprocess"]
    return parse_config(DataConfig, table, where="the data file")


def _parse(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError("The data file is too large to be one", expected=f"at most {_MAX_FILE_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise MissingDataError(
            "The data file cannot be read", expected="a TOML file", remedy="check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8"
        raise ConfigError("The data file is not TOML", got=place, expected="key = value lines") from None
