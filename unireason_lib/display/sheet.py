"""Figures as sheets of paper: everything is placed in inches from the top left corner, so nothing overlaps.

Model text is set in a monospace face, whose characters all have the same width. Lines can then be broken, and
coloured spans placed, by counting characters, without asking a renderer.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from unireason_lib.display.colors import INK, MUTED

WIDTH = 9.0
"""Width of a full sheet in inches: 1080 pixels at :data:`DPI`."""

DPI = 120

SANS = "DejaVu Sans"
MONO = "DejaVu Sans Mono"
_ADVANCE = 0.60205  # width of a character of that face, in ems; at DPI it is a whole number of pixels for whole points
LINE = 1.55  # distance of lines, in ems


class Sheet(Figure):
    """A figure of a given size that shows itself in a notebook.

    It never passes through pyplot: no window, no global list of open figures, nothing to close.

    Args:
        width, height: Inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, facecolor="white")

    def _repr_png_(self) -> bytes:
        """What Jupyter asks for. The same picture gives the same bytes: no version or time is written into it."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()

    def place(
        self, left: float, top: float, width: float, height: float, *, bare: bool = True
    ) -> Axes:
        """Axes whose top left corner lies ``left`` and ``top`` inches from that of the sheet.

        Args:
            bare: Without frame, ticks and background.
        """
        w, h = self.get_size_inches()
        axes = self.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
        if bare:
            axes.set_axis_off()
        return axes

    def write(self, left: float, top: float, text: str, size: float = 9, **kwargs) -> None:
        """Plain text, ``top`` being the upper edge of its first line. Nothing in it is read as mathematics."""
        w, h = self.get_size_inches()
        options = {
            "color": INK,
            "fontsize": size,
            "va": "top",
            "family": SANS,
            "parse_math": False,
        } | kwargs
        self.text(left / w, 1 - top / h, printable(text, options["family"]), **options)


@dataclass(frozen=True)
class Span:
    """A stretch of text with one look.

    Attributes:
        text: What is written; line breaks are kept.
        fill: Colour behind it, or None.
        edge: Colour of the line around the fill, or None.
        color: Colour of the text.
        bold: Whether it is bold.
        whole: Not to be broken at its spaces, and framed as a chip of its own.
    """

    text: str
    fill: str | None = None
    edge: str | None = None
    color: str = INK
    bold: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Run:
    """A part of a span that stands on one line: ``column`` and ``row`` of its first character."""

    row: int
    column: float
    text: str
    span: Span


CHIP_PADDING = 0.45
CHIP_GAP = 0.35


def flow(spans: Sequence[Span], columns: int) -> list[Run]:
    """Break spans into lines of at most ``columns`` characters.

    Text is broken at spaces, words longer than a line anywhere. A whole span is kept on one line and gets a
    little room around it.
    """
    runs: list[Run] = []
    row, column = 0, 0.0
    for span in spans:
        if span.whole:
            text = _shorten(span.text, columns - 2)
            width = len(text) + 2 * CHIP_PADDING
            if column and column + width > columns:
                row, column = row + 1, 0.0
            runs.append(Run(row, column + CHIP_PADDING, text, span))
            column += width + CHIP_GAP
            continue
        for word in re.findall(r"\n|[^\S\n]+|\S+", span.text):
            if word == "\n":
                row, column = row + 1, 0.0
                continue
            if word.isspace():
                if column + len(word) < columns and column:
                    runs.append(Run(row, column, word, span))
                    column += len(word)
                continue
            if column and column + len(word) > columns:
                row, column = row + 1, 0.0
            for part in (word[i : i + columns] for i in range(0, len(word), columns)):
                if column and column + len(part) > columns:
                    row, column = row + 1, 0.0
                runs.append(Run(row, column, part, span))
                column += len(part)
    return _joined(runs)


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Neighbouring words of one span as one run."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last and not run.span.whole and last.span is run.span and last.row == run.row:
            joined[-1] = Run(last.row, last.column, last.text + run.text, last.span)
        else:
            joined.append(run)
    return joined


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def columns_in(width: float, size: float) -> int:
    """Characters of the monospace face at ``size`` points that fit into ``width`` inches."""
    return max(8, int(width * 72 / (size * _ADVANCE)))


def limit_rows(runs: list[Run], rows: int) -> list[Run]:
    """At most this many rows; the last one then says how many lines are left out."""
    total = height_rows(runs)
    if total <= rows:
        return runs
    note = Span(f"… {total - rows + 1} more lines", color=MUTED)
    return [*(run for run in runs if run.row < rows - 1), Run(rows - 1, 0, note.text, note)]


def height_rows(runs: Sequence[Run]) -> int:
    """Number of lines."""
    return runs[-1].row + 1 if runs else 0


def height_inches(runs: Sequence[Run], size: float, line: float = LINE) -> float:
    """Height of the runs when drawn at ``size`` points."""
    return height_rows(runs) * size * line / 72


def draw_runs(
    sheet: Sheet,
    left: float,
    top: float,
    width: float,
    runs: Sequence[Run],
    size: float,
    line: float = LINE,
) -> float:
    """Draw what :func:`flow` has laid out.

    Args:
        left, top, width: Where, in inches.
        size: Whole points, because renderers draw characters at whole pixels (see ``_ADVANCE``).
        line: Distance of lines in ems.

    Returns:
        The height used, in inches.
    """
    height = height_inches(runs, size, line)
    if not runs:
        return 0.0
    axes = sheet.place(left, top, width, height)
    columns = width * 72 / (size * _ADVANCE)
    axes.set(xlim=(0, columns), ylim=(height_rows(runs), 0))
    for run in runs:
        if run.span.fill is not None:
            pad = CHIP_PADDING if run.span.whole else 0.12
            axes.add_patch(
                FancyBboxPatch(
                    (run.column - pad, run.row + 0.1),
                    len(run.text) + 2 * pad,
                    0.8,
                    boxstyle="round,pad=0,rounding_size=0.22" if run.span.whole else "square,pad=0",
                    mutation_aspect=0.45,
                    facecolor=run.span.fill,
                    edgecolor=run.span.edge or "none",
                    linewidth=0.8,
                    clip_on=False,
                )
            )
        if run.text.strip():
            axes.text(
                run.column,
                run.row + 0.52,
                printable(run.text, MONO),
                family=MONO,
                fontsize=size,
                color=run.span.color,
                fontweight="bold" if run.span.bold else "normal",
                va="center_baseline",
                ha="left",
                parse_math=False,
            )
    return height


def text_width(text: str, size: float = 9, **font: str) -> float:
    """Inches that a line of the proportional face takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    face = FontProperties(family=SANS, size=size, **font)
    return text_to_path.get_text_width_height_descent(printable(text), face, ismath=False)[0] / 72


def printable(text: str, face: str = SANS) -> str:
    """The text with every character that the face lacks, and every control character, as ``▯``."""
    known = _characters(face)
    return "".join(c if c == "\n" or (ord(c) in known and c.isprintable()) else "▯" for c in text)


@lru_cache(maxsize=2)
def _characters(face: str) -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(face)).get_charmap())
