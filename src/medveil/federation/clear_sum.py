"""What the coordinator does with answers that sites give in the clear: check them, add them up."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medveil.errors import MessageError, ProtocolError
from medveil.federation.messages import AnyMessage, Result, Scores, Tensors
from medveil.federation.settings import Federation, FedSgd
from medveil.federation.site import Floats, LocalResult, change
from medveil.federation.update import Update

SCORES = ("loss", "auc", "dice")
Answer = tuple[AnyMessage, Tensors]


class ClearSum:
    """Adds up updates that the coordinator can read.

    Args:
        settings: of the federation.
        staged: whether privacy stages make sums of the updates.
        sizes: numbers of parameters and of running statistics.
    """

    def __init__(self, settings: Federation, *, staged: bool, sizes: tuple[int, int]) -> None:
        self._settings, self._staged = settings, staged
        self._sizes = dict(zip(("values", "buffers"), sizes, strict=True))
        self._examples: dict[str, int] = {}

    def join(self, site: str, num_examples: int | None) -> None:
        """Note a site's size.

        Raises:
            ProtocolError: it tells none, and the plan weighs sites by size.
        """
        if num_examples is not None:
            self._examples[site] = num_examples
        elif self._settings.weighting == "size":
            raise ProtocolError(
                "A site does not tell its size, and the plan weighs sites by size",
                expected="the number of its examples",
                remedy='set federation.weighting = "equal"',
            )

    def check(self, site: str, message: Result, tensors: Tensors) -> None:
        """Refuse an update of another form, weight, size or dtype.

        Raises:
            ProtocolError: another form or weight.
            MessageError: another size or dtype.
        """
        if message.form != self._form():
            raise ProtocolError(
                "A site did not do what the plan's algorithm and privacy stages ask",
                got=f"an update in the form {message.form!r}",
                expected=repr(self._form()),
            )
        weight = float(self._examples[site]) if self._settings.weighting == "size" else 1.0
        if message.weight != weight:
            raise ProtocolError("A site claims another weight than is its own", got=message.weight, expected=weight)
        allowed = ("float64", "uint32", "uint64") if message.form == "sum" else ("float32",)
        for name, size in self._sizes.items():
            if name not in tensors or tensors[name].shape != (size,):
                raise MessageError(
                    "An update does not have the model's size",
                    got=tensors[name].shape if name in tensors else f"no {name}",
                    expected=(size,),
                    remedy="run the same plan with the same version of medveil at every site",
                )
        if tensors["values"].dtype.name not in allowed:
            raise MessageError("An update has another dtype", got=tensors["values"].dtype.name, expected=allowed)

    def total(self, answers: Mapping[str, Answer], weights: Floats) -> tuple[Update, float | None]:
        """The sum of all updates, and the mean training loss where every site told it.

        Args:
            answers: by site, all of them results.
            weights: that the sites started from.
        """
        results = [(message, tensors) for _, (message, tensors) in sorted(answers.items())]  # one order, always
        weight = sum(message.weight for message, _ in results if isinstance(message, Result))
        updates: list[Update] = []
        losses: list[float | None] = []
        for message, tensors in results:
            assert isinstance(message, Result)
            updates.append(_summand(message, tensors, weights, weight))
            losses.append(None if message.train_loss is None else message.weight * message.train_loss)
        total = updates[0]
        for update in updates[1:]:
            total += update
        return total, None if None in losses else sum(loss or 0.0 for loss in losses) / weight

    def _form(self) -> str:
        if self._staged:
            return "sum"
        return "mean" if isinstance(self._settings.algorithm, FedSgd) else "weights"


def weighted_scores(messages: Iterable[AnyMessage]) -> dict[str, float | None]:
    """Mean of each score over the sites that could compute it, weighted by their validation examples.

    A score that no site could compute is left out.
    """
    sums: dict[str, list[tuple[int, float]]] = {}
    for message in messages:
        if isinstance(message, Scores):
            for name, value in message.model_dump(include=set(SCORES)).items():
                if value is not None and message.num_examples > 0:
                    sums.setdefault(name, []).append((message.num_examples, value))
    return {name: _weighted_mean(parts) for name, parts in sorted(sums.items())}


def _weighted_mean(parts: Sequence[tuple[int, float]]) -> float:
    return sum(count * value for count, value in parts) / sum(count for count, _ in parts)


def _summand(message: Result, tensors: Tensors, weights: Floats, total_weight: float) -> Update:
    """One site's summand. In the clear its weight is its share, so that a sole site's is exactly 1."""
    values, buffers = tensors["values"], np.asarray(tensors["buffers"], dtype=np.float64)
    if message.form == "sum":
        return Update(values, message.weight, buffers)
    assert message.form != "sealed"
    local = LocalResult(message.form, _float32(values), _float32(tensors["buffers"]), message.train_loss)
    return Update.from_mean(change(local, weights), message.weight / total_weight, buffers)


def _float32(values: NDArray[np.generic]) -> Floats:
    return np.asarray(values, dtype=np.float32)
