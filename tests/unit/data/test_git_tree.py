"""Ids are compared with those that git 2 itself gave for the same files."""

import pytest

from medveil.data.git_tree import EMPTY_TREE, Blob, blob_id, tree_id

FILES = {
    "a.txt": Blob(blob_id(b"hello\n")),
    "dir/run.sh": Blob(blob_id(b"#!/bin/sh\n"), executable=True),
    # Names on both sides of "dir/" in git's order.
    "dir-b": Blob(blob_id(b"")),
    "dir.txt": Blob(blob_id(b"x")),
    "dir0": Blob(blob_id(b"y")),
}


def test_blob_ids() -> None:
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_tree_ids() -> None:
    assert tree_id({}) == EMPTY_TREE
    assert tree_id(FILES) == "f6947121e193deca21ffd6d46362b90f2a9f5342"
    assert tree_id({f"sub/{path}": blob for path, blob in FILES.items()}) == "422d110abd60edfd57c1fa63ac38711f93cd46ca"


def test_order_does_not_matter() -> None:
    assert tree_id(dict(reversed(FILES.items()))) == tree_id(FILES)


@pytest.mark.parametrize(
    "change",
    [
        {"a.txt": Blob(blob_id(b"hello"))},
        {"a.txt": Blob(blob_id(b"hello\n"), executable=True)},
        {"another": Blob(blob_id(b""))},
    ],
)
def test_any_change_changes_the_id(change) -> None:
    assert tree_id({**FILES, **change}) != tree_id(FILES)
