"""What a guarantee means for a patient: the best that any attack can do, for the report.

Everything follows from the trade-off curve: the smallest false-negative rate an attacker can have at a given
false-positive rate, whatever the attack and whatever the attacker knows besides (Wasserman & Zhou 2010; Dong, Roth &
Su 2022, Definition 2.1, https://arxiv.org/abs/1905.02383). The curve here is a lower bound on that rate, because every
(epsilon, delta) that holds gives one and we take the largest of many.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medveil.accounting.accountants import check_delta, check_relation, delta_of, epsilon_of
from medveil.accounting.events import Event, Relation, compose
from medveil.errors import ConfigError

Rates = npt.NDArray[np.float64]

# Above this epsilon a supporting line lies below 1e-17 at every false-positive rate.
_LARGEST_SLOPE = 40.0
_LINES = 400
_SCALE_DELTA = 1e-9
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
PRIORS = (1e-6, 1e-3, 0.1)


def trade_off(event: Event, false_positive_rates: Sequence[float], *, relation: Relation = "add-remove") -> Rates:
    """Smallest false-negative rate of any test of whether a unit took part.

    Args:
        event: what was done to the data.
        false_positive_rates: each in [0, 1].
        relation: which data sets are neighbours.

    Returns:
        Shape (rates,), in [0, 1]; never above the true rate.

    Raises:
        ConfigError: a rate or the relation out of range.
        GuaranteeError: no accountant knows the event under this relation.

    Reference:
        Dong, Roth & Su 2022, Propositions 2.4 and 2.13 and equation (5): f(a) is the supremum over epsilon >= 0 of
        max(1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)), https://arxiv.org/abs/1905.02383
    """
    rates = _check_rates(false_positive_rates, "false_positive_rate")
    epsilons, deltas = _profile(compose([event]), check_relation(relation))
    steep = 1 - deltas - np.exp(epsilons) * rates[:, None]
    shallow = np.exp(-epsilons) * (1 - deltas - rates[:, None])
    best: Rates = np.maximum(steep, shallow).max(axis=1).clip(0.0, 1.0)
    return best


def membership_advantage(event: Event, *, relation: Relation = "add-remove") -> float:
    """Largest true-positive minus false-positive rate of any membership attack.

    Args:
        event: what was done to the data.
        relation: which data sets are neighbours.

    Returns:
        In [0, 1]: the total variation distance, which is delta at epsilon 0, or less where another epsilon says so.

    Raises:
        ConfigError: relation out of range.
        GuaranteeError: no accountant knows the event under this relation.

    Reference:
        Yeom et al. 2018, Definition 4, https://arxiv.org/abs/1709.01604; Kairouz et al. 2015, Theorem 2.1 at
        epsilon 0, https://arxiv.org/abs/1311.0776
    """
    epsilons, deltas = _profile(compose([event]), check_relation(relation))
    return float(_advantage(epsilons, deltas).min())


def advantage_from_epsilon(*, epsilon: float, delta: float) -> float:
    """The same bound from one (epsilon, delta) alone: (e^epsilon - 1 + 2 delta) / (e^epsilon + 1).

    Args:
        epsilon: >= 0.
        delta: in [0, 1].

    Reference:
        Kairouz et al. 2015, Theorem 2.1, https://arxiv.org/abs/1311.0776; Humphries et al. 2023, Theorem 3.1,
        https://arxiv.org/abs/2010.12112

    >>> round(advantage_from_epsilon(epsilon=1.0, delta=0.0), 3)
    0.462
    """
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ConfigError(
            "Not an (epsilon, delta)", got=(epsilon, delta), expected="epsilon >= 0, delta in [0, 1]", remedy="correct"
        )
    return float(_advantage(np.array([min(epsilon, 700.0)]), np.array([delta]))[0])


def true_positive_rate(event: Event, false_positive_rate: float, *, relation: Relation = "add-remove") -> float:
    """Largest true-positive rate of any membership attack at a false-positive rate: 1 - f.

    Args:
        event: what was done to the data.
        false_positive_rate: in [0, 1].
        relation: which data sets are neighbours.
    """
    return 1.0 - float(trade_off(event, [false_positive_rate], relation=relation)[0])


def reconstruction_bound(event: Event, prior: float, *, relation: Relation = "add-remove") -> float:
    """Largest probability of reconstructing a unit for an attacker who guesses it with probability ``prior`` unaided.

    Args:
        event: what was done to the data.
        prior: kappa in [0, 1], the best chance without the release (for the error that counts as success).
        relation: which data sets are neighbours.

    Returns:
        In [prior, 1].

    Reference:
        Hayes, Mahloujifar & Balle 2023, Theorem 2 (the blow-up function), https://arxiv.org/abs/2302.07225;
        Kaissis et al. 2023 (1 - f(kappa)), https://arxiv.org/abs/2307.03928
    """
    return true_positive_rate(event, prior, relation=relation)


def meaning(event: Event, *, delta: float, relation: Relation = "add-remove") -> dict[str, Any]:
    """All conversions as one table that JSON can hold.

    Args:
        event: what was done to the data.
        delta: in (0, 1), at which epsilon is stated.
        relation: which data sets are neighbours.

    Returns:
        ``epsilon``, ``delta``, ``relation``; ``membership_advantage`` and the looser
        ``membership_advantage_from_epsilon``; ``true_positive_rate_at`` and ``trade_off``, one row a false-positive
        rate; ``reconstruction``, one row a prior.

    Raises:
        ConfigError: delta or relation out of range.
        GuaranteeError: no finite epsilon holds, or no accountant knows the event under this relation.
    """
    epsilon = epsilon_of(event, delta=check_delta(delta), relation=relation).epsilon
    missed = [float(rate) for rate in trade_off(event, FALSE_POSITIVE_RATES, relation=relation)]
    return {
        "epsilon": epsilon,
        "delta": delta,
        "relation": relation,
        "membership_advantage": membership_advantage(event, relation=relation),
        "membership_advantage_from_epsilon": advantage_from_epsilon(epsilon=epsilon, delta=delta),
        "trade_off": [
            {"false_positive_rate": rate, "false_negative_rate": miss, "true_positive_rate": 1.0 - miss}
            for rate, miss in zip(FALSE_POSITIVE_RATES, missed, strict=True)
        ],
        "reconstruction": [
            {"prior": prior, "success": reconstruction_bound(event, prior, relation=relation)} for prior in PRIORS
        ],
    }


def _advantage(epsilons: Rates, deltas: Rates) -> Rates:
    advantage: Rates = np.tanh(epsilons / 2) + 2 * deltas / (np.exp(epsilons) + 1)
    return advantage


@lru_cache(maxsize=16)
def _profile(event: Event, relation: Relation) -> tuple[Rates, Rates]:
    """Epsilons and their deltas, dense where the event's own delta falls from its largest to next to nothing."""
    scale = _LARGEST_SLOPE
    while scale > 1e-6 and delta_of(event, epsilon=scale / 2, relation=relation) < _SCALE_DELTA:  # noqa: PLR2004 - halving
        scale /= 2
    dense = np.linspace(0.0, scale, _LINES)
    epsilons = np.unique(np.concatenate([dense, np.linspace(scale, _LARGEST_SLOPE, 20)]))
    return epsilons, np.array([delta_of(event, epsilon=float(each), relation=relation) for each in epsilons])


def _check_rates(rates: Sequence[float], name: str) -> Rates:
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ConfigError(f"{name} is out of range", got=rates, expected="numbers in [0, 1]", remedy="correct them")
    return values
