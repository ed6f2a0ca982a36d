"""A whole reply as one figure: the slices, the boxes, the crops that came back, the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba

from unireason_lib.boxes import format_box
from unireason_lib.display.images import arrays_of, busiest, chosen_slices, draw_tile, on_slice
from unireason_lib.display.replies import INJECTED, Mention, Reply, read_reply, with_images
from unireason_lib.display.style import (
    ACTIVE,
    INK,
    MUTED,
    WIDTH,
    AltFigure,
    Span,
    box_look,
    evenly,
    heading,
    height_of,
    wrap,
    write,
)
from unireason_lib.display.tokens import OWNERS, draw_strip, height_of_strip, trace_strip

MAX_BOXES, MAX_CROPS = 30, 8  # boxes drawn, and boxes whose crops are shown
SIDES = (3.1, 2.2, 3.4)  # inches of image, crops and text
HEAD = {"color": ACTIVE, "fontweight": "bold"}


def show_trace(
    trace: Any,
    images: Any = None,
    *,
    frame: Any = None,
    max_slices: int = 8,
    max_lines: int = 40,
    tokenizer: Any = None,
) -> AltFigure:
    """A whole reply in one figure: the slices, the boxes, the crops that came back, the text.

    Args:
        trace: A :class:`unireason_lib.grounding.Trace`, or a line of results as a dictionary.
        images: Its images as the processor shows them to the model.
        frame: The :class:`unireason_lib.imaging.ProcessorFrame` of the model; then ``images`` are
            the original ones, by default those of the request.
        max_slices, max_lines: Slices of a volume in the strip on top; longest text.
        tokenizer: Of the model; then a strip below shows who wrote each token (of a trace).

    Raises:
        RequestError: The images are not those from which the reply's crops were cut.
    """
    if images is None and frame is not None:
        images = getattr(getattr(trace, "request", None), "images", None)
    reply, aligned = with_images(read_reply(trace), images, frame)
    arrays, ratio = arrays_of(aligned), aligned[0].height / aligned[0].width
    boxes = [(mention.number - 1, mention.box) for mention in reply.mentions[:MAX_BOXES]]
    film = chosen_slices(boxes, len(arrays), max_slices) if arrays[1:] else []
    crops = [mention for mention in reply.mentions if mention.crops][:MAX_CROPS]
    lines = wrap([*_question(reply), Span("\n\n"), *_text(reply)], SIDES[2])
    if len(lines) > max_lines:
        note = Span(f"… {len(lines) - max_lines + 1} more lines", MUTED)
        lines[max_lines - 1 :] = wrap([note], SIDES[2])
    lines += wrap([Span(f"\n{reply.facts}", MUTED)], SIDES[2])
    strip = trace_strip(trace, tokenizer) if tokenizer else None
    gap, across = 0.32, max(len(film), 8)  # inches of a heading, slices in the strip on top
    middle = max(SIDES[0] * min(ratio, 1.4), 0.9 * len(crops), height_of(lines))
    heights = [gap, WIDTH / across * ratio] if film else [0, 0]
    heights += [gap, middle, 0.1 * bool(strip), height_of_strip(strip)]
    figure = AltFigure(WIDTH, sum(heights), _alt(reply))
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    cells = rows[1].subgridspec(1, across, wspace=0.05)
    for k, z in enumerate(film):
        axes = figure.add_subplot(cells[k])
        draw_tile(axes, arrays[z], on_slice(boxes, z, len(arrays)), z, numbers=False)
        if k == 0:
            heading(axes, f"The volume: {len(film)} of {len(arrays)} slices", **HEAD)
    left, center, right = rows[3].subgridspec(1, 3, width_ratios=SIDES, wspace=0.06)
    main, axes = busiest(boxes, len(arrays)), figure.add_subplot(left)
    label, place = (f"slice {main}", f" on slice {main}") if film else ("", "")
    draw_tile(axes, arrays[main], on_slice(boxes, main, len(arrays)), label, numbers=True)
    heading(axes, f"Boxes{place}" if boxes else "No box", **HEAD)
    _draw_crops(figure, center, crops)
    axes = figure.add_subplot(right)
    write(axes, lines)
    heading(axes, "Question and reply", **HEAD)
    if strip:
        draw_strip(figure, rows[5], strip)
    return figure


def hero_figure(trace: Any, images: Any, tokenizer: Any, *, frame: Any = None) -> AltFigure:
    """The method in one figure: :func:`show_trace` above the strip of who wrote each token."""
    return show_trace(trace, images, frame=frame, tokenizer=tokenizer)


def show_record(record: Any, images: Sequence[Any], **options: Any) -> AltFigure:
    """A :class:`unireason_lib.dataset.schema.Record` as the reply that a model should give.

    ``images`` are its images before the processor; ``options`` as for :func:`show_trace`.
    """
    boxes = [(format_box(box), list(box.as_tuple())) for box in record.boxes]
    line = {
        "id": record.id,
        "dimension": record.dimension,
        "question": record.question,
        "options": dict(record.options),
        "text": record.reply,
        "choice": record.answer,
        "truth": record.answer,
        "pointings": [{"text": text, "box": box, "status": INJECTED} for text, box in boxes],
    }
    return show_trace(line, images, frame=record.frame, **options)


def _alt(reply: Reply) -> str:
    text = "".join(piece.text if isinstance(piece, Mention) else piece for piece in reply.pieces)
    return f"Question: {reply.question} Reply: {text}"


def _chip(words: str, look: int) -> Span:
    color = box_look(look)["color"]
    return Span(words, fill=to_rgba(color, 0.45), edge=color)


def _question(reply: Reply) -> list[Span]:
    spans = [Span(reply.question or "(no question)", bold=True)]
    for letter, option in reply.options.items():
        chosen, right = letter == reply.choice, letter == reply.truth
        text = f"\n{letter}. {option}{' ✓' * right}{' ← chosen' * chosen}"
        spans.append(Span(text, INK if chosen or right else MUTED))
    return spans


def _text(reply: Reply) -> list[Span]:
    """The words, the boxes in the colours in which they are drawn, and how many crops came back."""
    spans = []
    for piece in reply.pieces:
        if not isinstance(piece, Mention):
            spans.append(Span(piece))
        elif not piece.number:
            spans.append(Span(f"{piece.text} malformed", MUTED, "white", MUTED))
        else:
            spans.append(_chip(f"{piece.number} {piece.text}", piece.number - 1))
            count, (_, fill, edge) = len(piece.crops), OWNERS["injected"]
            if count:
                spans.append(Span(f"+{count} crop{'s' * (count > 1)}", fill=fill, edge=edge))
            elif piece.status:
                spans.append(Span(piece.status, MUTED, "white", MUTED))
    return spans


def _draw_crops(figure: AltFigure, cell: Any, crops: Sequence[Mention]) -> None:
    """A row for each box: its crops side by side, at most four."""
    grid = cell.subgridspec(max(2, len(crops)), 1, hspace=0.35)
    for k, mention in enumerate(crops):
        shown = evenly(arrays_of(mention.crops), 4)
        axes = figure.add_subplot(grid[k])
        axes.imshow(
            np.hstack([np.pad(a, [(0, 0), (0, 2), (0, 0)], constant_values=255) for a in shown])
        )
        axes.set_axis_off()
        axes.set_anchor("NW")
        more = f"  {len(shown)} of {len(mention.crops)}" if shown[3:] and mention.crops[4:] else ""
        style = {
            "facecolor": to_rgba(box_look(mention.number - 1)["color"], 0.45),
            "pad": 1.5,
            "lw": 0,
        }
        title = f"{mention.number} {mention.text}{more}"
        heading(axes, title, fontsize=8, family="monospace", bbox=style)
    if not crops:
        axes = figure.add_subplot(grid[0])
        axes.set_axis_off()
        heading(axes, "No crops", color=MUTED)
