"""Weights on disk, in safetensors and nothing else: peers' files are hostile, and pickle runs code."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from medveil.errors import WeightsError

_METADATA_KEY: Final = "medveil"
_HEADER_ALLOWANCE: Final = 16 * 2**20
_PICKLE_STARTS: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_DTYPES: Final = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write parameters and buffers so that a reader sees the old file or the whole new one, never a part.

    Args:
        model: its tensors may lie on any device.
        path: of the file; its folder exists. The file is readable by its owner only.
        metadata: text about the model; never patient data.

    Raises:
        WeightsError: the file cannot be written, or a weight is NaN or infinite.

    Guarantees:
        Equal weights and metadata give equal bytes.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    _require_finite(state)
    # One entry only: the library writes several in no fixed order.
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    _replace(path, save(state, metadata={_METADATA_KEY: text}))


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Read a weights file into a network of exactly that structure.

    Args:
        model: changed only when the whole file fits; device and mode stay.
        path: of a safetensors file.

    Returns:
        The metadata that :func:`save_weights` was given; empty for files of other origin.

    Raises:
        WeightsError: no such file, not safetensors, truncated, too large, a missing or unexpected tensor,
            another shape or dtype, NaN or infinite values.
    """
    expected = model.state_dict()
    _require_plausible(path, expected)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            _require_fitting(_shapes(file), expected)
            tensors = {name: file.get_tensor(name) for name in expected}
            metadata = _metadata(file.metadata())
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            "The weights file is damaged or not in the safetensors format",
            got=type(error).__name__,
            expected="a whole safetensors file",
            remedy="copy the file again from where it was made",
        ) from error
    _require_finite(tensors)
    model.load_state_dict(tensors)
    return metadata


def _shapes(file: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _require_plausible(path: Path, expected: Mapping[str, Tensor]) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise WeightsError(
            "The weights file cannot be read",
            got=type(error).__name__,
            expected="a readable safetensors file",
            remedy="check the path and its permissions",
        ) from error
    if start.startswith(_PICKLE_STARTS):
        raise WeightsError(
            "The weights file is a pickle, which can run code when it is read",
            got="a pickle or zip of pickles, as torch.save writes it",
            expected="a safetensors file",
            remedy="have its maker export it with safetensors",
        )
    most = sum(tensor.numel() * tensor.element_size() for tensor in expected.values()) + _HEADER_ALLOWANCE
    if size > most:
        raise WeightsError(
            "The weights file is larger than the network",
            got=f"{size} bytes",
            expected=f"at most {most} bytes",
            remedy="check that the file belongs to this network",
        )


def _require_fitting(found: Mapping[str, tuple[tuple[int, ...], str]], expected: Mapping[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wanted = {name: (tuple(tensor.shape), _DTYPES.get(tensor.dtype)) for name, tensor in expected.items()}
    wrong = sorted(name for name in expected.keys() & found.keys() if found[name] != wanted[name])
    for what, names in (
        ("lacks tensors that the network has", missing),
        ("has tensors that the network lacks", unexpected),
        ("has tensors of another shape or dtype", wrong),
    ):
        if names:
            raise WeightsError(
                f"The weights file {what}",
                got=f"{len(names)} such tensors",
                expected=f"exactly the network's {len(expected)} tensors",
                remedy="load the file into the network that it was saved from",
            )


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    bad = sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    if bad:
        raise WeightsError(
            "Weights are NaN or infinite",
            got=f"{bad} of {len(tensors)} tensors",
            expected="finite numbers",
            remedy="train again with a smaller learning rate, or take an earlier file",
        )


def _metadata(raw: Mapping[str, str] | None) -> dict[str, str]:
    metadata = json.loads((raw or {}).get(_METADATA_KEY, "{}"))
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("The weights file's metadata are damaged", expected="text by name")
    return metadata


def _replace(path: Path, content: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".weights-", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WeightsError(
            "The weights file cannot be written",
            got=type(error).__name__,
            expected="a writable folder with enough space",
        ) from error
