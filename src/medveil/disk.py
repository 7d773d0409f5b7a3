"""Files that are the old ones or the new ones after a crash, never a mixture; one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a whole file at once; its content is on disk when this returns.

    Args:
        path: of the file.
        data: its new content.
        mode: permissions of a new file, before the process's mask.

    Raises:
        OSError: the old file is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Wait until no other process or thread of this machine is here with the same file, and keep others waiting.

    Args:
        path: of a file that is there for this alone; made if it is not. It stays.

    Raises:
        OSError: it can be neither made nor locked.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable too: without it, a power cut may bring a replaced file back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
