"""A whole grounded reply as one figure: where it pointed, what it got back, what it wrote.

Boxes of a reply are in the pixels of the pictures *as the processor shows them*
(:class:`unireason_lib.imaging.frame.ProcessorFrame`). The crops that it fetched were cut from those very pictures,
so a reply that is drawn on other ones is noticed and refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from unireason_lib.boxes import Box, Box3D
from unireason_lib.display import replay
from unireason_lib.display.colors import ACTIVE, INK, MUTED, OWNERS, box_color, tint
from unireason_lib.display.figures import (
    GAP,
    MARGIN,
    draw_box,
    draw_boxes,
    draw_picture,
    lies_on,
    pictures_of,
    write_corner,
)
from unireason_lib.display.sheet import (
    MONO,
    WIDTH,
    Sheet,
    Span,
    columns_in,
    draw_runs,
    flow,
    height_inches,
    limit_rows,
)
from unireason_lib.display.tokens import BAR_HEIGHT, chip_spans, draw_bar, token_chips

MAX_BOXES = 30
"""Boxes of one reply that are drawn; a model that writes more is not pointing any more."""


def show_trace(
    trace: Any, images: Any = None, *, frame: Any = None, max_slices: int = 8, max_lines: int = 40
) -> Sheet:
    """A whole reply in one picture: where it pointed, what it got back, and what it wrote.

    Args:
        trace: A :class:`unireason_lib.grounding.Trace`, or a line of a results file as a dictionary.
        images: Its pictures as the processor shows them to the model.
        frame: The :class:`unireason_lib.imaging.ProcessorFrame` of the model; then ``images`` are the original pictures
            (by default those of the request), and are shown to the reader as they were to the model.
        max_slices: Of a volume, show at most so many slices: those that the boxes span come first.
        max_lines: Longest text.

    Raises:
        RequestError: The pictures are not those from which the reply's crops were cut.
    """
    told = replay.from_trace(trace)
    aligned = replay.aligned_pictures(trace, told, images, frame)
    told, pictures = replay.with_crops(told, aligned), pictures_of(aligned)
    boxes = _visible(told, pictures)
    left_width = 0.58 * (WIDTH - 2 * MARGIN)
    right, right_width = MARGIN + left_width + 0.25, WIDTH - 2 * MARGIN - left_width - 0.25
    tiles, left_height = _tiles(
        pictures, list(boxes.values()), told.dimension, left_width, max_slices
    )
    crops, right_height = _crop_places(told, right_width, left_height)

    size = 9
    columns = columns_in(WIDTH - 2 * MARGIN, size)
    question = flow(_question_spans(told), columns)
    reply = limit_rows(flow(reply_spans(told), columns), max_lines)
    top = MARGIN
    body = top + height_inches(question, size) + 0.14
    below = body + max(left_height, right_height) + 0.14
    foot = below + 0.2 + height_inches(reply, size) + 0.1
    sheet = Sheet(WIDTH, foot + 0.2 + MARGIN)
    draw_runs(sheet, MARGIN, top, WIDTH - 2 * MARGIN, question, size)
    _draw_tiles(sheet, MARGIN, body, tiles, pictures, boxes)
    _draw_crops(sheet, right, body, crops)
    sheet.write(MARGIN, below, "REPLY", 7.5, color=MUTED, fontweight="bold")
    draw_runs(sheet, MARGIN, below + 0.2, WIDTH - 2 * MARGIN, reply, size)
    sheet.write(MARGIN, foot, told.summary(), 8, color=MUTED)
    return sheet


def hero_figure(
    trace: Any, images: Any, tokenizer: Any, *, title: str | None = None, frame: Any = None
) -> Sheet:
    """The project in one picture: scan with box, the region that came back, the reply, and who wrote each token.

    Args:
        trace, images, frame: See :func:`show_trace`.
        tokenizer: Turns token ids into words.
        title: A heading.
    """
    told = replay.from_trace(trace)
    pictures = pictures_of(replay.aligned_pictures(trace, told, images, frame))
    boxes = _visible(told, pictures)
    full, ratio = WIDTH - 2 * MARGIN, pictures[0].shape[0] / pictures[0].shape[1]
    main = _busiest(list(boxes.values()), len(pictures))
    film = _film(list(boxes.values()), len(pictures))
    side, middle_width = min(3.0, 4.2 / ratio), 2.1
    middle = MARGIN + side + 0.3
    right = middle + middle_width + 0.3
    right_width = WIDTH - MARGIN - right

    size, chip_size, line = 9, 8, 1.8
    question = flow(_question_spans(told), columns_in(right_width, size))
    reply = limit_rows(flow(reply_spans(told), columns_in(right_width, size)), 24)
    crops, crops_height = _crop_places(told, middle_width, side * ratio)
    words_height = height_inches(question, size) + 0.2 + height_inches(reply, size)
    chips = flow(chip_spans(token_chips(trace, tokenizer, 30, 90)), columns_in(full, chip_size))
    film_width = (full + GAP) / FILM - GAP

    head = MARGIN + (0.42 if title else 0)
    body = head + (0.26 + film_width * ratio + 0.15 if film else 0)
    below = body + 0.26 + max(side * ratio, crops_height, words_height) + 0.12
    sheet = Sheet(WIDTH, below + BAR_HEIGHT + 0.1 + height_inches(chips, chip_size, line) + MARGIN)
    if title:
        sheet.write(MARGIN, MARGIN, title, 13, fontweight="bold")
    steps = [(MARGIN, head, f"It reads the volume as {len(pictures)} slices")] if film else []
    steps.append((MARGIN, body, f"It points (slice {main})" if film else "It points"))
    steps += [(middle, body, "It looks again"), (right, body, "It answers")]
    for number, (left, top, words) in enumerate(steps, start=1):
        sheet.write(left, top, f"{number}  {words}", 9.5, fontweight="bold", color=ACTIVE)
    for k, index in enumerate(film):
        left = MARGIN + k * (film_width + GAP)
        axes = draw_picture(
            sheet, left, head + 0.26, film_width, film_width * ratio, pictures[index]
        )
        for i, box in boxes.items():
            if lies_on(box, index):
                draw_box(axes, box, i)
        write_corner(axes, str(index), 7)
    top = body + 0.26
    axes = draw_picture(sheet, MARGIN, top, side, side * ratio, pictures[main])
    here = {i: box for i, box in boxes.items() if lies_on(box, main)}
    draw_boxes(axes, here, pictures[main].shape, side / pictures[main].shape[1])
    _draw_crops(sheet, middle, top, crops)
    used = draw_runs(sheet, right, top, right_width, question, size)
    draw_runs(sheet, right, top + used + 0.2, right_width, reply, size)
    draw_bar(sheet, MARGIN, below, full, trace)
    draw_runs(sheet, MARGIN, below + BAR_HEIGHT + 0.1, full, chips, chip_size, line)
    return sheet


FILM = 10
"""Slices in the strip of film."""


def _film(boxes: Sequence[Box], count: int) -> list[int]:
    """Slices for the strip: those that boxes span, and others from the whole volume; none for a single picture."""
    if count == 1:
        return []
    chosen = chosen_slices(boxes, count, FILM)
    others = [z for z in inside_out(list(range(count))) if z not in chosen]
    return sorted(chosen + others[: FILM - len(chosen)])


@dataclass(frozen=True)
class _Tile:
    """Where one picture of a reply is drawn: its index, and place and width in inches below and right of a corner."""

    index: int
    left: float
    top: float
    width: float


def _visible(told: replay.Reply, pictures: Sequence[np.ndarray]) -> dict[int, Box]:
    """The boxes that overlap the pictures, by their index; of very many the first ones."""
    height, width = pictures[0].shape[:2]
    boxes = {
        mark.number - 1: mark.box
        for mark in told.marks
        if mark.box is not None and mark.number <= MAX_BOXES
    }
    return {
        i: box
        for i, box in boxes.items()
        if not (box.xy if isinstance(box, Box3D) else box).clip(width, height).is_empty
        and any(lies_on(box, z) for z in range(len(pictures)))
    }


def chosen_slices(boxes: Sequence[Box], count: int, limit: int) -> list[int]:
    """Which of ``count`` slices to show: those that cuboids span, the middles first; without cuboids an even choice."""
    spans = [
        inside_out([z for z in range(count) if lies_on(box, z)])
        for box in boxes
        if isinstance(box, Box3D)
    ]
    turns = [z for turn in zip_longest(*spans) for z in turn if z is not None]
    if not turns:
        turns = [round(k * (count - 1) / max(1, limit - 1)) for k in range(limit)]
    return sorted(list(dict.fromkeys(turns))[:limit])


def inside_out(items: list[int]) -> list[int]:
    """The middle, then the middles of both halves, and so on: every beginning of the list is spread evenly."""
    order, halves = [], [items]
    while halves:
        half, *halves = halves
        if half:
            middle = len(half) // 2
            order.append(half[middle])
            halves += [half[:middle], half[middle + 1 :]]
    return order


def _busiest(boxes: Sequence[Box], count: int) -> int:
    """The slice on which most boxes lie, nearest to the middle of the first; the middle one without any."""
    hits = [sum(lies_on(box, i) for box in boxes) for i in range(count)]
    first = next((box for box in boxes if isinstance(box, Box3D)), None)
    middle = (first.z1 + first.z2 - 1) / 2 if first else (count - 1) / 2
    return max(range(count), key=lambda i: (hits[i], -abs(i - middle)))


def _tiles(
    pictures: Sequence[np.ndarray], boxes: Sequence[Box], dimension: str, width: float, limit: int
) -> tuple[list[_Tile], float]:
    shown = (
        chosen_slices(boxes, len(pictures), limit)
        if dimension == "3d"
        else list(range(min(limit, len(pictures))))
    )
    columns = min(
        len(shown), 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3 if len(shown) <= 6 else 4
    )
    tile = (width + GAP) / columns - GAP
    ratio = max(pictures[i].shape[0] / pictures[i].shape[1] for i in shown)
    if columns == 1:
        tile = min(tile, 4.6, 4.6 / ratio)
    tiles = [
        _Tile(index, k % columns * (tile + GAP), k // columns * (tile * ratio + GAP), tile)
        for k, index in enumerate(shown)
    ]
    return tiles, tiles[-1].top + tile * ratio


def _draw_tiles(
    sheet: Sheet,
    left: float,
    top: float,
    tiles: Sequence[_Tile],
    pictures: Sequence[np.ndarray],
    boxes: Mapping[int, Box],
) -> None:
    for tile in tiles:
        picture = pictures[tile.index]
        scale = tile.width / picture.shape[1]
        axes = draw_picture(
            sheet, left + tile.left, top + tile.top, tile.width, picture.shape[0] * scale, picture
        )
        here = {i: box for i, box in boxes.items() if lies_on(box, tile.index)}
        draw_boxes(
            axes, here, picture.shape, scale, label=(0.6, 0.2) if len(pictures) > 1 else (0, 0)
        )
        if len(pictures) > 1:
            write_corner(axes, f"slice {tile.index}", 8)


@dataclass(frozen=True)
class _CropPlace:
    """One piece of the column of crops: a picture, or words when ``picture`` is None."""

    left: float
    top: float
    width: float
    height: float
    picture: np.ndarray | None = None
    words: str = ""
    number: int = 0


MAX_CROPS = 10
"""Boxes whose crops are shown; the paper's limit of rounds."""

THUMBS = (2.0, 1.6, 1.3, 1.1, 0.9, 0.75, 0.6, 0.5)
"""Heights of crops in inches, from which the largest that fits is taken."""


def _crop_places(told: replay.Reply, width: float, room: float) -> tuple[list[_CropPlace], float]:
    """For every box a line with its number and what became of it, and its crops below.

    Args:
        width: Of the column, in inches.
        room: The height that it may take; a reply with many boxes takes more.

    Returns:
        What to draw, and the height used.
    """
    numbered = [mark for mark in told.marks if mark.number]
    for thumb in THUMBS:
        places, top, complete = _crop_column(numbered[:MAX_CROPS], width, thumb, rows=8)
        if complete and top <= room:
            break
    else:
        places, top, _ = _crop_column(
            numbered[:MAX_CROPS], width, 0.75 if len(numbered) <= 4 else 0.5, rows=1
        )
    if len(numbered) > MAX_CROPS:
        places.append(
            _CropPlace(0, top, width, 0.2, words=f"… and {len(numbered) - MAX_CROPS} more boxes")
        )
        top += 0.25
    return places, top


def _crop_column(
    marks: Sequence[replay.Mark], width: float, thumb: float, rows: int
) -> tuple[list[_CropPlace], float, bool]:
    """The column with crops of one height, in at most so many rows a box, and whether all crops found room."""
    places: list[_CropPlace] = []
    top, complete = 0.0, True
    for mark in marks:
        words = f"[{','.join(str(v) for v in mark.box.as_tuple())}]"
        places.append(
            _CropPlace(0, top, width, 0.2, words=f"{words}{mark.fate}", number=mark.number)
        )
        top += 0.25
        if not mark.crops:
            continue
        pictures = pictures_of(mark.crops)
        shape = pictures[0].shape
        several = min(4, len(pictures)) if rows == 1 else 1
        h = min(thumb, (width - 0.3 * (several > 1)) / several * shape[0] / shape[1])
        w = max(h * shape[1] / shape[0], 0.03)
        fits = rows * max(1, int((width + 0.05) / (w + 0.05)))
        if fits < len(pictures):
            complete = False
            fits = rows * max(1, int((width - 0.3) / (w + 0.05)))
        columns = max(1, fits // rows)
        shown = sorted(inside_out(list(range(len(pictures))))[:fits])
        for k, index in enumerate(shown):
            x, y = k % columns * (w + 0.05), top + k // columns * (h + 0.05)
            places.append(_CropPlace(x, y, w, h, picture=pictures[index]))
        if len(shown) < len(pictures):
            places.append(
                _CropPlace(
                    columns * (w + 0.05), top, 0.3, 0.2, words=f"+{len(pictures) - len(shown)}"
                )
            )
        top += math.ceil(len(shown) / columns) * (h + 0.05) + 0.08
    return places, top, complete


def _draw_crops(sheet: Sheet, left: float, top: float, places: Sequence[_CropPlace]) -> None:
    for place in places:
        x, y = left + place.left, top + place.top
        if place.picture is not None:
            axes = draw_picture(sheet, x, y, place.width, place.height, place.picture)
            axes.add_patch(
                Rectangle(
                    (0, 0),
                    1,
                    1,
                    transform=axes.transAxes,
                    fill=False,
                    ec=OWNERS["injected"].edge,
                    lw=1.2,
                )
            )
        elif place.number:
            tag = sheet.place(x, y, 0.2, 0.18, bare=False)
            tag.set(xticks=[], yticks=[], facecolor=box_color(place.number - 1))
            tag.text(
                0.5,
                0.45,
                str(place.number),
                fontsize=8,
                fontweight="bold",
                ha="center",
                va="center_baseline",
            )
            sheet.write(x + 0.27, y + 0.015, place.words, 8, family=MONO)
        else:
            sheet.write(x, y + 0.02, place.words, 8, color=MUTED)


def _question_spans(told: replay.Reply) -> list[Span]:
    spans = [Span(told.question or "(no question)", bold=True)]
    for letter, option in told.options.items():
        spans.append(Span(f"\n{letter}. {option}", color=INK if letter == told.choice else MUTED))
    return spans


def reply_spans(told: replay.Reply) -> list[Span]:
    """The words of a reply, its boxes in the colours in which they are drawn, and a note where crops were put in."""
    spans = []
    for piece in told.pieces():
        if isinstance(piece, str):
            spans.append(Span(piece))
        elif not piece.number:
            spans.append(
                Span(f"{piece.short} malformed", color=MUTED, edge=MUTED, fill="white", whole=True)
            )
        else:
            color = box_color(piece.number - 1)
            spans.append(
                Span(
                    f"{piece.number} {piece.short}", fill=tint(color, 0.45), edge=color, whole=True
                )
            )
            if piece.crops:
                look, count = OWNERS["injected"], len(piece.crops)
                spans.append(
                    Span(f"+{count} crop{'s' * (count > 1)}", look.fill, look.edge, whole=True)
                )
            elif piece.status:
                spans.append(Span(piece.status, color=MUTED, fill="white", edge=MUTED, whole=True))
    return spans
