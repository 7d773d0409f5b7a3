"""What a section is made of. The template draws each kind of block one way; text is always escaped there."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["plain", "quiet", "lead", "good", "bad", "warning", "stamp"]


@dataclass(frozen=True)
class Prose:
    """Paragraphs.

    Args:
        paragraphs: plain text.
        tone: how loud; "lead" is for the one sentence of a section, "stamp" for a first paragraph that nobody may miss.
    """

    kind: ClassVar[str] = "prose"
    paragraphs: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list with a heading.

    Args:
        title: plain text, may be empty.
        items: plain text.
        tone: "good" ticks the items, "bad" crosses them.
    """

    kind: ClassVar[str] = "bullets"
    title: str
    items: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Strip:
    """A figure and its interval on a shared axis, as positions from 0 (left) to 100 (right).

    Args:
        value: of the dot.
        low: of the bar's left end, or None.
        high: of the bar's right end, or None.
        reference: of the thin line that all rows share, or None.
        main: whether this row is the model that the page is about.
    """

    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    main: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: plain text.
        hint: a second, quieter line.
        strip: drawn instead of the text, which screen readers still get.
        axis: for the heading above strips, the ends of their axis.
        shade: strength of the background from 0 to 100, or None.
        number: whether to align to the right.
    """

    text: str
    hint: str = ""
    strip: Strip | None = None
    axis: tuple[str, str] | None = None
    shade: int | None = None
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its heading.

    Args:
        caption: what the table shows.
        columns: headings.
        rows: as many cells as columns.
        note: a quiet line below.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Terms with their values.

    Args:
        items: (term, value) pairs of plain text.
    """

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LegendItem:
    """One line of a chart's legend.

    Args:
        label: plain text.
        colour: name of a CSS variable without the dashes.
        dashed: whether the line is dashed.
    """

    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One inline SVG.

    Args:
        title: plain text.
        description: what a reader who cannot see the chart must know.
        svg: made by :mod:`medveil.report.figures`, without any user's text.
        legend: below the title.
    """

    title: str
    description: str
    svg: Markup
    legend: tuple[LegendItem, ...] = ()


@dataclass(frozen=True)
class Charts:
    """Charts side by side where the page is wide enough."""

    kind: ClassVar[str] = "charts"
    items: tuple[Chart, ...]


@dataclass(frozen=True)
class Panel:
    """One image.

    Args:
        source: a ``data:`` address.
        description: alternative text.
        label: a word below, may be empty.
    """

    source: str
    description: str
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """One example: one or several panels and what to say about them.

    Args:
        panels: left to right.
        lines: plain text below.
        tone: "good" or "bad" colours the first line.
    """

    panels: tuple[Panel, ...]
    lines: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Gallery:
    """Examples in a grid."""

    kind: ClassVar[str] = "gallery"
    items: tuple[Picture, ...]
    legend: tuple[LegendItem, ...] = ()


Block = Prose | Bullets | Table | Facts | Charts | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        anchor: unique on the page, made of letters and hyphens.
        title: plain text.
        blocks: top to bottom.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...]
