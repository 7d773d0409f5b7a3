"""The figure of a robustness study: what hostile sites do under each defence, as PNG and SVG."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medveil.report.drawing import draw
from medveil.study.robustness_table import Robustness, Row

_WIDTH, _HEIGHT, _KEY = 3.4, 2.8, 0.9
_COLOURS = ("ink", "muted", "third", "main", "second", "class-2", "class-0", "class-4")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def write_figure(study: Robustness, out: Path) -> tuple[Path, Path]:
    """Draw the score against the share of hostile sites, a panel an attack, and the backdoor's success beside them.

    Means over the seeds; a run without a model leaves a gap in its line.

    Args:
        study: with at least one attack.
        out: folder that exists.

    Returns:
        The files written: ``robustness.png`` (200 dots an inch) and ``robustness.svg``.
    """
    panels = [(attack, "score") for attack in dict.fromkeys(row.attack for row in study.rows if row.attack != "none")]
    panels += [("backdoor", "backdoor")] if ("backdoor", "score") in panels else []

    def content(figure: Figure, colours: dict[str, str]) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (attack, what) in zip(axes, panels, strict=True):
            _draw(panel, study, attack, what, colours)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)

    return draw(out / "robustness", (_WIDTH * len(panels), _HEIGHT + _KEY), content)


def _draw(axes: Axes, study: Robustness, attack: str, what: str, colours: dict[str, str]) -> None:
    settings = list(dict.fromkeys(row.setting for row in study.rows))
    for number, setting in enumerate(settings):
        rows = [row for row in study.rows if row.setting == setting and row.attack in {"none", attack}]
        rows.sort(key=lambda row: row.fraction)
        axes.plot(
            [row.fraction * 100 for row in rows],
            [_mean(row, what) for row in rows],
            color=colours[_COLOURS[number % len(_COLOURS)]],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="-" if number < len(_COLOURS) // 2 else "--",
            label=setting,
        )
    axes.set_ylim(*(_limits(study) if what == "score" else (-0.03, 1.03)))
    axes.set_xlabel("Hostile sites (%)")
    axes.set_title(attack if what == "score" else "backdoor: success", fontsize="medium")
    axes.set_ylabel(study.metric if what == "score" else "Triggered images misled")


def _limits(study: Robustness) -> tuple[float, float]:
    """Ends of the scores' axis: the same for all panels, so that attacks can be compared."""
    means = [row.score.mean for row in study.rows if row.score is not None]
    return min(means, default=0.0) - 0.02, max(means, default=1.0) + 0.02


def _mean(row: Row, what: str) -> float:
    value = getattr(row, what)
    return float("nan") if value is None else float(value.mean)
