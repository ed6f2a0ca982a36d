"""Questions beside their pictures, with what the answer rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unireason_lib.boxes import Box, format_box
from unireason_lib.display.colors import ACTIVE, INK, MUTED, box_color, tint
from unireason_lib.display.figures import (
    GAP,
    MARGIN,
    draw_boxes,
    draw_picture,
    lies_on,
    pictures_of,
    write_corner,
)
from unireason_lib.display.replay import INJECTED
from unireason_lib.display.reply_figures import chosen_slices, show_trace
from unireason_lib.display.sheet import WIDTH, Run, Sheet, Span, columns_in, draw_runs, flow, height_inches
from unireason_lib.errors import RequestError, explain

SIZE, LINE = 9, 1.4
PICTURE = 1.75
"""Inches of a card that pictures take."""


def show_questions(questions: Sequence[Any], views: Sequence[Any], *, columns: int = 2) -> Sheet:
    """Questions as cards: the picture with the evidence in boxes, the question, and the right option in bold.

    Of a volume, one slice is shown where all boxes lie on one, else a slice for each box.

    Args:
        questions: Of :class:`unireason_lib.dataset.questions.Question`.
        views: For each question the :class:`unireason_lib.dataset.view.View` of its study. Boxes and pictures are in
            the pixels of its frame, as the model sees and writes them.
        columns: Cards a row.

    Raises:
        RequestError: No questions, or another number of views.
    """
    if not questions or len(questions) != len(views) or columns < 1:
        raise RequestError(
            explain(
                "show_questions",
                expected="at least one question, and a view for each",
                found=f"{len(questions)} questions, {len(views)} views, {columns} columns",
                do="give both",
            )
        )
    width = (WIDTH - 2 * MARGIN + 0.3) / columns - 0.3
    cards = [_card(q, v, width - PICTURE - 0.12) for q, v in zip(questions, views, strict=True)]
    rows = [cards[k : k + columns] for k in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + 0.2 for row in rows]
    sheet = Sheet(WIDTH, MARGIN + sum(heights))
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for k, card in enumerate(row):
            _draw_card(sheet, MARGIN + k * (width + 0.3), top, width, card)
        top += height
    return sheet


@dataclass(frozen=True)
class _Card:
    pictures: Sequence[np.ndarray]
    shown: Sequence[int]
    boxes: Sequence[Box]
    words: list[Run]
    height: float


def _card(question: Any, view: Any, room: float) -> _Card:
    boxes = [view.box(structure) for structure in question.evidence]
    pictures = pictures_of([view.frame.aligned(picture) for picture in view.images()])
    shown = _slices(boxes, len(pictures))
    words = flow(_spans(question, room), columns_in(room, SIZE))
    tile, across = _tile(len(shown))
    ratio = pictures[0].shape[0] / pictures[0].shape[1]
    tall = math.ceil(len(shown) / across) * (tile * ratio + GAP) - GAP
    return _Card(pictures, shown, boxes, words, max(tall, height_inches(words, SIZE, LINE)))


def _tile(count: int) -> tuple[float, int]:
    """Width of each of so many pictures in inches, and how many stand side by side."""
    if count <= 2:
        return (PICTURE, 1.3)[count - 1], 1
    return (PICTURE + GAP) / 2 - GAP, 2


def _slices(boxes: Sequence[Box], count: int) -> list[int]:
    common = [z for z in range(count) if all(lies_on(box, z) for box in boxes)]
    if common or count == 1:
        return [common[len(common) // 2] if common else 0]
    return chosen_slices(boxes, count, min(4, len(boxes)))


def _spans(question: Any, room: float) -> list[Span]:
    columns = columns_in(room, SIZE)
    spans = [Span(question.family, color=ACTIVE, bold=True), Span(f"\n{question.text}", color=INK)]
    for letter, option in question.options.items():
        right = letter == question.answer
        spans.append(Span(f"\n{letter}. {option}", color=INK if right else MUTED, bold=right))
    for i, structure in enumerate(question.evidence):
        tag = f"{i + 1} {structure.name}" if len(question.evidence) > 1 else structure.name
        fits = len(tag) <= columns - 2
        spans += [Span("\n")] if i == 0 or not fits else []
        spans.append(
            Span(tag, fill=tint(box_color(i), 0.45), edge=box_color(i) if fits else None, whole=fits)
        )
    if not question.evidence:
        spans.append(Span("\nnothing to point at", color=MUTED))
    return spans


def _draw_card(sheet: Sheet, left: float, top: float, width: float, card: _Card) -> None:
    tile, across = _tile(len(card.shown))
    height = tile * card.pictures[0].shape[0] / card.pictures[0].shape[1]
    for k, index in enumerate(card.shown):
        picture = card.pictures[index]
        x, y = left + k % across * (tile + GAP), top + k // across * (height + GAP)
        axes = draw_picture(sheet, x, y, tile, height, picture)
        here = {i: box for i, box in enumerate(card.boxes) if lies_on(box, index)}
        several = len(card.pictures) > 1
        label = (0.62 if tile > 1.2 else 0.5, 0.2) if several else (0, 0)
        scale = tile / picture.shape[1]
        draw_boxes(axes, here, picture.shape, scale, numbers=len(card.boxes) > 1, label=label)
        if several:
            write_corner(axes, f"slice {index}", 8 if tile > 1.2 else 7)
    room = width - PICTURE - 0.12
    draw_runs(sheet, left + PICTURE + 0.12, top - 0.03, room, card.words, SIZE, LINE)


def show_record(record: Any, images: Sequence[Any], **options: Any) -> Sheet:
    """A record as the reply that a model should give: boxes drawn, crops beside them, the words below.

    Args:
        record: A :class:`unireason_lib.dataset.records.Record`.
        images: Its pictures, before the processor, in the order of its image ids.
        **options: As for :func:`unireason_lib.display.show_trace`.
    """
    pointings = [
        {"text": format_box(box), "box": list(box.as_tuple()), "status": INJECTED} for box in record.boxes
    ]
    told = {
        "id": record.id,
        "dimension": record.dimension,
        "question": record.question,
        "options": dict(record.options),
        "text": record.reply,
        "choice": record.answer,
        "truth": record.answer,
        "pointings": pointings,
    }
    return show_trace(told, images, frame=record.frame, **options)
