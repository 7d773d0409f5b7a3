"""What every study of many runs checks before it trains: its lists, its settings for one epsilon, its folders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medveil.errors import ConfigError
from medveil.study.folder import RunFolder
from medveil.study.grid_plan import mechanism_of
from medveil.study.grid_runs import Cell
from medveil.study.plan import Plan


def epsilon_name(epsilon: float | None) -> str:
    """An epsilon as tables and folders write it; no two have the same name.

    >>> epsilon_name(3.0), epsilon_name(0.5), epsilon_name(None)
    ('3', '0.5', 'none')
    """
    return "none" if epsilon is None else repr(float(epsilon)).removesuffix(".0")


def check_list(what: str, values: Sequence[Any], *, remedy: str | None = None) -> None:
    """Refuse an empty list and one that names something twice.

    Raises:
        ConfigError: as said.
    """
    twice = [value for value, count in Counter(values).items() if count > 1]
    if not values or twice:
        raise ConfigError(
            f"The study's {what} are not a list of different ones",
            got=f"{twice[0]} twice" if twice else "none",
            expected=f"one or more {what}, each once",
            remedy=remedy or f"correct the list of {what}",
        )


def settings_at(
    plans: Sequence[Plan], epsilons: Sequence[float | None], at: Mapping[float | None, Sequence[Plan]]
) -> dict[float | None, dict[str, Plan]]:
    """The plans of every epsilon, by name.

    Args:
        plans: with a mechanism, as used where nothing else is said.
        epsilons: of the study; None is "none".
        at: for some of them, other plans of the same names.

    Raises:
        ConfigError: ``at`` has an epsilon that the study does not have, other plans, or one without a mechanism.
    """
    names = [plan.name for plan in plans]
    for epsilon, others in at.items():
        if epsilon not in epsilons or [plan.name for plan in others] != names:
            raise ConfigError(
                "Settings are given for an epsilon that the study does not have, or for other plans",
                got=f"epsilon {epsilon_name(epsilon)}",
                expected="an epsilon of the study, and plans of the same names",
                remedy="correct --at, or add the epsilon to --epsilon",
            )
        for plan in others:
            mechanism_of(plan)
    return {epsilon: {plan.name: plan for plan in at.get(epsilon, plans)} for epsilon in epsilons}


def check_folders(cells: Sequence[Cell]) -> None:
    """Refuse folders that were begun with other plans: all of them, before any run is trained.

    Raises:
        ResumeError: as said.
    """
    for cell in cells:
        folder = RunFolder(cell.folder)
        if folder.plan.exists():
            folder.bind_plan({"plan_hash": cell.plan.digest()})
