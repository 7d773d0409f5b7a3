"""What the processes of a sweep leave on disk, and what must hold."""

import json
from datetime import datetime


class MismatchError(Exception):
    """What was seen is not what must be."""


def require(holds, what, got=None):
    """Raise where something does not hold."""
    if not holds:
        raise MismatchError(f"{what}: {got}" if got is not None else what)


def equals(total, vectors):
    """Whether a sum is that of vectors, modulo 2 to the bits of its words."""
    words = {(vector.dtype, vector.shape) for vector in [total, *vectors]}
    if len(words) != 1:
        return False
    modulus = 1 << 8 * total.itemsize
    exact = sum(vector.astype(object) for vector in vectors)  # Python's own integers
    return bool((exact % modulus == total.astype(object)).all())


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_lines(path):
    """Whole lines of a file that others may be writing."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def seconds_of(line):
    return datetime.fromisoformat(line["at"]).timestamp()
