"""Typed, versioned, length-checked messages between sites and coordinator.

Frame: magic ``MVF1`` | kind (u8) | version (u8) | header length (u32) | body length (u64), big-endian; then the
header (UTF-8 JSON, validated), then the body (safetensors, possibly empty). Nothing is ever unpickled.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from medveil.configuration import Config
from medveil.errors import MessageError

PROTOCOL_VERSION = 1
_MAGIC = b"MVF1"
_FRAME = struct.Struct(">4sBBIQ")
_MAX_HEADER = 1 << 20
MAX_BODY = 1 << 32
_DTYPES = ("float32", "float64", "uint8", "uint32", "uint64")

_COUNT = 1 << 53

Tensors = Mapping[str, NDArray[np.generic]]
Count = Annotated[int, Field(ge=0, le=_COUNT)]
Positive = Annotated[int, Field(ge=1, le=_COUNT)]
Score = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


LONGEST_TEXT = 500
"""Characters of the words that parties tell each other."""


def _printable(text: str) -> str:
    """What a terminal or a log shows as it is: no line breaks, no escapes, no change of the direction of writing."""
    return "".join(one if one.isprintable() else "?" for one in text)


Text = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_printable)]
"""Words of another party for people to read."""
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Purpose = Literal["cohort", "threshold", "evaluation"]


class Message(Config):
    """Base of all messages: a header of plain values; tensors travel beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    kind: ClassVar[int]


class LedgerHead(Config):
    """What a site tells of its privacy ledger.

    Attributes:
        entries: lines in it.
        head: hash of the last line.
        epsilon_all_runs: everything that the site spent on these patients, at the plan's delta; None where unbounded.
        runs: that touched them.
        cap: the site's own limit, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    entries: Count
    head: Hash
    epsilon_all_runs: float | None = Field(ge=0)
    runs: Count
    cap: float | None = Field(ge=0)


class Join(Message):
    """Site to coordinator: ready for this plan. A site that trains privately does not tell its size."""

    kind = 1
    site: str = Field(min_length=1, max_length=100)
    plan_hash: str
    num_examples: Positive | None


class Task(Message):
    """Coordinator to site: validate and/or train. Tensors: ``weights`` and ``buffers``, or none (as last sent)."""

    kind = 2
    round: Count
    validate_model: bool
    train: bool
    sites: list[str]


class Result(Message):
    """Site to coordinator: what a round of training changed.

    Tensors: ``values`` and ``buffers``. ``form`` says what ``values`` are: the site's new "weights" (lossless in
    float32), its "mean" gradient, or a "sum" that stages produced. A site that trains privately tells no loss.
    In the form "sealed" there are frames of the secure sum instead, weight 1, and no loss.
    """

    kind = 3
    round: Positive
    form: Literal["weights", "mean", "sum", "sealed"]
    weight: float = Field(gt=0, le=_COUNT)
    train_loss: float | None = Field(ge=-1e9, le=1e9)


class Scores(Message):
    """Site to coordinator: validation of the weights of ``round`` on the site's own data.

    A score that the data do not define is None; a site without validation data sends none. Under secure aggregation
    all are left out, and frames of the secure sum stand beside the header.
    """

    kind = 4
    round: Count
    num_examples: Count
    loss: float | None = Field(None, ge=-1e9, le=1e9)
    auc: Score | None = None
    dice: Score | None = None


class Stop(Message):
    """Coordinator to site: the training has ended."""

    kind = 5
    reason: Text


class Sealed(Message):
    """Either way: frames of the secure sum (:mod:`medveil.secagg.messages`), which this layer cannot read."""

    kind = 6


class Ready(Message):
    """Site to coordinator, before anything else: what it runs, and what its data look like; nothing of any patient.

    Both ends must run one version of medveil, and all sites' images must have one shape and one list of classes.
    """

    kind = 7
    site: Name
    plan_hash: Hash
    version: str = Field(max_length=50)
    input_shape: list[Positive] = Field(min_length=1, max_length=4)
    class_names: list[Text] = Field(min_length=1, max_length=1000)
    data_kind: Literal["real", "phantom"]
    data_name: Text
    validates: bool


class Open(Message):
    """Coordinator to site: the run begins, or goes on. ``attempt`` grows with every time that it goes on."""

    kind = 8
    run: str = Field(pattern="^[0-9a-f]{32}$")
    attempt: Positive
    rounds_done: Count
    sites: list[Name] = Field(min_length=1, max_length=10_000)
    lost: list[Name] = Field(max_length=10_000)


class Notice(Message):
    """Site to coordinator: what it is doing, in words for whoever watches."""

    kind = 9
    text: Text


class Decline(Message):
    """Site to coordinator: it does not take part. ``final`` where trying again cannot change that."""

    kind = 10
    reason: Text
    final: bool


class Ask(Message):
    """Coordinator to site: one vector of numbers that will be summed. Tensors: ``weights`` and ``buffers``, or none."""

    kind = 11
    purpose: Purpose


class Answer(Message):
    """Site to coordinator: the vector in the clear, as the tensor ``vector``; under secure aggregation never sent."""

    kind = 12
    purpose: Purpose


class Settled(Message):
    """Site to coordinator, at the end: what its privacy ledger was charged for the run, and what the ledger says."""

    kind = 13
    steps: Count | None
    ledger: LedgerHead | None
    protocol_seconds: float = Field(ge=0, le=1e9)


class Farewell(Message):
    """Coordinator to site: nothing more comes in this job. The training may go on in another one."""

    kind = 14
    reason: Text


AnyMessage = (
    Join | Task | Result | Scores | Stop | Sealed | Ready | Open | Notice | Decline | Ask | Answer | Settled | Farewell
)
_KINDS: dict[int, type[AnyMessage]] = {
    message.kind: message
    for message in (
        Join,
        Task,
        Result,
        Scores,
        Stop,
        Sealed,
        Ready,
        Open,
        Notice,
        Decline,
        Ask,
        Answer,
        Settled,
        Farewell,
    )
}
_FRAME_NAME = "frame"


def with_frames(frames: Sequence[bytes]) -> dict[str, NDArray[np.generic]]:
    """Frames of the secure sum as tensors that travel beside a header."""
    return {f"{_FRAME_NAME}{at:06d}": np.frombuffer(frame, dtype=np.uint8) for at, frame in enumerate(frames)}


def kind_of(data: bytes) -> int:
    """The kind that a frame says it is of, without reading it any further.

    Raises:
        MessageError: too short to say.
    """
    if len(data) < _FRAME.size:
        raise MessageError("A message is too short", got=f"{len(data)} bytes", expected=f">= {_FRAME.size}")
    return data[len(_MAGIC)]


def frames_of(tensors: Tensors) -> list[bytes]:
    """The frames of the secure sum that travel beside a header, in order."""
    names = sorted(name for name in tensors if name.startswith(_FRAME_NAME))
    return [tensors[name].tobytes() for name in names]


def encode(message: AnyMessage, tensors: Tensors | None = None) -> bytes:
    """One frame.

    Raises:
        MessageError: a tensor holds NaN or infinite numbers; they never leave their maker.
    """
    for name, tensor in (tensors or {}).items():
        _check_finite(name, tensor)
    header = json.dumps(message.model_dump(), separators=(",", ":")).encode()
    body = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}) if tensors else b""
    return _FRAME.pack(_MAGIC, message.kind, PROTOCOL_VERSION, len(header), len(body)) + header + body


def decode(data: bytes, *, max_body: int = MAX_BODY) -> tuple[AnyMessage, dict[str, NDArray[np.generic]]]:
    """Read one frame.

    Args:
        data: exactly one frame.
        max_body: largest body accepted, in bytes.

    Raises:
        MessageError: anything but a well-formed message of this version with finite, allowed tensors.
    """
    kind, header, body = _split(data, max_body)
    try:
        message = _KINDS[kind].model_validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise MessageError(
            "A message's header is not valid", got=first["type"], expected=first["msg"], remedy=_SAME_VERSION
        ) from None
    return message, _tensors(body)


_SAME_VERSION = "run the same version of medveil at every site"


def _split(data: bytes, max_body: int) -> tuple[int, bytes, bytes]:
    if len(data) < _FRAME.size:
        raise MessageError("A message is too short", got=f"{len(data)} bytes", expected=f">= {_FRAME.size}")
    magic, kind, version, header_length, body_length = _FRAME.unpack_from(data)
    if magic != _MAGIC:
        raise MessageError("Bytes arrived that are not a medveil message", expected="the magic MVF1")
    if version != PROTOCOL_VERSION:
        raise MessageError(
            "A message has another protocol version",
            got=version,
            expected=PROTOCOL_VERSION,
            remedy=_SAME_VERSION,
        )
    if kind not in _KINDS:
        raise MessageError("A message has an unknown kind", got=kind, expected=sorted(_KINDS), remedy=_SAME_VERSION)
    if header_length > _MAX_HEADER or body_length > max_body:
        raise MessageError(
            "A message is larger than allowed",
            got=f"header {header_length}, body {body_length} bytes",
            expected=f"at most {_MAX_HEADER} and {max_body}",
        )
    if len(data) != _FRAME.size + header_length + body_length:
        raise MessageError(
            "A message's length differs from what its frame says",
            got=len(data),
            expected=_FRAME.size + header_length + body_length,
        )
    return kind, data[_FRAME.size : _FRAME.size + header_length], data[_FRAME.size + header_length :]


def _tensors(body: bytes) -> dict[str, NDArray[np.generic]]:
    if not body:
        return {}
    try:
        tensors: dict[str, NDArray[np.generic]] = load(body)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise MessageError("A message's tensors cannot be read", got=type(error).__name__) from None
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _DTYPES or tensor.ndim != 1:
            raise MessageError(
                "A message holds a tensor of a kind that is not allowed",
                got=f"{tensor.dtype.name}, {tensor.ndim} axes",
                expected=f"one axis, one of {', '.join(_DTYPES)}",
            )
        _check_finite(name, tensor)
    return tensors


def _check_finite(name: str, tensor: NDArray[np.generic]) -> None:
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise MessageError(
            "A message holds NaN or infinite numbers",
            got=f"in {name!r}" if name in ("weights", "values", "buffers") else "in a tensor",
            expected="finite numbers",
            remedy="the training at the sender diverged: lower its learning rate",
        )
