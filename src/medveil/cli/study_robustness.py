"""``medveil study robustness``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medveil.cli.output import Watcher, print_json
from medveil.cli.study_options import out_folder, out_option

if TYPE_CHECKING:
    from medveil.study.robustness_table import Robustness


@click.command("robustness")
@click.argument("plan")
@out_option("study", "runs/robustness-NAME, the plan's name")
@click.option(
    "--fractions", default="0.1,0.2,0.3", show_default=True, metavar="LIST", help="Of sites that are hostile."
)
@click.option(
    "--attacks", default="sign-flip,scaling,backdoor", show_default=True, metavar="LIST", help="What they do."
)
@click.option(
    "--settings",
    default="sum,site-bound,site-bound-obeyed,group-bound,group-median,group-both",
    show_default=True,
    metavar="LIST",
    help='What defends; also "dp" and "dp-off", which need --private. "sum" is always there.',
)
@click.option("--seed-list", default="1", show_default=True, metavar="LIST", help="Seeds of the runs.")
@click.option("--groups", type=click.IntRange(min=2), default=3, show_default=True, help="Groups of sites.")
@click.option("--l2-norm", type=float, metavar="X", help="Norm bound; by default measured in the unattacked run.")
@click.option("--scale", type=float, default=10.0, show_default=True, help="By which hostile changes are multiplied.")
@click.option("--target", type=click.IntRange(min=0), default=0, show_default=True, help="The backdoor's class.")
@click.option("--share", type=float, default=0.5, show_default=True, help="Of training images that are poisoned.")
@click.option("--private", metavar="PLAN", help="Plan with distributed differential privacy; gets PLAN's data.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option(
    "--set-private", "private_overrides", multiple=True, metavar="KEY=VALUE", help="Likewise of the private plan."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def robustness(*, plan: str, out: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train PLAN with hostile sites under every defence, and tell what the attacks reach.

    \b
    Example:
      medveil study robustness pneumonia-28 --out hostile --set 'data.partition={kind="iid", sites=10}'
    """  # noqa: D301 - click wants the character itself
    fractions = _numbers(options["fractions"], float, "--fractions")
    seeds = _numbers(options["seed_list"], int, "--seed-list")
    from medveil.study.plan import load_plan
    from medveil.study.robustness import Hostile
    from medveil.study.robustness import robustness as run_study

    private = options["private"]
    loaded = load_plan(plan, options["overrides"])
    folder = out_folder(out, "robustness", loaded.name)
    study = run_study(
        loaded,
        folder,
        settings=_words(options["settings"]),
        hostile=Hostile(
            attacks=_words(options["attacks"]),
            fractions=fractions,
            scale=options["scale"],
            target=options["target"],
            share=options["share"],
        ),
        seeds=seeds,
        groups=options["groups"],
        l2_norm=options["l2_norm"],
        private=None if private is None else load_plan(private, options["private_overrides"]),
        progress=Watcher(quiet=quiet),
    )
    from medveil.report.robustness import write_figure

    _print(study, folder, write_figure(study, folder), as_json)


def _print(study: "Robustness", out: Path, figures: tuple[Path, ...], as_json: bool) -> None:
    from medveil.study.robustness_table import markdown, to_json

    if as_json:
        print_json(to_json(study))
        return
    click.echo(markdown(study))
    click.echo(f"Tables: {out / 'table.md'}, {out / 'table.csv'}, {out / 'table.json'}")
    click.echo(f"Figure: {', '.join(map(str, figures))}")


def _words(text: str) -> Any:
    return tuple(part.strip() for part in text.split(","))


def _numbers(text: str, kind: Any, option: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers", param_hint=option) from None
