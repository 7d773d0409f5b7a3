"""The figure of a comparison of trust models: what each arm reaches, as PNG and SVG."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from medveil.report.drawing import COLOURS, MARKERS, draw
from medveil.study.compare_result import ArmRow, Comparison
from medveil.study.compare_table import epsilon_text
from medveil.study.grid_text import title

_WIDTH, _HEAD, _ROW = 7.4, 1.0, 0.42


def write_figure(comparison: Comparison, out: Path) -> tuple[Path, Path]:
    """Draw the first metric of every arm that finished, one line an arm, with its epsilons at the right.

    Thick markers are means over the seeds, faint ones single seeds, the bar reaches from the worst seed to the best.
    Arms with differential privacy, arms without and references have each a colour and a marker of their own.

    Args:
        comparison: with at least one finished run.
        out: folder that exists.

    Returns:
        The files written: ``trust-models.png`` (200 dots an inch) and ``trust-models.svg``.
    """
    rows = [row for row in comparison.rows if row.metrics[comparison.metrics[0]] is not None]
    size = _WIDTH, _HEAD + _ROW * max(len(rows), 1)
    return draw(
        out / "trust-models", size, lambda figure, colours: _draw(figure.add_subplot(), comparison, rows, colours)
    )


def _draw(axes: Axes, comparison: Comparison, rows: list[ArmRow], colours: dict[str, str]) -> None:
    metric = comparison.metrics[0]
    for place, row in enumerate(rows):
        spread, kind = row.metrics[metric], _kind(row)
        assert spread is not None
        look: dict[str, Any] = {"color": colours[COLOURS[kind]], "marker": MARKERS[kind]}
        axes.plot([spread.low, spread.high], [place, place], color=look["color"], linewidth=5, alpha=0.25, zorder=2)
        axes.plot(spread.mean, place, markersize=8, linestyle="", zorder=4, **look)
        seeds = [
            value
            for run in comparison.runs
            if run.folder.split("/")[0] == row.arm and run.epsilon == row.epsilon and run.metrics is not None
            if (value := run.metrics[metric]) is not None
        ]
        axes.scatter(seeds, [place] * len(seeds), s=16, alpha=0.35, linewidth=0, zorder=3, **look)
    axes.set_yticks(range(len(rows)), [_name(row, rows) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    what = f"{title(metric)} on the test set"
    axes.set_xlabel(what + (", synthetic images" if comparison.phantom else ""))
    for place, row in enumerate(rows):
        said = f"{epsilon_text(row.epsilon_server)} / {epsilon_text(row.epsilon_insider)}"
        axes.annotate(said, (1.02, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
    axes.annotate(
        "\N{GREEK SMALL LETTER EPSILON} server / insider",
        (1.02, 1.0),
        xytext=(0, 4),
        textcoords="offset points",
        xycoords="axes fraction",
        va="bottom",
        annotation_clip=False,
    )


def _kind(row: ArmRow) -> int:
    """0 with differential privacy, 1 without, 2 for references."""
    if row.epsilon is not None:
        return 0
    return 1 if row.seconds is not None else 2


def _name(row: ArmRow, rows: list[ArmRow]) -> str:
    several = len({one.epsilon for one in rows if one.epsilon is not None}) > 1
    target = f", epsilon {epsilon_text(row.epsilon)}" if several and row.epsilon is not None else ""
    return row.title + target + (f" ({row.stamp})" if row.stamp else "")
