"""What every record must pass before it is written.

A wrong coordinate, an answer that the reasoning contradicts or a question that gives its answer away does
more harm than a missing record, so each record is checked on its own (:func:`check_record`, which also works
on records read back from a data set) and against the study it speaks of (:func:`check_truth`). What fails is
refused with a reason, and refusals are counted and kept in a file, never dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unireason_lib.answers import THINK_END, THINK_START, extract_choice
from unireason_lib.boxes import BOX_END, BOX_START, Box, Box2D, scan_boxes
from unireason_lib.dataset.records import MAX_POINTINGS, Record, box_of
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import MAX_ASPECT, crop_rectangle, slice_range

if TYPE_CHECKING:
    from unireason_lib.dataset.questions import Question
    from unireason_lib.dataset.view import View

REASONS: Mapping[str, str] = {
    "options": "letters out of order, fewer than two options, two that say the same, or no right one among them",
    "control token": "question, option or reasoning contains a token that steers the model",
    "answer leak": "the question contains the right option and no other",
    "form": "the reply is not <think>...</think>LETTER. option",
    "tags": "box tags that do not pair, or a box that cannot be read",
    "boxes": "the boxes in the text are not those of the evidence, in order",
    "pointings": f"more than {MAX_POINTINGS} boxes, or of the wrong dimension",
    "crop": "a box outside of the picture, or whose crop a processor would refuse",
    "contradiction": "the reasoning concludes with another option than the answer",
    "untrue box": "a box that no structure of that name has",
    "evidence": "a structure that answers the question is not pointed at",
    "duplicate question": "the study has this question already",
    "duplicate id": "another study has this id",
    "unwritable": "the writer gave no usable reasoning",
    "unreadable": "the scan or its labels cannot be read",
}
"""Reason -> what it means."""

_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?think>|<image>|<video>")
_CONCLUDES = re.compile(r"\b(?:answer|option|choice)\s+(?:is\s+|must be\s+|:\s*)?\(?([A-H])\b(?!\s*-)", re.I)


@dataclass(frozen=True)
class Refusal:
    """Something that was left out, and why.

    Attributes:
        reason: One of :data:`REASONS`.
        detail: What exactly was found.
        study: Id of the study, or the place of an unreadable one in its source.
        record: Id of the record; empty when a whole study is refused.
        source: Name of the source.
        text: The reply in question, to look into; may be empty.
    """

    reason: str
    detail: str
    study: str
    record: str = ""
    source: str = ""
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For one line of JSON, empty fields left out."""
        return {name: value for name, value in asdict(self).items() if value}


def refuse(record: Record, found: tuple[str, str]) -> Refusal:
    """A refusal of one record."""
    return Refusal(*found, study=record.study, record=record.id, source=record.source, text=record.reply)


def check_record(record: Record) -> tuple[str, str] | None:
    """Everything that can be checked from the record alone.

    Returns:
        ``(reason, detail)`` of the first problem, or None.
    """
    return next(_problems(record), None)


def check_truth(record: Record, view: View, question: Question) -> tuple[str, str] | None:
    """Whether a record points at what is really there: each box is, number by number, that of a structure of
    the stated name (or the region searched), and every structure that the question is about is pointed at.

    Returns:
        ``(reason, detail)`` of the first problem, or None.
    """
    by_name: dict[str, set[tuple]] = {}
    names = {name for name, _ in record.evidence}
    for structure in view.study.structures:
        if structure.name in names:
            by_name.setdefault(structure.name, set()).add(view.box(structure).as_tuple())
    search = getattr(question, "search", None)
    searched = None if search is None else view.box(search).as_tuple()
    for name, box in record.evidence:
        if box not in by_name.get(name, ()) and box != searched:
            return "untrue box", f"{name} at {list(box)}"
    pointed = {box for _, box in record.evidence}
    for structure in question.evidence:
        if view.box(structure).as_tuple() not in pointed:
            return "evidence", f"{structure.name} is not pointed at"
    return None


def check_all(records: Iterable[Record]) -> tuple[list[Record], list[Refusal]]:
    """Sort records, for instance those of a set made elsewhere, into good ones and refusals."""
    good, refused = [], []
    for record in records:
        found = check_record(record)
        if found is None:
            good.append(record)
        else:
            refused.append(refuse(record, found))
    return good, refused


def _problems(record: Record) -> Iterator[tuple[str, str]]:
    texts = [" ".join(text.casefold().split()) for text in record.options.values()]
    if record.answer not in record.options or len(set(texts)) < max(2, len(texts)):
        yield "options", f"answer {record.answer!r} of {dict(record.options)}"
        return
    try:
        user_text = record.user_text
    except RequestError as error:
        yield ("options" if str(error).startswith("options") else "control token"), str(error)
        return
    if found := _CONTROL.search(user_text):
        yield "control token", f"{found[0]} in the question"
    if leak := leaked(record.question, record.options, record.answer):
        yield "answer leak", leak
    yield from _reply_problems(record)


def leaked(question: str, options: Mapping[str, str], answer: str) -> str | None:
    """The right option's words, when the question contains them and those of no other option."""
    said = f" {_words(question)} "
    told = [letter for letter, text in options.items() if _words(text) and f" {_words(text)} " in said]
    return f"the question says {options[answer]!r}" if told == [answer] else None


def _reply_problems(record: Record) -> Iterator[tuple[str, str]]:
    thought = thought_of(record)
    if thought is None:
        yield "form", f"expected {THINK_START}...{THINK_END}{record.truth}, found ...{record.reply[-60:]!r}"
        return
    scan = scan_boxes(thought)
    outside = _without(thought, scan.spans)
    if scan.malformed or BOX_START in outside or BOX_END in outside:
        yield (
            "tags",
            f"{thought.count(BOX_START)} opened, {thought.count(BOX_END)} closed, {scan.malformed} malformed",
        )
    if found := _CONTROL.search(outside):
        yield "control token", f"{found[0]} in the reasoning"
    if [box.as_tuple() for box in scan.boxes] != [tuple(box) for _, box in record.evidence]:
        yield (
            "boxes",
            f"text {[list(b.as_tuple()) for b in scan.boxes]}, evidence {[list(b) for _, b in record.evidence]}",
        )
    yield from _crop_problems(record, [box_of(box) for _, box in record.evidence])
    others = {letter.upper() for letter in _CONCLUDES.findall(outside)} - {record.answer}
    if others & set(record.options) or extract_choice(record.reply, record.options) != record.answer:
        yield (
            "contradiction",
            f"answer {record.answer}, the reasoning says {', '.join(sorted(others)) or 'nothing'}",
        )


def _crop_problems(record: Record, boxes: list[Box]) -> Iterator[tuple[str, str]]:
    flat = record.dimension == "2d"
    if len(boxes) > MAX_POINTINGS or any(isinstance(box, Box2D) != flat for box in boxes):
        yield "pointings", f"{len(boxes)} boxes in a {record.dimension} record"
        return
    if record.picture_size is None or "frame" not in record.serialization:
        return
    height, width = record.frame.size(*record.picture_size)
    for box in boxes:
        rectangle = box if flat else box.xy
        cut = crop_rectangle(rectangle, width, height)
        slices = slice_range(box, len(record.image_ids))
        deep = flat or (0 <= box.z1 and box.z2 <= len(record.image_ids))
        if cut is None or rectangle.clip(width, height) != rectangle or not len(slices) or not deep:
            yield "crop", f"{list(box.as_tuple())} in {width} x {height} x {len(record.image_ids)}"
        elif max(cut.width, cut.height) > MAX_ASPECT * min(cut.width, cut.height):
            yield "crop", f"{list(box.as_tuple())} is too long and thin"


def thought_of(record: Record) -> str | None:
    """What stands between ``<think>`` and ``</think>``; None when the reply has another form than it should."""
    ending = f"{THINK_END}{record.truth}"
    if not record.reply.startswith(THINK_START) or not record.reply.endswith(ending):
        return None
    thought = record.reply[len(THINK_START) : -len(ending)]
    return None if THINK_START in thought or THINK_END in thought or not thought.strip() else thought


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts, start = [], 0
    for low, high in spans:
        parts.append(text[start:low])
        start = high
    return " ".join([*parts, text[start:]])


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
