"""``medveil study``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medveil.cli.output import Watcher, print_json

if TYPE_CHECKING:
    from medveil.study.grid_result import Grid

_NONE = "none"


@click.group("study")
def command() -> None:
    """Train many runs and put what they reached side by side."""


@command.command("epsilon-grid")
@click.argument("plans", nargs=-1, required=True, metavar="PLAN...")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the grid; one that was interrupted there goes on.",
)
@click.option(
    "--epsilon",
    "epsilons",
    default="0.5,1,3,8,none",
    show_default=True,
    metavar="LIST",
    help='Epsilons, and "none" for the plan without its protection.',
)
@click.option("--seeds", "count", type=click.IntRange(min=1), metavar="N", help="Seeds 1 to N; 3 by default.")
@click.option("--seed-list", "listed", metavar="LIST", help="These seeds instead, for example 1,5,7.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of every plan.")
@click.option(
    "--at",
    "per_epsilon",
    multiple=True,
    metavar="EPSILON:KEY=VALUE",
    help="Change one setting of every plan at one epsilon only, for example 1:training.optimiser.lr=0.25.",
)
@click.option(
    "--ledger",
    "ledgers",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the sites' privacy ledgers, which then compose all runs; default: inside each run folder.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def epsilon_grid(
    *,
    plans: tuple[str, ...],
    out: Path,
    epsilons: str,
    count: int | None,
    listed: str | None,
    overrides: tuple[str, ...],
    per_epsilon: tuple[str, ...],
    ledgers: Path | None,
    jobs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train every PLAN at every epsilon with every seed, and draw accuracy against epsilon.

    \b
    Example:
      medveil study epsilon-grid central.toml local.toml --out grid --epsilon 1,3,8,none --seeds 3
    """  # noqa: D301 - click wants the character itself
    seeds = _seeds(count, listed)
    wanted = _epsilons(epsilons)
    from medveil.study.epsilon_grid import epsilon_grid as run_grid
    from medveil.study.plan import load_plan

    changes = _per_epsilon(per_epsilon)
    grid = run_grid(
        [load_plan(plan, overrides) for plan in plans],
        out,
        epsilons=wanted,
        seeds=seeds,
        at={at: [load_plan(plan, [*overrides, *more]) for plan in plans] for at, more in changes.items()},
        ledgers=ledgers,
        jobs=jobs,
        progress=Watcher(quiet=quiet),
    )
    from medveil.report.epsilon_grid import write_figure

    figures = write_figure(grid, out)
    _print(grid, out, figures, as_json)


def _print(grid: "Grid", out: Path, figures: tuple[Path, ...], as_json: bool) -> None:
    from medveil.study.grid_table import markdown, to_json

    if as_json:
        print_json(to_json(grid))
        return
    click.echo(markdown(grid))
    click.echo(f"Tables: {out / 'table.md'}, {out / 'table.csv'}, {out / 'table.json'}")
    click.echo(f"Figure: {', '.join(map(str, figures))}")


def _per_epsilon(changes: tuple[str, ...]) -> dict[float | None, list[str]]:
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


def _epsilons(text: str) -> list[float | None]:
    try:
        return [_epsilon(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is not a list of numbers and "none", for example 1,3,none', param_hint="--epsilon"
        ) from None


def _seeds(count: int | None, listed: str | None) -> list[int]:
    if count is not None and listed is not None:
        raise click.UsageError("--seeds and --seed-list exclude each other: give one of the two")
    if listed is None:
        return list(range(1, (count or 3) + 1))
    try:
        return [int(part) for part in listed.split(",")]
    except ValueError:
        raise click.BadParameter(f"{listed!r} is not a list of whole numbers", param_hint="--seed-list") from None
