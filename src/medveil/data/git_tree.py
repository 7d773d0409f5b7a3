"""Name a folder's content as git does: one hash over all its files.

Data sets that live in a public git repository have no published checksum, but their commit names a tree hash,
and that hash covers every byte, name and executable bit below it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@dataclass(frozen=True)
class Blob:
    """One file of a tree.

    Args:
        object_id: :func:`blob_id` of its bytes.
        executable: whether the owner may execute it.
    """

    object_id: str
    executable: bool = False


def blob_id(content: bytes) -> str:
    """Git's name of a file's bytes.

    >>> blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return _object_id("blob", content)


def tree_id(files: Mapping[str, Blob]) -> str:
    """Git's name of a folder.

    Args:
        files: path inside the folder, parts parted by "/", to its blob. Git knows no empty folders.

    Returns:
        40 hex digits.
    Guarantees:
        Two folders with one id hold the same bytes under the same names, as far as SHA-1 resists collisions.
    Reference:
        Git's tree object, https://git-scm.com/book/en/v2/Git-Internals-Git-Objects

    >>> tree_id({}) == EMPTY_TREE
    True
    """
    leaves: dict[str, Blob] = {}
    folders: dict[str, dict[str, Blob]] = {}
    for path, blob in files.items():
        head, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(head, {})[rest] = blob
        else:
            leaves[head] = blob
    rows = [
        (name.encode(), b"100755" if blob.executable else b"100644", blob.object_id) for name, blob in leaves.items()
    ]
    rows += [(name.encode() + b"/", b"40000", tree_id(below)) for name, below in folders.items()]
    # Git sorts a folder as if its name ended in "/", but stores it without.
    body = b"".join(
        mode + b" " + key.removesuffix(b"/") + b"\0" + bytes.fromhex(object_id) for key, mode, object_id in sorted(rows)
    )
    return _object_id("tree", body)


def _object_id(kind: str, body: bytes) -> str:
    header = f"{kind} {len(body)}\0".encode()
    return hashlib.sha1(header + body, usedforsecurity=False).hexdigest()
