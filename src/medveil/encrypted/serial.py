"""A program as JSON, as vendor, dealer and hospital pass it on, and read without trust."""

import hashlib
import json
import math
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from medveil.encrypted import program as operations
from medveil.encrypted.fitting import LARGEST_ERROR, check, refused
from medveil.encrypted.program import Operation, Program

VERSION: Final = 2
MAX_BYTES: Final = 4 << 20
_MOST_OPERATIONS = 10_000
_KINDS: Final[dict[str, type[Operation]]] = {
    kind.__name__: kind
    for kind in (
        operations.Input,
        operations.Linear,
        operations.Narrow,
        operations.Relu,
        operations.Rescale,
        operations.MaxPool,
        operations.SumPool,
        operations.Add,
        operations.Concat,
        operations.Upsample,
        operations.Reshape,
        operations.Decide,
    )
}


def public(program: Program) -> Program:
    """The program as the other parties get it: without bounds, which are functions of the weights.

    What is left tells of the weights which ReLUs have a limit, how many bits weights and narrow values keep, and the
    order of magnitude of the error (at most 2**1000).
    """
    shown = [one if isinstance(one, operations.Input) else replace(one, bound=0.0) for one in program.operations]
    error = 2.0 ** math.ceil(math.log2(min(program.error, LARGEST_ERROR))) if program.error > 0 else 0.0
    return replace(program, operations=tuple(shown), error=error)


def to_json(program: Program) -> bytes:
    """The public program in a canonical form: the same bytes for the same program."""
    program = public(program)
    content = {
        "version": VERSION,
        "operations": [
            {"operation": type(one).__name__, **{field.name: getattr(one, field.name) for field in fields(one)}}
            for one in program.operations
        ],
        **{name: getattr(program, name) for name in ("factor", "reveal", "error", "task", "names")},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def program_hash(program: Program) -> str:
    """SHA-256 of the canonical form."""
    return hashlib.sha256(to_json(program)).hexdigest()


def from_json(data: bytes | memoryview) -> Program:
    """Read a program and check that it can be evaluated.

    Raises:
        MessageError: not a program of this version, one that is too large, or one whose parts do not fit together.
    """
    if len(data) > MAX_BYTES:
        raise refused(f"{len(data)} bytes", f"at most {MAX_BYTES}")
    try:
        content = json.loads(bytes(data))
        if not isinstance(content, dict) or content.pop("version", None) != VERSION:
            raise refused("another version", f"version {VERSION}")
        found = Program(
            operations=tuple(_operation(one) for one in content["operations"][:_MOST_OPERATIONS]),
            **{
                name: _typed(content[name], kind, name)
                for name, kind in _hints(Program).items()
                if name != "operations"
            },
        )
        if len(content["operations"]) != len(found.operations) or set(content) != set(_hints(Program)):
            raise refused("fields or operations beyond those of a program")
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise refused(type(error).__name__) from None
    check(found)
    return found


def _operation(content: Any) -> Operation:
    kind = _KINDS[content["operation"]]
    hints = _hints(kind)
    if set(content) != {"operation", *hints}:
        raise refused("an operation with other fields than it has")
    return kind(**{name: _typed(content[name], hint, name) for name, hint in hints.items()})


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _typed(value: Any, kind: Any, name: str) -> Any:
    """The value, if it is of the kind; lists become tuples."""
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(item, get_args(kind)[0], name) for item in value)
    if get_origin(kind) is UnionType and value is None and type(None) in get_args(kind):
        return None
    plain = (
        next((one for one in get_args(kind) if one is not type(None)), kind) if get_origin(kind) is UnionType else kind
    )
    if plain is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise refused(f"{name} is no number")
    allowed = get_args(plain)
    if (allowed and value in allowed) or (
        not allowed and type(value) is plain and (plain is not int or abs(value) < 2**40)
    ):
        return value
    raise refused(f"{name} of another kind")
