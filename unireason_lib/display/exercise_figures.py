"""Exercises of the tiny base as cards: the pictures, what is asked, and the reply that is taught."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unireason_lib.boxes import Box
from unireason_lib.display import replay
from unireason_lib.display.colors import ACTIVE, MUTED
from unireason_lib.display.figures import (
    GAP,
    MARGIN,
    draw_boxes,
    draw_picture,
    pictures_of,
    write_corner,
)
from unireason_lib.display.reply_figures import reply_spans
from unireason_lib.display.sheet import (
    WIDTH,
    Run,
    Sheet,
    Span,
    columns_in,
    draw_runs,
    flow,
    height_inches,
    limit_rows,
)
from unireason_lib.errors import RequestError

SIZE, LINE = 8, 1.45
PICTURES = 1.75
"""Inches of a card that pictures take."""
MOST_LINES = 22


@dataclass(frozen=True)
class _Card:
    pictures: Sequence[np.ndarray]
    boxes: Sequence[dict[int, Box]]
    words: list[Run]
    height: float


def show_exercises(
    exercises: Sequence[Any], titles: Sequence[str] | None = None, *, columns: int = 2
) -> Sheet:
    """Exercises as cards, side by side.

    Boxes are drawn on the picture that is named by number before them ("Picture 3, ..."), else on the first one.

    Args:
        exercises: Anything with ``name`` and two ``messages`` in chat form, the user's and the reply, pictures as PIL
            images (:class:`unireason_lib.training.base.tasks.Exercise`).
        titles: A heading for each; default: its name.
        columns: Cards a row.

    Raises:
        RequestError: No exercises, or another number of titles.
    """
    titles = [one.name for one in exercises] if titles is None else list(titles)
    if not exercises or len(titles) != len(exercises) or columns < 1:
        raise RequestError(
            "show_exercises",
            "at least one exercise, a title for each, a column",
            f"{len(exercises)} exercises, {len(titles)} titles, {columns} columns",
            "give both",
        )
    width = (WIDTH - 2 * MARGIN + 0.3) / columns - 0.3
    cards = [_card(one, title, width) for one, title in zip(exercises, titles, strict=True)]
    rows = [cards[k : k + columns] for k in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + 0.24 for row in rows]
    sheet = Sheet(WIDTH, MARGIN + sum(heights))
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for k, card in enumerate(row):
            _draw(sheet, MARGIN + k * (width + 0.3), top, width, card)
        top += height
    return sheet


def _card(one: Any, title: str, width: float) -> _Card:
    asked, reply = one.messages[0]["content"], one.messages[1]["content"]
    pictures = (
        pictures_of(shown) if (shown := [p["image"] for p in asked if p["type"] == "image"]) else []
    )
    question = "".join(part["text"] for part in asked if part["type"] == "text")
    both = [
        replay.from_trace({"text": text})
        for text in (question, "".join(part["text"] for part in reply))
    ]
    boxes: list[dict[int, Box]] = [{} for _ in pictures]
    for told in both if pictures else []:
        for mark in told.marks:
            named = re.findall(r"[Pp]icture (\d+)", told.text[: mark.start])
            at = int(named[-1]) - 1 if named else 0
            boxes[min(at, len(pictures) - 1)] |= (
                {} if mark.box is None else {mark.number - 1: mark.box}
            )
    spans = [Span(f"{title}\n", color=ACTIVE, bold=True), *reply_spans(both[0])]
    spans += [Span("\nreply\n", color=MUTED), *reply_spans(both[1])]
    room = width - (PICTURES + 0.12 if pictures else 0)
    words = limit_rows(flow(spans, columns_in(room, SIZE)), MOST_LINES)
    tile, across = _tile(len(pictures))
    tall = max((_ratio(pictures) * tile + GAP) * math.ceil(len(pictures) / across) - GAP, 0)
    return _Card(pictures, boxes, words, max(tall, height_inches(words, SIZE, LINE)))


def _ratio(pictures: Sequence[np.ndarray]) -> float:
    return max((p.shape[0] / p.shape[1] for p in pictures), default=0)


def _tile(count: int) -> tuple[float, int]:
    """Width of each of so many pictures in inches, and how many stand side by side."""
    across = 1 if count <= 1 else 2 if count <= 4 else 3
    return (PICTURES + GAP) / across - GAP, across


def _draw(sheet: Sheet, left: float, top: float, width: float, card: _Card) -> None:
    tile, across = _tile(len(card.pictures))
    height = tile * _ratio(card.pictures)
    for k, (picture, here) in enumerate(zip(card.pictures, card.boxes, strict=True)):
        x, y = left + k % across * (tile + GAP), top + k // across * (height + GAP)
        axes = draw_picture(sheet, x, y, tile, height, picture)
        scale = min(tile / picture.shape[1], height / picture.shape[0])
        several = len(card.pictures) > 1
        draw_boxes(
            axes,
            here,
            picture.shape,
            scale,
            numbers=tile > 1,
            label=(0.15, 0.17) if several else (0, 0),
        )
        if several:
            write_corner(axes, str(k + 1), 7)
    shift = PICTURES + 0.12 if card.pictures else 0
    draw_runs(sheet, left + shift, top - 0.03, width - shift, card.words, SIZE, LINE)
