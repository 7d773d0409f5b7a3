"""Gradients of units as matrices: one line a unit, and as few matrices as memory allows."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medveil.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def matrices(gradients: "Sequence[Tensor]", total: "Tensor") -> "list[Tensor]":
    """Each tensor (units, *shape) as (units, values).

    Args:
        gradients: float32 or shorter, one a parameter.
        total: what they are to be added to, shape (values of all parameters,), float64.

    Raises:
        ConfigError: shapes or dtypes that do not fit.
    """
    import torch

    units = {gradient.shape[0] if gradient.ndim else -1 for gradient in gradients}
    values = [math.prod(gradient.shape[1:]) for gradient in gradients]
    short = all(gradient.dtype in {torch.float32, torch.float16, torch.bfloat16} for gradient in gradients)
    fits = total.dtype == torch.float64 and total.shape == (sum(values),)
    if len(units) != 1 or min(units) < 0 or not short or not fits:
        raise ConfigError(
            "The gradients do not fit the total",
            got=f"{len(gradients)} tensors of {sum(values)} values a unit, numbers of units {sorted(units)}, "
            f"total {total.dtype} {tuple(total.shape)}",
            expected="float32 or shorter, as many units in each tensor, and a float64 total of as many values",
        )
    return [
        gradient.detach().reshape(gradient.shape[0], size) for gradient, size in zip(gradients, values, strict=True)
    ]


def side_by_side(rows: "Sequence[Tensor]") -> "list[Tensor]":
    """The same values as fewer, wider matrices, where tensors follow each other in memory.

    Args:
        rows: at least one matrix, shape (units, values), each with as many units.

    Returns:
        Views. Line by line, their values in order are those of ``rows``.

    >>> import torch
    >>> parts = torch.split(torch.arange(12).view(2, 6), [1, 3, 2], dim=1)
    >>> side_by_side(parts)
    [tensor([[ 0,  1,  2,  3,  4,  5],
            [ 6,  7,  8,  9, 10, 11]])]
    """
    joined = list(rows[:1])
    for row in rows[1:]:
        last = joined[-1]
        if _follows(last, row):
            shape = (row.shape[0], last.shape[1] + row.shape[1])
            joined[-1] = last.as_strided(shape, (row.stride(0), 1), last.storage_offset())
        else:
            joined.append(row)
    return joined


def _follows(last: "Tensor", row: "Tensor") -> bool:
    """Whether each line of ``row`` begins where that of ``last`` ends."""
    return (
        row.dtype == last.dtype
        and row.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
        and row.storage_offset() == last.storage_offset() + last.shape[1]
        and row.stride(0) == last.stride(0)
        and all(each.stride(1) == 1 or each.shape[1] == 1 for each in (last, row))
    )
