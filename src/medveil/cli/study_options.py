"""What the verbs below ``medveil study`` share: options and how their lists are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_NONE = "none"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def seed_options(command: _Command) -> _Command:
    """Which seeds."""
    options = (
        click.option("--seeds", "count", type=click.IntRange(min=1), metavar="N", help="Seeds 1 to N; 3 by default."),
        click.option("--seed-list", "listed", metavar="LIST", help="These seeds instead, for example 1,5,7."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def out_option(what: str, default: str) -> Callable[[_Command], _Command]:
    """Where the runs and tables go; :func:`out_folder` gives the default."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Folder of the {what}; one that was interrupted there goes on. By default {default}.",
    )


def out_folder(out: Path | None, verb: str, plan_name: str) -> Path:
    """``--out``, or ``runs/<verb>-<plan's name>`` in the working folder."""
    return out or Path("runs") / f"{verb}-{plan_name}"


def run_options(command: _Command) -> _Command:
    """How runs are made and told."""
    options = (
        click.option(
            "--ledger",
            "ledgers",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the sites' privacy ledgers, which then compose all runs; default: inside each run folder.",
        ),
        click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time."),
        click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on standard output."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def per_epsilon(changes: tuple[str, ...]) -> dict[float | None, list[str]]:
    """``--at``: overrides by epsilon; None is "none".

    Raises:
        BadParameter: not of the form EPSILON:KEY=VALUE.
    """
    found: dict[float | None, list[str]] = {}
    for change in changes:
        epsilon, colon, override = change.partition(":")
        try:
            at = _epsilon(epsilon)
        except ValueError:
            colon = ""
        if not colon:
            raise click.BadParameter(
                f"{change!r} is not of the form EPSILON:KEY=VALUE, for example 1:training.optimiser.lr=0.25",
                param_hint="--at",
            )
        found.setdefault(at, []).append(override)
    return found


def _epsilon(text: str) -> float | None:
    return None if text.strip() == _NONE else float(text)


def epsilons(text: str) -> list[float | None]:
    """``--epsilon``: numbers and "none".

    Raises:
        BadParameter: anything else.
    """
    try:
        return [_epsilon(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is not a list of numbers and "none", for example 1,3,none', param_hint="--epsilon"
        ) from None


def seeds(count: int | None, listed: str | None) -> list[int]:
    """``--seeds`` and ``--seed-list``; 1, 2, 3 where neither is given.

    Raises:
        BadParameter: not a list of whole numbers.
        UsageError: both are given.
    """
    if count is not None and listed is not None:
        raise click.UsageError("--seeds and --seed-list exclude each other: give one of the two")
    if listed is None:
        return list(range(1, (count or 3) + 1))
    try:
        return [int(part) for part in listed.split(",")]
    except ValueError:
        raise click.BadParameter(f"{listed!r} is not a list of whole numbers", param_hint="--seed-list") from None
