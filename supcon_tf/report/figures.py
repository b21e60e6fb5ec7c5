"""Figures as inline SVG, in colors of the style sheet, each with a description and a table."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from supcon_tf.report.markup import Html, details, table, tag

# Colors in the SVG that are replaced by those of the style sheet, which differ in dark mode.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
NUM_COLORS = 7
SERIES = tuple(f"#0a0b{index:02x}" for index in range(NUM_COLORS))
# With the colors, enough pairs to tell 35 classes apart without relying on color alone.
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", "-.", ":")
MAX_TABLE_ROWS = 60

_count_drawings = itertools.count(1)


@contextlib.contextmanager
def drawing(width: float = 4.6, height: float = 2.8, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """Opens a matplotlib figure in the style of the page: yields (figure, axes).

    Args:
        width, height: In inches.
        columns: Number of axes side by side.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",  # Text stays text: it can be read, searched and scaled.
        "svg.hashsalt": "supcon_tf",  # Equal figures give equal bytes.
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,  # A name with two dollar signs is not a formula.
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.edgecolor": INK, "axes.titlesize": 9.5, "legend.frameon": False,
        "figure.facecolor": "none", "axes.facecolor": "none",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns)


def as_svg(figure: Any) -> Html:
    """Returns a matplotlib figure as an inline SVG that is hidden from screen readers.

    The title, the description and the table of `with_table` say what it shows.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser draws the text, with the fonts that it has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Ids have to differ between the figures of a page.
    prefix = f"d{next(_count_drawings)}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    for color, variable in ((INK, "ink"), (FAINT, "faint"), (PAPER, "paper")):
        svg = svg.replace(color, f"var(--{variable})")
    for index, color in enumerate(SERIES):
        svg = svg.replace(color, f"var(--series-{index})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return Html(svg)


def with_table(
    title: str,
    description: Any,
    picture: Any,
    columns: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    *,
    class_: str = "",
) -> Html:
    """Returns a figure with its title, its description, and its numbers in a table.

    Args:
        title: The caption.
        description: What it shows and how to read it.
        picture: The SVG or other content.
        columns, rows: The numbers. Of many rows, evenly spaced ones are shown.
        class_: A class of the style sheet.
    """
    shown, note = list(rows), ""
    if len(rows) > MAX_TABLE_ROWS:
        chosen = np.unique(np.linspace(0, len(rows) - 1, MAX_TABLE_ROWS).astype(int))
        shown = [rows[index] for index in chosen]
        note = f" ({len(shown)} of {len(rows):,} rows, evenly spaced)"
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), tag("p", description)),
        picture,
        details(f"Numbers: {title}{note}", table(columns, shown, caption=title)),
        class_=class_ or None,
    )


def line_chart(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
) -> Html:
    """Draws lines, each given as (name, x, y).

    Args:
        lines: At most 28 lines; a line of few points has markers.
        x_label, y_label: The names of the axes with their units.
        y_range: The limits of the y axis.
        reference: The height of a horizontal line, and its name.
    """
    with drawing() as (figure, axes):
        for index, (name, x, y) in enumerate(lines):
            axes.plot(
                x, y, label=name, color=SERIES[index % NUM_COLORS],
                linestyle=LINES[index // NUM_COLORS % len(LINES)],
                marker=MARKERS[index % len(MARKERS)] if len(x) <= 30 else None, markersize=4,
            )  # fmt: skip
        if reference:
            axes.axhline(reference[0], color=INK, linewidth=1, linestyle=":", label=reference[1])
        axes.set(xlabel=x_label, ylabel=y_label, ylim=y_range)
        if len(lines) > 1 or reference:
            axes.legend(fontsize=8)
        return as_svg(figure)
