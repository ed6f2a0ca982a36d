"""Colours, line styles, and the figure on which everything of this package is drawn.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers
tell apart. Colour never stands alone: boxes carry numbers and change their line style when the
colours start again, curves have markers. Text of a model lies on a grid of equal characters, so
that it can be coloured word by word: :func:`wrap` finds the places, :func:`write` draws them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from unireason_lib.errors import RequestError

INK, MUTED, FAINT, ACTIVE = "#1f2328", "#656d76", "#e4e8ec", "#0072b2"
BOX_COLORS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
BOX_STYLES = ("solid", (0, (4, 2)), (0, (1, 1.5)))  # the next one when the colours are used up
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # on white
MARKERS = "osD^vP"
WIDTH = 9.0  # inches of a full figure
ADVANCE, LINE = 0.60205, 1.5  # of DejaVu Sans Mono: width of a character, distance of lines, in em


class AltFigure(Figure):
    """A matplotlib figure that a notebook shows by itself, with ``alt``, a text for screen readers.

    It never passes through pyplot: nothing is shown twice, nothing must be closed. A dollar sign is
    plain text, a character that the typeface lacks becomes one sign, and empty margins are cut.
    """

    def __init__(self, width: float, height: float, alt: str, layout: str | None = None) -> None:
        super().__init__(figsize=(width, height), dpi=120, facecolor="white", layout=layout)
        self.alt = alt
        if layout is None:
            self.subplots_adjust(0, 0, 1, 1, 0, 0)

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_text(printable(text.get_text()))
        super().draw(renderer)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        super().savefig(*args, **{"bbox_inches": "tight", "pad_inches": 0.08} | kwargs)

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", metadata={"Software": None})  # equal bytes every time
        return buffer.getvalue(), {"alt": self.alt}


def box_look(index: int) -> dict[str, Any]:
    """Colour and line style of the box with this index, as arguments of a matplotlib line."""
    turn, color = divmod(index, len(BOX_COLORS))
    return {"color": BOX_COLORS[color], "linestyle": BOX_STYLES[turn % len(BOX_STYLES)]}


def need(right: Any, subject: object, expected: str, found: object) -> None:
    """Raise :class:`RequestError` unless something is right."""
    if not right:
        raise RequestError(subject, expected, found, "correct the arguments")


def evenly(items: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` of the items, from the first to the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round((k + 0.5) * len(items) / limit - 0.5)] for k in range(limit)]


@dataclass(frozen=True)
class Span:
    """A stretch of text with one look; with ``fill`` a chip, which no line break divides."""

    text: str
    color: str = INK
    fill: Any = None
    edge: Any = None
    bold: bool = False


Line = list[tuple[float, str, Span]]  # column, word, its span


def wrap(spans: Iterable[Span], width: float, size: float = 9) -> list[Line]:
    """Lines of at most ``width`` inches at ``size`` points."""
    columns, lines, column = int(width * 72 / (size * ADVANCE)), [[]], 0.0
    for span in spans:
        words = re.findall(rf"\n|[^\S\n]+|\S{{1,{columns}}}", span.text)
        for word in [span.text[: columns - 2]] if span.fill else words:
            taken = len(word) + (1.4 if span.fill else 0)
            if word == "\n" or (column and column + taken > columns):
                lines.append([])
                column = 0.0
            if column or span.fill or not word.isspace():
                lines[-1].append((column, word, span))
                column += taken
    return lines


def height_of(lines: Sequence[Line], size: float = 9) -> float:
    """Inches that lines take."""
    return len(lines) * size * LINE / 72


def write(axes: Axes, lines: Sequence[Line], size: float = 9) -> None:
    """Draw lines from the top left corner of axes whose place is final."""
    area, sides = axes.get_position(), axes.figure.get_size_inches() * 72 / size
    axes.set(xlim=(0, area.width * sides[0] / ADVANCE), ylim=(area.height * sides[1] / LINE, 0))
    axes.set_axis_off()
    for row, line in enumerate(lines):
        for column, word, span in line:
            style = {"color": span.color, "weight": "bold" if span.bold else "normal"}
            if span.fill:
                look = {"facecolor": span.fill, "edgecolor": span.edge, "linewidth": 0.8}
                axes.add_patch(Rectangle((column + 0.1, row + 0.1), len(word) + 1, 0.8, **look))
                column += 0.6
            style |= {"fontsize": size, "family": "monospace", "va": "center_baseline"}
            axes.text(column, row + 0.52, word, **style)


def heading(axes: Axes, text: str, **style: Any) -> None:
    """A title at the left edge of axes."""
    axes.set_title(text, loc="left", **{"fontsize": 9, "color": INK} | style)


def printable(text: str) -> str:
    """The text with a box for every character that the typeface lacks."""
    return "".join(c if c == "\n" or ord(c) in _characters() else "▯" for c in text)


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())
