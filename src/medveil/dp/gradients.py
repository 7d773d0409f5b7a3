"""Gradients of privacy units: one row a unit, the mean over its examples.

The trainer streams: :class:`GradientEngine` hands out whole units, a few at a time, and never holds the matrix of
all units. :func:`per_unit_gradients` returns that matrix, for tests, audits and small networks.

A unit's row depends on that unit's examples and on nothing else, so clipping the row bounds what the unit can do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medveil.dp.engine import METHODS, Choice, Shapes, choose, layerwise_refusal, run
from medveil.dp.layerwise import Pool
from medveil.dp.methods import LossFunction, Method, trainable
from medveil.errors import ConfigError, UnsupportedModelError

_CHUNK_SIZE: Final = 64


class GradientEngine:
    """Streams gradients of privacy units.

    Args:
        model: run in the mode it is in; neither its weights nor its ``.grad`` fields change. One stream at a time
            for each network.
        loss: ``loss(outputs, targets)`` of a batch of one, a single number.
        method: "layerwise", "vmap", "microbatch", or "auto": timed on noise when the first batch comes.
        chunk_size: examples at a time; None takes the fastest for "auto" and 64 otherwise.
        overwrite: a chunk may be written over the one before it: faster for a caller that is done with a chunk
            before it asks for the next; others must copy what they keep.

    Raises:
        ConfigError: an unknown method, or a chunk size below 1.
        UnsupportedModelError: nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        *,
        method: Method | Literal["auto"] = "auto",
        chunk_size: int | None = None,
        overwrite: bool = False,
    ) -> None:
        _check_settings(method, chunk_size)
        trainable(model)
        self._model, self._loss = model, loss
        self._method, self._chunk_size = method, chunk_size
        self._pool: Pool | None = {} if overwrite else None
        self._choices: dict[tuple[Shapes, bool], Choice] = {}

    def chunks(self, images: Tensor, targets: Tensor, unit_index: Tensor) -> Iterator[list[Tensor]]:
        """Gradients of every unit, some units at a time, units in ascending order.

        Args:
            images: shape (N, channels, *spatial), in the network's dtype.
            targets: shape (N, ...).
            unit_index: shape (N,), integers; which unit each example belongs to, in any order. Views of one image
                count as examples of its unit.

        Yields:
            Per trainable parameter, in registration order, a tensor (units, *parameter.shape) in the parameter's
            dtype: the mean over the unit's examples of the gradient of one example. An empty batch yields nothing.

        Raises:
            ConfigError: lengths that do not fit, or a unit index that is not one integer an example.
            UnsupportedModelError: a method that does not fit the network.

        Guarantees:
            Every unit stands whole in exactly one chunk. More than ``chunk_size`` examples are never run at a time;
            a unit with more is summed up over several runs.
        """
        _check_batch(images, targets, unit_index)
        if len(images) == 0:
            return
        choice = self.choice(images, targets)
        order = torch.argsort(unit_index, stable=True)
        _, sizes = torch.unique_consecutive(unit_index[order], return_counts=True)
        start = 0
        for units in _batches(sizes.tolist(), choice.chunk_size):
            stop = start + sum(units)
            yield self._means(choice, images, targets, order[start:stop], units)
            start = stop

    def choice(self, images: Tensor, targets: Tensor) -> Choice:
        """Method and chunk size for examples of these shapes; only shapes and dtypes are looked at."""
        shapes = Shapes(tuple(images.shape[1:]), tuple(targets.shape[1:]), targets.dtype)
        key = (shapes, self._model.training)
        if key not in self._choices:
            self._choices[key] = self._choose(shapes)
        return self._choices[key]

    def _choose(self, shapes: Shapes) -> Choice:
        if self._method == "auto":
            found = choose(self._model, self._loss, shapes)
            return replace(found, chunk_size=self._chunk_size or found.chunk_size)
        if self._method == "layerwise":
            _check_layerwise(self._model, self._loss, shapes)
        return Choice(self._method, self._chunk_size or _CHUNK_SIZE)

    def _means(
        self, choice: Choice, images: Tensor, targets: Tensor, picked: Tensor, units: Sequence[int]
    ) -> list[Tensor]:
        """Rows of the units whose examples ``picked`` names one unit after the other."""
        if len(picked) <= choice.chunk_size:
            rows = self._rows(choice, images, targets, picked)
            return rows if len(units) == len(picked) else [_mean_by_unit(each, units) for each in rows]
        total: list[Tensor] | None = None
        for part in torch.split(picked, choice.chunk_size):
            sums = [rows.sum(0, keepdim=True) for rows in self._rows(choice, images, targets, part)]
            total = sums if total is None else [old.add_(new) for old, new in zip(total, sums, strict=True)]
        assert total is not None
        return [rows.div_(len(picked)) for rows in total]

    def _rows(self, choice: Choice, images: Tensor, targets: Tensor, picked: Tensor) -> list[Tensor]:
        chosen = picked.to(images.device)
        return run(
            choice.method, self._model, self._loss, images[chosen], targets[chosen.to(targets.device)], pool=self._pool
        )


def per_unit_gradients(
    model: nn.Module,
    loss: LossFunction,
    batch: tuple[Tensor, Tensor],
    unit_ids: Tensor | NDArray[np.integer] | Sequence[int],
    *,
    method: Method | Literal["auto"] = "auto",
    chunk_size: int | None = None,
) -> Tensor:
    """Gradients of privacy units as one matrix.

    Args:
        model: see :class:`GradientEngine`.
        loss: see :class:`GradientEngine`.
        batch: images (N, channels, *spatial) and targets (N, ...).
        unit_ids: shape (N,), integers.
        method: see :class:`GradientEngine`.
        chunk_size: see :class:`GradientEngine`.

    Returns:
        Shape (units, parameters), in the parameters' dtype: units in ascending order of their ids; trainable
        parameters in registration order, each flattened, a tied one once.

    Raises:
        ConfigError, UnsupportedModelError: see :class:`GradientEngine`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> images, targets = torch.tensor([[1.0, 0], [3, 0], [0, 5]]), torch.zeros(3)
    >>> sums = lambda outputs, targets: outputs.sum()
    >>> per_unit_gradients(model, sums, (images, targets), torch.tensor([7, 7, 2]), method="microbatch")
    tensor([[0., 5.],
            [2., 0.]])
    """
    engine = GradientEngine(model, loss, method=method, chunk_size=chunk_size)
    chunks = [
        torch.cat([rows.flatten(1) for rows in chunk], 1) for chunk in engine.chunks(*batch, torch.as_tensor(unit_ids))
    ]
    if chunks:
        return torch.cat(chunks)
    parameters = list(trainable(model).values())
    return parameters[0].new_zeros((0, sum(tensor.numel() for tensor in parameters)))


def _batches(sizes: Sequence[int], chunk_size: int) -> Iterator[list[int]]:
    """Whole units, as many as fit in a chunk, at least one.

    >>> list(_batches([1, 2, 1, 9, 1], 3))
    [[1, 2], [1], [9], [1]]
    """
    together: list[int] = []
    for size in sizes:
        if together and sum(together) + size > chunk_size:
            yield together
            together = []
        together.append(size)
    if together:
        yield together


def _mean_by_unit(rows: Tensor, units: Sequence[int]) -> Tensor:
    """Mean over consecutive rows; (examples, *shape) -> (units, *shape)."""
    return torch.stack([part.mean(0) for part in torch.split(rows, list(units))])


def _check_layerwise(model: nn.Module, loss: LossFunction, shapes: Shapes) -> None:
    """Asked for by name, it must stand the same trial as when it is chosen: it could mix examples."""
    reason = layerwise_refusal(model, loss, shapes)
    if reason:
        raise UnsupportedModelError(
            'The method "layerwise" does not fit this network',
            got=reason,
            expected="rows equal to those of a batch of one",
            remedy='use "vmap" or "microbatch", or leave the choice to "auto"',
        )


def _check_settings(method: str, chunk_size: int | None) -> None:
    if method not in {"auto", *METHODS}:
        raise ConfigError(
            "No method of that name computes gradients of single examples",
            got=method,
            expected=f"auto or one of {', '.join(METHODS)}",
        )
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError("A chunk holds examples", got=chunk_size, expected="at least 1, or None")


def _check_batch(images: Tensor, targets: Tensor, unit_index: Tensor) -> None:
    if not len(images) == len(targets) == len(unit_index):
        raise ConfigError(
            "Images, targets and units do not belong together",
            got=f"{len(images)} images, {len(targets)} targets, {len(unit_index)} unit indices",
            expected="equally many",
        )
    if unit_index.dim() != 1 or unit_index.is_floating_point() or unit_index.is_complex():
        raise ConfigError(
            "The unit of an example is one integer",
            got=f"shape {tuple(unit_index.shape)}, {unit_index.dtype}",
            expected="shape (N,), integers",
        )
