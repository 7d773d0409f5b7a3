"""How long the coordinator waits for sites elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long the coordinator waits.

    Args:
        dead_after_s: a site that is not heard of for so long is taken for dead: the run goes on without it where the
            plan allows.
        hold_s: where the plan does not allow that, the run waits so long in all for the site to come back, before it
            stops and waits for a new start of the site.
        answer_s: longest time for one answer of a site that is alive.
    """

    dead_after_s: float = 12.0
    hold_s: float = 120.0
    answer_s: float = 3600.0
