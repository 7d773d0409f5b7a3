"""Renyi DP of events: the cross-check of the figure, and the figure itself for tuning."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, assert_never

from medveil.accounting.events import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    PoissonGaussian,
    Relation,
    RepeatAndSelect,
    Repeated,
    Stated,
    compose,
    flatten,
)
from medveil.accounting.losses import stated_for
from medveil.errors import GuaranteeError

ORDERS: tuple[float, ...] = (
    1.02,
    1.05,
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 65),
    *(96, 128, 192, 256, 384, 512, 768, 1024, 2048),
)


def renyi_epsilon(event: Event, delta: float, relation: Relation) -> float | None:
    """Epsilon at ``delta`` by Renyi DP; stated releases are added up, their deltas taken off ``delta`` first.

    Returns:
        None where Renyi DP is not known for the event and relation (a sampled Gaussian under replace-one); infinite
        where the stated deltas leave nothing.

    Raises:
        GuaranteeError: tuning over a release whose mechanism is not known.

    Reference:
        Mironov 2017, https://arxiv.org/abs/1702.07476; Canonne et al. 2020, Proposition 12,
        https://arxiv.org/abs/2004.00010
    """
    stated_epsilon, stated_delta, rest = _take_stated(event, relation)
    accountant = _accountant(rest, relation)
    if accountant is None:
        return None
    if not any(flatten(rest)):
        return stated_epsilon if stated_delta <= delta else math.inf
    if stated_delta >= delta:
        return math.inf
    return float(accountant.get_epsilon(delta - stated_delta)) + stated_epsilon


def renyi_delta(event: Event, epsilon: float, relation: Relation) -> float | None:
    """Delta at ``epsilon`` by Renyi DP, as :func:`renyi_epsilon`."""
    stated_epsilon, stated_delta, rest = _take_stated(event, relation)
    accountant = _accountant(rest, relation)
    if accountant is None:
        return None
    if stated_epsilon > epsilon:
        return 1.0
    return min(1.0, float(accountant.get_delta(epsilon - stated_epsilon)) + stated_delta)


def _take_stated(event: Event, relation: Relation) -> tuple[float, float, Event]:
    """Summed epsilon and delta of the stated releases, and the event without them."""
    epsilon = delta = 0.0
    rest: list[Event] = []
    for part, count in flatten(event):
        if isinstance(part, Stated):
            stated = stated_for(part, relation)
            epsilon += count * stated.epsilon
            delta += count * stated.delta
        else:
            rest.append(Repeated(event=part, count=count))
    return epsilon, delta, compose(rest)


@lru_cache(maxsize=64)
def _accountant(event: Event, relation: Relation) -> Any | None:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    replace = relation == "replace-one"
    if replace and any(isinstance(part, PoissonGaussian) and part.sampling_rate < 1 for part in _inside(event)):
        return None
    accountant = RdpAccountant(ORDERS)
    with _quiet_about_orders():
        # Replacing a unit doubles the sensitivity, which for noise without sampling is half the noise.
        accountant.compose(dp_event.ComposedDpEvent(list(_translate(event, 0.5 if replace else 1.0))))
    return accountant


def _inside(event: Event) -> Iterator[Event]:
    """All mechanisms, those inside tuning included."""
    for part, _ in flatten(event):
        if isinstance(part, RepeatAndSelect):
            yield from _inside(part.event)
        else:
            yield part


def _translate(event: Event, scale: float) -> Iterator[Any]:
    """The event in dp-accounting's words, all noise multiplied by ``scale``."""
    from dp_accounting import dp_event

    for part, count in flatten(event):
        match part:
            case Gaussian():
                single = dp_event.GaussianDpEvent(part.noise_multiplier * scale)
            case PoissonGaussian():
                noise = dp_event.GaussianDpEvent(part.noise_multiplier * scale)
                single = dp_event.PoissonSampledDpEvent(part.sampling_rate, noise)
            case Laplace():
                single = dp_event.LaplaceDpEvent(part.noise_multiplier * scale)
            case RepeatAndSelect():
                inner = dp_event.ComposedDpEvent(list(_translate(part.event, scale)))
                shape = math.inf if part.shape == "poisson" else part.shape
                single = dp_event.RepeatAndSelectDpEvent(inner, part.mean_trials, shape)
            case Stated() | Repeated() | Composed():
                raise GuaranteeError(
                    "Tuning over a release whose mechanism is not known cannot be accounted for",
                    got="a stated (epsilon, delta) inside repeat_and_select",
                    remedy="state the mechanism of every run, or charge each run as an event of its own",
                )
            case _:
                assert_never(part)
        yield dp_event.SelfComposedDpEvent(single, count)


@contextmanager
def _quiet_about_orders() -> Iterator[None]:
    """Leave out dp-accounting's remark that it skips an order: fewer orders only loosen the bound."""

    def keep(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
