"""``medveil attack``."""

from pathlib import Path
from typing import Any

import click

from medveil.cli.output import number, print_json


@click.command("attack")
@click.argument("target", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Fewer images, shadow models and noise levels: a minute or a few.")
@click.option("--only", multiple=True, metavar="NAME", help="One attack; may be given again. Default: all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--report/--no-report", default=True, help="Also make the run's HTML report again.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(target: Path, quick: bool, only: tuple[str, ...], as_json: bool, report: bool, quiet: bool) -> None:
    """Attack the model and updates of RUN (a finished run's folder, or a plan), with and without protection.

    Exit code 7 when an attack did better than theory allows: then clip or noise is not what the plan says.
    Results are kept in the run folder and shown in its report. An attack that fails is no proof of protection; one
    that succeeds is a proof of the lack of it.

    \b
    Examples:
      medveil attack runs/p28 --quick
      medveil attack runs/p28 --only inversion --only membership --json
    """  # noqa: D301 - click wants the character itself
    from medveil.study.red_team import red_team

    def tell(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    content = red_team(target, effort="quick" if quick else "default", only=only, tell=tell)
    path = None
    if report and target.is_dir():
        from medveil.report.page import write_report

        path = write_report(target)
    print_json(content) if as_json else _print(content)
    if path is not None and not as_json:
        click.echo(f"Report: {path}")
    if any(_broken(attack) for attack in content["attacks"]):
        from medveil.errors import GuaranteeError

        click.get_current_context().exit(GuaranteeError.exit_code)


def _broken(attack: dict[str, Any]) -> bool:
    """Whether an attack did better than theory allows: the clip or the noise is not what the plan says."""
    outcomes = [attack.get("protected"), *attack.get("curve", ())]
    return any(one["figures"].get("bound_kept", {}).get("value") == 0 for one in outcomes if one is not None)


def _print(content: dict[str, Any]) -> None:
    click.echo(f"{'attack':<16}{'success is':<28}{'unprotected':>12}{'protected':>11}{'control':>9}{'bound':>8}")
    for attack in content["attacks"]:
        if "not_tried" in attack:
            click.echo(f"{attack['name']:<16}not tried: {attack['not_tried']}")
            continue
        name = attack["success"]
        figures = [_value(attack[row], name) for row in ("unprotected", "protected", "control")]
        worked = "" if attack["succeeded_unprotected"] else "  the attack did not work: its protected row shows nothing"
        click.echo(
            f"{attack['name']:<16}{name:<28}{figures[0]:>12}{figures[1]:>11}{figures[2]:>9}"
            f"{number(attack['bound']):>8}{worked}"
        )
    for attack in content["attacks"]:
        for finding in attack.get("findings", ()):
            click.echo(f"- {finding}")
    click.echo(f"{content['seconds']:.0f} s")


def _value(outcome: dict[str, Any] | None, name: str) -> str:
    return "" if outcome is None else number((outcome["figures"].get(name) or {}).get("value"))
