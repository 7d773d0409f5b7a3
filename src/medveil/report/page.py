"""Assemble the page: read a run, let each section speak, fill the template."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from medveil.errors import RunError
from medveil.report import aggregation, evidence, privacy, provenance, red_team, results, wording
from medveil.report.blocks import Section
from medveil.report.reading import Run, read_run

# The page, top to bottom. A new section is one function here; one that has nothing to say gives None.
SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    results.comparison,
    provenance.protection,
    privacy.privacy,
    aggregation.secure_aggregation,
    red_team.red_team,
    results.test_figures,
    results.groups,
    evidence.learning,
    evidence.decisions,
    evidence.examples,
    results.elsewhere,
    provenance.training,
    provenance.cost,
    provenance.data,
    provenance.reproduce,
    provenance.limits,
)


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs no network and no script.

    Args:
        run: a run folder, as written by a study.
        out: the file to write; default ``report.html`` in the run folder.

    Returns:
        The file written.

    Raises:
        RunError: the run folder cannot be read, or the file cannot be written.

    Guarantees:
        The same run folder gives the same bytes. Every text of the record is escaped. What was not measured is
        said to be so. For real data the page holds pictures of test patients if the run kept examples.
    """
    target = run / "report.html" if out is None else out
    page = render(read_run(run))
    try:
        target.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise RunError(
            "The report cannot be written", got=type(error).__name__, remedy="name a file in a folder you may write to"
        ) from None
    return target


def render(run: Run) -> str:
    """The page as text.

    Args:
        run: as :func:`medveil.report.reading.read_run` gives it.

    Returns:
        A complete HTML document.
    """
    # autoescape is on for every template: the record holds names that other people chose.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medveil.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("medveil.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        record=run.record,
        style=Markup(style),  # noqa: S704 - our own file
        stamp_notice=wording.stamp_notice(run.record),
        phantom_notice=wording.phantom_notice(run.record),
        headline=wording.headline(run.record),
        sections=[section for made in SECTIONS if (section := made(run)) is not None],
    )
