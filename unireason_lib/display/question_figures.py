"""Questions beside their pictures, with what the answer rests on, and with what a model made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unireason_lib.boxes import Box, Box2D, Box3D, format_box
from unireason_lib.display.colors import ACTIVE, INK, MUTED, box_color, tint
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
from unireason_lib.display.replay import INJECTED
from unireason_lib.display.reply_figures import MAX_BOXES, chosen_slices, show_trace
from unireason_lib.display.sheet import (
    WIDTH,
    Run,
    Sheet,
    Span,
    columns_in,
    draw_runs,
    flow,
    height_inches,
)
from unireason_lib.errors import RequestError

SIZE, LINE = 9, 1.4
PICTURE = 1.75
"""Inches of a card that pictures take."""

TRUE, WRITTEN = 2, 8
"""Looks (see :func:`unireason_lib.display.colors.box_color`) of true boxes, and of those that a model wrote."""


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
            "show_questions",
            "at least one question, and a view for each",
            f"{len(questions)} questions, {len(views)} views, {columns} columns",
            "give both",
        )
    room = _card_width(columns) - PICTURE - 0.12
    return _sheet([_card(q, v, room) for q, v in zip(questions, views, strict=True)], columns)


def show_replies(
    lines: Sequence[Mapping[str, Any]], pictures: Sequence[Sequence[Any]], *, columns: int = 2
) -> Sheet:
    """Replies of an evaluation as cards: the true boxes (green) and the written ones (orange, dashed), and the answer.

    Of a volume, one slice is shown where true and written boxes lie, else up to four that they span.

    Args:
        lines: As :func:`unireason_lib.evaluation.run.line_of` makes them.
        pictures: For each line the pictures of its question, as the processor shows them to the model.
        columns: Cards a row.

    Raises:
        RequestError: No lines, another number of pictures, or a line without a reply.
    """
    wrong = [str(line.get("id")) for line in lines if not {"prediction", "boxes"} <= set(line)]
    if not lines or len(lines) != len(pictures) or columns < 1 or wrong:
        raise RequestError(
            "show_replies",
            "at least one line of an evaluation with a reply, and the pictures of each",
            f"{len(lines)} lines, {len(pictures)} times pictures, {columns} columns, no reply in {wrong[:3]}",
            "choose among the lines without error",
        )
    room = _card_width(columns) - PICTURE - 0.12
    return _sheet([_reply_card(a, b, room) for a, b in zip(lines, pictures, strict=True)], columns)


def _card_width(columns: int) -> float:
    return (WIDTH - 2 * MARGIN + 0.3) / columns - 0.3


def _sheet(cards: Sequence[_Card], columns: int) -> Sheet:
    width = _card_width(columns)
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
    """Pictures, the indices of those to show, looks and boxes, whether to number them, words, and the height."""

    pictures: Sequence[np.ndarray]
    shown: Sequence[int]
    boxes: Sequence[tuple[int, Box]]
    numbers: bool
    words: list[Run]
    height: float


def _make_card(
    pictures: Sequence[np.ndarray],
    boxes: Sequence[tuple[int, Box]],
    numbers: bool,
    words: list[Run],
) -> _Card:
    shown = _slices([box for _, box in boxes], len(pictures))
    tile, across = _tile(len(shown))
    ratio = pictures[0].shape[0] / pictures[0].shape[1]
    tall = math.ceil(len(shown) / across) * (tile * ratio + GAP) - GAP
    return _Card(
        pictures, shown, boxes, numbers, words, max(tall, height_inches(words, SIZE, LINE))
    )


def _card(question: Any, view: Any, room: float) -> _Card:
    boxes = [view.box(structure) for structure in question.evidence]
    pictures = pictures_of([view.frame.aligned(picture) for picture in view.images()])
    words = flow(_spans(question, room), columns_in(room, SIZE))
    return _make_card(pictures, list(enumerate(boxes)), len(boxes) > 1, words)


def _reply_card(line: Mapping[str, Any], pictures: Sequence[Any], room: float) -> _Card:
    true = [(TRUE, _box(box)) for _, box in line.get("truth_boxes", ())]
    written = [(WRITTEN, _box(box)) for box in line["boxes"][:MAX_BOXES]]
    words = flow(_reply_spans(line), columns_in(room, SIZE))
    return _make_card(pictures_of(pictures), true + written, False, words)


def _box(values: Sequence[float]) -> Box:
    return (Box2D if len(values) == 4 else Box3D)(*values)


def _reply_spans(line: Mapping[str, Any]) -> list[Span]:
    """Family, question, the right option in bold and the chosen one marked, and how well the boxes fit."""
    said, true = line["prediction"], line.get("truth")
    spans = [
        Span(str(line.get("family", "")), color=ACTIVE, bold=True),
        Span(f"\n{line['question']}"),
    ]
    for letter, option in line["options"].items():
        right = letter == true
        spans.append(Span(f"\n{letter}. {option}", color=INK if right else MUTED, bold=right))
        spans += [Span(" "), _chip("chosen", TRUE if right else WRITTEN)] if letter == said else []
    if not line["options"]:
        spans += [Span(f"\n{true}", bold=True), Span(f"\nsaid: {said}", color=MUTED)]
    elif said is None:
        spans.append(Span("\nno option chosen", color=MUTED))
    boxes = len(line["boxes"])
    which = "best IoU" if boxes > 1 else "IoU"
    fit = "" if line.get("iou_best") is None else f", {which} {line['iou_best']:.2f}"
    for name in dict.fromkeys(name for name, _ in line.get("truth_boxes", ())):
        spans += [Span("\n"), _chip(f"true: {name}", TRUE)]
    spans += [
        Span("\n"),
        _chip(f"written{fit}", WRITTEN) if boxes else Span("no box written", color=MUTED),
    ]
    return spans


def _chip(words: str, look: int) -> Span:
    return Span(words, fill=tint(box_color(look), 0.45), edge=box_color(look), whole=True)


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
            Span(
                tag, fill=tint(box_color(i), 0.45), edge=box_color(i) if fits else None, whole=fits
            )
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
        here = [(look, box) for look, box in card.boxes if lies_on(box, index)]
        several = len(card.pictures) > 1
        if card.numbers:
            label = (0.62 if tile > 1.2 else 0.5, 0.2) if several else (0, 0)
            draw_boxes(axes, dict(here), picture.shape, tile / picture.shape[1], label=label)
        else:
            for look, box in here:
                draw_box(axes, box, look, 2.0)
        if several:
            write_corner(axes, f"slice {index}", 8 if tile > 1.2 else 7)
    room = width - PICTURE - 0.12
    draw_runs(sheet, left + PICTURE + 0.12, top - 0.03, room, card.words, SIZE, LINE)


def show_record(record: Any, images: Sequence[Any], **options: Any) -> Sheet:
    """A record as the reply that a model should give: boxes drawn, crops beside them, the words below.

    Args:
        record: A :class:`unireason_lib.dataset.schema.Record`.
        images: Its pictures, before the processor, in the order of its image ids.
        **options: As for :func:`unireason_lib.display.show_trace`.
    """
    pointings = [
        {"text": format_box(box), "box": list(box.as_tuple()), "status": INJECTED}
        for box in record.boxes
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
