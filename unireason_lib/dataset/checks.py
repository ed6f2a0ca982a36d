"""What every record must pass before it is written.

A wrong coordinate or a contradiction does more harm than a missing record. So each is checked alone
and against its study; what fails is kept in the configuration ``refused``, with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unireason_lib.answers import THINK_END, THINK_START, extract_choice
from unireason_lib.boxes import BOX_END, BOX_START, Box2D, scan_boxes
from unireason_lib.dataset.rationales import MAX_ROUNDS, STEERING
from unireason_lib.dataset.schema import Record, box_of
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import MAX_ASPECT, crop_rectangle, slice_range

if TYPE_CHECKING:
    from unireason_lib.dataset.questions import Question
    from unireason_lib.dataset.view import View

REASONS: Mapping[str, str] = {
    "options": "letters out of order, fewer than two options, two alike, or no right one",
    "control token": "question, option or reasoning has a token that steers the model",
    "answer leak": "the question contains the right option and no other",
    "format": "the reply is not <think>...</think>LETTER. option",
    "tags": "box tags that do not pair, or a box that cannot be read",
    "boxes": "the boxes in the text are not those of the evidence, in order",
    "rounds": f"more than {MAX_ROUNDS} boxes, or boxes of the wrong dimension",
    "crop": "a box outside of the image, or whose crop a processor would refuse",
    "contradiction": "the reasoning concludes with another option than the answer",
    "untrue box": "a box that no structure of that name has",
    "evidence": "a structure that answers the question has no box in the reasoning",
    "duplicate question": "the study has this question already",
    "duplicate id": "another study has this id",
    "unwritable": "the writer gave no usable reasoning",
    "unreadable": "the scan or its labels cannot be read",
}
"""Reason -> what it means."""

_CONCLUDES = re.compile(
    r"\b(?:answer|option|choice)\s+(?:is\s+|must be\s+|:\s*)?\(?([A-H])\b(?!\s*-)", re.I
)
Problem = tuple[str, str]
"""A reason, and what exactly was found."""


@dataclass(frozen=True)
class Refusal:
    """Something that was left out, as a row of ``refused``."""

    reason: str  # one of REASONS
    detail: str  # what exactly was found
    source: str
    study: str
    record: str = ""  # empty when a study is refused
    text: str = ""  # the reply


def check_truth(record: Record, view: View, question: Question) -> Problem | None:
    """The first box that is not, number by number, that of a structure of the stated name, or the
    first structure that the question is about and that no box refers to; None when all is true."""
    names, boxes = ({entry[k] for entry in record.evidence} for k in (0, 1))
    named = [structure for structure in view.study.structures if structure.name in names]
    true_boxes = {(structure.name, view.box(structure).as_tuple()) for structure in named}
    untrue = [
        f"{name} at {list(box)}" for name, box in record.evidence if (name, box) not in true_boxes
    ]
    missing = [s.name for s in question.evidence if view.box(s).as_tuple() not in boxes]
    if untrue:
        return "untrue box", untrue[0]
    return ("evidence", f"no box on {missing[0]}") if missing else None


def leaked(question: str, options: Mapping[str, str], answer: str) -> str | None:
    """What gives the answer away: the question has the right option's words and no other's."""

    def words(text: str) -> str:
        return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "

    contained = [k for k, option in options.items() if words(option) in words(question)]
    return f"the question contains {options[answer]!r}" if contained == [answer] else None


def check_record(record: Record) -> Problem | None:
    """The first problem that shows in the record alone, or None."""
    return next(_problems(record), None)


def _problems(record: Record) -> Iterator[Problem]:
    texts = {" ".join(text.casefold().split()) for text in record.options.values()}
    if record.answer not in record.options or len(texts) < max(2, len(record.options)):
        yield "options", f"answer {record.answer!r} of {dict(record.options)}"
        return
    try:
        user_text = record.user_text
    except RequestError as error:
        yield ("options" if str(error).startswith("options") else "control token"), str(error)
        return
    if control := STEERING.search(user_text):
        yield "control token", f"{control[0]} in the question"
    if leak := leaked(record.question, record.options, record.answer):
        yield "answer leak", leak
    thought, ending = record.reply.removeprefix(THINK_START), f"{THINK_END}{record.truth}"
    whole = thought != record.reply and thought.endswith(ending)
    thought = thought.removesuffix(ending)
    if not whole or THINK_START in thought or THINK_END in thought or not thought.strip():
        expected = f"{THINK_START}...{THINK_END}{record.truth}"
        yield "format", f"expected {expected}, found ...{record.reply[-60:]!r}"
        return
    yield from _thought_problems(record, thought)
    if record.image_size is not None and record.serialization.get("frame"):
        yield from _crop_problems(record)


def _thought_problems(record: Record, thought: str) -> Iterator[Problem]:
    scan = scan_boxes(thought)
    ends = [0, *(place for span in scan.spans for place in span), len(thought)]
    prose = " ".join(thought[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
    if scan.malformed or BOX_START in prose or BOX_END in prose:
        opened, closed = thought.count(BOX_START), thought.count(BOX_END)
        yield "tags", f"{opened} opened, {closed} closed, {scan.malformed} malformed"
    if control := STEERING.search(prose):
        yield "control token", f"{control[0]} in the reasoning"
    written = [box.as_tuple() for box in scan.boxes]
    evidence = [tuple(box) for _, box in record.evidence]
    if written != evidence:
        yield "boxes", f"text {written}, evidence {evidence}"
    flat = record.dimension == "2d"
    if len(evidence) > MAX_ROUNDS or any((len(box) == 4) != flat for box in evidence):
        yield "rounds", f"{len(evidence)} boxes in a {record.dimension} record"
    others = ({k.upper() for k in _CONCLUDES.findall(prose)} - {record.answer}) & {*record.options}
    if others or extract_choice(record.reply, record.options) != record.answer:
        concluded = ", ".join(sorted(others)) or "nothing"
        yield "contradiction", f"answer {record.answer}, the reasoning concludes {concluded}"


def _crop_problems(record: Record) -> Iterator[Problem]:
    height, width = record.frame.size(*record.image_size)
    depth = len(record.image_ids)
    for _, coordinates in record.evidence:
        box = box_of(coordinates)
        rectangle, inside = box, True
        if not isinstance(box, Box2D):
            inside = 0 <= box.z1 and box.z2 <= depth and len(slice_range(box, depth))
            rectangle = box.xy
        cut = crop_rectangle(rectangle, width, height)
        if cut is None or rectangle.clip(width, height) != rectangle or not inside:
            yield "crop", f"{list(coordinates)} in {width} x {height} x {depth}"
        elif max(cut.width, cut.height) > MAX_ASPECT * min(cut.width, cut.height):
            yield "crop", f"{list(coordinates)} is too long and thin"
