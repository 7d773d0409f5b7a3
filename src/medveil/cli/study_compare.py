"""``medveil study compare``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medveil.cli.output import Watcher, print_json
from medveil.cli.study_options import epsilons as read_epsilons
from medveil.cli.study_options import out_folder, out_option, run_options, seed_options
from medveil.cli.study_options import per_epsilon as read_per_epsilon
from medveil.cli.study_options import seeds as read_seeds

if TYPE_CHECKING:
    from medveil.study.compare_result import Comparison


@click.command("compare")
@click.argument("plan")
@out_option("comparison", "runs/compare-NAME, the plan's name")
@click.option(
    "--arms",
    metavar="LIST",
    help="Of central-dp, distributed-dp-t0, distributed-dp-t1 (or another number), local-dp, secure-sum, federated; "
    "all by default.",
)
@click.option(
    "--epsilon",
    "epsilons",
    metavar="LIST",
    help="Epsilons of the arms with differential privacy; the plan's own by default.",
)
@seed_options
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option(
    "--at",
    "per_epsilon",
    multiple=True,
    metavar="EPSILON:KEY=VALUE",
    help='Change one setting at one epsilon only; "none" is for the arms without differential privacy.',
)
@click.option(
    "--local-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps of a round of local privacy; by default the largest divisor of federation.rounds up to 5.",
)
@click.option(
    "--references/--no-references",
    default=True,
    show_default=True,
    help="Whether the unprotected arm also trains one model on all data and one a site.",
)
@run_options
def compare(
    *,
    plan: str,
    out: Path | None,
    arms: str | None,
    epsilons: str | None,
    count: int | None,
    listed: str | None,
    overrides: tuple[str, ...],
    per_epsilon: tuple[str, ...],
    local_steps: int | None,
    references: bool,
    ledgers: Path | None,
    jobs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train PLAN (distributed differential privacy) under other trust, and put what each arm reaches side by side.

    \b
    Example:
      medveil study compare pneumonia-28-private --out trust --seed-list 1,2,3
    """  # noqa: D301 - click wants the character itself
    seeds, wanted, changes = read_seeds(count, listed), _numbers(epsilons), read_per_epsilon(per_epsilon)
    from medveil.study.compare import compare as run_comparison
    from medveil.study.plan import load_plan

    loaded = load_plan(plan, overrides)
    folder = out_folder(out, "compare", loaded.name)
    comparison = run_comparison(
        loaded,
        folder,
        arms=None if arms is None else [arm.strip() for arm in arms.split(",")],
        epsilons=wanted,
        seeds=seeds,
        at={at: load_plan(plan, [*overrides, *more]) for at, more in changes.items()},
        local_steps=local_steps,
        references=references,
        ledgers=ledgers,
        jobs=jobs,
        progress=Watcher(quiet=quiet),
    )
    from medveil.report.compare import write_figure

    _print(comparison, folder, write_figure(comparison, folder), as_json)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    found = read_epsilons(text)
    numbers = [epsilon for epsilon in found if epsilon is not None]
    if len(numbers) < len(found):
        raise click.BadParameter(
            '"none" is no epsilon here: arms without differential privacy have names, see --arms',
            param_hint="--epsilon",
        )
    return numbers


def _print(comparison: "Comparison", out: Path, figures: tuple[Path, ...], as_json: bool) -> None:
    from medveil.study.compare_table import markdown, to_json

    if as_json:
        print_json(to_json(comparison))
        return
    click.echo(markdown(comparison))
    click.echo(f"Tables: {out / 'table.md'}, {out / 'table.csv'}, {out / 'table.json'}")
    click.echo(f"Figure: {', '.join(map(str, figures))}")
