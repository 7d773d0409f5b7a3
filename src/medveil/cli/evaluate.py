"""``medveil evaluate``."""

from pathlib import Path

import click

from medveil.cli.output import files, number, print_json


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "data", required=True, type=click.Path(path_type=Path), help="Data file (TOML).")
@click.option("--new-sites", is_flag=True, help="Accept sites that the run does not know.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def command(run: Path, data: Path, new_sites: bool, as_json: bool) -> None:
    """Score the model of RUN on the data that a data file describes.

    \b
    Example:
      medveil evaluate runs/p28 --data other-hospital.toml
    """  # noqa: D301 - click wants the character itself
    from medveil.study.evaluate import evaluate

    content = evaluate(run, data, new_sites=new_sites)
    if as_json:
        print_json(content)
        return
    described = content["data"]
    click.echo(f"{described['name']}: {described['subjects']} subjects, {described['examples']} images")
    if described["seen"]:
        click.echo(f"Warning: the run trained or validated on {described['seen']} of these images.")
    for rejected in described["rejected"]:
        click.echo(f"Not used: {files(rejected['count'])}, {rejected['reason']}: {rejected['detail']}")
    for name, estimate in content["test"].items():
        if not name.startswith("per_"):
            click.echo(
                f"{name:<20}{number(estimate['value']):>8}  {number(estimate['low'])} to {number(estimate['high'])}"
            )
