"""How every figure of a study is drawn and kept: the page's colours, PNG and SVG, the same bytes for the same data."""

import io
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from medveil.study.folder import write_bytes

_DPI = 200
# Colour-blind readers and black-and-white print tell plans apart by marker and dash.
COLOURS = ("main", "second", "third", "class-2", "class-0", "class-4")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(stem: Path, size: tuple[float, float], content: Callable[[Figure, dict[str, str]], None]) -> tuple[Path, Path]:
    """Draw one figure into two files.

    Args:
        stem: their path without its ending; the folder exists.
        size: width and height in inches.
        content: draws on the figure, given the page's colours by name.

    Returns:
        The files written: PNG (200 dots an inch) and SVG.
    """
    colours = palette()
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with mpl.rc_context(_style(colours)):
        figure = Figure(figsize=size, layout="constrained")
        content(figure, colours)
        for path in paths:
            stored = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(stored, format=path.suffix[1:], dpi=_DPI, metadata=metadata)
            write_bytes(path, stored.getvalue())
    return paths


def palette() -> dict[str, str]:
    """The page's colours on light paper, by name.

    >>> palette()["main"]
    '#0b6b74'
    """
    style = resources.files("medveil.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    light = style.split("@media", 1)[0]
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", light))


def _style(colours: dict[str, str]) -> dict[str, Any]:
    muted = colours["muted"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "medveil",
        "text.parse_math": False,
        "font.size": 11,
        "text.color": colours["ink"],
        "axes.edgecolor": muted,
        "axes.labelcolor": colours["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colours["grid"],
        "grid.linewidth": 0.8,
        **{f"{axis}tick.{part}": muted for axis in "xy" for part in ("color", "labelcolor")},
        **{f"{axis}tick.{part}.size": 0 for axis in "xy" for part in ("major", "minor")},
        "figure.facecolor": colours["paper"],
        "axes.facecolor": colours["paper"],
    }
