"""``medveil doctor``."""

import click

from medveil.cli.output import print_json

_SIGNS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def command(as_json: bool) -> None:
    """Check this machine and installation; exit with 1 when something would stop a run."""
    from medveil.study.doctor import examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            remedy = f" -> {finding['remedy']}" if finding["remedy"] else ""
            click.echo(f"{_SIGNS[finding['state']]} {finding['what']}: {finding['found']}{remedy}")
    if any(finding["state"] == "problem" for finding in findings):
        raise click.exceptions.Exit(1)
