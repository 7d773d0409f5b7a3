"""Which round's weights a training ends with, and when it stops early."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medveil.federation.settings import Federation


class Selection:
    """Keeps the best weights seen and counts validations without improvement.

    Args:
        settings: the plan's federation table.
        metric: score by which "best" is judged; "loss" is better when smaller.
    """

    def __init__(self, settings: Federation, metric: Literal["auc", "dice", "loss"]) -> None:
        self._keep_best = settings.select == "best"
        self._metric = metric
        self._stopping = settings.early_stopping
        self._best_score: float | None = None
        self._best: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._reference: float | None = None
        self._waited = 0
        self.best_round: int | None = None

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the training."""
        return self._stopping is not None and self._waited >= self._stopping.patience

    def consider(
        self,
        round_number: int,
        scores: Mapping[str, float | None] | None,
        weights: NDArray[np.float32],
        buffers: NDArray[np.float32],
    ) -> None:
        """Take note of a committed round; ``scores`` is None when it was not validated."""
        if scores is None:
            return
        score = _oriented(scores, self._metric)
        if score is not None and (self._best_score is None or score > self._best_score):
            self._best_score, self.best_round = score, round_number
            self._best = (weights.copy(), buffers.copy()) if self._keep_best else None
        watched = None if self._stopping is None else _oriented(scores, self._stopping.metric)
        if self._stopping is not None and watched is not None:  # a score that is not defined says nothing
            if self._reference is None or watched > self._reference + self._stopping.min_delta:
                self._reference, self._waited = watched, 0
            else:
                self._waited += 1

    def chosen(
        self, weights: NDArray[np.float32], buffers: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights and buffers to end with: the best when asked for and known, else those given."""
        return self._best if self._best is not None else (weights, buffers)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What must survive a restart."""
        return {} if self._best is None else {"weights": self._best[0], "buffers": self._best[1]}

    def facts(self) -> dict[str, Any]:
        """Likewise, as JSON values."""
        return {
            "best_score": self._best_score,
            "best_round": self.best_round,
            "reference": self._reference,
            "waited": self._waited,
        }

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, NDArray[np.generic]]) -> None:
        """Undo :meth:`facts` and :meth:`tensors`."""
        self._best_score, self.best_round = facts["best_score"], facts["best_round"]
        self._reference, self._waited = facts["reference"], facts["waited"]
        if tensors:
            self._best = (
                np.asarray(tensors["weights"], dtype=np.float32),
                np.asarray(tensors["buffers"], dtype=np.float32),
            )


def _oriented(scores: Mapping[str, float | None], metric: str) -> float | None:
    value = scores.get(metric)
    return -value if value is not None and metric == "loss" else value
