"""The figure of an epsilon grid: what a plan reaches against what it costs, as PNG and SVG."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from medveil.report.drawing import COLOURS, MARKERS, draw
from medveil.study.grid_result import Grid, Row, Spread
from medveil.study.grid_text import title

_SIZE = (6.6, 4.4)
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2)), (0, (4, 3)))
_ROOM = 1.35
# Letters that fit above the axes, and those that a key takes the room of.
_LETTERS, _KEY = 60, 6


def write_figure(grid: Grid, out: Path) -> tuple[Path, Path]:
    """Draw the grid's first metric against epsilon, one line a plan.

    Thick markers are means over the seeds, faint ones single seeds, the band reaches from the worst seed to the best.
    Points lie at the epsilon that was really spent. Training without privacy is the dashed level at the right.

    Args:
        grid: with at least one finished run.
        out: folder that exists.

    Returns:
        The files written: ``epsilon-accuracy.png`` (200 dots an inch) and ``epsilon-accuracy.svg``.
    """
    return draw(out / "epsilon-accuracy", _SIZE, lambda figure, colours: _draw(figure.add_subplot(), grid, colours))


def _draw(axes: Axes, grid: Grid, colours: dict[str, str]) -> None:
    plans = list(dict.fromkeys(row.plan for row in grid.rows))
    targets = sorted({row.epsilon for row in grid.rows if row.epsilon is not None})
    spent = [run.epsilon_reached for run in grid.runs if run.epsilon_reached is not None]
    largest = max([*targets, *spent], default=1.0)
    axes.set_xscale("log")
    for number, plan in enumerate(plans):
        look = {
            "color": colours[COLOURS[number % len(COLOURS)]],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)],
        }
        slot = tuple(largest * _ROOM ** (1 + 2 * (number + part) / len(plans)) for part in (0.1, 0.5, 0.9))
        _draw_plan(axes, grid, plan, look, _Level(largest * _ROOM, largest * _ROOM**3, slot))
    _label(axes, grid, targets, largest * _ROOM**2)


class _Level(NamedTuple):
    """Where training without privacy is drawn: the level's ends, and this plan's part of it (from, middle, to)."""

    start: float
    end: float
    slot: tuple[float, ...]


def _draw_plan(axes: Axes, grid: Grid, plan: str, look: dict[str, Any], level: _Level) -> None:
    metric = grid.metrics[0]
    rows = [(row, spread) for row in grid.rows if row.plan == plan and (spread := row.metrics[metric]) is not None]
    private = sorted(((_spent(row), spread) for row, spread in rows if row.epsilon is not None), key=itemgetter(0))
    stamped = any(row.stamp for row, _ in rows)
    if private:
        at, spreads = [epsilon for epsilon, _ in private], [spread for _, spread in private]
        _band(axes, at, spreads, look)
        axes.plot(at, [one.mean for one in spreads], linewidth=2.2, markersize=7, zorder=4, **look)
    for row, spread in rows:
        if row.epsilon is None:
            _draw_level(axes, spread, look, level)
    name = plan if len(plan) <= _LETTERS else plan[: _LETTERS - 1] + "…"
    axes.plot([], [], label=name + (" (NOT PRIVATE)" if stamped else ""), linewidth=2.2, markersize=7, **look)
    _draw_seeds(axes, grid, plan, level.slot[1], look)


def _draw_level(axes: Axes, spread: Spread, look: dict[str, Any], level: _Level) -> None:
    first, middle, last = level.slot
    _band(axes, [first, last], [spread] * 2, look)
    dashed = {**look, "linestyle": (0, (4, 2)), "marker": ""}
    axes.plot([level.start, level.end], [spread.mean] * 2, linewidth=1.6, zorder=4, **dashed)
    axes.plot(middle, spread.mean, markersize=7, markerfacecolor=axes.get_facecolor(), mew=2, zorder=5, **look)


def _band(axes: Axes, at: Sequence[float], spreads: Sequence[Spread], look: dict[str, Any]) -> None:
    low, high = [one.low for one in spreads], [one.high for one in spreads]
    axes.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _draw_seeds(axes: Axes, grid: Grid, plan: str, none_at: float, look: dict[str, Any]) -> None:
    points = [
        (none_at if run.epsilon is None else run.epsilon_reached, run.metrics[grid.metrics[0]])
        for run in grid.runs
        if run.plan == plan and run.metrics is not None
    ]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if known:
        across, up = zip(*known, strict=True)
        axes.scatter(across, up, s=16, color=look["color"], marker=look["marker"], alpha=0.35, linewidth=0, zorder=3)


def _label(axes: Axes, grid: Grid, targets: Sequence[float], none_at: float) -> None:
    names = [f"{target:g}" for target in targets]
    ticks = list(targets)
    if any(row.epsilon is None for row in grid.rows):
        ticks.append(none_at)
        names.append("none")
    axes.set_xticks(ticks, names)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Epsilon of each run (\N{RIGHTWARDS ARROW} weaker protection)")
    what = f"{title(grid.metrics[0])} on the test set"
    axes.set_ylabel(what + (", synthetic images" if grid.phantom else ""))
    longest = max(len(row.plan) for row in grid.rows) + _KEY
    columns = min(max(_LETTERS // longest, 1), 3)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2)


def _spent(row: Row) -> float:
    """Epsilon that a private row has really reached."""
    return row.epsilon_reached or row.epsilon or 0.0
