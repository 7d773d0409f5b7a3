"""``medveil budget``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from medveil.cli.output import number, print_json

_LEDGER = click.option(
    "--ledger", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The site's privacy ledger."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


@click.group("budget")
def command() -> None:
    """Set privacy caps, show what is spent, verify and export the ledger."""


@command.command("show")
@_LEDGER
@click.option("--delta", type=float, help="Measure at this delta; each cap's own by default.")
@_JSON
def show(ledger: Path, delta: float | None, as_json: bool) -> None:
    """Show cap, spent and remaining epsilon of each data set and patient group."""
    from medveil.accounting.budget import show as show_budgets

    lines = show_budgets(ledger, delta=delta)
    if as_json:
        print_json(lines)
        return
    for line in lines:
        _print_line(line)
    if not lines:
        click.echo("The ledger is empty.")


@command.command("verify")
@_LEDGER
@click.option("--head", help="A head hash that was kept elsewhere; some row must have it.")
@click.option("--renew-head", is_flag=True, help="Write a lost head file anew, if all the rest holds; needs --head.")
@_JSON
def verify(ledger: Path, head: str | None, renew_head: bool, as_json: bool) -> None:
    """Check that the ledger is as it was written; name the first row that is not (exit code 7)."""
    from medveil.accounting.budget import verify as verify_ledger

    found = verify_ledger(ledger, head=head, renew_head=renew_head)
    if as_json:
        print_json({**asdict(found), "ok": found.ok})
    elif found.ok:
        click.echo(f"{found.entries} rows, unchanged. Head: {found.head}")
    else:
        click.echo(f"Not as it was written: {found.problem}")
    if not found.ok:
        from medveil.errors import LedgerError

        click.get_current_context().exit(LedgerError.exit_code)


@command.command("export")
@_LEDGER
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write; standard output if none.")
def export(ledger: Path, out: Path | None) -> None:
    """Write every row as one line of JSON; the last line's hash is the head hash."""
    from medveil.accounting.budget import export as export_rows

    lines = [json.dumps(row, sort_keys=True) for row in export_rows(ledger)]
    if out is None:
        click.echo("\n".join(lines))
        return
    out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    click.echo(f"{len(lines)} rows. Head: {json.loads(lines[-1])['hash'] if lines else 'none yet'}")


@command.command("set")
@_LEDGER
@click.option("--dataset", required=True, help="Name of the data set.")
@click.option("--group", default="*", show_default=True, help="Patient group; * is every patient.")
@click.option("--epsilon", required=True, type=float, help="The most that may be spent.")
@click.option("--delta", required=True, type=float, help="The delta that epsilon is measured at.")
@click.option("--relation", required=True, type=click.Choice(["add-remove", "replace-one"]), help="Neighbours.")
@click.option("--unit", required=True, help="Privacy unit, for example patient.")
def set_cap(
    ledger: Path,
    dataset: str,
    group: str,
    epsilon: float,
    delta: float,
    relation: Literal["add-remove", "replace-one"],
    unit: str,
) -> None:
    """Set or change a cap; makes the ledger where there is none."""
    from medveil.accounting.budget import set_cap as set_budget

    set_budget(ledger, dataset=dataset, group=group, epsilon=epsilon, delta=delta, relation=relation, unit=unit)
    click.echo(f"{dataset}, group {group}: at most epsilon {epsilon:g} at delta {delta:g}, {relation}, per {unit}")


@command.command("close")
@click.argument("run")
@_LEDGER
def close(run: str, ledger: Path) -> None:
    """Give back what RUN planned and never reserved, when it will not go on."""
    from medveil.accounting.budget import close as close_run

    close_run(ledger, run)
    click.echo(f"{run} holds nothing back any more. What it reserved stays spent.")


def _print_line(line: dict[str, Any]) -> None:
    cap = line["cap"]
    click.echo(f"{line['dataset']}, group {line['group']}, per {line['unit']}, {line['relation']}")
    said = "none" if cap is None else f"epsilon {cap['epsilon']:g} at delta {cap['delta']:g} for group {cap['group']}"
    click.echo(f"  cap        {said}")
    at = "no delta to measure at: give --delta" if line["delta"] is None else f"at delta {line['delta']:g}"
    click.echo(f"  spent      {number(line['epsilon'])} {at}, {line['releases']} releases")
    click.echo(f"  held       {number(line['held'])} with open runs as planned")
    click.echo(f"  remaining  {number(line['remaining'])}")
    click.echo(f"  runs       {', '.join(line['runs']) or '-'}")
    click.echo(f"  open runs  {', '.join(line['open_runs']) or '-'}")
    click.echo(f"  open reservations  {len(line['open_reservations'])}")
