"""``medveil audit``."""

from pathlib import Path
from typing import Any

import click

from medveil.cli.output import Watcher, number, print_json


class RunOrComponents(click.Group):
    """A group whose first argument, where it is no subcommand, is the run or plan to audit."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that is named, else the audit of a run."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return None, whole, args


# Options of the run's audit may stand before the run: the group must pass them on.
@click.group("audit", cls=RunOrComponents, context_settings={"ignore_unknown_options": True})
def command() -> None:
    """Audit RUN: is what was measured compatible with what is claimed? Evidence, not proof.

    \b
    medveil audit RUN            components and canaries, against the claimed epsilon
    medveil audit RUN --help     its options
    medveil audit components PLAN    the components of the step alone

    RUN is the folder of a finished run, a plan's file or the name of a shipped plan.
    """  # noqa: D301 - click wants the character itself


@click.command()
@click.argument("run")
@click.option("--quick", is_flag=True, help="Fewer canaries and steps: looser bounds.")
@click.option("--confidence", type=float, help="Of each lower bound; 0.99 by default.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of a plan.")
@click.option("--shape", metavar="C,H,W", help="Shape of an image, where a plan does not say it.")
@click.option("--classes", type=click.IntRange(min=2), help="Number of classes, where a plan does not say it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--report/--no-report", default=True, help="Keep the audit in the run folder and its report.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def whole(
    run: str,
    *,
    quick: bool,
    confidence: float | None,
    overrides: tuple[str, ...],
    shape: str | None,
    classes: int | None,
    as_json: bool,
    report: bool,
    quiet: bool,
) -> None:
    """Measure lower bounds on epsilon with canaries, and the step's components, against what RUN claims.

    No image is read. What is found is kept in a run's folder and shown in its report. Exit code 7 when something is not
    compatible with the claim.

    \b
    Examples:
      medveil audit runs/demo
      medveil audit pneumonia-28-private --quick --json
    """  # noqa: D301 - click wants the character itself
    from medveil.audit.claim import claim_of
    from medveil.audit.run import CONFIDENCE, DEFAULT, QUICK, audit

    claim = claim_of(run, overrides, input_shape=_shape(shape), num_classes=classes)
    found = audit(
        claim,
        effort=QUICK if quick else DEFAULT,
        confidence=CONFIDENCE if confidence is None else confidence,
        tell=Watcher(quiet=quiet).note,
    )
    content = found.as_dict()
    if report and Path(run).is_dir():
        from medveil.report.page import write_report
        from medveil.study.red_team import keep_audit

        keep_audit(Path(run), content)
        write_report(Path(run))
    print_json(content) if as_json else _print_whole(content)
    _exit(passed=found.verdict == "consistent")


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
    _exit(passed=found.passed)


def _exit(*, passed: bool) -> None:
    if not passed:
        from medveil.errors import GuaranteeError

        click.get_current_context().exit(GuaranteeError.exit_code)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) < 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):  # noqa: PLR2004 - an axis
        raise click.BadParameter("channels and sizes, for example 1,28,28", param_hint="--shape")
    return tuple(int(part) for part in parts)


def _print_whole(content: dict[str, Any]) -> None:
    details = content["details"]
    _print_components(details["components"]["components"])
    run, step = details["one_run"], details["one_step"]
    sure = f"{100 * content['confidence']:g} % confidence"
    guesses = " and ".join(f"{hits} of {made}" for hits, made in zip(run["correct"], run["guesses"], strict=True))
    click.echo(
        f"One run: {run['canaries']} canaries in {run['steps']} of {details['steps']} steps, {guesses} guesses right. "
        f"Epsilon is at least {_bound(run['lower_bound'])} ({sure}); "
        f"{_bound(run['lower_bound_any'])} without the mechanism's own curve, {_bound(run['lower_bound_independent'])} "
        f"if canaries are independent. {run['claimed_epsilon']:.3f} is claimed for these steps."
    )
    click.echo(
        f"One step that a patient takes part in: {step['trials']:,} trials, {100 * step['false_alarms']:.1f} % false "
        f"alarms, {100 * step['misses']:.1f} % misses. Epsilon is at least {_bound(step['lower_bound'])} ({sure}); "
        f"{step['claimed_epsilon']:.3f} is claimed."
    )
    click.echo(content["caveat"])
    click.echo(
        f"Claimed: epsilon {content['claimed_epsilon']:.3f} at delta {content['delta']:g}. "
        f"Measured: at least {_bound(content['lower_bound'])}."
    )
    for sentence in content["violations"]:
        click.echo(f"VIOLATED {sentence}")
    click.echo(f"Verdict: {content['verdict']}. {content['seconds']:.1f} s.")


def _bound(value: float | None) -> str:
    return "any number" if value is None else f"{value:.3f}"


def _print_components(lines: list[dict[str, Any]]) -> None:
    click.echo(f"{'component':<18}{'':<8}{'claimed':>10}{'measured':>10}{'interval':>20}")
    for line in lines:
        ends = (line["low"], line["high"])
        interval = "" if None in ends else f"{number(ends[0])} to {number(ends[1])}"
        sign = "ok" if line["passed"] else "FAILED"
        figures = f"{number(line['claimed']):>10}{number(line['measured']):>10}{interval:>20}"
        click.echo(f"{line['name']:<18}{sign:<8}{figures}  {line['finding']}")


def _print(content: dict[str, Any], failed: tuple[str, ...]) -> None:
    _print_components(content["components"])
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
