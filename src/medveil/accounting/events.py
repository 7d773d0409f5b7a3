"""What was done to the data, as data: frozen events that an accountant turns into epsilon later.

An event says which mechanism ran and how often. The ledger stores events rather than epsilons, because epsilons of
single runs can only be added up, while events compose tightly (Koskela et al. 2020, https://arxiv.org/abs/1906.03049).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from medveil.configuration import Config, parse_config
from medveil.errors import ConfigError

Relation = Literal["add-remove", "replace-one"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Event(Config):
    """Base of the events: what pydantic refuses becomes a ConfigError."""

    @model_validator(mode="wrap")
    @classmethod
    def _typed_error(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise _event_error(cls.__name__, error) from None


class Gaussian(_Event):
    """One release of a sum under the Gaussian mechanism, every unit taking part.

    Attributes:
        noise_multiplier: > 0, standard deviation of the noise divided by the L2 sensitivity (add/remove one unit).

    Reference:
        Balle & Wang 2018, Theorem 8, https://arxiv.org/abs/1805.06530
    """

    kind: Literal["gaussian"] = "gaussian"
    noise_multiplier: Positive


class PoissonGaussian(_Event):
    """One step of DP-SGD: each unit joins independently, the clipped sum gets Gaussian noise.

    Attributes:
        sampling_rate: in (0, 1], the probability with which a unit joins.
        noise_multiplier: > 0, as in :class:`Gaussian`.

    Reference:
        Abadi et al. 2016, Algorithm 1, https://arxiv.org/abs/1607.00133
    """

    kind: Literal["poisson_gaussian"] = "poisson_gaussian"
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Positive


class Laplace(_Event):
    """One release of numbers under the Laplace mechanism, for example a noisy count.

    Attributes:
        noise_multiplier: > 0, scale b of the noise divided by the L1 sensitivity; epsilon is its inverse.

    Reference:
        Dwork et al. 2006, Proposition 1, https://doi.org/10.1007/11681878_14
    """

    kind: Literal["laplace"] = "laplace"
    noise_multiplier: Positive


class Stated(_Event):
    """A release that others made and whose mechanism we do not know: only its (epsilon, delta) is.

    Attributes:
        epsilon: in [0, 700].
        delta: in [0, 1).
        relation: the neighbouring relation that the guarantee was stated for.
    """

    kind: Literal["stated"] = "stated"
    epsilon: Annotated[float, Field(ge=0, le=700)]
    delta: Annotated[float, Field(ge=0, lt=1)]
    relation: Relation = "add-remove"


class Repeated(_Event):
    """The same event ``count`` times, each free to depend on what came before.

    Attributes:
        event: what is repeated.
        count: >= 1.
    """

    kind: Literal["repeated"] = "repeated"
    event: "Event"
    count: Count


class Composed(_Event):
    """Several events on the same data, each free to depend on what came before.

    Attributes:
        events: any number; none costs nothing.
    """

    kind: Literal["composed"] = "composed"
    events: tuple["Event", ...]


class RepeatAndSelect(_Event):
    """Tuning: run an event a random number of times and release only the best outcome.

    The number of runs must be drawn from the stated distribution and kept secret.

    Attributes:
        event: one run, the score that picks the winner included.
        mean_trials: mean number of runs; > 1 for the truncated negative binomial, >= 1 for Poisson.
        shape: eta >= 0 of the truncated negative binomial (0 logarithmic, 1 geometric) or ``"poisson"``.

    Reference:
        Papernot & Steinke 2022, Definition 1, Theorems 2 and 6, https://arxiv.org/abs/2110.03620
    """

    kind: Literal["repeat_and_select"] = "repeat_and_select"
    event: "Event"
    mean_trials: Annotated[float, Field(ge=1)]
    shape: Annotated[float, Field(ge=0)] | Literal["poisson"] = 1.0

    @model_validator(mode="after")
    def _at_least_one_run(self) -> Self:
        if self.shape != "poisson" and self.mean_trials <= 1:
            raise ConfigError(
                "A truncated negative binomial number of trials is at least one, so its mean is above one",
                got=self.mean_trials,
                expected="mean_trials > 1",
                remedy='raise mean_trials, use shape = "poisson", or account the single run itself',
            )
        return self


Event = Annotated[
    Gaussian | PoissonGaussian | Laplace | Stated | Repeated | Composed | RepeatAndSelect,
    Field(discriminator="kind"),
]

for _recursive in (Repeated, Composed, RepeatAndSelect):
    _recursive.model_rebuild()


class _Envelope(Config):
    event: Event


def parse_event(values: object) -> Event:
    """Read an event back from what ``event.model_dump(mode="json")`` wrote.

    Args:
        values: a dictionary with a ``kind``, as JSON gives it.

    Raises:
        ConfigError: not an event, an unknown kind or key, or a value out of range.

    >>> parse_event({"kind": "gaussian", "noise_multiplier": 2.0})
    Gaussian(kind='gaussian', noise_multiplier=2.0)
    """
    return parse_config(_Envelope, {"event": values}, where="privacy event").event


def compose(events: Iterable[Event]) -> Event:
    """All events as one, equal ones merged so that a thousand steps cost one self-composition.

    Order and nesting do not matter to any accountant here, so both are flattened away.

    Args:
        events: in any order; may be empty.

    Returns:
        The event itself, a :class:`Repeated`, or a flat :class:`Composed` of distinct events in order of appearance.

    Guarantees:
        Costs exactly what composing the events one after another costs.

    >>> compose([Gaussian(noise_multiplier=2.0)] * 3).model_dump()["count"]
    3
    """
    counts: Counter[Event] = Counter()
    for event in events:
        for simple, count in flatten(event):
            counts[simple] += count
    parts = tuple(event if count == 1 else Repeated(event=event, count=count) for event, count in counts.items())
    return parts[0] if len(parts) == 1 else Composed(events=parts)


def flatten(event: Event, count: int = 1) -> Iterator[tuple[Event, int]]:
    """The mechanisms inside an event, each with how often it ran.

    Args:
        event: any event; tuning is one mechanism and is not opened.
        count: how often the whole event ran.
    """
    match event:
        case Repeated():
            yield from flatten(event.event, count * event.count)
        case Composed():
            for part in event.events:
                yield from flatten(part, count)
        case _:
            yield event, count


def _event_error(name: str, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "(top level)"
    return ConfigError(
        f"{name}: {place} is not valid",
        got=first.get("input"),
        expected=first["msg"],
        remedy="docs/explanation/accounting.md lists every event with its ranges",
    )
