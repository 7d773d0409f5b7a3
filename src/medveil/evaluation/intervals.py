"""Patient-level (cluster) bootstrap: whole patients are drawn, with all their images.

Images of one patient resemble each other. Drawing single images pretends that they do not and gives
intervals that are too narrow, so it is not offered here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medveil.errors import DataError
from medveil.rng import Seeds

Statistics = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]

_CHUNK_ELEMENTS = 2**20  # weights held at once: 8 MiB
_MIN_DEFINED = 0.95
_MIN_SUBJECTS = 2


class BootstrapConfig(BaseModel):
    """How intervals are made.

    Args:
        resamples: number of bootstrap resamples; 0 gives point values only (fast, for use while training).
        level: nominal coverage, in (0, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resamples: int = Field(default=1000, ge=0)
    level: float = Field(default=0.95, gt=0, lt=1)


@dataclass(frozen=True)
class Estimate:
    """One figure and what is known about its uncertainty.

    Args:
        value: the point value, or None where the data do not define it.
        low: lower end of the interval, or None.
        high: upper end of the interval, or None.
        reason: why a part is None, or what the reader must know; None where there is nothing to say.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, float | str | None]:
        """The four fields as a JSON-ready dictionary."""
        return asdict(self)


def with_intervals(
    points: Mapping[str, Estimate],
    statistics: Statistics,
    subjects: NDArray[np.integer],
    *,
    config: BootstrapConfig,
    seeds: Seeds,
) -> dict[str, Estimate]:
    """Add percentile intervals to point values.

    Args:
        points: metric -> estimate without interval; a value of None stays None.
        statistics: from weights of shape (resamples, N) to one array of shape (resamples,) per metric, NaN
            where a resample does not define it.
        subjects: shape (N,), which patient each row belongs to.
        config: number of resamples and level.
        seeds: the node to draw from; the same node gives the same intervals.

    Returns:
        The same metrics. An interval is withheld, with a reason, when there are fewer than two patients or
        when more than one resample in twenty does not define the metric.

    Guarantees:
        Resamples in which the metric is undefined are left out; they never count as a value.

    Reference:
        Field and Welsh 2007, Bootstrapping clustered data, https://doi.org/10.1111/j.1467-9868.2007.00593.x
    """
    if config.resamples == 0:
        return {name: _note(point, "no interval was asked for") for name, point in points.items()}
    if np.unique(subjects).size < _MIN_SUBJECTS:
        return {name: _note(point, "no interval: fewer than two patients") for name, point in points.items()}
    samples = bootstrap(statistics, subjects, resamples=config.resamples, seeds=seeds)
    return {name: _bracket(point, samples[name], config.level) for name, point in points.items()}


def bootstrap(
    statistics: Statistics, subjects: NDArray[np.integer], *, resamples: int, seeds: Seeds
) -> dict[str, NDArray[np.float64]]:
    """Every metric on every resample.

    Args:
        statistics: as in :func:`with_intervals`.
        subjects: shape (N,).
        resamples: at least 1.
        seeds: the node to draw from.

    Returns:
        metric -> shape (resamples,).
    """
    parts = [statistics(weights) for weights in cluster_weights(subjects, resamples=resamples, seeds=seeds)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cluster_weights(subjects: NDArray[np.integer], *, resamples: int, seeds: Seeds) -> Iterator[NDArray[np.float64]]:
    """How often each row stands in each resample, in chunks that bound the memory.

    Args:
        subjects: shape (N,), N > 0.
        resamples: at least 1.
        seeds: the node to draw from.

    Yields:
        Shape (chunk, N): as many patients as there are, drawn with replacement, each with all their rows.

    Raises:
        DataError: no rows.
    """
    if subjects.size == 0:
        raise DataError("There is nothing to resample", got="no rows", expected="at least one image")
    names, row_subject = np.unique(subjects, return_inverse=True)
    generator = seeds.numpy()
    chunk = max(1, _CHUNK_ELEMENTS // subjects.size)
    shares = np.full(names.size, 1 / names.size)
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(names.size, shares, size=min(chunk, resamples - start))
        yield counts[:, row_subject].astype(np.float64)


def percentile_interval(samples: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The central ``level`` share of the defined samples.

    Args:
        samples: any shape; NaN are left out.
        level: in (0, 1).

    Returns:
        (low, high).

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    tail = (1 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _bracket(point: Estimate, samples: NDArray[np.float64], level: float) -> Estimate:
    if point.value is None:
        return point
    defined = float(np.isfinite(samples).mean())
    if defined < _MIN_DEFINED:
        return _note(point, f"no interval: defined in only {defined:.0%} of the resamples")
    low, high = percentile_interval(samples, level)
    return replace(point, low=low, high=high)


def _note(point: Estimate, reason: str) -> Estimate:
    if point.value is None:
        return point
    return replace(point, reason=reason if point.reason is None else f"{point.reason}; {reason}")
