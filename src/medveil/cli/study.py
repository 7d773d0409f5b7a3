"""``medveil study``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medveil.cli.output import Watcher, print_json
from medveil.cli.study_compare import compare
from medveil.cli.study_options import epsilons as read_epsilons
from medveil.cli.study_options import per_epsilon as read_per_epsilon
from medveil.cli.study_options import run_options, seed_options
from medveil.cli.study_options import seeds as read_seeds
from medveil.cli.study_robustness import robustness

if TYPE_CHECKING:
    from medveil.study.grid_result import Grid


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
@seed_options
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of every plan.")
@click.option(
    "--at",
    "per_epsilon",
    multiple=True,
    metavar="EPSILON:KEY=VALUE",
    help="Change one setting of every plan at one epsilon only, for example 1:training.optimiser.lr=0.25.",
)
@run_options
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
    seeds = read_seeds(count, listed)
    wanted = read_epsilons(epsilons)
    from medveil.study.epsilon_grid import epsilon_grid as run_grid
    from medveil.study.plan import load_plan

    changes = read_per_epsilon(per_epsilon)
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


command.add_command(compare)
command.add_command(robustness)
