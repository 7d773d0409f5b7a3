"""``medveil audit``."""

from typing import Any

import click

from medveil.cli.output import number, print_json


@click.group("audit")
def command() -> None:
    """Measure whether the private step does what the plan claims; evidence, not proof."""


@command.command("components")
@click.argument("plan")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of the plan.")
@click.option("--steps", type=click.IntRange(min=2), help="Steps in which sampling is watched; enough by default.")
@click.option("--shape", metavar="C,H,W", help="Shape of an image, where only the data know it.")
@click.option("--classes", type=click.IntRange(min=2), help="Number of classes, where only the data know it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def components(
    plan: str, overrides: tuple[str, ...], steps: int | None, shape: str | None, classes: int | None, as_json: bool
) -> None:
    """Measure sensitivity, noise and sampling of PLAN's step on noise images; exit code 7 when one is not as claimed.

    \b
    Examples:
      medveil audit components plans/private.toml
      medveil audit components plans/private.toml --steps 500 --json
    """  # noqa: D301 - click wants the character itself
    from medveil.audit.planned import audit_plan
    from medveil.study.plan import load_plan

    found = audit_plan(load_plan(plan, overrides), steps=steps, input_shape=_shape(shape), num_classes=classes)
    content = found.as_dict()
    print_json(content) if as_json else _print(content, found.failed)
    if not found.passed:
        from medveil.errors import GuaranteeError

        click.get_current_context().exit(GuaranteeError.exit_code)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) < 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):  # noqa: PLR2004 - an axis
        raise click.BadParameter("channels and sizes, for example 1,28,28", param_hint="--shape")
    return tuple(int(part) for part in parts)


def _print(content: dict[str, Any], failed: tuple[str, ...]) -> None:
    click.echo(f"{'component':<18}{'':<8}{'claimed':>10}{'measured':>10}{'interval':>20}")
    for line in content["components"]:
        ends = (line["low"], line["high"])
        interval = "" if None in ends else f"{number(ends[0])} to {number(ends[1])}"
        sign = "ok" if line["passed"] else "FAILED"
        figures = f"{number(line['claimed']):>10}{number(line['measured']):>10}{interval:>20}"
        click.echo(f"{line['name']:<18}{sign:<8}{figures}  {line['finding']}")
    epsilon = content["epsilon"]
    if epsilon is not None:
        left = epsilon["not_excluded"]
        open_to = "no finite one is supported" if left is None else f"the ends of the intervals leave up to {left:.3f}"
        click.echo(f"Epsilon {epsilon['claimed']:.3f} at delta {epsilon['delta']:g} is claimed; {open_to}.")
    for sentence in content["scope"]:
        click.echo(sentence)
    click.echo(content["caveat"])
    alpha = f"A step that is right fails with probability at most {content['alpha']:g}."
    verdict = f"FAILED: {', '.join(failed)}." if failed else "All components are as claimed."
    click.echo(f"{verdict} {alpha} {content['seconds']:.1f} s.")
