"""``medveil train``."""

from pathlib import Path
from typing import Any

import click

from medveil.cli.output import Watcher, number, print_json
from medveil.study.card import privacy_lines


@click.command("train")
@click.argument("plan")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; a run that was interrupted there goes on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option(
    "--ledger",
    "ledgers",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the sites' privacy ledgers, one file a site; default: inside the run folder.",
)
@click.option("--dry-run", is_flag=True, help="Check the plan and say what it would do, without touching data.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@click.option("--report/--no-report", default=True, help="Also make the HTML report.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    plan: str,
    out: Path | None,
    overrides: tuple[str, ...],
    ledgers: Path | None,
    dry_run: bool,
    as_json: bool,
    report: bool,
    quiet: bool,
) -> None:
    """Train the model of PLAN (a TOML file, or the name of a shipped plan) over its sites.

    \b
    Examples:
      medveil train phantom --out runs/first
      medveil train plans/pneumonia-28.toml --out runs/p28 --set federation.rounds=5
      medveil train pneumonia-28 --dry-run
    """  # noqa: D301 - click wants the character itself
    from medveil.study.plan import load_plan

    loaded = load_plan(plan, overrides)
    if dry_run:
        from medveil.study.dry_run import dry_run as describe_plan

        content = describe_plan(loaded)
        print_json(content) if as_json else _print_dry_run(content)
        return
    if out is None:
        raise click.UsageError("--out is missing: name a folder for the run, for example --out runs/first")
    from medveil.study.train import train

    record = train(loaded, out, Watcher(quiet=quiet), ledgers=ledgers)
    path = None
    if report:
        from medveil.report.page import write_report

        path = write_report(out)
    print_json(record) if as_json else print_record(record, out, path)


def _print_dry_run(content: dict[str, Any]) -> None:
    click.echo(f"Plan {content['name']} ({content['plan_hash'][:12]}): {content['task']}, seed {content['seed']}")
    for key in ("data", "sites", "model", "training", "references", "communication", "protection", "output"):
        click.echo(f"  {key}: {content['summary'][key]}")
    if "secure_aggregation" in content["summary"]:
        click.echo(f"  secure aggregation: {content['summary']['secure_aggregation']}")
    for line in privacy_lines(content["privacy"]):
        click.echo(f"  {line}")
    click.echo("Nothing was read and nothing was trained.")


def print_record(record: dict[str, Any], out: Path, report: Path | None) -> None:
    """The figures of a finished run, as a table."""
    if record["data"]["kind"] == "phantom":
        click.echo("Synthetic phantom images: the figures below say nothing about patients.")
    references = record["references"]
    central, local = references["central"] or {}, references["local_only"] or {}
    click.echo(f"{'test metric':<20}{'federated':>10}{'interval':>18}{'central':>10}{'local only':>12}")
    for name, estimate in record["test"].items():
        if name.startswith("per_"):
            continue
        interval = f"{number(estimate['low'])} to {number(estimate['high'])}"
        columns = f"{number(central.get(name)):>10}{number(local.get(name)):>12}"
        click.echo(f"{name:<20}{number(estimate['value']):>10}{interval:>18}{columns}")
    for external in record["external"]:
        for name, fall in external["fall"].items():
            if name in ("auc", "dice"):
                click.echo(
                    f"On {external['name']}: {name} {number(external['test'][name]['value'])}, a fall of {fall:.3f}"
                )
    for line in privacy_lines(record["privacy"]):
        click.echo(line)
    cost = record["cost"]
    sent = max(cost["bytes_sent_per_site"].values(), default=0) / 1e6
    click.echo(
        f"{cost['seconds']:.0f} s, {cost['peak_memory_mb']:.0f} MB at the peak, {sent:.1f} MB sent by the busiest site"
    )
    click.echo(f"Run: {out}")
    if report is not None:
        click.echo(f"Report: {report}")
