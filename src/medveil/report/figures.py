"""Charts as inline SVG: no user's text inside, colours that follow the page's light or dark scheme."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from medveil.report.claim import TradeOff
from medveil.report.record import Calibration, Roc

Points = Sequence[tuple[float, float]]

# Each stands for a CSS variable; the page's style sheet gives it a value for light, dark and print.
_STAND_INS = {
    "#010101": "ink",
    "#020202": "muted",
    "#030303": "grid",
    "#040404": "main",
    "#050505": "second",
    "#060606": "third",
    "#070707": "paper",
}
_INK, _MUTED, _GRID, _MAIN, _SECOND, _THIRD, _PAPER = _STAND_INS
_LINES: dict[str, dict[str, Any]] = {
    "main": {"color": _MAIN, "linewidth": 2.4, "zorder": 4},
    "second": {"color": _SECOND, "linewidth": 1.8, "linestyle": (0, (5, 2)), "zorder": 3},
    "third": {"color": _THIRD, "linewidth": 1.1, "alpha": 0.75, "zorder": 2},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medveil",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_WIDTH, _HEIGHT = 5.4, 3.7


def learning_curves(
    lines: Sequence[tuple[str, Points]], *, label: str, name: str, best_round: int | None = None
) -> Markup:
    """Draw one figure against the round.

    Args:
        lines: (role, points) with the role "main", "second" or "third", points (round, value) by rising round.
        label: of the vertical axis.
        name: unique on the page, made of letters and hyphens.
        best_round: marked by a thin vertical line.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for role, points in lines:
            rounds, values = zip(*points, strict=True)
            axes.plot(rounds, values, marker="o" if len(points) == 1 else "", **_LINES[role])
        if best_round is not None:
            axes.axvline(best_round, color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.annotate(
                f"best: round {best_round}",
                (best_round, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                color=_MUTED,
            )
        axes.set_xlabel("Round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _render(draw, name)


def roc(curve: Roc, *, name: str, operating_point: tuple[float, float] | None = None) -> Markup:
    """Draw a ROC curve.

    Args:
        curve: corners from (0, 0) to (1, 1).
        name: unique on the page.
        operating_point: (false-positive rate, true-positive rate) at the threshold used.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.fill_between(curve.fpr, curve.tpr, color=_MAIN, alpha=0.1, linewidth=0)
        axes.plot(curve.fpr, curve.tpr, **_LINES["main"])
        if operating_point is not None:
            axes.plot(*operating_point, "o", ms=9, mfc=_PAPER, mec=_MAIN, mew=2.4, zorder=6, clip_on=False)
        _unit_square(axes)
        axes.set_xlabel("False alarms (1 \N{MINUS SIGN} specificity)")
        axes.set_ylabel("Found (sensitivity)")

    return _render(draw, name, height=4.3)


def calibration(curve: Calibration, *, name: str) -> Markup:
    """Draw stated confidence against what happened; the dots' area shows how many images stand behind them.

    Args:
        curve: one entry per bin.
        name: unique on the page.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.plot(curve.confidence, curve.accuracy, color=_MAIN, linewidth=1.4, zorder=3)
        largest = max(curve.count, default=1)
        areas = [18 + 160 * amount / largest for amount in curve.count]
        axes.scatter(
            curve.confidence, curve.accuracy, s=areas, facecolor=_MAIN, edgecolor=_PAPER, zorder=4, clip_on=False
        )
        _unit_square(axes)
        axes.set_xlabel("Probability stated by the model")
        axes.set_ylabel("Share that was so")

    return _render(draw, name, height=4.3)


def trade_off(curve: TradeOff, *, name: str) -> Markup:
    """Draw what the best membership attack misses against its false alarms; below the line no attack can come.

    Args:
        curve: false-negative rates by false-positive rates, which need not be sorted.
        name: unique on the page.

    Returns:
        An ``<svg>`` element.

    Reference:
        Dong, Roth & Su 2022, Definition 2.1, https://arxiv.org/abs/1905.02383
    """
    # The ends hold for every mechanism: who accuses everybody misses nobody.
    points = sorted({*zip(curve.fpr, curve.fnr, strict=True), (1.0, 0.0)})

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [1, 0], color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        alarms, missed = zip(*points, strict=True)
        axes.fill_between(alarms, missed, color=_MAIN, alpha=0.1, linewidth=0)
        axes.plot(alarms, missed, **_LINES["main"])
        _unit_square(axes)
        axes.set_xlabel("False alarms")
        axes.set_ylabel("Missed, at least")

    return _render(draw, name, height=4.3)


def over_epsilon(
    line: Points, bounds: Points, level: float | None, *, label: str, name: str, share: bool = True
) -> Markup:
    """Draw how far an attack came against the epsilon of what it attacked, on a logarithmic axis.

    Args:
        line: (epsilon, figure) by rising epsilon.
        bounds: (epsilon, most that any attack can reach), may be empty.
        level: what an attacker reaches who sees nothing, or None.
        label: of the vertical axis.
        name: unique on the page, made of letters and hyphens.
        share: whether the figure lies in 0..1.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        if level is not None:
            axes.axhline(level, color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        if bounds:
            axes.plot(*zip(*bounds, strict=True), **_LINES["second"])
        axes.plot(*zip(*line, strict=True), marker="o", markersize=4, **_LINES["main"])
        _logarithmic(axes, "x")
        axes.set_xlabel("Epsilon of the attacked release")
        axes.set_ylabel(label)
        if share:
            axes.set_ylim(-0.01, 1.01)

    return _render(draw, name)


def log_roc(lines: Sequence[tuple[str, Points]], *, name: str) -> Markup:
    """Draw ROC curves on two logarithmic axes.

    Args:
        lines: (role, points) with the role "main", "second" or "third", points (false, true positive rate) above 0.
        name: unique on the page.

    Returns:
        An ``<svg>`` element.

    Reference:
        Carlini et al. 2022, section IV, https://arxiv.org/abs/2112.03570
    """
    least = min((rate for _, points in lines for point in points for rate in point), default=1e-3)

    def draw(axes: Axes) -> None:
        axes.plot([least, 1], [least, 1], color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        for role, points in lines:
            axes.plot(*zip(*points, strict=True), **_LINES[role])
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        axes.set_xlim(least, 1)
        axes.set_ylim(least, 1.05)
        axes.set_xlabel("False alarms")
        axes.set_ylabel("Members found")

    return _render(draw, name, height=4.3)


def _logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose labels need no mathematical typesetting."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def _render(draw: Callable[[Axes], None], name: str, *, height: float = _HEIGHT) -> Markup:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        stored = io.StringIO()
        figure.savefig(stored, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(stored.getvalue(), name)


def _for_page(svg: str, name: str) -> Markup:
    """Make a stand-alone SVG part of an HTML page: unique ids, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _STAND_INS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))  # noqa: S704 - ours alone
