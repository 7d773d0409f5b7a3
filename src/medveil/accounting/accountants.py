"""From events to (epsilon, delta): privacy loss distributions give the figure, Renyi DP the cross-check.

Both come from Google's dp-accounting. A privacy loss distribution is rounded pessimistically ("connect the dots",
Doroshenko et al. 2022, Algorithm 1, https://arxiv.org/abs/2207.04380): the figure is an upper bound at every
discretisation, and a finer one only makes it tighter. What floating point may hide in the Fourier transform is
charged to delta. Approximations that can under-report (central limit theorem, Gaussian DP) are not offered.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from medveil.accounting.events import Event, PoissonGaussian, Relation, RepeatAndSelect, Repeated, compose, flatten
from medveil.accounting.losses import losses_of
from medveil.accounting.renyi import renyi_delta, renyi_epsilon
from medveil.errors import ConfigError, GuaranteeError

_BY_LOSSES = "PLD, pessimistic; RDP is the cross-check"
_BY_RENYI_TUNING = "RDP: tuning has no privacy loss distribution; stated releases are added up"
_BY_RENYI_TINY = "RDP: delta is too small for the floating point of a PLD; stated releases are added up"


@dataclass(frozen=True)
class Spent:
    """What an event costs.

    Args:
        epsilon: the figure, an upper bound; >= 0.
        delta: the delta it holds at.
        epsilon_rdp: the same by Renyi DP, looser; None where Renyi DP is not known for the event and relation.
        accountant: which accountant gave the figure, and why when it is not the usual one.
        relation: ``"add-remove"`` or ``"replace-one"``.
    """

    epsilon: float
    delta: float
    epsilon_rdp: float | None
    accountant: str
    relation: Relation


def epsilon_of(event: Event, *, delta: float, relation: Relation = "add-remove") -> Spent:
    """What an event costs at ``delta``.

    Args:
        event: anything from :mod:`medveil.accounting.events`.
        delta: in (0, 1).
        relation: which data sets are neighbours.

    Raises:
        ConfigError: delta or relation out of range.
        GuaranteeError: no finite epsilon holds at this delta, or no accountant knows the event under this relation.

    Guarantees:
        The event is (epsilon, delta)-DP under the relation.

    Reference:
        Koskela et al. 2020, https://arxiv.org/abs/1906.03049

    >>> from medveil.accounting.events import Gaussian
    >>> round(epsilon_of(Gaussian(noise_multiplier=1.0), delta=1e-5).epsilon, 2)
    4.38
    """
    return _epsilon_of(compose([event]), check_delta(delta), check_relation(relation))


def bound_of(event: Event, *, delta: float, relation: Relation = "add-remove") -> float:
    """The figure of :func:`epsilon_of` alone, without the time that its cross-check takes.

    Args:
        event: anything from :mod:`medveil.accounting.events`.
        delta: in (0, 1).
        relation: which data sets are neighbours.

    Raises:
        ConfigError: delta or relation out of range.
        GuaranteeError: no finite epsilon holds at this delta, or no accountant knows the event under this relation.
    """
    return _figure(compose([event]), check_delta(delta), check_relation(relation))[0]


@lru_cache(maxsize=1024)
def _epsilon_of(event: Event, delta: float, relation: Relation) -> Spent:
    figure, accountant = _figure(event, delta, relation)
    cross_check = renyi_epsilon(event, delta, relation)
    known = cross_check is not None and math.isfinite(cross_check)
    return Spent(figure, delta, cross_check if known else None, accountant, relation)


@lru_cache(maxsize=1024)
def _figure(event: Event, delta: float, relation: Relation) -> tuple[float, str]:
    figure: float | None
    if has_tuning(event):
        figure, accountant = renyi_epsilon(event, delta, relation), _BY_RENYI_TUNING
    elif delta <= 2 * losses_of(event, relation).slack:
        figure, accountant = renyi_epsilon(event, delta, relation), _BY_RENYI_TINY
    else:
        figure, accountant = losses_of(event, relation).epsilon(delta), _BY_LOSSES
    if figure is None or not math.isfinite(figure):
        raise _no_bound(relation, delta)
    return figure, accountant


def delta_of(event: Event, *, epsilon: float, relation: Relation = "add-remove") -> float:
    """The smallest delta known to hold at ``epsilon``.

    Args:
        event: anything from :mod:`medveil.accounting.events`.
        epsilon: >= 0.
        relation: which data sets are neighbours.

    Returns:
        In [0, 1]. At epsilon 0 it bounds the total variation distance between neighbours.

    Raises:
        ConfigError: epsilon or relation out of range.
        GuaranteeError: no accountant knows the event under this relation.

    >>> from medveil.accounting.events import Stated
    >>> round(delta_of(Stated(epsilon=1.0, delta=0.25), epsilon=1.0), 6)
    0.25
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ConfigError("epsilon is out of range", got=epsilon, expected="a number >= 0", remedy="correct epsilon")
    relation = check_relation(relation)
    event = compose([event])
    if not has_tuning(event):
        return losses_of(event, relation).delta(epsilon)
    delta = renyi_delta(event, epsilon, relation)
    if delta is None:
        raise _no_bound(relation, None)
    return delta


def dp_sgd(*, sampling_rate: float, noise_multiplier: float, steps: int) -> Event:
    """DP-SGD as an event.

    Args:
        sampling_rate: in (0, 1], the probability with which a unit joins a step.
        noise_multiplier: > 0, standard deviation of the summed noise over the clipping norm.
        steps: >= 1.

    Raises:
        ConfigError: an argument is out of range.
    """
    return Repeated(event=PoissonGaussian(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier), count=steps)


def epsilon(
    *, sampling_rate: float, noise_multiplier: float, steps: int, delta: float, relation: Relation = "add-remove"
) -> float:
    """Epsilon of DP-SGD.

    Args:
        sampling_rate: in (0, 1], the probability with which a unit joins a step.
        noise_multiplier: > 0, standard deviation of the summed noise over the clipping norm.
        steps: >= 1.
        delta: in (0, 1).
        relation: which data sets are neighbours.

    Raises:
        ConfigError: an argument is out of range.
        GuaranteeError: no finite epsilon holds at this delta.

    >>> round(epsilon(sampling_rate=0.01, noise_multiplier=1.0, steps=2000, delta=1e-5), 2)
    2.58
    """
    event = dp_sgd(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)
    return bound_of(event, delta=delta, relation=relation)


def insider_epsilon(
    *,
    sampling_rate: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    sites: int,
    colluding: int,
    tolerated: int,
    relation: Relation = "add-remove",
) -> float:
    """Epsilon against the server and ``colluding`` sites that pool what they know.

    Each of n sites adds noise of multiplier sigma / sqrt(n - t); a coalition with a of them subtracts its own noise
    and is left with sigma sqrt((n - a) / (n - t)).

    Args:
        sampling_rate: in (0, 1].
        noise_multiplier: > 0, sigma: what is left when ``tolerated`` sites collude.
        steps: >= 1.
        delta: in (0, 1).
        sites: n >= 1.
        colluding: a in [0, n); 0 is the server alone.
        tolerated: t in [0, n), what the noise was calibrated for.
        relation: which data sets are neighbours.

    Raises:
        ConfigError: an argument is out of range.
        GuaranteeError: no finite epsilon holds at this delta.

    Reference:
        Dwork et al. 2006, "Our Data, Ourselves", https://doi.org/10.1007/11761679_29 (noise shared between parties)
    """
    for name, value in (("colluding", colluding), ("tolerated", tolerated)):
        if not 0 <= value < sites:
            raise ConfigError(
                f"{name} does not fit the number of sites",
                got=f"{value} of {sites}",
                expected=f"0 <= {name} < sites",
                remedy="count at least one honest site: its noise is what protects its patients",
            )
    left = noise_multiplier * math.sqrt((sites - colluding) / (sites - tolerated))
    return epsilon(sampling_rate=sampling_rate, noise_multiplier=left, steps=steps, delta=delta, relation=relation)


def has_tuning(event: Event) -> bool:
    """Whether a random number of trials is somewhere inside: only Renyi DP can account for that."""
    return any(isinstance(part, RepeatAndSelect) for part, _ in flatten(event))


def check_delta(delta: float) -> float:
    """``delta``, if it is one.

    Raises:
        ConfigError: not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ConfigError(
            "delta is out of range",
            got=delta,
            expected="a number in (0, 1)",
            remedy="choose delta well below one over the number of patients, for example 1e-5",
        )
    return delta


def check_relation(relation: str) -> Relation:
    """``relation``, if it is one.

    Raises:
        ConfigError: it is unknown.
    """
    if relation == "add-remove":
        return "add-remove"
    if relation == "replace-one":
        return "replace-one"
    raise ConfigError(
        "Unknown neighbouring relation",
        got=relation,
        expected="add-remove or replace-one",
        remedy='say "add-remove" (one unit more or less) or the stricter "replace-one" (one unit exchanged)',
    )


def _no_bound(relation: Relation, delta: float | None) -> GuaranteeError:
    at = "" if delta is None else f" at delta {delta:g}"
    return GuaranteeError(
        f"No finite epsilon is known for these events{at} under {relation}",
        remedy="raise delta above the deltas that stated releases already spend and above 1e-11; "
        "account for tuning of sampled training under add-remove",
    )
