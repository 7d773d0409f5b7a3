"""A model as flat vectors: what sites and coordinator exchange."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float32]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with a gradient, in registration order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def floating_buffers(model: nn.Module) -> list[torch.Tensor]:
    """Persistent floating-point buffers (running statistics), in registration order."""
    state = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in state and buffer.dtype.is_floating_point]


def to_vector(tensors: Iterable[torch.Tensor]) -> Vector:
    """Concatenate to shape (d,), float32."""
    parts = [tensor.detach().cpu().float().reshape(-1) for tensor in tensors]
    return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.float32)


def from_vector(vector: Vector, tensors: Iterable[torch.Tensor]) -> None:
    """Copy ``vector`` into ``tensors``, which together have its length."""
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            part = vector[start : start + tensor.numel()]
            tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
            start += tensor.numel()
