"""Which round's weights a training ends with (or their moving average), and when it stops early."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medveil.federation.settings import Federation


class Selection:
    """Keeps the best weights seen, or their moving average, and counts validations without improvement.

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
        self._ema = settings.ema
        self._average: NDArray[np.float64] | None = None
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
        if self._ema:
            self._follow(round_number, weights)
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
        """Weights and buffers to end with: best or average when asked for and known, else those given."""
        if self._average is not None:
            return self._average.astype(np.float32), buffers
        return self._best if self._best is not None else (weights, buffers)

    def _follow(self, round_number: int, weights: NDArray[np.float32]) -> None:
        """Move the average towards ``weights``; early rounds count more, so that the first weights fade."""
        keep = min(self._ema, round_number / (round_number + 10))
        before = weights if self._average is None else self._average
        self._average = keep * np.asarray(before, dtype=np.float64) + (1 - keep) * weights.astype(np.float64)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """What must survive a restart."""
        if self._average is not None:
            return {"average": self._average}
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
        if "average" in tensors:
            self._average = np.asarray(tensors["average"], dtype=np.float64)
        elif tensors:
            self._best = (
                np.asarray(tensors["weights"], dtype=np.float32),
                np.asarray(tensors["buffers"], dtype=np.float32),
            )


def _oriented(scores: Mapping[str, float | None], metric: str) -> float | None:
    value = scores.get(metric)
    return -value if value is not None and metric == "loss" else value
