"""``medveil data``."""

from pathlib import Path
from typing import Any

import click

from medveil.cli.output import files, print_json


@click.group("data")
def command() -> None:
    """List, check and download data sets."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def list_sets(as_json: bool) -> None:
    """Show the public data sets that plans can name, and whether they are on this machine."""
    from medveil.study.inspect import catalogue_status

    rows = catalogue_status()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']:<16} {'here' if row['found'] else 'not here':<9} {row['title']}")


@command.command("check")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def check(data: Path, as_json: bool) -> None:
    """Read the data that a data file describes, and count what is in them and what could not be used."""
    from medveil.study.inspect import inspect_data

    content = inspect_data(data)
    print_json(content) if as_json else _print_check(content)


@command.command("download")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), help="Folder; MEDVEIL_CACHE or ~/.cache/medveil by default.")
def download(name: str, into: Path | None) -> None:
    """Download the public data set NAME from its publisher and check it."""
    from medveil.data.catalogue import cache_folder
    from medveil.data.download import download as fetch

    click.echo(f"Downloaded to {fetch(name, into=into or cache_folder())}")


def _print_check(content: dict[str, Any]) -> None:
    click.echo(
        f"{content['name']}: {content['task']}, {content['subjects']} subjects, {content['examples']} images "
        f"of shape {tuple(content['shape'])}"
    )
    click.echo(f"A subject is: {content['subject_rule']}")
    for label, count in content["labels"].items():
        click.echo(f"  {label}: {count}")
    for rejected in content["rejected"]:
        click.echo(f"Not used: {files(rejected['count'])}, {rejected['reason']}: {rejected['detail']}")
