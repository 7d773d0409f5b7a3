"""Files that are the old ones or the new ones after a crash, never a mixture."""

import os
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable too: without it, a power cut may bring a replaced file back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
