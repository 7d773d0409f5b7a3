"""What a row of a table says about an image besides its label."""

from collections.abc import Sequence

from medveil.data.sources.table import Row
from medveil.errors import LabelError


def subject_rule(patient: str | None) -> str:
    """What counts as a subject where a table may have a patient column."""
    if patient is None:
        return "each image is its own subject: no patient column was given"
    return f"a patient, as the column {patient!r} gives it, is one subject"


def patient_of(row: Row, column: str | None, otherwise: str) -> str:
    """The patient of a row, or ``otherwise`` where the source names no column.

    Raises:
        LabelError: an empty cell: whose the image is cannot be guessed.
    """
    if column is None:
        return otherwise
    if not row[column]:
        raise LabelError(
            "A row of the table names no patient",
            expected=f"a value of {column!r} in every row",
            remedy="fill the column, or remove the rows",
        )
    return row[column]


def attributes_of(row: Row, site: str | None, columns: Sequence[str]) -> dict[str, str]:
    """The columns to keep, with the site under its own name."""
    kept = {column: row[column] for column in columns}
    return kept if site is None else {**kept, "site": row[site]}
