"""Read the table that goes with images: UTF-8, comma-separated, one header row."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medveil.errors import DataError, LabelError, MissingDataError

Row = dict[str, str]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
"""Words for splits, lower case, and the name each stands for."""


def read_table(path: Path, columns: Sequence[str]) -> tuple[Row, ...]:
    """Read a table and check that it has the columns that the source names.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        columns: names that must stand in the header.

    Returns:
        One mapping a row, cells stripped; at least one row.

    Raises:
        MissingDataError: no file.
        DataError: not UTF-8, not a table, a column missing, ragged or no rows. The header is not printed: a
            table without one would show its first patient.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as source:
            reader = csv.DictReader(source, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(header, columns)
            rows = [_row(row) for row in reader]
    except OSError:
        raise MissingDataError(
            "The table is not there, or may not be read", expected="a file at the path that the source names"
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            "The table is not UTF-8 text", expected="UTF-8", remedy="save the table again as CSV UTF-8"
        ) from None
    except csv.Error:
        raise DataError("The table is not a readable CSV file", expected="commas, and quotes that close") from None
    if not rows:
        raise DataError("The table has no rows", expected="one row for each image")
    return tuple(rows)


def _row(row: dict[str, str | None]) -> Row:
    # DictReader puts surplus cells under the key None and fills missing cells with None.
    if None in row or None in row.values():
        raise DataError(
            "A row of the table has another number of cells than the header",
            expected="as many cells in each row as in the header",
            remedy="quote cells that hold commas",
        )
    return {name: (cell or "").strip() for name, cell in row.items()}


def _check_header(header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) != len(header):
        raise DataError(
            "The table's columns do not fit the source",
            got=f"no column {', '.join(missing)} among {len(header)}" if missing else "a column name twice",
            expected=f"a header row with {', '.join(columns)}",
            remedy="add the header row, or name the columns that the table has in the source",
        )


def check_unique(values: Sequence[str], column: str) -> None:
    """Refuse a column in which a value stands twice.

    Raises:
        LabelError: with the number of values, never the values.
    """
    repeated = sum(count > 1 for count in Counter(values).values())
    if repeated:
        raise LabelError(
            "The table lists an image more than once",
            got=f"{repeated} values of the column {column!r} stand in several rows",
            expected="one row for each image",
            remedy="remove the surplus rows",
        )


def split_name(word: str) -> str:
    """The split that a word stands for.

    Raises:
        LabelError: none of :data:`SPLIT_NAMES`.

    >>> split_name("Val")
    'validation'
    """
    name = SPLIT_NAMES.get(word.lower())
    if name is None:
        raise LabelError(
            "The column of splits holds a word that names no split",
            expected=f"one of {', '.join(SPLIT_NAMES)} in every row",
        )
    return name


def class_indices(labels: Sequence[str], classes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Turn labels into class indices.

    Args:
        labels: names or indices of classes, as text.
        classes: class names in the order of their indices; () takes the labels that occur, sorted (by value
            where all are whole numbers).

    Returns:
        One index for each label, and the class names.

    Raises:
        LabelError: a label that is neither a class name nor an index in range, or fewer than two classes.

    >>> class_indices(["sick", "well", "sick"], ("well", "sick"))
    ((1, 0, 1), ('well', 'sick'))
    >>> class_indices(["1", "0"], ())
    ((1, 0), ('0', '1'))
    """
    names = classes or _occurring(labels)
    known = {str(index): index for index in range(len(names))} if classes else {}
    known |= {name: index for index, name in enumerate(names)}
    wrong = sum(label not in known for label in labels)
    if wrong or len(names) < 2:  # noqa: PLR2004 - one class teaches nothing
        raise LabelError(
            "Labels do not fit the classes",
            got=f"{wrong} of {len(labels)} labels outside {len(names)} classes",
            expected="at least two classes, and a class name or an index from 0 in every row",
            remedy="list every class in classes, in the order of the indices",
        )
    return tuple(known[label] for label in labels), names


def _occurring(labels: Sequence[str]) -> tuple[str, ...]:
    found = set(labels)
    whole = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if whole else 0, label)))
