"""Which token looks where: the look-ups that a small model is shown, and the attention that it pays.

A text is laid out as it would be read, one chip a token, a new line behind every line break. On that, arrows go from
the tokens that look to those that are looked at, or the chips are filled by the weight of one token's attention.
The tokens of a picture lie on it as a grid, with words on them or the weight of attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke

from unireason_lib.boxes import Box2D
from unireason_lib.display.colors import ACTIVE, BOX_COLORS, INK, LINE_COLORS, MUTED, OWNERS, tint
from unireason_lib.display.figures import MARGIN, Picture, draw_box, show_pictures
from unireason_lib.display.sheet import (
    CHIP_PADDING,
    WIDTH,
    Run,
    Sheet,
    Span,
    columns_in,
    draw_runs,
    flow,
    height_inches,
    text_width,
)
from unireason_lib.errors import RequestError

SIZE, LINE = 9, 1.8


@dataclass(frozen=True)
class Look:
    """What one token looks at.

    Attributes:
        position: The token that looks.
        weights: Its attention to every token of the text, ``(tokens,)``, at most 1 in sum.
        targets: Positions at which it should look.
    """

    position: int
    weights: Sequence[float]
    targets: Sequence[int] = ()


def show_hops(
    words: Sequence[str],
    hops: Mapping[str, Sequence[tuple[int, int]]],
    own: Sequence[bool] | None = None,
    *,
    legend: Mapping[str, str] | None = None,
) -> Sheet:
    """Arrows from the tokens that look to those that are looked at.

    Args:
        words: The tokens as text.
        hops: Name -> pairs (position that looks, position that is looked at). No arrow for one that looks at itself.
        own: Whether the model wrote a token; those look like in a token strip.
        legend: Name -> words for the legend, in place of the name.

    Raises:
        RequestError: There are no words, or a position lies outside them.
    """
    _check(
        "show_hops", words, [place for pairs in hops.values() for pair in pairs for place in pair]
    )
    names = [(legend or {}).get(name, name) for name in hops]
    room = max(text_width(name) for name in names) + 0.6 if names else 0.0
    width = WIDTH - 2 * MARGIN - room
    owners = [
        "own" if mine else "prompt" for mine in ([False] * len(words) if own is None else own)
    ]
    spans = [
        Span(_shown(word), OWNERS[owner].fill, OWNERS[owner].edge, whole=True)
        for word, owner in zip(words, owners, strict=True)
    ]
    runs = flow(_in_lines(words, spans, between=1), columns_in(width, SIZE))
    head = MARGIN + 0.2  # arcs reach above the first line
    height = max(height_inches(runs, SIZE, LINE), 0.24 * len(names))
    sheet = Sheet(WIDTH, head + height + MARGIN)
    for i, name in enumerate(names):
        line = sheet.place(MARGIN + width + 0.1, head + 0.24 * i + 0.06, 0.36, 0.1)
        line.set(xlim=(0, 1), ylim=(0, 1))
        line.add_patch(_arrow((0, 0.5), (1, 0.5), LINE_COLORS[i % len(LINE_COLORS)], 0))
        sheet.write(MARGIN + width + 0.55, head + 0.24 * i + 0.03, name, 9)
    draw_runs(sheet, MARGIN, head, width, runs, SIZE, LINE)
    axes = sheet.axes[-1]
    for i, pairs in enumerate(hops.values()):
        for start, end in pairs:
            if start != end:
                _draw_arrow(
                    axes,
                    runs[start],
                    runs[end],
                    LINE_COLORS[i % len(LINE_COLORS)],
                    above=i % 2 == 0,
                )
    return sheet


def show_attention(words: Sequence[str], looks: Mapping[str, Look], *, columns: int = 2) -> Sheet:
    """The attention of single tokens: the darker a chip, the more it is looked at.

    The token that looks has a heavy frame, those at which it should look a broken one. Above each text stands the share
    of attention that goes to them.

    Args:
        words: The tokens as text.
        looks: Heading -> :class:`Look`.
        columns: Texts side by side.

    Raises:
        RequestError: There are no words or looks, or a look does not fit the words.
    """
    _check(
        "show_attention",
        words,
        [p for look in looks.values() for p in (look.position, *look.targets)],
    )
    if not looks or any(len(look.weights) != len(words) for look in looks.values()) or columns < 1:
        raise RequestError(
            "show_attention",
            f"at least one look with {len(words)} weights, and a column",
            f"{[len(look.weights) for look in looks.values()]} weights, {columns} columns",
            "give the attention of one head from one token",
        )
    size, gap, head = 8, 0.25, 0.3
    width = (WIDTH - 2 * MARGIN + gap) / columns - gap
    panels = [_attention_runs(words, look, columns_in(width, size)) for look in looks.values()]
    height = max(height_inches(runs, size, LINE) for runs in panels) + head + 0.15
    rows = -(-len(panels) // columns)
    sheet = Sheet(WIDTH, MARGIN + rows * height)
    for k, ((name, look), runs) in enumerate(zip(looks.items(), panels, strict=True)):
        left, top = MARGIN + k % columns * (width + gap), MARGIN + k // columns * height
        share = sum(look.weights[place] for place in set(look.targets))
        sheet.write(left, top, f"{name}: {share:.0%}", 9.5, fontweight="bold", color=ACTIVE)
        draw_runs(sheet, left, top + head, width, runs, size, LINE)
        axes = sheet.axes[-1]
        _frame(axes, runs[look.position], INK, "solid", 1.8, out=0.07)
        for place in set(look.targets):
            _frame(axes, runs[place], LINE_COLORS[1], (0, (2, 1)), 1.6)
    return sheet


def show_picture_tokens(
    images: Sequence[Picture],
    grids: Sequence[tuple[int, int]],
    words: Sequence[Sequence[str]] | None = None,
    *,
    right: Sequence[Sequence[str]] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    boxes: Sequence[Sequence[tuple[int, Box2D]]] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 3,
) -> Sheet:
    """Pictures with the grid of their tokens, and what is known of each token.

    Args:
        images: The pictures; one that is to be shown in several ways is given several times.
        grids: Rows and columns of tokens of each.
        words: For each picture, what to write on its tokens, row by row; words may have several lines.
        right: For each picture the words that would be right: lines that differ are written in the colour of warning
            behind a cross.
        weights: For each picture the attention to its tokens, row by row: the stronger the colour, the more. The
            strongest is that of all pictures given, so that they can be compared. Shares of 1 % and more are written.
        boxes: For each picture boxes in its pixels, each with the index of its colour.
        titles: A line above each.
        columns: Pictures a row.

    Raises:
        RequestError: Something does not fit the pictures or the number of their tokens.
    """
    _check_cells(images, grids, boxes, words, right, weights)
    sheet = show_pictures(images, titles=titles, columns=columns)
    strongest = max((share for one in weights or () for share in one), default=0.0) or 1.0
    for k, (rows, across) in enumerate(grids):
        axes = sheet.axes[k]
        height, width = axes.images[0].get_size()
        for place in range(rows * across):
            row, column = divmod(place, across)
            left, top = column * width / across - 0.5, row * height / rows - 0.5
            share = float(weights[k][place]) if weights else 0.0
            look = {"facecolor": BOX_COLORS[4], "alpha": 0.75 * share / strongest, "linewidth": 0}
            axes.add_patch(Rectangle((left, top), width / across, height / rows, **look))
            said = words[k][place] if words else f"{share:.0%}" if share >= 0.01 else ""
            middle = left + width / across / 2, top + height / rows / 2
            _write_lines(axes, *middle, said, said if right is None else right[k][place])
        for x in range(1, across):
            axes.axvline(x * width / across - 0.5, color="white", linewidth=0.7, alpha=0.6)
        for y in range(1, rows):
            axes.axhline(y * height / rows - 0.5, color="white", linewidth=0.7, alpha=0.6)
        for index, box in boxes[k] if boxes else ():
            draw_box(axes, box, index, 1.2)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return sheet


_WRONG = "#ffb38a"


def _write_lines(axes: Axes, x: float, y: float, said: str, right: str, size: float = 6.5) -> None:
    """Lines around a place of a picture; those that are not among the right ones are marked."""
    lines = said.split("\n")
    for k, line in enumerate(lines):
        wrong = line not in right.split("\n")
        axes.annotate(
            f"✗ {line}" if wrong else line,
            (x, y),
            xytext=(0, 1.25 * size * ((len(lines) - 1) / 2 - k)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=_WRONG if wrong else "white",
            path_effects=[withStroke(linewidth=1.8, foreground="black")],
        )


def _check_cells(
    images: Sequence[Picture],
    grids: Sequence[tuple[int, int]],
    boxes: Sequence | None,
    *each: Sequence[Sequence] | None,
) -> None:
    counts = [rows * columns for rows, columns in grids]
    found = [[len(values) for values in one] for one in each if one is not None]
    several = len(counts) if boxes is None else len(boxes)
    if not len(images) == len(counts) == several or any(lengths != counts for lengths in found):
        raise RequestError(
            "show_picture_tokens",
            f"for {len(images)} pictures a grid, boxes if any, and values for every token",
            f"grids of {counts} tokens, {found} values, boxes for {several}",
            "give one value a token, row by row",
        )


def _attention_runs(words: Sequence[str], look: Look, columns: int) -> list[Run]:
    spans = []
    for k, word in enumerate(words):
        share = min(1.0, float(look.weights[k]))
        color = "white" if share > 0.6 else INK if k <= look.position else MUTED
        spans.append(Span(_shown(word), tint(ACTIVE, share), "#c3cad2", color=color, whole=True))
    return flow(_in_lines(words, spans), columns)


def _in_lines(words: Sequence[str], spans: Sequence[Span], between: int = 0) -> list[Span]:
    """The chips, with a new line behind every token that breaks the line, and so many empty ones."""
    lines = []
    for word, span in zip(words, spans, strict=True):
        lines += [span, Span("\n" * (1 + between))] if "\n" in word else [span]
    return lines


def _shown(word: str) -> str:
    return word.strip(" ").replace("\n", "↵") or "␣"


def _middle(run: Run) -> float:
    return run.column + len(run.text) / 2


def _draw_arrow(axes: Axes, start: Run, end: Run, color: str, above: bool) -> None:
    """From edge to edge: over (or under) the chips between them in one line, else straight to the other line."""
    if start.row == end.row:
        edge = 0.12 if above else 0.88
        forwards = _middle(end) > _middle(start)
        bend = 0.45 if forwards == above else -0.45
        # the nearer two chips are, the higher the arc has to be to be seen
        bend *= max(0.35, min(1.6, 9 / max(1.0, abs(_middle(end) - _middle(start)))))
        ends = (_middle(start), start.row + edge), (_middle(end), end.row + edge)
        axes.add_patch(_arrow(*ends, color, -bend))
        return
    up = start.row > end.row
    ends = (
        (_middle(start), start.row + (0.12 if up else 0.88)),
        (_middle(end), end.row + (0.88 if up else 0.12)),
    )
    axes.add_patch(_arrow(*ends, color, 0.12))


def _arrow(
    start: tuple[float, float], end: tuple[float, float], color: str, bend: float
) -> FancyArrowPatch:
    return FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=8,
        color=color,
        linewidth=1.4,
        shrinkA=0,
        shrinkB=0,
        clip_on=False,
        zorder=4,
    )


def _frame(
    axes: Axes, run: Run, color: str, style: str | tuple, width: float, out: float = 0.0
) -> None:
    """A frame around a chip, ``out`` lines further out than its own."""
    left, length = run.column - CHIP_PADDING, len(run.text) + 2 * CHIP_PADDING
    axes.add_patch(
        Rectangle(
            (left - 2 * out, run.row + 0.1 - out),
            length + 4 * out,
            0.8 + 2 * out,
            fill=False,
            edgecolor=color,
            linestyle=style,
            linewidth=width,
            clip_on=False,
            zorder=4,
        )
    )


def _check(name: str, words: Sequence[str], places: Sequence[int]) -> None:
    if not words or any(not 0 <= place < len(words) for place in places):
        raise RequestError(
            name,
            f"words, and positions below {len(words)}",
            f"{len(words)} words, positions {sorted(set(places))}",
            "take positions of these words",
        )
