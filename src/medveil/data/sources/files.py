"""The files of a source, in a folder or in a zip, under one face: :class:`FileTree`."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from medveil.errors import MissingDataError
from medveil.imaging.archive import open_archive
from medveil.imaging.source import read_source

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")
NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class FileTree:
    """Files by relative name.

    Args:
        names: parts parted by "/", sorted; what operating systems leave behind (names that begin with a dot,
            ``Thumbs.db``, ``__MACOSX``) is left out.
        read: the bytes of one of them; may be called from several threads.
    """

    names: tuple[str, ...]
    read: Callable[[str], bytes]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def having(self, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        """Names that end in one of the suffixes, in any case."""
        return tuple(name for name in self.names if name.lower().endswith(suffixes))


@contextmanager
def open_tree(path: Path) -> Iterator[FileTree]:
    """Open a folder or a zip.

    Raises:
        MissingDataError: neither is there, or it holds no file.
        ArchiveError: the zip is damaged or hostile.
    """
    if path.is_dir():
        yield _checked(FileTree(_wanted(_walk(path)), lambda name: read_source(path / name)))
    elif path.is_file():
        with open_archive(path) as archive:
            yield _checked(FileTree(_wanted(archive.names()), archive.read))
    else:
        raise MissingDataError(
            "The images are not there",
            expected="a folder or a zip at the path that the source names",
            remedy="correct the path; relative paths start from the folder of the data file",
        )


def _walk(folder: Path) -> Iterator[str]:
    for place, _, files in os.walk(folder):
        for name in files:
            yield (Path(place) / name).relative_to(folder).as_posix()


def _wanted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if not _is_left_behind(name)))


def _is_left_behind(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1] == "Thumbs.db"


def _checked(tree: FileTree) -> FileTree:
    if not tree.names:
        raise MissingDataError("The folder or zip of images is empty", expected="at least one image")
    return tree
