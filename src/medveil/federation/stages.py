"""The privacy pipeline: each technology is one stage with two hooks and a declaration.

Stages run in plan order at the site and in reverse at the server. Taking a stage out of the plan takes the
technology out. Which orders are legal is decided here, before any data is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field

from medveil.configuration import Config, parse_config
from medveil.errors import PipelineError
from medveil.federation.update import Update

Role = Literal["transform", "clip", "noise", "quantise", "mask"]
_ORDER: tuple[Role, ...] = ("transform", "clip", "noise", "quantise", "mask")


@dataclass(frozen=True)
class StageContext:
    """Where in the run a stage stands.

    Args:
        round: counted from 1.
        site: name of the site, or None at the server.
        sites: names of the sites whose updates are (or will be) summed.
    """

    round: int
    site: str | None
    sites: tuple[str, ...]


class Stage(Protocol):
    """One technology in the pipeline.

    ``role`` places it in the legal order; ``describe`` is what the report says about it.
    """

    role: ClassVar[Role]

    def at_site(self, update: Update, context: StageContext) -> Update:
        """What leaves the site instead of ``update``."""
        ...

    def at_server(self, total: Update, context: StageContext) -> Update:
        """Undo at the server what can be undone on the sum."""
        ...

    def event(self, context: StageContext) -> object | None:
        """What a release spends, for the accountant; None when it promises nothing."""
        ...

    def describe(self) -> str:
        """One sentence for the report, with its guarantee or the absence of one."""
        ...


class NormBound(Config):
    """Settings of :class:`NormBoundStage`."""

    kind: Literal["norm_bound"] = "norm_bound"
    l2_norm: float = Field(gt=0)


class NormBoundStage:
    """Scale a site's mean change down to an L2 norm, so that no site moves the model further than the others.

    Not a privacy guarantee: it bounds what a broken or hostile site can do in a round, nothing else.
    """

    role: ClassVar[Role] = "clip"

    def __init__(self, config: NormBound) -> None:
        self._bound = config.l2_norm

    def at_site(self, update: Update, context: StageContext) -> Update:
        """Clip the mean change to the bound."""
        del context
        mean = update.mean()
        norm = float(np.linalg.norm(mean))
        if norm <= self._bound:
            return update
        return update.with_vector(mean * (self._bound / norm) * update.weight)

    def at_server(self, total: Update, context: StageContext) -> Update:
        """Nothing to undo."""
        del context
        return total

    def event(self, context: StageContext) -> object | None:
        """Spends nothing and promises nothing."""
        del context
        return None

    def describe(self) -> str:
        """One sentence for the report."""
        return f"Each site's change a round was limited to L2 norm {self._bound:g} (robustness, not privacy)."


_REGISTRY: dict[str, tuple[type[BaseModel], Callable[[Any], Stage]]] = {}


def register_stage(kind: str, config: type[BaseModel], build: Callable[[Any], Stage]) -> None:
    """Make ``kind`` known to plans.

    Raises:
        PipelineError: the kind is taken.
    """
    if kind in _REGISTRY:
        raise PipelineError("Two stages claim one kind", got=kind, remedy="give the new stage a kind of its own")
    _REGISTRY[kind] = (config, build)


register_stage("norm_bound", NormBound, NormBoundStage)


class Pipeline:
    """Stages in a legal order.

    Args:
        stages: in plan order.

    Raises:
        PipelineError: two stages of one role, or an order other than transform, clip, noise, quantise, mask.
    """

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        self.stages = tuple(stages)
        roles = [stage.role for stage in self.stages]
        ranks = [_ORDER.index(role) for role in roles]
        if ranks != sorted(set(ranks)):
            raise PipelineError(
                "The stages of the privacy pipeline stand in an order that would break a guarantee",
                got=" -> ".join(roles),
                expected="each role at most once, in the order " + " -> ".join(_ORDER),
                remedy="reorder [[privacy.stages]] in the plan",
            )

    def at_site(self, update: Update, context: StageContext) -> Update:
        """Run every stage's site hook, in plan order."""
        for stage in self.stages:
            update = stage.at_site(update, context)
        return update

    def at_server(self, total: Update, context: StageContext) -> Update:
        """Run every stage's server hook, in reverse order."""
        for stage in reversed(self.stages):
            total = stage.at_server(total, context)
        return total

    def events(self, context: StageContext) -> tuple[object, ...]:
        """What the stages spend in this round, for the accountant."""
        spent = (stage.event(context) for stage in self.stages)
        return tuple(event for event in spent if event is not None)

    def describe(self) -> list[str]:
        """One sentence a stage."""
        return [stage.describe() for stage in self.stages]


def build_pipeline(tables: Sequence[Mapping[str, object]], private: Sequence[Stage] = ()) -> Pipeline:
    """The pipeline that a plan's ``[[privacy.stages]]`` describe, and then the stages of its privacy mechanism.

    Raises:
        PipelineError: an unknown kind, or an illegal order.
        ConfigError: a stage's settings are wrong.
    """
    stages = []
    for number, table in enumerate(tables):
        kind = table.get("kind")
        if not isinstance(kind, str) or kind not in _REGISTRY:
            raise PipelineError(
                "The plan names a stage that this version does not have",
                got=f"privacy.stages[{number}].kind = {kind!r}",
                expected="one of " + ", ".join(sorted(_REGISTRY)),
                remedy="correct the name, or upgrade medveil",
            )
        config, build = _REGISTRY[kind]
        stages.append(build(parse_config(config, table, where=f"privacy.stages[{number}]")))
    return Pipeline([*stages, *private])
