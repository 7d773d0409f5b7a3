"""``medveil report``."""

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file; report.html in the run folder by default.")
def command(run: Path, out: Path | None) -> None:
    """Make one self-contained HTML file of the finished run in the folder RUN.

    \b
    Example:
      medveil report runs/p28
    """  # noqa: D301 - click wants the character itself
    from medveil.report.page import write_report
    from medveil.study.manifest import verify_manifest

    verify_manifest(run)  # a report of changed files would vouch for them
    click.echo(f"Report: {write_report(run, out)}")
